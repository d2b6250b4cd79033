"""What is wrong with a row beside others: duplicates, near-duplicates, leaks of evaluation files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from rlhf.core.metrics import progress
from sft.prepare.families import near_families
from sft.prepare.leaks import NgramIndex
from sft.prepare.scratch import Scratch, first_of_each
from sft.prepare.signatures import bands_for
from sft.prepare.tally import EXACT, ID, LEAK, NEAR

MAX_EXAMPLES = 5
ADVANCE_EVERY = 500


@dataclass(frozen=True)
class Check:
    """One evaluation file, read and cleaned like the training data."""

    name: str
    scratch: Scratch


@dataclass
class Selection:
    """alive: rows that stay, [rows]. prompt_roots: rows of one prompt family share one, [rows].

    taken_out: (row, reason, more on it, the other row or -1). leaks: file -> how -> rows.
    """

    alive: np.ndarray
    prompt_roots: np.ndarray
    taken_out: list[tuple[int, str, str, int]] = field(default_factory=list)
    leaks: dict[str, Counter[str]] = field(default_factory=dict)
    estimated: int = 0
    templates: int = 0
    notes: list[str] = field(default_factory=list)

    def take_out(self, row: int, reason: str, detail: str = "", other: int = -1) -> None:
        if self.alive[row]:
            self.alive[row] = False
            self.taken_out.append((row, reason, detail, other))


class Selector:
    """threshold 0: no near-duplicates, prompts are of one family when they are equal as folded texts."""

    def __init__(self, scratch: Scratch, checks: Sequence[Check], folder: Path, seed: int) -> None:
        self.scratch, self.checks, self.folder, self.seed = scratch, checks, folder, seed
        num = len(scratch)
        self.result = Selection(np.ones(num, dtype=bool), first_of_each(scratch.prompt_digests()))
        self.result.leaks = {check.name: Counter() for check in checks}

    def select(self, *, exact: bool, unique_ids: bool, threshold: float, max_near_rows: int) -> Selection:
        """Decide about every row; each is taken out for one reason, the first that holds in this order."""
        whole = self.scratch.whole_digests()
        first = first_of_each(whole)
        self._leaks_exactly(whole)
        if unique_ids:
            self._duplicate_ids(whole)
        if exact:
            for row in np.flatnonzero(first != np.arange(len(first))).tolist():
                self.result.take_out(row, EXACT, other=int(first[row]))
        num = int(self.result.alive.sum())
        if threshold and num > max_near_rows:
            self.result.notes.append(
                f"{num} rows are more than near_duplicates_max_rows ({max_near_rows}): only exact duplicates were "
                "looked for, and prompts are of one family when they are equal."
            )
        elif threshold:
            self._near_rows(threshold)
            self._near_prompts(threshold)
        self._leaks_by_ngrams()
        return self.result

    # ---- exactly

    def _duplicate_ids(self, whole: np.ndarray) -> None:
        ids = np.frombuffer(self.scratch.row_ids, dtype=np.uint64)
        with_id = np.flatnonzero(ids)
        _, first, inverse = np.unique(ids[with_id], return_index=True, return_inverse=True)
        heads = with_id[first[inverse]] if len(with_id) else with_id
        for row, head in zip(with_id.tolist(), heads.tolist(), strict=True):
            if row != head and (whole[row] != whole[head]).any():
                self.result.take_out(row, ID, other=head)

    def _leaks_exactly(self, whole: np.ndarray) -> None:
        prompts = self.scratch.prompt_digests()
        for check in self.checks:
            for how, own, theirs in (
                ("same row", whole, check.scratch.whole_digests()),
                ("same prompt", prompts, check.scratch.prompt_digests()),
            ):
                for row in np.flatnonzero(np.isin(own[:, 0], theirs[:, 0])).tolist():
                    self._leak(row, check.name, how)

    def _leak(self, row: int, name: str, how: str) -> None:
        if self.result.alive[row]:
            self.result.leaks[name][how] += 1
            self.result.take_out(row, LEAK, f" ({name}, {how})")

    # ---- nearly

    def _near_rows(self, threshold: float) -> None:
        rows = np.flatnonzero(self.result.alive)
        roots, names = self._families(rows, threshold, prompt=False)
        for row, root in zip(rows.tolist(), roots.tolist(), strict=True):
            if root < 0:
                self._leak(row, names[-1 - root], "nearly the same row")
            elif root != row:
                self.result.take_out(row, NEAR, other=root)

    def _near_prompts(self, threshold: float) -> None:
        asked = np.frombuffer(self.scratch.is_text, dtype=np.int8) == 0
        heads_of = self.result.prompt_roots
        # one row for each distinct prompt; that row itself may be taken out already, its prompt is read all the same
        heads = np.unique(heads_of[np.flatnonzero(self.result.alive & asked)])
        roots, names = self._families(heads, threshold, prompt=True)
        root_of = dict(zip(heads.tolist(), roots.tolist(), strict=True))
        for row in np.flatnonzero(self.result.alive & asked).tolist():
            root = root_of[int(heads_of[row])]
            if root < 0:
                self._leak(row, names[-1 - root], "nearly the same prompt")
            else:
                self.result.prompt_roots[row] = root

    def _families(self, rows: np.ndarray, threshold: float, *, prompt: bool) -> tuple[np.ndarray, list[str]]:
        """The root row of each of `rows`; one that is nearly a text of a check file has -1 - place in the names."""
        scratches = [check.scratch for check in self.checks]
        starts = np.cumsum([0, *[len(scratch) for scratch in scratches]])
        known = int(starts[-1])

        def text_of(i: int) -> str:
            if i >= known:
                return self.scratch.text(int(rows[i - known]), prompt=prompt)
            which = int(np.searchsorted(starts, i, side="right")) - 1
            return scratches[which].text(i - int(starts[which]), prompt=prompt)

        def texts() -> Iterator[str]:
            theirs = (scratch.texts(range(len(scratch)), prompt=prompt) for scratch in scratches)
            return chain(chain.from_iterable(theirs), self.scratch.texts(rows, prompt=prompt))

        what = "near-duplicate prompts" if prompt else "near-duplicates"
        with progress(what, known + len(rows) + bands_for(threshold)[0], stage="prepare") as bar:
            found, joined = near_families(
                self.folder / "bands",
                known + len(rows),
                texts,
                text_of,
                threshold=threshold,
                seed=self.seed,
                advance=bar.advance,
            )
        self.result.estimated += joined.estimated
        ours = found[known:]
        place = np.searchsorted(starts, ours, side="right") - 1
        roots = np.where(ours < known, -1 - place, rows[np.maximum(ours - known, 0)] if len(rows) else 0)
        return roots, [check.name for check in self.checks]

    # ---- by runs of words

    def _leaks_by_ngrams(self) -> None:
        for check in self.checks:
            index = NgramIndex(check.scratch.texts(range(len(check.scratch))))
            rows = np.flatnonzero(self.result.alive)
            with progress(f"runs of words in {check.name}", len(rows), stage="prepare") as bar:
                for done, row in enumerate(rows.tolist(), start=1):
                    index.look(row, self.scratch.text(row))
                    if done % ADVANCE_EVERY == 0:
                        bar.advance(ADVANCE_EVERY)
            for row in sorted(index.leaking()):
                self._leak(row, check.name, "13 words in a row")
            self.result.templates += index.num_templates()
