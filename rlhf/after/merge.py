"""`rlhf merge`: adapters folded into their base, as a model directory that needs no peft.

OUT/model is the result, OUT/adapter the combined adapter that was folded in, OUT/merge.html and merge.json the held-out
loss of the base, of each adapter alone and of the result.

Several adapters are combined by peft's `add_weighted_adapter`. `linear` adds the factors A and B (with the square root
of each weight), not the updates B A: cheap, and with crossed terms. `svd` adds the updates and factors their sum
again; by default with as many ranks as all have together, which loses nothing.
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from rlhf.after.config import SPARSE, MergeConfig
from rlhf.after.heldout import HeldOut
from rlhf.after.pages import merge_page
from rlhf.core.adapters import ALL_KINDS, CONFIG_FILE, base_path, load_adapter, read_adapter_config
from rlhf.core.backbone import REFERENCE, UNMERGED, Backbone, Role
from rlhf.core.chat import first_line
from rlhf.core.decoder import share_clone
from rlhf.core.errors import CheckpointError, ConfigError, ModelError
from rlhf.core.figures import flat
from rlhf.core.files import atomic_folder, clear_folders, write_json, write_text
from rlhf.core.inputs import find_adapter, find_model, find_path, model_name, require_one_process
from rlhf.core.metrics import finite
from rlhf.core.quantization import is_quantized
from rlhf.core.run import Launch, Run, Workspace
from sft.methods import save_model

RESULT, REPORT = "result", "merge"
# One alone may be of any kind that can be added to a weight; peft combines LoRA only.
MERGED_KINDS = ("LORA", "IA3")


def run(config: MergeConfig, launch: Launch) -> None:
    """Combine, fold in, measure, save. Raises ConfigError, CheckpointError and ModelError for what cannot merge."""
    require_one_process("merge")
    if not config.adapters:
        raise ConfigError("--adapters is required: runs or adapter directories that share a base")
    folders = [find_adapter(text, launch) for text in config.adapters]
    base = one_base(folders, config, launch)
    data = find_path(config.data, launch) if config.data else None
    out = launch.out or Workspace(launch.workspace).runs / "merge"
    given = {f"adapter_{i}": folder for i, folder in enumerate(folders, start=1)}
    parents = given | ({"base": Path(base)} if Path(base).exists() else {}) | ({"data": data} if data else {})
    with Run.open(
        out, stage="merge", settings=config, launch=launch, parents=parents, seed=config.seed
    ) as record:
        if record.finished:
            print(f"merge: {out} is already finished")
            return
        backbone = Backbone.load(base, config.model, name=model_name(base, launch))
        if is_quantized(backbone.model):
            raise ModelError(f"{base}: holds its weights in 4 bits; such a base is never merged")
        heldout = HeldOut.read(data, backbone) if data is not None else None
        roles = [
            load_adapter(backbone, name, folder, base_name=None, scalar_head=False)
            for name, folder in given.items()
        ]
        record.begin()
        clear_folders(record.path, "adapter", "model")
        with atomic_folder(record.path / "adapter") as folder:
            combine(backbone, folders, config, folder)
        role = load_adapter(backbone, RESULT, record.path / "adapter", base_name=None, scalar_head=False)
        with atomic_folder(record.path / "model") as folder:
            save_model(backbone, role, folder, getattr(torch, config.model.dtype))
        result = finite(measure(backbone, roles, folders, config, heldout))
        write_json(record.path / f"{REPORT}.json", result)
        write_text(record.path / f"{REPORT}.html", merge_page(result))
        record.finish(result["metrics"], extra={"base": backbone.name, "parts": result["parts"]})
    loss = result["metrics"].get("loss")
    said = f"; held-out loss {loss:.4f} nats per token" if loss is not None else ""
    print(f"merge: {len(folders)} adapter{'s' * (len(folders) > 1)} in {out / 'model'}{said}")


def one_base(folders: list[Path], config: MergeConfig, launch: Launch) -> str:
    """The base that all adapters name. Raises CheckpointError for kinds that cannot merge and for several bases."""
    bases = {}
    for folder in folders:
        settings = read_adapter_config(folder, ALL_KINDS)
        kind = settings["peft_type"]
        if kind in UNMERGED:
            raise CheckpointError(
                f"{folder}: was tuned by {UNMERGED[kind]}, which changes no weight, so it cannot be merged; use it as "
                "an adapter"
            )
        if kind not in MERGED_KINDS[: 1 if len(folders) > 1 else None]:
            raise CheckpointError(
                f"{folder}: is of the kind {kind}; several adapters are combined of LORA only"
            )
        if settings.get("use_dora") and config.shares != (1.0,):  # peft would forget the trained lengths
            raise CheckpointError(f"{folder}: is a DoRA adapter, which can be merged only alone and whole")
        if settings.get("task_type") == "SEQ_CLS":
            raise CheckpointError(f"{folder}: is a reward adapter; its head has no place in a language model")
        if not config.base:
            bases[base_path(folder, launch)] = folder
    if config.base:
        return find_model(config.base, launch)
    if len(bases) > 1:
        raise CheckpointError(f"the adapters have different bases: {', '.join(bases)}; expected one")
    return next(iter(bases))


def combine(backbone: Backbone, folders: list[Path], config: MergeConfig, target: Path) -> None:
    """Write the combination as a peft adapter directory. Raises ConfigError for adapters that do not go together."""
    if len(folders) == 1 and config.shares == (1.0,):
        for file in folders[0].iterdir():
            if file.is_file() and file.suffix in (".json", ".safetensors"):
                shutil.copyfile(file, target / file.name)
        (target / "value_head.safetensors").unlink(
            missing_ok=True
        )  # of ppo's training; the policy is the adapter
        return
    names = [f"part{i}" for i in range(len(folders))]
    ranks = [int(read_adapter_config(folder)["r"]) for folder in folders]
    options: dict[str, Any] = {"combination_type": config.how}
    if config.how in SPARSE:
        options["density"] = config.density
    if config.how == "svd":
        options["svd_rank"] = config.svd_rank or sum(ranks)
    with torch.random.fork_rng(), warnings.catch_warnings():
        # peft looks for the base where the current directory is; ours is named relative to the workspace
        warnings.simplefilter("ignore")
        torch.manual_seed(config.seed)
        try:
            model = PeftModel.from_pretrained(share_clone(backbone.model), folders[0], adapter_name=names[0])
            for name, folder in zip(names[1:], folders[1:], strict=True):
                model.load_adapter(folder, adapter_name=name)
            model.add_weighted_adapter(names, list(config.shares), RESULT, **options)
        except (ValueError, RuntimeError, KeyError) as error:
            what = ", ".join(f"r {rank}" for rank in ranks)
            raise ConfigError(
                f"the adapters ({what}) do not combine by {config.how}: {first_line(error)} (svd takes any)"
            ) from error
        model.save_pretrained(target, selected_adapters=[RESULT])
    for file in (target / RESULT).iterdir():
        file.rename(target / file.name)
    (target / RESULT).rmdir()
    (target / CARD).unlink(missing_ok=True)
    path = target / CONFIG_FILE
    # The parts' own scales are in the matrices: alpha is the rank, which is a scale of 1 by plain LoRA's rule alone.
    new = {"base_model_name_or_path": backbone.name, "use_rslora": False}
    settings = json.loads(path.read_text(encoding="utf-8")) | new
    write_text(path, json.dumps(settings, indent=2, sort_keys=True) + "\n")


CARD = "README.md"  # peft's template, which says nothing


def measure(
    backbone: Backbone, roles: list[Role], folders: list[Path], config: MergeConfig, heldout: HeldOut | None
) -> dict[str, Any]:
    """{metrics, parts, ...} of the result: the losses, and how the result compares with each part."""
    names = [folder.parent.name if folder.name == "adapter" else folder.name for folder in folders]
    parts = [{"name": name, "weight": weight} for name, weight in zip(names, config.shares, strict=True)]
    result: dict[str, Any] = {
        "how": config.how if len(folders) > 1 else "alone",
        "density": config.density if config.how in SPARSE and len(folders) > 1 else None,
        "parts": parts,
        "rows": [],
        "metrics": {"num_adapters": len(folders)},
    }
    if heldout is None:
        return result
    blend = heldout.nats(backbone, RESULT)
    rows = [("result", blend), ("base", heldout.nats(backbone, REFERENCE))]
    rows += [(name, heldout.nats(backbone, role.name)) for name, role in zip(names, roles, strict=True)]
    for name, nats in rows:
        row = {"model": name} | flat("loss", heldout.loss(nats))
        result["rows"].append(row | flat("over_result", heldout.difference(nats, blend)))
    result["num_rows"], result["num_too_long"] = len(heldout.examples), heldout.num_too_long
    best = min(result["rows"][2:], key=lambda row: row["loss"])
    result["metrics"] |= flat("loss", heldout.loss(blend))
    result["metrics"] |= {"loss_base": result["rows"][1]["loss"], "loss_best_part": best["loss"]}
    return result
