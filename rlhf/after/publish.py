"""`rlhf publish`: a finished run's result as a folder that loads anywhere, with a model card.

OUT/package holds what is published: safetensors, configuration, tokenizer, README.md and provenance.json. Nothing
leaves this machine without --push-to.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from rlhf.after import hub
from rlhf.after.card import Ancestor, card, lineage, plain_figures, plain_settings
from rlhf.after.config import PublishConfig
from rlhf.core.adapters import CONFIG_FILE
from rlhf.core.errors import ConfigError, DataError
from rlhf.core.files import atomic_folder, clear_folders, write_json, write_text
from rlhf.core.inputs import find_path, required
from rlhf.core.run import Launch, Manifest, Run, Workspace, is_finished, read_manifest

PACKAGE, CARD, PROVENANCE = "package", "README.md", "provenance.json"
# What a model or adapter directory of transformers and peft consists of; all else stays at home.
_SUFFIXES = frozenset({".safetensors", ".json", ".jinja", ".txt", ".model"})
_PICKLED = frozenset({".bin", ".pt", ".pth", ".pkl", ".ckpt"})
# Where a loader remembered that the files once lay.
_PLACES = ("_name_or_path", "name_or_path", "special_tokens_map_file", "tokenizer_file")
# A hub id: owner/name, or the bare name of an old model.
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def run(config: PublishConfig, launch: Launch) -> None:
    """Make the package and, with push_to, push it."""
    source = find_path(required(config.run, "run", "a finished run"), launch)
    manifest = finished_run(source)
    folder = result_of(source, config.what)
    kind = "adapter" if (folder / CONFIG_FILE).is_file() else "model"
    base = base_of(folder, kind, config, launch)
    out = launch.out or Workspace(launch.workspace).runs / f"{source.resolve().name}-published"
    ancestors = lineage(manifest, Workspace(launch.workspace))
    with Run.open(
        out, stage="publish", settings=config, launch=launch, parents={"run": source}, seed=0
    ) as record:
        if record.finished:
            print(f"publish: {out} is already finished")
            return
        record.begin()
        clear_folders(record.path, PACKAGE)
        title = config.name or source.resolve().name
        with atomic_folder(record.path / PACKAGE) as building:
            copied = copy_result(folder, building, config.base_name if kind == "adapter" else None)
            text = card(manifest, config, ancestors, title=title, kind=kind, base=base)
            write_text(building / CARD, text)
            write_json(building / PROVENANCE, provenance(manifest, ancestors))
        package = record.path / PACKAGE
        address = ""
        if config.push_to:
            address = hub.push(
                package, config.push_to, public=config.public, message=f"{title}, stage {manifest.stage}"
            )
        size = sum(file.stat().st_size for file in package.iterdir())
        record.finish({"num_files": len(copied) + 2, "bytes": size}, extra={"kind": kind, "pushed": address})
    pushed = f", pushed to {address}" if address else "; nothing was pushed"
    print(f"publish: {len(copied) + 2} files, {size / 1e6:.1f} MB in {package}{pushed}")


def finished_run(folder: Path) -> Manifest:
    """The run's manifest. Raises DataError for what is no run or is not finished."""
    manifest = read_manifest(folder)
    if not is_finished(folder):
        raise DataError(f"{folder}: is an unfinished {manifest.stage} run; continue it with --resume first")
    return manifest


def result_of(run_folder: Path, what: str) -> Path:
    """The run's model or adapter directory. Raises DataError where it has none."""
    places = {"model": run_folder / "model", "adapter": run_folder / "adapter"}
    for name in ("model", "adapter") if what == "auto" else (what,):
        folder = places[name]
        if (folder / "config.json").is_file() or (folder / CONFIG_FILE).is_file():
            return folder
    expected = "a folder 'model' or 'adapter'" if what == "auto" else f"a folder '{what}'"
    raise DataError(f"{run_folder}: has no result to publish; expected {expected}")


def base_of(folder: Path, kind: str, config: PublishConfig, launch: Launch) -> str:
    """The hub id of an adapter's base, "" for a whole model. Raises ConfigError for a base that nobody else has."""
    if kind != "adapter":
        return ""
    if config.base_name:
        return config.base_name
    base = str(json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["base_model_name_or_path"])
    if (launch.workspace / base).exists() or not _HUB_ID.fullmatch(base):
        raise ConfigError(
            f"{folder}: its base is {base} of this machine, which nobody else has; publish that first and name it "
            "with --base-name owner/name, or fold the adapter in with `rlhf merge`"
        )
    return base


def copy_result(folder: Path, target: Path, base_name: str | None) -> list[str]:
    """Copy what a loader needs, without the places where it lay. Returns the names. Raises DataError for weights
    that are not safetensors."""
    names = []
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        if file.suffix in _PICKLED:
            raise DataError(f"{file}: weights as a pickle can run programs; expected safetensors")
        if file.suffix not in _SUFFIXES:
            continue
        cleaned = _cleaned(file, base_name) if file.suffix == ".json" else None
        if cleaned is None:
            shutil.copyfile(file, target / file.name)
        else:
            write_text(target / file.name, json.dumps(cleaned, indent=2, ensure_ascii=False) + "\n")
        names.append(file.name)
    if not any(name.endswith(".safetensors") for name in names):
        raise DataError(f"{folder}: holds no safetensors")
    return names


def _cleaned(file: Path, base_name: str | None) -> dict[str, Any] | None:
    """The settings in a file without the places where it lay and with the base's new name; None where that changes
    nothing. Raises DataError for what is not JSON."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: is not JSON") from error
    if not isinstance(value, dict):
        return None
    cleaned = _without_places(value)
    if base_name is not None and "base_model_name_or_path" in value:
        cleaned["base_model_name_or_path"] = base_name
    return cleaned if cleaned != value else None


def _without_places(value: Any) -> Any:
    """The same without those keys, also in settings within settings (those of a part of a model)."""
    if not isinstance(value, dict):
        return value
    return {key: _without_places(item) for key, item in value.items() if key not in _PLACES}


def provenance(manifest: Manifest, ancestors: list[Ancestor]) -> dict[str, Any]:
    """What the card says, for programs."""
    return {
        "stage": manifest.stage,
        "created": manifest.created,
        "code_commit": manifest.code_commit,
        "seed": manifest.seed,
        "settings": plain_settings(manifest.settings),
        "metrics": plain_figures(manifest.metrics),
        "packages": manifest.packages,
        "lineage": [vars(one) for one in ancestors],
    }
