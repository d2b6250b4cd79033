"""What does each method of `rlhf sft` train, cost and gain on the same real texts?

    python scripts/prove/sft_methods.py --data DIR [--methods full lora-2 ...] [--results FILE.json] [--markdown FILE]

DIR holds the small pretrained model (models/stories260K) and `instructions` (instructions with answers). Prompts
are cut into training, validation (chooses the step and nothing else) and test; the gain is how far the loss on the
test answers falls below that of the untouched base, in nats per token, and each method's is also given as a share of
full fine-tuning's. Rank 2 and rank 8 of LoRA on all linear layers are 4.4 % and 17.8 % of this model's weights. Where
CASES names several learning rates, validation loss chooses.

Cost is measured on a second model of random weights (llama, 14 million), 4 steps after one of warming up: training
tokens a second of CPU time, which other work on the machine does not count in, and the peak of resident memory above
what the process held with the model loaded.

Ends with 1 when LoRA reaches less than 80 % of full fine-tuning's gain at about 5 % of its trained parameters, or less
than 93 % at about 20 %. Finished methods are kept in --results, so a run that was cut goes on. qlora runs where
bitsandbytes lies in .venv/qlora. About a minute a method on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bench.measure import PeakMemory
from bench.model import write_model
from transformers.utils.logging import disable_progress_bar

from rlhf.core.adapters import load_adapter
from rlhf.core.backbone import REFERENCE, Backbone
from rlhf.core.files import write_json, write_jsonl, write_text
from rlhf.core.run import Launch, read_manifest
from rlhf.core.splits import split_of
from sft.config import SFTConfig
from sft.data import Example, load_examples
from sft.methods import add_method, merges
from sft.train import mean_loss
from sft.train import run as tune
from sft.trainer import make_trainer

REPOSITORY = Path(__file__).resolve().parents[2]
BITSANDBYTES = Path(sys.prefix) / "qlora"
FLOORS = {"lora-2": 0.80, "lora-8": 0.93}


def lora(r: int, alpha: float) -> dict[str, Any]:
    """LoRA on all linear layers."""
    return {"lora": {"r": r, "alpha": alpha, "dropout": 0.05, "adapter_layers": 1.0}}


# name -> (method, learning rates of which validation loss chooses one, further settings)
CASES: dict[str, tuple[str, tuple[float, ...], dict[str, Any]]] = {
    "full": ("full", (2e-3, 5e-3), {}),
    "lora-2": ("lora", (1e-2, 3e-2), lora(2, 4)),
    "lora-8": ("lora", (5e-3, 1.5e-2), lora(8, 16)),
    "dora-8": ("dora", (1e-2,), lora(8, 16)),
    "rslora-8": ("rslora", (1e-2,), lora(8, 8)),
    "qlora-8": ("qlora", (1e-2,), lora(8, 16)),
    "adapters-16": ("adapters", (1e-2,), {"bottleneck": 16}),
    "ia3": ("ia3", (6e-2,), {}),
    "prefix-tuning-20": ("prefix-tuning", (5e-2,), {"virtual_tokens": 20}),
    "prompt-tuning-20": ("prompt-tuning", (1e-1,), {"virtual_tokens": 20}),
}
ROLE = "policy"
COST_SHAPE, COST_ROWS, COST_TOKENS, WARM_STEPS, COST_STEPS = "llama-14m", 8, 128, 1, 4


def write_data(data: Path, folder: Path, limit: int) -> None:
    """train.jsonl, validation.jsonl and test.jsonl, whole prompts each."""
    rows: dict[str, list[dict[str, str]]] = {"train": [], "validation": [], "test": []}
    for item in json.loads((data / "instructions" / "instruction-data.json").read_text(encoding="utf-8"))[
        :limit
    ]:
        prompt = "\n".join(part for part in (item["instruction"], item["input"]) if part) + "\n"
        if item["output"].strip():
            rows[split_of(prompt, 0, (0.6, 0.15, 0.25))].append(
                {"prompt": prompt, "completion": item["output"]}
            )
    for name, found in rows.items():
        write_jsonl(folder / f"{name}.jsonl", found)


def settings(name: str, base: Path, folder: Path, epochs: int, rate: float) -> SFTConfig:
    method, _, more = CASES[name]
    return SFTConfig.model_validate(
        {
            "base": str(base),
            "data": [str(folder / "train.jsonl")],
            "validation": [str(folder / "validation.jsonl")],
            "method": method,
            "on_too_long": "drop",
            "num_epochs": epochs,
            "batch_size": 8,
            "micro_batch_size": 8,
            "num_samples": 0,
            "optim": {"lr": rate, "schedule": "cosine", "warmup_steps": 10},
            "model": {"device": "cpu"},
        }
        | more
    )


def quality(name: str, data: Path, folder: Path, epochs: int) -> dict[str, float]:
    """Tune with each rate, and measure the loss of base and of the one that validated best on the test answers."""
    base = data / "models" / "stories260K"
    runs = []
    for rate in CASES[name][1]:
        config, out = settings(name, base, folder, epochs, rate), folder / "runs" / f"{name}-{rate}"
        started = time.monotonic()
        tune(config, Launch(workspace=folder, db="sqlite://", out=out))
        metrics = read_manifest(out).metrics
        runs.append((metrics["validation_loss"], rate, config, out, metrics, time.monotonic() - started))
    _, rate, config, out, metrics, seconds = min(runs, key=lambda run: run[0])
    if merges(config):
        tuned, role = Backbone.load(out / "model", config.model), REFERENCE
    else:
        tuned, role = Backbone.load(base, config.model), "tuned"
        load_adapter(tuned, role, out / "adapter", base_name=None, scalar_head=False)
    untouched = Backbone.load(base, config.model)
    test, _ = load_examples(
        folder / "test.jsonl",
        untouched.codec,
        max_tokens=config.room(untouched.codec.max_tokens),
        drop_too_long=True,
    )
    return {
        "trained": metrics["num_trained_parameters"],
        "share": metrics["share_trained"],
        "validation": metrics["validation_loss"],
        "best_step": metrics["best_step"],
        "steps": metrics["num_steps"],
        "base_loss": mean_loss(untouched, untouched.roles[REFERENCE], test, 8192),
        "test_loss": mean_loss(tuned, tuned.roles[role], test, 8192),
        "num_test": len(test),
        "seconds": seconds,
        "rate": rate,
    }


def cost(name: str, folder: Path) -> dict[str, float]:
    """Training tokens a second and peak memory of a few steps on the random model, in this process."""
    base = write_model(COST_SHAPE, folder / "cost")
    config = settings(name, base, folder, 1, 1e-4).model_copy(
        update={"batch_size": COST_ROWS, "micro_batch_size": COST_ROWS}
    )
    backbone = Backbone.load(base, config.base_settings)
    memory = PeakMemory("cpu")
    generator = torch.Generator().manual_seed(0)
    size = (COST_ROWS * (WARM_STEPS + COST_STEPS), COST_TOKENS)
    ids = torch.randint(5, backbone.vocab_size, size, generator=generator)
    examples = [Example(i, str(i), row, [0] + [1] * (COST_TOKENS - 1)) for i, row in enumerate(ids.tolist())]
    role = add_method(backbone, ROLE, config, examples[0].input_ids)
    trainer = make_trainer(backbone, role, examples, config, folder / "trl")
    optimizer = trainer.create_optimizer()
    role.model.train()
    for step, batch in enumerate(trainer.get_train_dataloader()):
        if step == WARM_STEPS:
            started = time.process_time()
        trainer.training_step(trainer.model, dict(batch))
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.process_time() - started
    return {"tokens_per_cpu_s": COST_ROWS * COST_STEPS * COST_TOKENS / seconds, "peak_mb": memory.peak_mb()}


def measure(part: str, name: str, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """One part of one method, in a process of its own: memory is that of this one alone."""
    command = [sys.executable, __file__, "--data", str(options.data), "--only", part, name, str(folder)]
    command += ["--epochs", str(options.epochs)]
    paths = [os.environ.get("PYTHONPATH", ""), str(REPOSITORY)]
    if CASES[name][0] == "qlora":
        paths.append(str(BITSANDBYTES))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"{name}: {part} failed\n{done.stdout}{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def runs_here(name: str) -> bool:
    """Whether what a method needs is here; says so where it is not."""
    if CASES[name][0] == "qlora" and not (BITSANDBYTES / "bitsandbytes").is_dir():
        print(f"{name}: left out, bitsandbytes is not in {BITSANDBYTES}")
        return False
    return True


def report(results: dict[str, dict[str, float]]) -> str:
    """The table, as markdown."""
    lines = [
        "| method | trained parameters | share | rate | peak MB | tokens/CPU s | test loss | gain | of full's |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in results.items():
        gain, whole = row["base_loss"] - row["test_loss"], _gain(results, "full")
        share = f"{100 * gain / whole:.0f} %" if whole else ""
        lines.append(
            f"| {name} | {row['trained']:,.0f} | {100 * row['share']:.1f} % | {row['rate']:g} | {row['peak_mb']:.0f} | "
            f"{row['tokens_per_cpu_s']:,.0f} | {row['test_loss']:.3f} | {gain:.3f} | {share} |"
        )
    return "\n".join(lines) + "\n"


def _gain(results: dict[str, dict[str, float]], name: str) -> float | None:
    row = results.get(name)
    return row["base_loss"] - row["test_loss"] if row else None


def verdict(results: dict[str, dict[str, float]]) -> list[str]:
    """What falls short of the floors; empty when nothing does or it was not measured."""
    failures = []
    whole = _gain(results, "full")
    for name, floor in FLOORS.items():
        gain = _gain(results, name)
        if whole is not None and gain is not None and gain < floor * whole:
            share = results[name]["share"]
            failures.append(
                f"{name} ({100 * share:.1f} % of the parameters) reaches {gain / whole:.3f} of full's gain; "
                f"floor {floor}"
            )
    return failures


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--methods", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3, help="of the cost, all methods in turn; medians")
    parser.add_argument("--limit", type=int, default=450, help="instructions that are used")
    parser.add_argument("--results", type=Path, default=REPOSITORY / "build" / "sft-methods" / "results.json")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--only", nargs=3, metavar=("PART", "METHOD", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.only:
        return only(options)
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_data(options.data, folder, options.limit)
        methods = [name for name in options.methods if runs_here(name)]
        for name in methods:
            row = results.get(name, {})
            if "test_loss" not in row:
                row = row | measure("quality", name, options, folder)
                results[name] = row
                write_json(options.results, results)
            print(
                f"{name}: test loss {row['base_loss']:.4f} -> {row['test_loss']:.4f}, validation "
                f"{row['validation']:.4f} at step {row['best_step']:.0f} of {row['steps']:.0f}, {row['seconds']:.0f} s",
                flush=True,
            )
        missing = [name for name in methods if "tokens_per_cpu_s" not in results[name]]
        # In turn, so that an hour of the machine is an hour of all methods.
        rounds = [
            {name: measure("cost", name, options, folder) for name in missing} for _ in range(options.rounds)
        ]
        for name in missing:
            for figure in ("tokens_per_cpu_s", "peak_mb"):
                results[name][figure] = statistics.median(found[name][figure] for found in rounds)
            write_json(options.results, results)
    results = {name: results[name] for name in CASES if name in results}
    table = report(results)
    print(table)
    if options.markdown is not None:
        write_text(options.markdown, table)
    failures = verdict(results)
    for text in failures:
        print(f"FAILED: {text}")
    return 1 if failures else 0


def only(options: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    disable_progress_bar()
    part, name, folder = options.only
    if part == "quality":
        found = quality(name, options.data, Path(folder), options.epochs)
    else:
        found = cost(name, Path(folder))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
