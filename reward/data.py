"""From a snapshot to token rows, and what was said about them by row number.

A prompt and everything like it stay in one split: prompt groups that are near-duplicates of each other form a family,
and the family goes where its first group (by id) belongs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from reward.config import RewardConfig
from reward.rows import RankingRow, ScoresRow, ThumbRow, Turns
from rlhf.core.chat import ChatCodec
from rlhf.core.errors import DataError
from rlhf.core.files import read_numbered
from rlhf.core.near_duplicates import near_duplicate_groups
from rlhf.core.records import Preference, Split, content_id
from rlhf.core.splits import split_of

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
# Which prompts belong to the judge is the same for every seed of a run: two runs of different seeds share no prompt.
_JUDGE_SEED = 0x6A756467
Rating = TypeVar("Rating", bound=Preference | RankingRow | ScoresRow | ThumbRow)


@dataclass(frozen=True)
class Pair:
    """One comparison: row numbers of the two completions, and what was said about them."""

    chosen: int
    rejected: int
    preference: Preference

    @property
    def group_id(self) -> str:
        return self.preference.group_id


@dataclass(frozen=True)
class Rated(Generic[Rating]):
    """A ranking, the scores of a completion, or a thumb, with the row numbers of its completions."""

    rows: tuple[int, ...]
    rating: Rating


def _by_split() -> dict[Split, list[Any]]:
    return {split: [] for split in SPLITS}


@dataclass
class RewardData:
    """rows: token ids of every distinct prompt + completion; what was said of them, by split.

    family: the family of each prompt group (its own id where nothing is like it). num_too_long: answers that were
    left out; num_moved: answers that are in another split than they came in, or than their own group would be.
    """

    rows: list[list[int]] = field(default_factory=list)
    pairs: dict[Split, list[Pair]] = field(default_factory=_by_split)
    rankings: dict[Split, list[Rated[RankingRow]]] = field(default_factory=_by_split)
    scores: dict[Split, list[Rated[ScoresRow]]] = field(default_factory=_by_split)
    thumbs: dict[Split, list[Rated[ThumbRow]]] = field(default_factory=_by_split)
    family: dict[str, str] = field(default_factory=dict)
    num_too_long: int = 0
    num_moved: int = 0

    def num_ratings(self, split: Split) -> int:
        return sum(len(kind[split]) for kind in (self.pairs, self.rankings, self.scores, self.thumbs))


# ---- reading ------------------------------------------------------------------------------------------------


def load_preferences(source: Path, seed: int) -> Iterator[tuple[Split, str, Preference]]:
    """(split, 'file:line', preference) from a snapshot directory, or from one JSONL split by prompt group."""
    if source.is_dir():
        missing = [f"{split}.jsonl" for split in SPLITS if not (source / f"{split}.jsonl").is_file()]
        if missing:
            raise DataError(f"{source}: no {missing[0]}; expected a snapshot of `rlhf export`")
        for split in SPLITS:
            yield from _numbered(source / f"{split}.jsonl", Preference, split)
    else:
        for line, preference in read_numbered(source, Preference):
            yield split_of(preference.group_id, seed), f"{source}:{line}", preference


def _numbered(path: Path, row_type: type[Any], split: Split) -> Iterator[tuple[Split, str, Any]]:
    if path.is_file() and path.stat().st_size:
        for line, row in read_numbered(path, row_type):
            yield split, f"{path}:{line}", row


def _folder(source: Path, name: str, row_type: type[BaseModel]) -> Iterator[tuple[Split, str, Any]]:
    """The rows of a snapshot's folder; none where the source is a single file."""
    for split in SPLITS if source.is_dir() else ():
        yield from _numbered(source / name / f"{split}.jsonl", row_type, split)


def load_pairs(
    source: Path,
    codec: ChatCodec,
    *,
    max_tokens: int,
    drop_too_long: bool,
    seed: int,
    near_duplicates: float = 0.0,
) -> RewardData:
    """The comparisons of a snapshot alone. Raises DataError as `load_ratings` does."""
    ratings = list(load_preferences(source, seed))
    return _tokenised(source, ratings, codec, max_tokens, drop_too_long, seed, near_duplicates)


def load_ratings(source: Path, codec: ChatCodec, config: RewardConfig, max_tokens: int) -> RewardData:
    """Everything in a snapshot that `config.learn_from` names, and all comparisons of its test split.

    Raises DataError for an example that is too long (unless dropped), or for a split without any.
    """
    rankings = list(_folder(source, "rankings", RankingRow))
    ranked = {row.judgement_id for _, _, row in rankings if row.judgement_id}
    as_list = config.rankings == "plackett-luce"
    kinds = config.learn_from

    ratings: list[Any] = list(load_preferences(source, config.seed))
    if as_list and "rankings" in kinds:
        ratings += rankings
    if "scores" in kinds:
        ratings += _folder(source, "scores", ScoresRow)
    if "thumbs" in kinds:
        # An export may hold both sides of each pair as thumbs too: they were said once.
        paired = {rating.judgement_id for _, _, rating in ratings if rating.judgement_id}
        thumbs = _folder(source, "unpaired", ThumbRow)
        ratings += [entry for entry in thumbs if entry[2].judgement_id not in paired]
    data = _tokenised(
        source,
        ratings,
        codec,
        max_tokens,
        config.on_too_long == "drop",
        config.seed,
        config.near_duplicates,
    )

    def wanted(pair: Pair) -> bool:
        if pair.preference.judgement_id in ranked:
            return "rankings" in kinds and not as_list
        return "pairs" in kinds

    for split in ("train", "validation"):
        data.pairs[split] = [pair for pair in data.pairs[split] if wanted(pair)]
    if config.prompt_part != "all":
        keep_part(data, config.prompt_part, config.judge_share)
    for split in SPLITS:
        if not data.num_ratings(split):
            part = "" if config.prompt_part == "all" else f" of the prompt part {config.prompt_part}"
            raise DataError(
                f"{source}: no rating in the {split} split{part} ({data.num_too_long} were too long); "
                "expected some in each of train, validation and test: collect more ratings"
            )
    return data


