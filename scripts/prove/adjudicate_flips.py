"""Does `rlhf adjudicate` send back the ratings that are wrong?

    python scripts/prove/adjudicate_flips.py [--seeds 0 1 2] [--prompts 1500] [--flips 0.1] [--workspace DIR]

The embedded world, everything simulated: its supervised model writes two replies to each prompt, its five raters judge
them through the store's own doors (two raters a pair), and one answer in ten is turned round after it was given. From
there on it is the user's way: `rlhf export`, `rlhf reward`, `rlhf adjudicate`. The reward model learns from the turned
answers as well, and nobody tells it which they are.

Printed for the N most contradicted ratings, and for those of 100 below the command's default probability of 0.1: how
many were turned round, beside the share among all ratings; and how many are wrong by the true rubric, since the raters
err by themselves too and a lead would want to see those as well. Held-out ratings are counted apart.

Ends with 1 when, over all seeds, the 95 % interval of the share of turned ratings among the 50 most contradicted of
each seed does not lie above twice their share among all. About four minutes for the world (kept in --workspace) and
two a seed on one core; seeds that are measured already are kept there too.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.reward_world import supervised_world

from feedback_app.config import ExportConfig
from feedback_app.exporting import run as export
from feedback_app.store.engine import Store
from feedback_app.store.tasks import ensure_project
from reward.config import RewardConfig
from reward.data import load_preferences
from reward.train import run as train_reward
from rlhf.core.files import read_rows, write_json, write_jsonl
from rlhf.core.records import Verdict
from rlhf.core.run import Launch, read_manifest
from rlhf.core.settings import LoraSettings, OptimSettings, SamplingSettings
from rlhf.core.stats import wilson_interval
from rlhf.demo import corpus, rubric
from rlhf.demo.raters import RATERS, Rater, rate_all
from rlhf.loop.adjudicate import run as adjudicate
from rlhf.loop.config import AdjudicateConfig, SampleConfig
from rlhf.loop.sample import run as sample

PROJECT = "flips"
TOPS = (20, 50, 100)
DECISIVE = 50  # the N that the verdict is about, and the command's own default
TURNED: dict[Verdict, Verdict] = {"first": "second", "second": "first"}
Answer = tuple[str, str, str, str]  # rater, prompt, chosen, rejected


@dataclass(frozen=True)
class TurningRater(Rater):
    """A rater of the world, a share of whose decided answers is turned round; `planted` remembers which."""

    share: float = 0.0
    planted: set[Answer] = field(default_factory=set, compare=False)

    def judge(
        self, prompt: str, first: str, second: str, rng: random.Random, *, first_on_top: bool = True
    ) -> tuple[Verdict, int | None]:
        verdict, strength = super().judge(prompt, first, second, rng, first_on_top=first_on_top)
        if verdict in TURNED and rng.random() < self.share:
            verdict = TURNED[verdict]
            sides = (first, second) if verdict == "first" else (second, first)
            self.planted.add((self.name, prompt, *sides))
        return verdict, strength


@dataclass(frozen=True)
class Ranked:
    """A rating as the command sent it back, the most contradicted first."""

    probability: float
    trained_on: bool
    turned: bool
    wrong: bool


def wrong(prompt: str, chosen: str, rejected: str) -> bool:
    return rubric.score(prompt, chosen) < rubric.score(prompt, rejected)


@dataclass(frozen=True)
class Seed:
    """found: what came back. turned, wrong: their shares among all decided ratings."""

    found: tuple[Ranked, ...]
    turned: float
    wrong: float


def result_of(launch: Launch, seed: int, options: argparse.Namespace) -> Seed:
    """A seed that was measured before with the same options is read from its folder."""
    folder = launch.workspace / "flips" / str(seed)
    settings = {"prompts": options.prompts, "flips": options.flips, "rater_weights": options.rater_weights}
    kept = folder / "result.json"
    if kept.is_file() and (values := json.loads(kept.read_text(encoding="utf-8")))["settings"] == settings:
        return Seed(tuple(Ranked(**one) for one in values["found"]), values["turned"], values["wrong"])
    result = one_seed(launch, seed, folder, options)
    write_json(kept, {"settings": settings, **asdict(result)})
    return result


def one_seed(launch: Launch, seed: int, folder: Path, options: argparse.Namespace) -> Seed:
    """Ask, train, send back."""
    # Which answers are turned is known only while they are given: everything but the world is made anew.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    launch = replace(launch, db=f"sqlite:///{folder}/feedback.db")
    prompts = corpus.make_prompts(seed, options.prompts, name=f"flips{seed}", heldout=False, taken=set())
    write_jsonl(folder / "prompts.jsonl", prompts)
    model = str(launch.workspace / "runs" / "sft" / "model")
    with Store.open(launch.db) as store:
        ensure_project(store, PROJECT, title="Turned answers", rubric=rubric.RUBRIC, simulated=True)
    settings = SampleConfig(
        model_path=model,
        prompts=str(folder / "prompts.jsonl"),
        project=PROJECT,
        overlap=2,
        sampling=SamplingSettings(temperature=0.85, max_completion_tokens=64),
        simulated=True,
        seed=seed,
    )
    sample(settings, launch)
    planted: set[Answer] = set()
    raters = [TurningRater(**vars(rater), share=options.flips, planted=planted) for rater in RATERS]
    with Store.open(launch.db) as store:
        rate_all(store, PROJECT, seed=seed, raters=raters)
    snapshot = folder / "snapshot"
    export(
        ExportConfig(project=PROJECT, seed=seed, train=0.75, validation=0.1), replace(launch, out=snapshot)
    )
    config = RewardConfig(
        backbone=model,
        snapshot=str(snapshot),
        num_epochs=2,
        lora=LoraSettings(r=16, alpha=32, adapter_layers=0.5, dropout=0.05),
        optim=OptimSettings(lr=3e-3, schedule="cosine", warmup_steps=10, weight_decay=0.01),
        rater_weights=options.rater_weights,
        seed=seed,
    )
    train_reward(config, replace(launch, out=folder / "reward"))
    sent = AdjudicateConfig(
        reward=str(folder / "reward"),
        snapshot=str(snapshot),
        threshold=0.49,  # a rank for everything; the default's 0.1 is counted below
        contradicted=max(TOPS),
        uncertain=0,
        second_opinions=0,
    )
    adjudicate(sent, replace(launch, out=folder / "adjudicate"))
    rows = [row for _, row in read_rows(folder / "adjudicate" / "contradicted.jsonl")]
    found = [ranked(row, planted) for row in sorted(rows, key=lambda row: row["probability"])]
    decided = [row for _, _, row in load_preferences(snapshot, seed) if not row.tie]
    texts = [(row.prompt[-1].content, row.chosen[0].content, row.rejected[0].content) for row in decided]
    accuracy = read_manifest(folder / "reward").metrics["heldout_accuracy"]
    print(f"seed {seed}: {len(decided)} decided ratings, held-out accuracy against them {accuracy:.3f}")
    erring = sum(wrong(*text) for text in texts) / len(decided)
    return Seed(tuple(found), len(planted) / len(decided), erring)


def ranked(row: dict[str, Any], planted: set[Answer]) -> Ranked:
    texts = (row["prompt"], row["chosen"], row["rejected"])
    return Ranked(row["probability"], row["trained_on"], (row["annotator"], *texts) in planted, wrong(*texts))


def told(name: str, found: Sequence[Ranked], turned: float, erring: float) -> float:
    """Print a line; returns the lower end of the share of turned ratings."""
    share = wilson_interval(sum(one.turned for one in found), len(found))
    mistakes = wilson_interval(sum(one.wrong for one in found), len(found))
    print(
        f"{name:40s} {len(found):5d}  {100 * share.mean:5.1f} [{100 * share.low:.1f}, {100 * share.high:.1f}] of "
        f"{100 * turned:4.1f}   {100 * mistakes.mean:5.1f} [{100 * mistakes.low:.1f}, {100 * mistakes.high:.1f}] of "
        f"{100 * erring:4.1f}",
        flush=True,
    )
    return share.low


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--prompts", type=int, default=1500)
    parser.add_argument("--flips", type=float, default=0.1, help="share of the decided answers turned round")
    parser.add_argument("--rater-weights", choices=("none", "dawid-skene"), default="none")
    parser.add_argument(
        "--workspace", type=Path, help="kept, and the world in it used again; default temporary"
    )
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        workspace = options.workspace or Path(temporary)
        launch = supervised_world(workspace)
        results = [result_of(launch, seed, options) for seed in options.seeds]
    turned = sum(result.turned for result in results) / len(results)
    erring = sum(result.wrong for result in results) / len(results)
    print(
        "ratings sent back                       number  turned round, % of all      wrong by the rubric, % of all"
    )
    low = 0.0
    for top in TOPS:
        end = told(
            f"the {top} most contradicted of each seed",
            [one for result in results for one in result.found[:top]],
            turned,
            erring,
        )
        low = end if top == DECISIVE else low
    everything = [one for result in results for one in result.found]
    told(
        "of these, below a probability of 0.1",
        [one for one in everything if one.probability < 0.1],
        turned,
        erring,
    )
    held_out = [one for one in everything if not one.trained_on]
    told("of the 100 of each seed, held out", held_out, turned, erring)
    met = low > 2 * turned
    print(
        "twice the share of all is exceeded"
        if met
        else f"missed: {100 * low:.1f} %, {200 * turned:.1f} needed"
    )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
