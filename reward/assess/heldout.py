"""The held-out comparisons of a snapshot, with the training ones that the baselines are fitted on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from reward.assess.pool import TextPool
from reward.config import RewardConfig
from reward.data import SPLITS, Pair, load_pairs, load_preferences, load_ratings, without_ties
from reward.foreign import ForeignScorer
from rlhf.core.errors import DataError
from rlhf.core.records import Message, Preference, Split


@dataclass
class HeldOut:
    """pairs: the test split, with row numbers of the pool. train, validation: what the baselines learn from.
    num_too_long: comparisons that were left out."""

    pairs: list[Pair] = field(default_factory=list)
    train: list[Preference] = field(default_factory=list)
    validation: list[Preference] = field(default_factory=list)
    num_too_long: int = 0

    @property
    def decided(self) -> list[Pair]:
        return without_ties(self.pairs)

    @property
    def rows(self) -> np.ndarray:
        """The distinct rows of the held-out completions."""
        return np.unique([row for pair in self.pairs for row in (pair.chosen, pair.rejected)])


def load_heldout(
    source: Path, pool: TextPool, seed: int, trained: RewardConfig | None = None, *, own: bool = False
) -> HeldOut:
    """Read a snapshot and put its held-out completions into the pool.

    trained: the settings of the run that is examined; near-duplicates are then kept together and lengths limited as
    in training, and `own` (the run's own snapshot) gives exactly the splits that it was trained on.
    Raises DataError for a snapshot without a held-out comparison that is decided and short enough.
    """
    found = HeldOut()
    for split, where, preference in _split_rows(source, pool, seed, trained, own, found):
        if split != "test":
            (found.train if split == "train" else found.validation).append(preference)
            continue
        texts = [completion_text(messages, where) for messages in (preference.chosen, preference.rejected)]
        try:
            chosen, rejected = (pool.add(preference.prompt, text) for text in texts)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        if chosen is None or rejected is None:
            found.num_too_long += 1
        else:
            found.pairs.append(Pair(chosen, rejected, preference))
    if not found.pairs:
        raise DataError(
            f"{source}: no comparison in the test split ({found.num_too_long} were too long); "
            "expected some: collect more ratings, or name another --snapshot"
        )
    if not found.decided:
        raise DataError(
            f"{source}: all {len(found.pairs)} held-out comparisons are ties; expected decided ones as well"
        )
    return found


def _split_rows(
    source: Path, pool: TextPool, seed: int, trained: RewardConfig | None, own: bool, found: HeldOut
) -> Iterator[tuple[Split, str, Preference]]:
    """(split, where, comparison); what the loader of the training leaves out as too long is counted in `found`."""
    if trained is None or isinstance(pool.scorer, ForeignScorer):
        yield from load_preferences(source, seed)
        return
    codec = pool.scorer.backbone.codec
    max_tokens = min(trained.max_tokens or pool.max_tokens, pool.max_tokens)
    if own:
        data = load_ratings(source, codec, trained.model_copy(update={"on_too_long": "drop"}), max_tokens)
    else:
        data = load_pairs(
            source,
            codec,
            max_tokens=max_tokens,
            drop_too_long=True,
            seed=trained.seed,
            near_duplicates=trained.near_duplicates,
        )
    found.num_too_long = data.num_too_long
    for split in SPLITS:
        for pair in data.pairs[split]:
            yield split, str(source), pair.preference


def completion_text(messages: Sequence[Message], where: str) -> str:
    """The text of a completion. Raises DataError where it is not one assistant message."""
    if len(messages) != 1 or messages[0].role != "assistant":
        raise DataError(f"{where}: chosen and rejected must be one assistant message each")
    return messages[0].content


def prompts_seen(heldout: HeldOut, trained_on: Path, seed: int) -> int:
    """How many held-out prompts are in the training split of the snapshot that the model was trained on: where
    there are any, accuracy flatters."""
    seen = {row.prompt for split, _, row in load_preferences(trained_on, seed) if split == "train"}
    return len({pair.preference.prompt for pair in heldout.pairs} & seen)


@dataclass(frozen=True)
class Probe:
    """A held-out comparison whose texts are spoiled, reformatted or swapped to see what the scores do."""

    pair: Pair

    @property
    def prompt(self) -> tuple[Message, ...]:
        return self.pair.preference.prompt

    @property
    def chosen_text(self) -> str:
        return self.pair.preference.chosen[0].content

    @property
    def rejected_text(self) -> str:
        return self.pair.preference.rejected[0].content

    @property
    def group_id(self) -> str:
        return self.pair.group_id


def choose_probes(pairs: Sequence[Pair], limit: int, seed: int) -> list[Probe]:
    """At most `limit` decided comparisons of different chosen completions, from as many prompts as there are."""
    decided = without_ties(pairs)
    order = np.random.default_rng(seed).permutation(len(decided))
    first: list[Pair] = []
    more: list[Pair] = []
    groups: set[str] = set()
    taken: set[int] = set()
    for place in order:
        pair = decided[place]
        if pair.chosen in taken:
            continue
        taken.add(pair.chosen)
        (more if pair.group_id in groups else first).append(pair)
        groups.add(pair.group_id)
    return [Probe(pair) for pair in [*first, *more][:limit]]
