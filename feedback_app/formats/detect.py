"""Which format a row is in, told by its columns, and how it is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from feedback_app.formats import compared, exports, scored, trl
from feedback_app.formats.items import Item
from rlhf.core.errors import ConfigError
from rlhf.core.files import BadRow
from rlhf.core.turns import is_dialogue

Format = Literal[
    "auto",
    "prompts",
    "completions",
    "preference",
    "unpaired",
    "sft",
    "hh-rlhf",
    "scores",
    "helpsteer",
    "helpsteer-preference",
    "ultrafeedback",
    "pandalm",
    "fine-grained",
    "label-studio",
    "argilla",
]


@dataclass(frozen=True)
class Reading:
    """How the rows of a file are meant. `rated`: a completion without more is one to be rated (--task)."""

    format: Format = "auto"
    rated: bool = False
    mapping: tuple[tuple[str, str], ...] = ()
    ignored: frozenset[str] = frozenset()
    score_columns: tuple[str, ...] = ()
    scale: tuple[float, float] | None = None

    def item(self, row: dict[str, Any]) -> Item:
        """What a row means. Raises BadRow."""
        row = self._renamed(row)
        name = detect(row, self) if self.format == "auto" else self.format
        if name in _STRICT:
            return _STRICT[name](row, self.ignored)
        if name in ("scores", "helpsteer"):
            steer = name == "helpsteer" and not self.score_columns
            names: Sequence[str] = scored.HELPSTEER if steer else self.score_columns
            scale = self.scale or (scored.HELPSTEER_SCALE if steer else scored.OUR_SCALE)
            return scored.columns(row, names, scale, all_of_them=not steer)
        return _LENIENT[name](row)

    def _renamed(self, row: dict[str, Any]) -> dict[str, Any]:
        if not self.mapping:
            return row
        taken = {theirs.partition(".")[0] for _, theirs in self.mapping}
        kept = {name: value for name, value in row.items() if name not in taken}
        for ours, theirs in self.mapping:
            value: Any = row.get(theirs)
            if theirs not in row and "." in theirs:
                value = row
                for part in theirs.split("."):
                    value = value.get(part) if isinstance(value, dict) else None
            if value is not None:
                kept[ours] = value
        return kept


def detect(row: dict[str, Any], reading: Reading) -> str:
    """The format of a row, by its columns. Raises BadRow where they say nothing."""
    if "data" in row and ("annotations" in row or "completions" in row or "predictions" in row):
        return "label-studio"
    if isinstance(row.get("fields"), dict) or any(name.endswith(".responses") for name in row):
        return "argilla"
    if "chosen" in row or "rejected" in row:
        spoken = "prompt" not in row and is_dialogue(row.get("chosen"))
        return "hh-rlhf" if spoken else "preference"
    if "overall_preference" in row or "preference_strength" in row:
        return "helpsteer-preference"
    if "response1" in row and any(name.startswith("annotator") for name in row):
        return "pandalm"
    if "prediction 1" in row and "preference" in row:
        return "fine-grained"
    if isinstance(row.get("completions"), list):
        first = next(iter(row["completions"]), None)
        is_scored = isinstance(first, dict) and "annotations" in first
        return "ultrafeedback" if is_scored else "completions"
    if reading.score_columns:
        return "scores"
    if "response" in row and any(name in row for name in scored.HELPSTEER):
        return "helpsteer"
    if "completion" in row:
        return "unpaired" if "label" in row else "completion" if reading.rated else "sft"
    if "messages" in row and "prompt" not in row:
        turns = row["messages"]
        answered = isinstance(turns, list) and turns and isinstance(turns[-1], dict)
        said = answered and (turns[-1].get("role") or turns[-1].get("from")) in ("assistant", "gpt")
        return "sft" if said else "prompts"
    if "prompt" in row or "messages" in row:
        return "prompts"
    found = ", ".join(sorted(row)) or "none"
    raise BadRow(
        f"found the columns {found}; expected 'prompt', 'prompt' and 'completions', 'prompt', 'chosen' and "
        "'rejected', or a format named with --format (--map renames columns)"
    )


def parse_mapping(pairs: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """`prompt=question` as (ours, theirs). Raises ConfigError."""
    found = []
    for pair in pairs:
        ours, sign, theirs = (part.strip() for part in pair.partition("="))
        if not (ours and sign and theirs):
            raise ConfigError(f"--map '{pair}': expected ours=theirs, such as prompt=question")
        found.append((ours, theirs))
    return tuple(found)


_STRICT: dict[str, Callable[[dict[str, Any], frozenset[str]], Item]] = {
    "prompts": trl.prompts,
    "completion": trl.completion,
    "preference": trl.preference,
    "unpaired": trl.unpaired,
    "sft": trl.sft,
    "hh-rlhf": trl.hh_rlhf,
    "completions": trl.completions,
}
_LENIENT: dict[str, Callable[[dict[str, Any]], Item]] = {
    "ultrafeedback": scored.ultrafeedback,
    "helpsteer-preference": compared.helpsteer_preference,
    "pandalm": compared.pandalm,
    "fine-grained": compared.fine_grained,
    "label-studio": exports.label_studio,
    "argilla": exports.argilla,
}
