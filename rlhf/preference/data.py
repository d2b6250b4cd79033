"""From a snapshot to what the offline methods train on: token rows with the length of their prompts, and examples.

Everything is read by the reward stage's reader: pairs, splits, near-duplicates and rankings are the same in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator

from reward.config import RewardConfig
from reward.data import SPLITS, Pair, RewardData, load_ratings
from reward.examples import Comparison, Example, merge_comparisons
from reward.raters import RaterReport, rater_weights
from reward.rows import ThumbRow
from rlhf.core.chat import ChatCodec
from rlhf.core.errors import DataError
from rlhf.core.files import read_numbered
from rlhf.core.randomness import derived_seed
from rlhf.core.records import Message, Preference, Record, Split
from rlhf.preference.config import PreferConfig

DEMONSTRATIONS = "sft"  # the folder of a snapshot that holds them


@dataclass(frozen=True)
class Verdict(Example):
    """What was said of one completion, for kto: shares of good and bad. kl_row: its prompt, another's completion."""

    good: float
    bad: float
    kl_row: int

    @property
    def row(self) -> int:
        return self.rows[0]


@dataclass
class PreferenceData:
    """rows: token ids of prompt + completion; prompt_lengths: how many of them are the prompt's.

    examples: `Comparison` (from `reward.examples`) or, for kto, `Verdict`. num_left_out: comparisons that say nothing
    to the method (ties that are ignored).
    """

    rows: list[list[int]]
    prompt_lengths: list[int]
    examples: dict[Split, list[Any]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    raters: RaterReport | None = None
    num_too_long: int = 0
    num_moved: int = 0
    num_ties: int = 0
    num_demonstrations: int = 0

    @property
    def longest(self) -> int:
        return max(map(len, self.rows))


class DemonstrationTurns(Record):
    """A line of a snapshot's `sft/`: a conversation that ends with the demonstrated answer."""

    messages: tuple[Message, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _ends_with_an_answer(self) -> DemonstrationTurns:
        if self.messages[-1].role != "assistant":
            raise ValueError(f"the last message is of {self.messages[-1].role!r}; expected 'assistant'")
        return self


def load(source: Path, codec: ChatCodec, config: PreferConfig, max_tokens: int) -> PreferenceData:
    """Everything in a snapshot that the method learns from.

    Raises DataError for an example that is too long (unless dropped), a split without any, or nothing that the method
    can use.
    """
    ratings = load_ratings(source, codec, _as_reward(config), max_tokens)
    data = PreferenceData(
        ratings.rows,
        _prompt_lengths(ratings, codec),
        num_too_long=ratings.num_too_long,
        num_moved=ratings.num_moved,
    )
    data.raters = rater_weights(ratings.pairs["train"], config.rater_weights)
    if config.method == "kto":
        _add_verdicts(data, ratings, source, codec, config, max_tokens)
    else:
        _add_comparisons(data, ratings, config)
    data.num_ties = sum(pair.preference.tie for pair in ratings.pairs["train"])
    for split in ("train", "validation"):
        if not data.examples[split]:
            raise DataError(
                f"{source}: nothing in the {split} split that {config.method} can learn from "
                f"({data.num_ties} training comparisons are ties); expected decided comparisons"
                + (", thumbs or demonstrations" if config.method == "kto" else "")
            )
    return data


def _as_reward(config: PreferConfig) -> RewardConfig:
    """The same choice of answers in the settings of the reward stage."""
    kinds: list[Any] = [kind for kind in config.learn_from if kind in ("pairs", "rankings")]
    if config.method == "kto":
        kinds += [kind for kind in config.learn_from if kind == "thumbs"]
    return RewardConfig(
        learn_from=tuple(kinds),
        on_too_long=config.on_too_long,
        near_duplicates=config.near_duplicates,
        seed=config.seed,
    )


def _prompt_lengths(ratings: RewardData, codec: ChatCodec) -> list[int]:
    """How many tokens of each row are its prompt's."""
    lengths, known = [0] * len(ratings.rows), dict[tuple[Message, ...], int]()
    for rows, rating in _said(ratings):
        if rating.prompt not in known:
            known[rating.prompt] = len(codec.prompt_ids(rating.prompt))
        for row in rows:
            lengths[row] = known[rating.prompt]
    return lengths


def _said(ratings: RewardData) -> Iterator[tuple[tuple[int, ...], Preference | ThumbRow]]:
    """(row numbers, rating) of every answer that was read."""
    for split in SPLITS:
        for pair in ratings.pairs[split]:
            yield (pair.chosen, pair.rejected), pair.preference
        for thumb in ratings.thumbs[split]:
            yield thumb.rows, thumb.rating


# ---- comparisons ---------------------------------------------------------------------------------------------


def _add_comparisons(data: PreferenceData, ratings: RewardData, config: PreferConfig) -> None:
    """Validation is told without smoothing, margins and raters' weights: they are means of training."""
    assert data.raters is not None
    for split in SPLITS:
        train = split == "train"
        data.examples[split] = merge_comparisons(
            ratings.pairs[split],
            ratings.family,
            data.raters.weight_of if train else lambda annotator: 1.0,
            use_weights=config.use_weights,
            with_ties=config.ties == "half",
            # `robust` corrects for wrong labels in its loss instead
            label_smoothing=config.flip_rate if train and config.method != "robust" else 0.0,
            margin_scale=config.margin_scale if train else 0.0,
        )


def sides_of(examples: Sequence[Comparison]) -> list[int]:
    """The rows of comparisons, first and second in turn."""
    return [row for example in examples for row in example.rows]


# ---- verdicts ------------------------------------------------------------------------------------------------


def _add_verdicts(
    data: PreferenceData,
    ratings: RewardData,
    source: Path,
    codec: ChatCodec,
    config: PreferConfig,
    max_tokens: int,
) -> None:
    """Both sides of decided comparisons, thumbs, and demonstrations as good ones; all about a completion together."""
    assert data.raters is not None
    index = {tuple(row): number for number, row in enumerate(data.rows)}
    for split in SPLITS:
        weigh = data.raters.weight_of if split == "train" else _alike
        votes = _Votes()
        for pair in ratings.pairs[split]:
            weight = weigh(pair.preference.annotator_id) * _own_weight(pair, config)
            if not pair.preference.tie:
                family = ratings.family[pair.group_id]
                votes.add(pair.chosen, True, weight, family)
                votes.add(pair.rejected, False, weight, family)
        for thumb in ratings.thumbs[split]:
            family = ratings.family[thumb.rating.group_id]
            votes.add(thumb.rows[0], thumb.rating.label, weigh(thumb.rating.annotator_id), family)
        if "demonstrations" in config.learn_from:
            for row in _demonstrations(source, split, data, index, codec, max_tokens, config):
                votes.add(row, True, 1.0, f"row {row}")
        data.examples[split] = _with_kl_rows(votes.verdicts(), data, config.seed, split, max_tokens)


class _Votes:
    """Weights of good and bad by row, and the family of each row's prompt."""

    def __init__(self) -> None:
        self._sums: dict[int, list[float]] = {}
        self._owners: dict[int, str] = {}

    def add(self, row: int, good: bool, weight: float, family: str) -> None:
        if weight > 0:
            self._sums.setdefault(row, [0.0, 0.0])[0 if good else 1] += weight
            self._owners[row] = family

    def verdicts(self) -> list[Verdict]:
        return [
            Verdict((row,), good + bad, self._owners[row], good / (good + bad), bad / (good + bad), row)
            for row, (good, bad) in self._sums.items()
        ]


def _alike(annotator: str) -> float:
    return 1.0


def _own_weight(pair: Pair, config: PreferConfig) -> float:
    return pair.preference.weight if config.use_weights else 1.0


def _demonstrations(
    source: Path,
    split: Split,
    data: PreferenceData,
    index: dict[tuple[int, ...], int],
    codec: ChatCodec,
    max_tokens: int,
    config: PreferConfig,
) -> list[int]:
    """Row numbers of a split's demonstrations, which are added to the rows. None where the source is one file."""
    path = source / DEMONSTRATIONS / f"{split}.jsonl"
    if not path.is_file() or not path.stat().st_size:
        return []
    found = []
    for line, turns in read_numbered(path, DemonstrationTurns):
        try:
            prompt_ids = codec.prompt_ids(turns.messages[:-1])
        except DataError as error:
            raise DataError(f"{path}:{line}: {error}") from error
        row = [*prompt_ids, *codec.completion_ids(turns.messages[-1].content)]
        if len(row) > max_tokens:
            if config.on_too_long == "error":
                raise DataError(
                    f"{path}:{line}: prompt and completion have {len(row)} tokens; expected at most {max_tokens} "
                    "(--on-too-long drop leaves such rows out)"
                )
            data.num_too_long += 1
            continue
        number = index.setdefault(tuple(row), len(data.rows))
        if number == len(data.rows):
            data.rows.append(row)
            data.prompt_lengths.append(len(prompt_ids))
        found.append(number)
    data.num_demonstrations += len(found)
    return found


def _with_kl_rows(
    verdicts: list[Verdict], data: PreferenceData, seed: int, split: Split, max_tokens: int
) -> list[Verdict]:
    """Each verdict with a row for the KL estimate: its prompt, and the completion of another one in a seeded order.

    Where all verdicts are about one prompt, or the two together are too long, it is the completion itself.
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, "kl rows", split))
    order = torch.randperm(len(verdicts), generator=generator).tolist()
    prompts = [tuple(data.rows[v.row][: data.prompt_lengths[v.row]]) for v in verdicts]
    found: list[Verdict] = list(verdicts)
    for place, number in enumerate(order):
        verdict = verdicts[number]
        others = (order[(place + step) % len(order)] for step in range(1, len(order)))
        partner = next((other for other in others if prompts[other] != prompts[number]), None)
        if partner is None:
            continue
        source = verdicts[partner].row
        row = [*prompts[number], *data.rows[source][data.prompt_lengths[source] :]]
        if len(row) > max_tokens:
            continue
        data.rows.append(row)
        data.prompt_lengths.append(len(prompts[number]))
        found[number] = replace(verdict, kl_row=len(data.rows) - 1)
    return found
