"""Is `rlhf plan` right? Its estimates beside the peak resident memory of real runs, each in a process of its own.

    python scripts/prove/plan_memory.py --work DIR [--only NAME ...] [--calibration] [--out FILE.json]

Peak memory is what is resident above the imports (`bench.measure.PeakMemory`), in MB of 10^6 bytes, fp32, on a CPU,
models with random weights. A case that has been measured (DIR/NAME.json) is not measured again. The constants of the
estimate (a fixed cost, and the share of idle blocks) come from the calibration cases, whose models and lengths are
others; ppo's is set by the first four ppo cases of the proof and two of calibration, and the last three cases were
estimated before they were measured. Ends with exit code 1 where an estimate is more than 15 % off.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:  # as in the sister scripts: `bench` lies beside this file
    sys.path.insert(0, str(HERE))

TOLERANCE = 0.15


@dataclass(frozen=True)
class Run:
    """A run to measure. share: part of the layers, from the top, that carries adapters."""

    name: str
    shape: str
    stage: str
    method: str = "lora"
    prompt: int = 64
    completion: int = 64
    batch: int = 16
    micro: int = 8
    rank: int = 16
    share: float = 1.0
    dropout: float = 0.05
    checkpointing: bool = False


SIZES = ("llama-5m", "llama-14m", "llama-40m")
PROOF = [
    *(Run(f"sft-lora-{size}", size, "sft") for size in SIZES),
    *(Run(f"sft-full-{size}", size, "sft", method="full") for size in SIZES),
    *(Run(f"ppo-{size}", size, "ppo", batch=32, prompt=32, dropout=0.0) for size in SIZES),
    Run("ppo-half-llama-14m", "llama-14m", "ppo", batch=32, prompt=32, share=0.5, dropout=0.0),
    Run("sft-lora-checkpointing-llama-40m", "llama-40m", "sft", checkpointing=True),
    # Chosen, and estimated, before any of them was measured.
    Run("ppo-llama-20m", "llama-20m", "ppo", prompt=48, completion=80, batch=16, micro=4, dropout=0.0),
    Run("ppo-half-qwen-30m", "qwen-30m", "ppo", prompt=24, completion=40, batch=48, share=0.5, dropout=0.0),
    Run(
        "ppo-llama-60m", "llama-60m", "ppo", prompt=64, completion=64, batch=24, micro=6, rank=8, dropout=0.0
    ),
]
CALIBRATION = [
    Run("cal-sft-tiny", "tiny", "sft"),
    Run("cal-ppo-tiny", "tiny", "ppo", dropout=0.0),
    Run("cal-sft-9m", "llama-9m", "sft", prompt=32, completion=160, micro=4),
    Run("cal-sft-25m", "llama-25m", "sft", prompt=96, completion=96, rank=8),
    Run("cal-sft-25m-short", "llama-25m", "sft", prompt=16, completion=32, rank=8, micro=2),
    Run("cal-ppo-9m", "llama-9m", "ppo", prompt=64, completion=96, batch=16, micro=4, dropout=0.0),
    Run("cal-ppo-25m", "llama-25m", "ppo", prompt=32, completion=48, batch=24, rank=8, dropout=0.0),
]


def add_shapes() -> None:
    """Models of other sizes and proportions than those of the benchmarks."""
    from bench.cases import SHAPES, Shape

    SHAPES["llama-9m"] = Shape("llama", 320, 5, 960, 5, 5, 2048, False)
    SHAPES["llama-25m"] = Shape("llama", 512, 7, 1280, 8, 4, 6000, True)
    SHAPES["llama-20m"] = Shape("llama", 448, 7, 1152, 7, 7, 3000, False)
    SHAPES["qwen-30m"] = Shape("qwen2", 512, 8, 1408, 8, 2, 8000, True)
    SHAPES["llama-60m"] = Shape("llama", 640, 11, 1792, 10, 5, 4096, True)


def model_of(run: Run, work: Path) -> Path:
    return work / "models" / run.shape


def measure(run: Run, work: Path) -> dict[str, float]:
    """In this process: the run, and its peak above the imports."""
    import torch
    from bench.measure import PeakMemory
    from bench.ours import encoded

    from rlhf.core.backbone import Backbone
    from rlhf.core.run import Launch
    from rlhf.core.settings import LoraSettings, ModelSettings, SamplingSettings
    from rlhf.ppo.closed_form import TokenReward
    from rlhf.ppo.config import PPOConfig
    from rlhf.ppo.prompts import PromptStream
    from rlhf.ppo.train import PPOTrainer
    from sft.config import SFTConfig
    from sft.train import run as run_sft

    torch.set_num_threads(1)
    folder, base = work / run.name, str(model_of(run, work))
    model = ModelSettings(device="cpu")
    lora = LoraSettings(r=run.rank, alpha=2.0 * run.rank, dropout=run.dropout, adapter_layers=run.share)
    memory = PeakMemory("cpu")
    if run.stage == "sft":
        settings = {
            "base": base,
            "data": str(folder / "data.jsonl"),
            "num_epochs": 1,
            "batch_size": run.batch,
            "micro_batch_size": run.micro,
            "gradient_checkpointing": run.checkpointing,
            "lora": lora,
            "model": model,
        }
        if run.method != "lora":
            settings["method"] = run.method
        launch = Launch(folder, "sqlite:///none", out=folder / "out", force=True)
        run_sft(SFTConfig(**settings), launch)
        return {"peak_mb": memory.peak_mb()}
    config = PPOConfig(
        num_prompts=run.batch,
        num_minibatches=1,
        micro_batch_tokens=run.micro * (run.prompt + run.completion),
        sampling=SamplingSettings(max_completion_tokens=run.completion),
        lora=lora,
        model=model,
        gradient_checkpointing=run.checkpointing,
    )
    backbone = Backbone.load(base, model, name="plan")
    reward = TokenReward(lambda tokens: sum(t % 2 for t in tokens) / len(tokens), run.prompt)
    trainer = PPOTrainer(backbone, reward, config, max_tokens=run.prompt + run.completion)
    stream = PromptStream(encoded(rows(run, 4 * run.batch, run.prompt)), seed=0)
    for _ in range(2):
        batch = trainer.collect(stream)
        targets = trainer.targets(batch)
        trainer.update(batch, targets)
        trainer.finish_iteration(0.0, run.batch)
        trainer.state_dict()
    return {"peak_mb": memory.peak_mb(), "length": batch.completions.lengths_B.float().mean().item()}


def rows(run: Run, count: int, length: int) -> list[list[int]]:
    """Token ids without the special ones, another row for each number."""
    from bench.cases import NUM_SPECIAL, SHAPES

    usable = SHAPES[run.shape].vocabulary - NUM_SPECIAL
    return [[NUM_SPECIAL + (17 * i + 31 * j + i * j) % usable for j in range(length)] for i in range(count)]


def prepare(run: Run, work: Path) -> None:
    """The model and, for sft, demonstrations whose rows have exactly the tokens that are planned for."""
    from bench.model import write_model

    folder = work / run.name
    folder.mkdir(parents=True, exist_ok=True)
    write_model(run.shape, model_of(run, work))
    with (folder / "data.jsonl").open("w", encoding="utf-8") as file:
        # The codec adds a begin token to the prompt and an end token to the completion.
        for number, row in enumerate(rows(run, 4 * run.batch, run.prompt + run.completion - 2)):
            words = [f"t{i}" for i in row]
            if number % 4 == 3:  # a quarter of the rows is shorter, so that batches are padded
                words = words[: -run.completion // 2]
            pair = {
                "prompt": " ".join(words[: run.prompt - 1]),
                "completion": " ".join(words[run.prompt - 1 :]),
            }
            file.write(json.dumps(pair) + "\n")


def planned(run: Run) -> dict[str, Any]:
    """What `rlhf plan` says, with the configuration alone."""
    from bench.cases import SHAPES
    from transformers import AutoConfig

    from rlhf.core.settings import LoraSettings, ModelSettings
    from rlhf.plan.config import PlanConfig
    from rlhf.plan.estimate import estimate

    shape = SHAPES[run.shape]
    config = AutoConfig.for_model(shape.architecture, **shape.config(1024))
    plan = PlanConfig(
        base=run.shape,
        stage=run.stage,
        method=run.method,
        prompt_tokens=run.prompt,
        completion_tokens=run.completion,
        batch_size=run.batch,
        micro_batch_size=run.micro,
        reward_adapter=False,
        gradient_checkpointing=run.checkpointing,
        lora=LoraSettings(r=run.rank, alpha=2.0 * run.rank, dropout=run.dropout, adapter_layers=run.share),
        model=ModelSettings(device="cpu"),
    )
    found = estimate(config, plan)
    return {
        "peak": found.peak.total / 1e6,
        "phase": found.peak.name,
        "phases": [asdict(p) for p in found.phases],
    }


def fitted(rows: list[dict[str, Any]]) -> str:
    """The fixed cost and the share of idle blocks that fit these cases best, in relative terms: measured = what stays
    + fixed + (1 + share) x what passes, all of the planned peak's phase."""
    import numpy as np

    from rlhf.plan.estimate import PASSING

    left, right = [], []
    for row in rows:
        parts = next(phase["parts"] for phase in row["phases"] if phase["name"] == row["phase"])
        passing = sum(size for name, size in parts.items() if name in PASSING) / 1e6
        stays = (
            sum(size for name, size in parts.items() if name not in {*PASSING, "idle blocks", "process"})
            / 1e6
        )
        left.append([1 / row["measured_mb"], passing / row["measured_mb"]])
        right.append((row["measured_mb"] - stays) / row["measured_mb"])
    (fixed, factor), *_ = np.linalg.lstsq(np.array(left), np.array(right), rcond=None)
    errors = np.array(left) @ np.array([fixed, factor]) - np.array(right)
    return (
        f"fixed {fixed:.1f} MB, idle share {factor - 1:.3f}; off by {', '.join(f'{e:+.1%}' for e in errors)}"
    )