def keep_part(data: RewardData, part: str, judge_share: float) -> None:
    """Leave only one of the two disjoint parts of the prompts in train and validation; test is everybody's."""

    def belongs(group_id: str) -> bool:
        judges = split_of(data.family[group_id], _JUDGE_SEED, (judge_share, 1 - judge_share, 0.0)) == "train"
        return judges == (part == "judge")

    for split in ("train", "validation"):
        data.pairs[split] = [pair for pair in data.pairs[split] if belongs(pair.group_id)]
        kinds: tuple[dict[Split, list[Any]], ...] = (data.rankings, data.scores, data.thumbs)
        for kind in kinds:
            kind[split] = [rated for rated in kind[split] if belongs(rated.rating.group_id)]


# ---- families and tokens -------------------------------------------------------------------------------------


def families(ratings: Sequence[tuple[Split, str, Any]], threshold: float) -> dict[str, str]:
    """group id -> the smallest group id among all groups that hold near-duplicates of its prompts."""
    texts: dict[str, tuple[str, str]] = {}
    for _, _, rating in ratings:
        if rating.prompt_id not in texts:
            texts[rating.prompt_id] = (rating.group_id, "\n".join(m.content for m in rating.prompt))
    family = {group: group for group, _ in texts.values()} | {r.group_id: r.group_id for _, _, r in ratings}
    if not threshold:
        return family

    def root(group: str) -> str:
        while family[group] != group:
            family[group] = family[family[group]]
            group = family[group]
        return group

    alike = near_duplicate_groups([text for _, text in texts.values()], threshold=threshold)
    first: dict[int, str] = {}
    for number, (group, _) in zip(alike, texts.values(), strict=True):
        one, other = root(group), root(first.setdefault(number, group))
        family[max(one, other)] = min(one, other)
    return {group: root(group) for group in family}


def _tokenised(
    source: Path,
    ratings: Sequence[tuple[Split, str, Any]],
    codec: ChatCodec,
    max_tokens: int,
    drop_too_long: bool,
    seed: int,
    near_duplicates: float,
) -> RewardData:
    data = RewardData(family=families(ratings, near_duplicates))
    home = {rating.group_id: split for split, _, rating in reversed(ratings)}
    index: dict[str, int] = {}
    for given, where, rating in ratings:
        family = data.family[rating.group_id]
        # A single file is split here; in a snapshot a family goes where its first group lies.
        split = home[family] if source.is_dir() else split_of(family, seed)
        try:
            prompt_ids = codec.prompt_ids(rating.prompt)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        rows = [[*prompt_ids, *codec.completion_ids(text)] for text in _completions(rating, where)]
        longest = max(map(len, rows))
        if longest > max_tokens:
            if not drop_too_long:
                raise DataError(
                    f"{where}: prompt and completion have {longest} tokens; expected at most {max_tokens} "
                    "(--on-too-long drop leaves such rows out)"
                )
            data.num_too_long += 1
            continue
        data.num_moved += split != given
        numbers = tuple(_row_number(row, data.rows, index) for row in rows)
        _put(data, split, numbers, rating)
    if not any(map(data.num_ratings, SPLITS)):
        raise DataError(f"{source}: no rating at all ({data.num_too_long} were too long)")
    return data


def _completions(rating: Any, where: str) -> list[str]:
    """The texts that a rating is about, the chosen one first."""
    if isinstance(rating, Preference):
        turns: Sequence[Turns] = (rating.chosen, rating.rejected)
        what = "chosen and rejected must be one assistant message each"
    elif isinstance(rating, RankingRow):
        turns, what = rating.completions, "completions must be one assistant message each"
    else:
        turns, what = (rating.completion,), "completion must be one assistant message"
    if any(len(messages) != 1 or messages[0].role != "assistant" for messages in turns):
        raise DataError(f"{where}: {what}")
    return [messages[0].content for messages in turns]


def _put(data: RewardData, split: Split, rows: tuple[int, ...], rating: Any) -> None:
    if isinstance(rating, Preference):
        data.pairs[split].append(Pair(rows[0], rows[1], rating))
    else:
        kinds: dict[type, Any] = {RankingRow: data.rankings, ScoresRow: data.scores, ThumbRow: data.thumbs}
        kinds[type(rating)][split].append(Rated(rows, rating))


def _row_number(row: list[int], rows: list[list[int]], index: dict[str, int]) -> int:
    """The place of `row` in `rows`; equal rows (one completion in several comparisons) share one."""
    key = content_id("row", row)
    if key not in index:
        index[key] = len(rows)
        rows.append(row)
    return index[key]


def without_ties(pairs: Sequence[Pair]) -> list[Pair]:
    return [pair for pair in pairs if not pair.preference.tie]
