"""From a snapshot to token rows and pairs of row numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlhf.core.chat import ChatCodec
from rlhf.core.errors import DataError
from rlhf.core.files import read_numbered
from rlhf.core.records import Preference, Split, content_id
from rlhf.core.splits import split_of

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Pair:
    """One comparison: row numbers of the two completions, and what was said about them."""

    chosen: int
    rejected: int
    preference: Preference

    @property
    def group_id(self) -> str:
        return self.preference.group_id


@dataclass
class PairData:
    """rows: token ids of every distinct prompt + completion; pairs by split; how many were too long."""

    rows: list[list[int]] = field(default_factory=list)
    pairs: dict[Split, list[Pair]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    num_too_long: int = 0


def load_preferences(source: Path, seed: int) -> Iterator[tuple[Split, str, Preference]]:
    """(split, 'file:line', preference) from a snapshot directory, or from one JSONL split by prompt group."""
    if source.is_dir():
        missing = [f"{split}.jsonl" for split in SPLITS if not (source / f"{split}.jsonl").is_file()]
        if missing:
            raise DataError(f"{source}: no {missing[0]}; expected a snapshot of `rlhf export`")
        for split in SPLITS:
            path = source / f"{split}.jsonl"
            if path.stat().st_size:
                for line, preference in read_numbered(path, Preference):
                    yield split, f"{path}:{line}", preference
    else:
        for line, preference in read_numbered(source, Preference):
            yield split_of(preference.group_id, seed), f"{source}:{line}", preference


def load_pairs(
    source: Path, codec: ChatCodec, *, max_tokens: int, drop_too_long: bool, seed: int
) -> PairData:
    """Tokenise a snapshot. Raises DataError for a comparison that is too long (unless dropped) or for a
    snapshot without comparisons to train on or to test on."""
    data = PairData()
    index: dict[str, int] = {}
    for split, where, preference in load_preferences(source, seed):
        try:
            prompt_ids = codec.prompt_ids(preference.prompt)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        both = []
        for messages in (preference.chosen, preference.rejected):
            if len(messages) != 1 or messages[0].role != "assistant":
                raise DataError(f"{where}: chosen and rejected must be one assistant message each")
            both.append([*prompt_ids, *codec.completion_ids(messages[0].content)])
        longest = max(len(row) for row in both)
        if longest > max_tokens:
            if not drop_too_long:
                raise DataError(
                    f"{where}: prompt and completion have {longest} tokens; expected at most {max_tokens} "
                    "(--on-too-long drop leaves such rows out)"
                )
            data.num_too_long += 1
            continue
        chosen, rejected = (_row_number(row, data.rows, index) for row in both)
        data.pairs[split].append(Pair(chosen, rejected, preference))
    for split in SPLITS:
        if not data.pairs[split]:
            raise DataError(
                f"{source}: no comparison in the {split} split ({data.num_too_long} were too long); "
                "expected some in each of train, validation and test: collect more ratings"
            )
    return data


@dataclass(frozen=True)
class Example:
    """All that raters said about two completions, as one training example.

    target: P(first beats second), the raters' weighted mean; weight: the sum of their weights; margin: what
    the difference has to exceed, signed in favour of the first.
    """

    first: int
    second: int
    target: float
    weight: float
    margin: float


def merge_ratings(
    pairs: Sequence[Pair], *, use_weights: bool, label_smoothing: float, margin_scale: float
) -> list[Example]:
    """One example per two completions and margin. Cross-entropy is linear in its target, so the total loss is
    that of the single ratings while each completion goes through the model once instead of once a rater."""
    sums: dict[tuple[int, int, float], list[float]] = {}
    for pair in pairs:
        first, second = sorted((pair.chosen, pair.rejected))
        sign = 1.0 if pair.chosen == first else -1.0
        preference = pair.preference
        win = 0.5 if preference.tie else 0.5 + sign * (0.5 - label_smoothing)
        weight = preference.weight if use_weights else 1.0
        total = sums.setdefault((first, second, sign * margin_scale * preference.margin), [0.0, 0.0])
        total[0] += weight * win
        total[1] += weight
    return [
        Example(first, second, wins / weight, weight, margin)
        for (first, second, margin), (wins, weight) in sums.items()
    ]


def _row_number(row: list[int], rows: list[list[int]], index: dict[str, int]) -> int:
    """The place of `row` in `rows`; equal rows (one completion in several comparisons) share one."""
    key = content_id("row", row)
    if key not in index:
        index[key] = len(rows)
        rows.append(row)
    return index[key]


def without_ties(pairs: Sequence[Pair]) -> list[Pair]:
    return [pair for pair in pairs if not pair.preference.tie]
