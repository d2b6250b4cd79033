"""Does the reward stage find out who is reliable, and does it learn better for it?

    python scripts/prove/reward_raters.py [--seeds 0 1 2 3 4] [--workspace DIR]

Everything is simulated: the embedded world's prompts, replies written by its generator, and raters who name the reply
that is better by the true rubric with a probability that is known (and otherwise the other one).

    order       six raters whose reliabilities lie 0.05 apart and one at chance, 0.1 to 2 answers of a pair beyond the
                first: the weights must have the order of the raters (Spearman 1.0) in every case where each has about
                8,000 answers beside others. First this was asked for at 2,000, where 2 of 20 cases have one swapped
                pair of neighbours: printed are 500, 2,000 and 8,000, with the swapped pairs, how many standard errors
                of the difference their estimates lie apart, and whether these errors are of the right size
    careless    six raters, two of them at chance: `rlhf reward --rater-weights dawid-skene` against the same without
                weights, and with `--rater-labels posterior` on top, by accuracy (see below)
    doubt       the same models by what they say of their own certainty: the log-loss of the four good raters' answers
                about the held-out prompts, each model calibrated on its own validation answers. Weights must lower it
    hasty       four good raters and two who choose the longer reply without reading either: the gain in accuracy of
                weights must lie above 0 (interval over all held-out prompts of all seeds)
    flipping    five raters of 0.8, one of whom turns every label round: accuracy must fall by less than 2 points
                against the same five without it

The design of `careless` was fixed before any of its figures was seen, and is the third: 1,500 pairs (one seed, +0.5
[-0.9, +1.8] points) and 600 pairs with two answers each (three seeds, -1.3) had shown no gain from weights. Two reasons
were found. The best epoch was chosen by a validation loss that counted all raters alike, by which a model that has
learned whom to believe looks too sure of itself, so that the first epoch won (seen in the runs of `hasty`); validation
is weighed now as training is. And two answers a pair say little about who is a coin: a linear model on the frozen
model's states gains nothing or less than one point from estimated weights at 200 pairs with two answers, +1.3 to +2.4
with three, and a little more from posteriors (seeds 100 to 102, used for nothing else). So: 400 pairs, three answers
each, eight new seeds (10 to 17, not those of `--seeds`), 4 epochs. Posteriors against no weights is what decides: both
the interval over the held-out prompts of all seeds and Student's interval over the seeds must lie above 0. Weights
against none is printed beside it.

`doubt` was added after the three had missed: coins make every pair look closer than it is to people who read, which a
model of all answers alike takes over, whichever reply it prefers. Its first look, at the models of seeds 10 to 17,
showed nothing (-0.0013 nats), and why: the temperature was fitted to all validation answers alike, coins among them,
whatever the raters' weights. It is weighed now as training is, and eight further seeds (20 to 27) decide.

Accuracy is against the truth, on 1,000 prompts that nobody rated. Ends with 1 when something is missed. About four
minutes for the world (kept in --workspace) and a quarter of an hour for everything on one core.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from bench.reward_world import supervised_world
from scipy.stats import spearmanr
from scipy.stats import t as student

from reward.config import RewardConfig
from reward.data import Pair
from reward.raters import rater_weights
from reward.score import RewardScorer, text_row
from reward.train import run as train_reward
from rlhf.core.backbone import Backbone
from rlhf.core.files import write_jsonl
from rlhf.core.inputs import model_name
from rlhf.core.records import Preference, Prompt
from rlhf.core.run import Launch, read_manifest
from rlhf.core.sequences import Sequences
from rlhf.core.settings import LoraSettings, ModelSettings, OptimSettings
from rlhf.core.stats import bootstrap_mean
from rlhf.demo import corpus, rubric

STEPS = {"a": 0.95, "b": 0.9, "c": 0.85, "d": 0.8, "e": 0.75, "f": 0.7, "coin": 0.5}
# answers of a pair beyond the first -> pairs, so that each rater has about 2,000 answers beside others
OVERLAPS = {0.1: 64_000, 0.5: 14_000, 1.0: 7_000, 2.0: 4_700}
PARTS = ("order", "hasty", "careless", "doubt", "flipping")
LONGER = "longer"
NUM_VALIDATION, NUM_TEST = 150, 1000
NUM_RATED_TEST = 50  # a snapshot must have a test split; accuracy is measured on all NUM_TEST without ratings
SEEDS = {"careless": range(10, 18), "doubt": range(20, 28)}  # those of the other parts: --seeds
CLOSE = 0.03  # replies whose true scores are closer have no better one
MAX_LOSS = 0.02


@dataclass(frozen=True)
class Design:
    """Who judges how many pairs, `overlap` of them each pair. A skill is the probability of naming the better reply."""

    skills: Mapping[str, float | str]
    num_train: int = 600
    overlap: int = 2


GOOD = 0.8
FOUR = dict.fromkeys("abcd", GOOD)
DESIGNS = {
    "hasty": Design({**FOUR, "hasty 1": LONGER, "hasty 2": LONGER}),
    "careless": Design({**FOUR, "coin 1": 0.5, "coin 2": 0.5}, num_train=400, overlap=3),
    "first careless": Design({**FOUR, "coin 1": 0.5, "coin 2": 0.5}),
    "faultless": Design(dict.fromkeys("abcdef", 1.0), num_train=400, overlap=3),
    "honest": Design({**FOUR, "e": 0.8}),
    "flipping": Design({**FOUR, "e": 0.2}),
}
METHODS: dict[str, dict[str, str]] = {
    "none": {},
    "weights": {"rater_weights": "dawid-skene"},
    "posterior": {"rater_weights": "dawid-skene", "rater_labels": "posterior"},
}
RUNS = {
    "hasty": (("hasty", "none"), ("hasty", "weights")),
    "careless": (("careless", "none"), ("careless", "weights"), ("careless", "posterior")),
    "doubt": (("careless", "none"), ("careless", "weights"), ("careless", "posterior")),
    "flipping": (("honest", "none"), ("flipping", "none"), ("flipping", "weights")),
}


@dataclass(frozen=True)
class Couple:
    """A prompt with two replies, the better one first."""

    prompt: str
    better: str
    worse: str


def couples(seed: int, num: int) -> list[Couple]:
    """Prompts that all differ, each with two replies of different true score, written without any model."""
    rng = random.Random(f"raters:{seed}")
    groups = corpus.groups_of_split(seed, heldout=False)
    found: dict[str, Couple] = {}
    while len(found) < num:
        case = corpus.make_case(rng, *rng.choice(groups))
        prompt = corpus.write_message(rng, case)
        replies = [corpus.write_reply(rng, case, quality) for quality in (corpus.WILD, corpus.DEMONSTRATED)]
        worse, better = sorted(replies, key=lambda reply: rubric.score(prompt, reply))
        if rubric.score(prompt, better) - rubric.score(prompt, worse) > CLOSE:
            found[prompt] = Couple(prompt, better, worse)
    return list(found.values())


def ratings(couple: Couple, group: str, design: Design, rng: random.Random) -> list[dict[str, Any]]:
    """What some of the raters say about two replies: the better one with the probability of their skill."""
    rows = []
    for name in rng.sample(sorted(design.skills), design.overlap):
        sides = (couple.better, couple.worse)
        skill, chance = design.skills[name], rng.random()
        right = len(couple.better) >= len(couple.worse) if isinstance(skill, str) else chance < skill
        chosen, rejected = sides if right else sides[::-1]
        rows.append(
            {
                "prompt": couple.prompt,
                "chosen": chosen,
                "rejected": rejected,
                "group_id": group,
                "annotator_id": name,
            }
        )
    return rows


# ---- order --------------------------------------------------------------------------------------------------


def answers(overlap: float, num_pairs: int, seed: int) -> list[Pair]:
    """What the raters of STEPS say about so many pairs, `overlap` of them beyond the first on the average."""
    rng = random.Random(f"{overlap}:{num_pairs}:{seed}")
    words = {"prompt": "p", "chosen": "a", "rejected": "b", "prompt_id": "p"}
    said = {name: Preference.model_validate({**words, "annotator_id": name}) for name in STEPS}
    pairs = []
    for i in range(num_pairs):
        count = 1 + int(overlap) + (rng.random() < overlap % 1)
        for name in rng.sample(sorted(STEPS), count):
            better, worse = (2 * i, 2 * i + 1) if i % 2 else (2 * i + 1, 2 * i)
            right = rng.random() < STEPS[name]
            pairs.append(Pair(better, worse, said[name]) if right else Pair(worse, better, said[name]))
    return pairs


@dataclass(frozen=True)
class Order:
    """One case. swapped: neighbours in the wrong order, with (difference of the estimates) / (its standard error).
    moves: (estimate - truth) / standard error of each rater."""

    spearman: float
    num_known: float
    swapped: tuple[tuple[str, str, float], ...]
    moves: tuple[float, ...]


def order_of(overlap: float, num_pairs: int, seed: int) -> Order:
    """Estimated from what the raters said, against what they are."""
    report = rater_weights(answers(overlap, num_pairs, seed), "dawid-skene")
    found = {rater.annotator_id: rater for rater in report.raters}
    value = {name: found[name].reliability or 0.0 for name in STEPS}
    error = {name: found[name].reliability_se or np.inf for name in STEPS}
    swapped = [
        (one, other, (value[other] - value[one]) / float(np.hypot(error[one], error[other])))
        for one, other in pairwise(STEPS)
        if value[other] >= value[one]
    ]
    return Order(
        float(spearmanr([value[name] for name in STEPS], list(STEPS.values())).statistic),
        float(np.mean([rater.num_known for rater in report.raters])),
        tuple(swapped),
        tuple((value[name] - STEPS[name]) / error[name] for name in STEPS),
    )


def order(seeds: Sequence[int]) -> int:
    """Prints the table; returns how many of the cases that must are not in order."""
    print("order of the raters: answers beyond the first, pairs, answers of a rater beside others, Spearman")
    missed, moves = 0, []
    for times, needed in ((0.25, False), (1, False), (4, True)):
        for overlap, num_pairs in OVERLAPS.items():
            cases = [order_of(overlap, int(num_pairs * times), seed) for seed in seeds]
            missed += sum(needed and case.spearman < 1 - 1e-9 for case in cases)
            moves += [move for case in cases for move in case.moves]
            values = ", ".join(f"{case.spearman:.3f}" for case in cases)
            swaps = "; ".join(
                f"{one}-{other} by {z:.1f} of its errors" for case in cases for one, other, z in case.swapped
            )
            print(
                f"{overlap:4.1f} {int(num_pairs * times):7d} {cases[0].num_known:7.0f}   {values}   {swaps}",
                flush=True,
            )
    inside = np.mean(np.abs(moves) < 1.96)
    print(
        f"the truth lies within 1.96 standard errors of {len(moves)} estimates in {100 * inside:.1f} %; "
        f"deviation of (estimate - truth) / error {np.std(moves):.2f}"
    )
    return missed


# ---- training -----------------------------------------------------------------------------------------------


class Bench:
    """Trains on what some raters say about the couples of one seed, and scores those that nobody rated."""

    def __init__(self, launch: Launch, seed: int, epochs: int) -> None:
        self.launch, self.seed, self.epochs = launch, seed, epochs
        self.model = str(launch.workspace / "runs" / "sft" / "model")
        most = max(design.num_train for design in DESIGNS.values())
        self.couples = couples(seed, most + NUM_VALIDATION + NUM_TEST)

    def parts(self, design: Design) -> dict[str, list[Couple]]:
        train, validation = design.num_train, self.couples[-NUM_TEST - NUM_VALIDATION : -NUM_TEST]
        return {"train": self.couples[:train], "validation": validation, "test": self.couples[-NUM_TEST:]}

    def logits(self, name: str, method: str) -> np.ndarray:
        """[NUM_TEST] calibrated log-odds with which the trained model prefers the truly better reply."""
        design, label = DESIGNS[name], name.replace(" ", "-")
        folder = self.launch.workspace / "raters" / f"{label}-{self.seed}"
        rng = random.Random(f"said:{self.seed}")
        parts = self.parts(design)
        for split, part in parts.items():
            rows = [
                row
                for i, couple in enumerate(part[:NUM_RATED_TEST] if split == "test" else part)
                for row in ratings(couple, f"{split}{i}", design, rng)
            ]
            write_jsonl(folder / f"{split}.jsonl", rows)
        out = self.launch.workspace / "raters" / f"{label}-{self.seed}-{method}"
        config = RewardConfig(
            backbone=self.model,
            snapshot=str(folder),
            **METHODS[method],
            num_epochs=self.epochs,
            near_duplicates=0.0,  # every prompt is a group of its own here, though many are alike
            lora=LoraSettings(r=16, alpha=32, adapter_layers=0.5, dropout=0.05),
            optim=OptimSettings(lr=3e-3, schedule="cosine", warmup_steps=10, weight_decay=0.01),
            model=ModelSettings(device="cpu"),
            seed=self.seed,
        )
        train_reward(
            config, Launch(workspace=self.launch.workspace, db=self.launch.db, out=out, resume=out.exists())
        )
        backbone = Backbone.load(self.model, config.model, name=model_name(self.model, self.launch))
        scorer = RewardScorer.attach(backbone, out / "adapter")
        rows = [
            text_row(backbone.codec, Prompt.model_validate({"prompt": couple.prompt}), reply)
            for couple in parts["test"]
            for reply in (couple.better, couple.worse)
        ]
        scores = (
            scorer.score_all(Sequences(backbone, rows, max_tokens=8192, max_bytes=0)).numpy().reshape(-1, 2)
        )
        result = scorer.scale.logits(scores[:, 0] - scores[:, 1])
        weights = {row["annotator_id"]: round(row["weight"], 2) for row in read_manifest(out).extra["raters"]}
        print(
            f"  seed {self.seed}, {name}, {method}: accuracy {right(result).mean():.3f}, weights {weights}",
            flush=True,
        )
        return result


def right(logits: np.ndarray) -> np.ndarray:
    """1 where the better reply is preferred, 0.5 where neither is."""
    return np.where(logits == 0, 0.5, logits > 0)


def log_loss(logits: np.ndarray) -> np.ndarray:
    """Nats that an answer of a good rater costs on the average, who names the better reply with probability GOOD."""
    return GOOD * np.logaddexp(0, -logits) + (1 - GOOD) * np.logaddexp(0, logits)


def gain(
    new: Sequence[np.ndarray], old: Sequence[np.ndarray], unit: float, form: str
) -> tuple[float, float, str]:
    """(mean, lower bound, words) of how much more there is of something, seed by seed. The bound is the lower one of
    two: over the held-out prompts of all seeds, and over the seeds (Student's), where there are several."""
    delta = bootstrap_mean(np.concatenate(new) - np.concatenate(old))
    seeds = np.array([(a - b).mean() for a, b in zip(new, old, strict=True)])
    low, over_seeds = delta.low, ""

    def said(value: float) -> str:
        return format(unit * value, form)

    if len(seeds) > 2:
        half = float(student.ppf(0.975, len(seeds) - 1) * seeds.std(ddof=1) / np.sqrt(len(seeds)))
        over_seeds = f", over seeds [{said(seeds.mean() - half)}, {said(seeds.mean() + half)}]"
        low = min(low, float(seeds.mean()) - half)
    per_seed = ", ".join(map(said, seeds))
    words = f"over prompts [{said(delta.low)}, {said(delta.high)}]{over_seeds} ({per_seed})"
    return delta.mean, low, f"{said(delta.mean)}, {words}"


def compare(title: str, new: Sequence[np.ndarray], old: Sequence[np.ndarray]) -> tuple[float, float]:
    """(mean, lower bound) of the difference in accuracy."""
    mean, low, words = gain(new, old, 100, "+.1f")
    new_mean, old_mean = (100 * np.mean(np.concatenate(rows)) for rows in (new, old))
    print(f"{title}: {new_mean:.1f} against {old_mean:.1f} %, difference in points {words}", flush=True)
    return mean, low


def compare_losses(title: str, new: Sequence[np.ndarray], old: Sequence[np.ndarray]) -> float:
    """Lower bound of what is saved of the log-loss."""
    _, low, words = gain(old, new, 1, "+.4f")
    best = -(GOOD * np.log(GOOD) + (1 - GOOD) * np.log(1 - GOOD))
    new_mean, old_mean = (np.mean(np.concatenate(rows)) for rows in (new, old))
    print(
        f"{title}: log-loss of good raters' answers {new_mean:.4f} against {old_mean:.4f} nats (whoever knows all: "
        f"{best:.4f}), saved {words}",
        flush=True,
    )
    return low


def trained(options: argparse.Namespace, workspace: Path) -> list[str]:
    """Train what the chosen parts compare; returns the parts that fall short."""
    launch = supervised_world(workspace)
    found: dict[tuple[str, str, str], list[np.ndarray]] = {}
    for part in options.parts:
        seeds = SEEDS.get(part, options.seeds)
        for seed in seeds if part in RUNS else ():
            bench = Bench(launch, seed, options.epochs)
            for design, method in RUNS[part]:
                found.setdefault((part, design, method), []).append(bench.logits(design, method))

    def accuracy(part: str, design: str, method: str) -> list[np.ndarray]:
        return [right(logits) for logits in found[part, design, method]]

    def surprise(method: str) -> list[np.ndarray]:
        return [log_loss(logits) for logits in found["doubt", "careless", method]]

    failures = []
    for part in [part for part in ("hasty", "careless") if part in options.parts]:
        plain, weighed = (accuracy(part, part, method) for method in ("none", "weights"))
        _, low = compare(f"a third {part}, weights against none", weighed, plain)
        if part == "careless":
            posterior = accuracy(part, part, "posterior")
            compare(f"a third {part}, posteriors against weights", posterior, weighed)
            _, low = compare(f"a third {part}, posteriors against none", posterior, plain)
        failures += [part] if low <= 0 else []
    if "doubt" in options.parts:
        compare(
            "a third careless, weights against none",
            *(list(map(right, found["doubt", "careless", method])) for method in ("weights", "none")),
        )
        for method in ("weights", "posterior"):
            saved = compare_losses(
                f"a third careless, {method} against none", surprise(method), surprise("none")
            )
            failures += ["doubt"] if method == "weights" and saved <= 0 else []
    if "flipping" in options.parts:
        honest = accuracy("flipping", "honest", "none")
        compare(
            "one of five flips, not weighted, against honest",
            accuracy("flipping", "flipping", "none"),
            honest,
        )
        mean, _ = compare(
            "one of five flips, weighted, against honest", accuracy("flipping", "flipping", "weights"), honest
        )
        failures += ["flipping"] if mean <= -MAX_LOSS else []
    return failures


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument(
        "--workspace", type=Path, help="kept, and the world in it used again; default temporary"
    )
    options = parser.parse_args(argv)
    failures = ["order"] if "order" in options.parts and order(options.seeds) else []
    if set(options.parts) - {"order"}:
        with tempfile.TemporaryDirectory() as temporary:
            failures += trained(options, options.workspace or Path(temporary))
    print("all as it should be" if not failures else f"missed: {', '.join(failures)}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