def child(run: Run, work: Path) -> None:
    """Measure a case in a process of its own. Raises RuntimeError with the end of what it said."""
    command = [sys.executable, __file__, "--work", str(work), "--measure", "--only", run.name]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise RuntimeError(f"{run.name}: measuring failed: {done.stderr[-2000:]}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for models and measurements")
    parser.add_argument("--only", nargs="*", help="names of the cases; default all")
    parser.add_argument("--calibration", action="store_true", help="the cases that the constants come from")
    parser.add_argument("--out", type=Path, help="write the table here as JSON")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    add_shapes()
    cases = [*PROOF, *CALIBRATION] if arguments.only else CALIBRATION if arguments.calibration else PROOF
    cases = [run for run in cases if not arguments.only or run.name in arguments.only]
    if arguments.measure:
        (run,) = cases
        result = measure(run, arguments.work)
        (arguments.work / f"{run.name}.json").write_text(json.dumps(result) + "\n")
        return 0
    table, missed = [], 0
    for run in cases:
        result = arguments.work / f"{run.name}.json"
        if not result.exists():
            prepare(run, arguments.work)
            child(run, arguments.work)
        measured = json.loads(result.read_text())["peak_mb"]
        plan = planned(run)
        off = plan["peak"] / measured - 1
        missed += abs(off) > TOLERANCE
        print(
            f"{run.name:34} measured {measured:8.1f} MB   planned {plan['peak']:8.1f} ({plan['phase']})   {off:+.1%}",
            flush=True,
        )
        table.append({"case": run.name, "measured_mb": measured, "off": off} | plan)
    if arguments.calibration:
        for stage in dict.fromkeys(run.stage for run in cases):
            print(
                f"{stage}: {fitted([row for row, run in zip(table, cases, strict=True) if run.stage == stage])}"
            )
    if arguments.out:
        arguments.out.write_text(json.dumps(table, indent=1) + "\n")
    print(f"{len(table) - missed} of {len(table)} within {TOLERANCE:.0%}")
    return 1 if missed and not arguments.calibration else 0


if __name__ == "__main__":
    sys.exit(main())
