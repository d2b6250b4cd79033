"""How much does tuning on another domain make a model forget, and how much do replay and KL to the base save?

    python scripts/prove/forgetting.py --data DIR [--variants none replay kl kl-replay both] [--seeds 1] [--work DIR]

DIR holds the real texts and the small pretrained model, which has read nothing but children's stories. It is tuned on
instructions; 60 stories that no tuning sees say what it has forgotten: the rise of nats per token. The rise on what
the base says of its own accord (an estimate of KL(base || tuned)) stands beside it, and what was learned: the fall on
held-out instructions.

    none       no remedy                              kl         KL to the base on all tokens of the data
    replay     --share of an epoch's rows are other   kl-replay  replayed rows, and KL to the base on them
               stories                                both       replayed rows, and KL to the base on all tokens

What is asked: replay at least halves the forgetting of `none` in every seed, and their intervals do not touch; ends
with 1 otherwise. With --work DIR a proof that was stopped goes on. One to three minutes a variant on one core.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from tuning.texts import CPU, launch_in, metrics_of, span, stories, tune, write_once

from rlhf.core.settings import SamplingSettings
from sft.assess.config import SFTEvalConfig
from sft.assess.run import run as sft_eval

NUM_GENERAL, NUM_REPLAYED = 60, 600


def variants(replay: Path, share: float, coefficient: float) -> dict[str, dict[str, Any]]:
    """The settings of each remedy."""
    rows: dict[str, Any] = {"replay": str(replay), "replay_share": share}
    return {
        "none": {},
        "replay": rows,
        "kl": {"kl_to_base": coefficient},
        "kl-replay": rows | {"kl_to_base": coefficient, "kl_tokens": "replay"},
        "both": rows | {"kl_to_base": coefficient},
    }


def one(
    name: str, changes: dict[str, Any], seed: int, options: argparse.Namespace, work: Path
) -> dict[str, Any]:
    """Tune with one remedy and measure."""
    common = {"data": options.data, "epochs": options.epochs, "lr": options.lr}
    run, held = tune(f"sft_{name}_{seed}", seed, work, **common, **changes)
    general = write_once(work / "general.jsonl", stories(options.data)[:NUM_GENERAL])
    examined = SFTEvalConfig(
        model=str(run),
        data=str(held),
        general=str(general),
        shots=0,
        num_probes=0,
        sampling=SamplingSettings(temperature=0.0, max_completion_tokens=32),
        load=CPU,
        seed=seed,
    )
    sft_eval(examined, launch_in(work, f"eval_{name}_{seed}"))
    return metrics_of(work, f"eval_{name}_{seed}")


def one_seed(seed: int, options: argparse.Namespace, work: Path) -> bool:
    """All variants of a seed as a table; True when replay halves the forgetting."""
    replay = write_once(
        work / "replay.jsonl", stories(options.data)[NUM_GENERAL : NUM_GENERAL + NUM_REPLAYED]
    )
    known = variants(replay, options.share, options.coefficient)
    found = {name: one(name, known[name], seed, options, work) for name in options.variants}
    print(
        f"seed {seed:<12d} {'stories, rise':26s} {'its own text, rise':26s} {'instructions, nats saved':26s}"
    )
    for name, metrics in found.items():
        columns = ("general_perplexity_rise", "own_perplexity_rise", "nll_gain")
        line = "".join(f"{span(metrics, column):27s}" for column in columns)
        saved = 1 - metrics["general_perplexity_rise"] / found["none"]["general_perplexity_rise"]
        print(f"    {name:13s} {line}" + ("" if name == "none" else f"{100 * saved:.0f} % saved"), flush=True)
    if "replay" not in found:
        return True
    lost, kept = found["none"], found["replay"]
    return bool(
        kept["general_perplexity_rise"] <= lost["general_perplexity_rise"] / 2
        and kept["general_perplexity_rise_high"] < lost["general_perplexity_rise_low"]
    )


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    names = ("none", "replay", "kl", "kl-replay", "both")
    parser.add_argument("--data", type=Path, default=default, help="folder of the real sets")
    parser.add_argument(
        "--variants", nargs="+", choices=names, default=list(names), help="none is always run"
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--share", type=float, default=0.2, help="of the rows of an epoch that are replayed")
    parser.add_argument("--coefficient", type=float, default=1.0, help="of KL to the base")
    parser.add_argument("--work", type=Path, help="keep the runs here, and go on with them")
    options = parser.parse_args(argv)
    options.variants = list(dict.fromkeys(["none", *options.variants]))
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        halved = [one_seed(seed, options, work.resolve()) for seed in range(options.seeds)]
    if not all(halved):
        print("forgetting: replay does not halve it", file=sys.stderr)
    return 0 if all(halved) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
