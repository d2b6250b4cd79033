"""Changes of form that should not matter: how far they move the score, and how often they turn a verdict.

The order of presentation cannot matter: each completion is scored on its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reward.assess.heldout import Probe
from reward.assess.pool import TextPool
from rlhf.core.figures import flat
from rlhf.core.stats import Interval, bootstrap_mean

_BULLET = re.compile(r"^([ \t]*)([-*•])(?=[ \t]+\S)", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?]) +(?=\S)")
_STRAIGHT = str.maketrans("“”„‘’", '"""\'\'')


def outer_space(text: str) -> str:
    """a space before the text and a line break after it"""
    return f" {text}\n"


def bullets(text: str) -> str:
    """dashes as bullets become asterisks, other bullets dashes"""
    return _BULLET.sub(lambda m: m[1] + ("*" if m[2] == "-" else "-"), text)


def quotes(text: str) -> str:
    """straight quotes become typographic, and the other way round"""
    if (straight := text.translate(_STRAIGHT)) != text:
        return straight
    text = re.sub(r'(?<!\S)"(?=\S)|(?<=[(\[])"', "“", text).replace('"', "”")
    return re.sub(r"(?<!\S)'(?=\S)|(?<=[(\[“])'", "‘", text).replace("'", "’")


def line_breaks(text: str) -> str:
    """line breaks become spaces; where there are none, sentences go on lines of their own"""
    body = text.strip()
    if "\n" in body:
        return re.sub(r"\s*\n\s*", " ", body)
    return _SENTENCE_END.sub("\n", text)


def final_stop(text: str) -> str:
    """the full stop at the end is taken away, or put there"""
    body = text.rstrip()
    if body.endswith(".") and not body.endswith(".."):
        return body[:-1]
    return body + "." if body and body[-1].isalnum() else text


VARIANTS: dict[str, Callable[[str], str]] = {
    "outer_space": outer_space,
    "bullets": bullets,
    "quotes": quotes,
    "line_breaks": line_breaks,
    "final_stop": final_stop,
}


@dataclass(frozen=True)
class Trial:
    """One side of a probe's comparison in another form: the row of the text as it was and of the changed one."""

    variant: str
    probe: Probe
    of_chosen: bool
    row: int

    @property
    def original(self) -> int:
        return self.probe.pair.chosen if self.of_chosen else self.probe.pair.rejected


def reformat(probes: Sequence[Probe], pool: TextPool) -> list[Trial]:
    """Every variant of each side of every probe, put into the pool, where it changes the text and fits."""
    trials = []
    for name, change in VARIANTS.items():
        for probe in probes:
            for of_chosen, text in ((True, probe.chosen_text), (False, probe.rejected_text)):
                changed = change(text)
                if changed == text:
                    continue
                row = pool.add(probe.prompt, changed)
                if row is not None:
                    trials.append(Trial(name, probe, of_chosen, row))
    return trials


def steadiness(scores: np.ndarray, trials: Sequence[Trial], unit: float, seed: int) -> dict[str, Any]:
    """Score changes in units of the scores' deviation `unit`, and the share of trials in which changing the form of
    one side turned the verdict of its comparison (to or from a tie counts half); over all trials and per variant."""
    changes = np.array([scores[t.row] - scores[t.original] for t in trials]) / unit
    others = np.array(
        [t.probe.pair.rejected if t.of_chosen else t.probe.pair.chosen for t in trials], dtype=int
    )
    before = scores[[t.original for t in trials]] - scores[others]
    after = scores[[t.row for t in trials]] - scores[others]
    flips = 0.5 * np.abs(np.sign(before) - np.sign(after))

    def interval(places: Sequence[int]) -> Interval | None:
        groups = [trials[place].probe.group_id for place in places]
        return bootstrap_mean(flips[list(places)], groups=groups, seed=seed) if places else None

    result: dict[str, Any] = {"num_trials": len(trials), **flat("flip_rate", interval(range(len(trials))))}
    result["variants"] = []
    for name, change in VARIANTS.items():
        places = [place for place, trial in enumerate(trials) if trial.variant == name]
        if not places:
            continue
        sizes = np.abs(changes[places])
        median, high = np.quantile(sizes, [0.5, 0.95])
        result["variants"].append(
            {
                "variant": name,
                "what": (change.__doc__ or "").strip(),
                "n": len(places),
                "mean_change": float(changes[places].mean()),
                "median_size": float(median),
                "size_95": float(high),
                "largest": float(sizes.max()),
                **flat("flip_rate", interval(places)),
            }
        )
    return result
