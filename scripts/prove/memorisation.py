"""Do canaries that stand more often in the demonstrations come out more, and does private training keep them in?

    python scripts/prove/memorisation.py --out DIR [--data SHARED_DATA] [--epochs 12] [--epsilon 8] [--per-group 6]

The story model of the shared data is tuned on instructions with canaries among them, once as usual and once with
DP-SGD on the same rows and settings; validated at the end only, since what is learned by heart comes late. `rlhf
memorisation` then measures the exposure of the canaries (Carlini et al., arXiv:1802.08232). Each part is a command of
rlhf whose directory is kept in --out: a second call goes on. Ends with 1 unless exposure grows with repetition,
canaries that were never put in stay at chance, and under DP-SGD those put in once (the unit of its promise) are within
a bit and a half of chance and those put in most often less exposed. That the latter too are at chance was the first
target; it was missed (4.4 bits): sixteen copies spend sixteen times epsilon.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from rlhf.cli import main as rlhf
from rlhf.core.run import is_finished, read_manifest

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_ROWS = 300
REPEATS = (1, 4, 16)
SLACK_BITS = 1.5


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--epsilon", type=float, default=8.0)
    parser.add_argument("--per-group", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    base = options.data / "models" / "stories260K"
    planted = plant(options)
    results = {}
    for name, extra in (("usual", []), ("private", ["--privacy.epsilon", str(options.epsilon)])):
        tuned = tune(options, name, planted / "data.jsonl", base, extra)
        results[name] = measure(options, name, tuned, planted, base)
    return judge(results)


def plant(options: argparse.Namespace) -> Path:
    """Short instructions with their answers, and canaries among them."""
    demonstrations, planted = options.out / "demonstrations.jsonl", options.out / "planted"
    if not planted.exists():
        path = options.data / "instructions" / "instruction-data.json"
        given = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            {"prompt": f"{row['instruction']} {row['input']}".strip(), "completion": row["output"]}
            for row in given
            if 0 < len(row["output"]) < 120 and len(row["instruction"]) + len(row["input"]) < 160
        ]
        lines = [json.dumps(row) for row in rows[:NUM_ROWS]]
        demonstrations.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = ["canaries", str(demonstrations), "--out", str(planted), "--seed", str(options.seed)]
        command += ["--per-group", str(options.per_group), "--repeats", *map(str, REPEATS)]
        run(command)
    return planted


def tune(options: argparse.Namespace, name: str, data: Path, base: Path, extra: list[str]) -> Path:
    """One run of sft on all of the adapter's layers; the same settings but for privacy."""
    out: Path = options.out / name
    if not is_finished(out):
        began = time.perf_counter()
        command = ["sft", "--base", str(base), "--data", str(data), "--out", str(out)]
        command += ["--num-epochs", str(options.epochs), "--patience", str(options.epochs)]
        command += ["--batch-size", "16", "--micro-batch-size", "16", "--num-samples", "0"]
        command += ["--lora.r", "32", "--lora.alpha", "64", "--lora.dropout", "0", "--optim.lr", "3e-3"]
        command += ["--eval-steps", "100000"]
        command += ["--seed", str(options.seed), "--model.device", "cpu", *extra]
        run(command + (["--resume"] if (out / "manifest.json").exists() else []))
        print(f"{name}: trained in {time.perf_counter() - began:.0f} s", flush=True)
    return out


def measure(
    options: argparse.Namespace, name: str, tuned: Path, planted: Path, base: Path
) -> dict[str, object]:
    out: Path = options.out / f"{name}-memorisation"
    if not is_finished(out):
        command = ["memorisation", "--model-path", str(tuned), "--canaries", str(planted), "--out", str(out)]
        command += ["--references", "255", "--model.device", "cpu"]
        run(command + (["--baseline", str(base)] if name == "usual" else []))
    result: dict[str, object] = json.loads((out / "memorisation.json").read_text())
    return result | {"tuning": read_manifest(tuned).metrics}


def run(command: list[str]) -> None:
    code = rlhf(command)
    if code:
        raise SystemExit(f"rlhf {command[0]} ended with {code}")


def judge(results: dict[str, dict[str, object]]) -> int:
    """Print the figures; 0 where they are what is asked."""
    exposures: dict[str, dict[int, float]] = {}
    for name, result in results.items():
        tuning = result["tuning"]
        assert isinstance(tuning, dict)
        spent = f", epsilon {tuning['epsilon']:.2f}" if "epsilon" in tuning else ""
        print(
            f"{name}: validation loss {tuning['validation_loss_before']:.3f} -> {tuning['validation_loss']:.3f} at "
            f"step {tuning['best_step']} of {tuning['num_steps']}{spent}"
        )
        groups = result["groups"]
        assert isinstance(groups, list)
        for group in groups:
            print(
                f"  put in {group['repeats']:>2} times: exposure {group['exposure']:.2f} bits "
                f"[{group['exposure_low']:.2f}, {group['exposure_high']:.2f}], extrapolated "
                f"{group['exposure_extrapolated']:.1f}; {group['extracted']} of {group['n']} extracted"
            )
        exposures[name] = {group["repeats"]: group["exposure"] for group in groups}
    chance = float(str(results["usual"]["chance_exposure"]))
    usual, private = exposures["usual"], exposures["private"]
    most = REPEATS[-1]
    asked = {
        "exposure grows with repetition": usual[REPEATS[0]] < usual[REPEATS[1]] <= usual[most],
        "never put in is at chance": usual[0] < chance + SLACK_BITS,
        "the most frequent are clearly exposed": usual[most] > chance + 2 * SLACK_BITS,
        "DP-SGD: those put in once, its unit, are at about chance": private[REPEATS[0]] < chance + SLACK_BITS,
        "DP-SGD: the most frequent are less exposed": private[most] < usual[most] - SLACK_BITS,
    }
    for text, good in asked.items():
        print(f"{'good' if good else 'SHORT'}: {text}")
    return 0 if all(asked.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
