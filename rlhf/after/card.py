"""A model card from a run's manifest: what was trained how, on what, with which result, and what it came from.

Only what is known to say nothing about people goes in: settings and figures that are single numbers or words, files by
name and hash. Manifests also hold what raters did under their names, and runs hold prompts; neither is read here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rlhf.after.config import PublishConfig
from rlhf.core.errors import DataError
from rlhf.core.run import MANIFEST, Manifest, Workspace, read_manifest

METHODS = {
    "sft": "Supervised fine-tuning: the loss is that of the demonstrated completions' tokens alone.",
    "reward": "A reward model: a scalar head, trained on people's comparisons of completions (Bradley-Terry).",
    "ppo": "Proximal policy optimisation against a reward model, held close to the supervised model by a KL penalty.",
    "prefer": "Preference optimisation on people's comparisons of completions; the settings name the method.",
    "classify": "A classifier of texts, trained on labelled ones.",
    "merge": "Adapters folded into their base.",
    "distill": "A smaller model trained to give the next-token distributions of a larger one "
    "(generalised Jensen-Shannon divergence, arXiv:2306.13649).",
}
# Stages whose result gives labels or scores of texts, and writes none.
_CLASSIFIERS = ("reward", "classify")
_NAME = re.compile(r"[A-Za-z0-9_./+-]{1,64}")
_MAX_ROWS = 60
_MISSING = "Not stated by who published it."


@dataclass(frozen=True)
class Ancestor:
    """One thing that a run was made from, and what that was made from in turn. depth: 1 for a parent of the run."""

    depth: int
    role: str
    name: str
    sha256: str
    stage: str


def lineage(manifest: Manifest, workspace: Workspace, depth: int = 1) -> list[Ancestor]:
    """Parents, their parents and so on, as far as their runs are still there."""
    found = []
    for role, parent in sorted(manifest.parents.items()):
        path = workspace.resolve(parent.path)
        above = _run_of(path)
        found.append(
            Ancestor(depth, role, _shown_path(parent.path), parent.sha256, above.stage if above else "")
        )
        if above is not None and depth < 8:
            found += lineage(above, workspace, depth + 1)
    return found


def _run_of(path: Path) -> Manifest | None:
    """The manifest of the run that a file or folder is, or is the result of."""
    for folder in (path, path.parent):
        if (folder / MANIFEST).is_file():
            try:
                return read_manifest(folder)
            except DataError:
                return None  # a snapshot's or somebody else's manifest
    return None


def _shown_path(path: str) -> str:
    """The last two parts of a path within the workspace, the name alone of one outside: no user or machine."""
    inside = not Path(path).is_absolute() and ".." not in Path(path).parts
    return "/".join(Path(path).parts[-2:]) if inside else Path(path).name


def plain_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings that are numbers, switches or single words, nested ones by dotted name; files by their name alone."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= plain_settings(value, f"{prefix}{key}.")
        elif isinstance(value, bool | int | float) or (isinstance(value, str) and _NAME.fullmatch(value)):
            found[prefix + key] = _shown_path(value) if isinstance(value, str) else value
    return found


def plain_figures(metrics: Mapping[str, Any]) -> dict[str, float | int]:
    """Final figures that are single numbers."""
    return {
        name: value
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and _NAME.fullmatch(name)
    }


def card(
    manifest: Manifest,
    config: PublishConfig,
    ancestors: Sequence[Ancestor],
    *,
    title: str,
    kind: str,
    base: str,
) -> str:
    """README.md: front matter for the hub, then the card. kind: model or adapter; base: hub id, or empty."""
    sections = [
        ("Intended use", config.intended_use or _MISSING),
        ("Limits", f"{config.limits or _MISSING}\n\n{_limits(manifest)}"),
        ("Data", f"{config.data or _MISSING}\n\n{_data(manifest)}"),
        ("Method", f"{METHODS.get(manifest.stage, f'Stage `{manifest.stage}`.')}\n\n" + _method(manifest)),
        ("Results", _results(manifest)),
        ("Lineage", _lineage(ancestors)),
        ("How to load it", _loading(manifest, kind)),
        ("Licence", config.license or _MISSING),
        ("Made with", ", ".join(f"{name} {version}" for name, version in manifest.packages.items()) + "."),
    ]
    body = "\n\n".join(f"## {heading}\n\n{text}" for heading, text in sections)
    return f"---\n{_front(manifest, config, kind, base)}---\n\n# {title}\n\n{_lead(manifest, kind, base)}\n\n{body}\n"


def _front(manifest: Manifest, config: PublishConfig, kind: str, base: str) -> str:
    values: dict[str, Any] = {
        "library_name": "peft" if kind == "adapter" else "transformers",
        "pipeline_tag": "text-classification" if manifest.stage in _CLASSIFIERS else "text-generation",
        "tags": ["rlhf-loop", manifest.stage],
    }
    if config.license:
        values["license"] = config.license
    if base:
        values["base_model"] = base
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _lead(manifest: Manifest, kind: str, base: str) -> str:
    over = f" of `{base}`" if base else ""
    what = "An adapter" if kind == "adapter" else "A model"
    return f"{what}{over}, made by the stage `{manifest.stage}` of rlhf-loop."


def _limits(manifest: Manifest) -> str:
    said = ["It was examined on the figures below and on nothing else; its answers may be wrong or harmful."]
    if manifest.stage == "ppo":
        said.append("It was trained to please a reward model, whose own mistakes it may have learnt to use.")
    if manifest.stage == "reward":
        said.append("Its scores order completions as its raters did; they are no measure of truth.")
    return " ".join(said)


def _data(manifest: Manifest) -> str:
    rows = [
        {"input": role, "file or folder": _shown_path(parent.path), "sha256": parent.sha256[:16]}
        for role, parent in sorted(manifest.parents.items())
    ]
    counts = {
        name: value for name, value in plain_figures(manifest.metrics).items() if name.startswith("num_")
    }
    said = ", ".join(f"{name.removeprefix('num_')} {value}" for name, value in counts.items())
    return _table(rows) + (f"\n\nCounts: {said}." if said else "")


def _method(manifest: Manifest) -> str:
    settings = plain_settings(manifest.settings)
    return _table([{"setting": name, "value": value} for name, value in settings.items()], most=200)


def _results(manifest: Manifest) -> str:
    figures = {n: v for n, v in plain_figures(manifest.metrics).items() if not n.startswith("num_")}
    return _table([{"figure": name, "value": f"{value:.5g}"} for name, value in figures.items()])


def _lineage(ancestors: Sequence[Ancestor]) -> str:
    if not ancestors:
        return "Nothing is recorded."
    return "\n".join(
        f"{'  ' * (one.depth - 1)}- {one.role}: `{one.name}`, sha256 `{one.sha256[:16]}`"
        + (f", made by the stage {one.stage}" if one.stage else "")
        for one in ancestors
    )


def _loading(manifest: Manifest, kind: str) -> str:
    classifies = manifest.stage in _CLASSIFIERS
    auto = "AutoModelForSequenceClassification" if classifies else "AutoModelForCausalLM"
    if kind == "adapter":
        auto = auto.replace("AutoModelFor", "AutoPeftModelFor")
        return f"```python\nfrom peft import {auto}\n\nmodel = {auto}.from_pretrained(FOLDER_OR_HUB_ID)\n```"
    return (
        f"```python\nfrom transformers import {auto}\n\nmodel = {auto}.from_pretrained(FOLDER_OR_HUB_ID)\n```"
    )


def _table(rows: Sequence[Mapping[str, Any]], most: int = _MAX_ROWS) -> str:
    if not rows:
        return "Nothing is recorded."
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += [
        "| " + " | ".join(str(row[name]).replace("|", "\\|") for name in names) + " |" for row in rows[:most]
    ]
    more = f"\n\nand {len(rows) - most} more" if len(rows) > most else ""
    return "\n".join(lines) + more
