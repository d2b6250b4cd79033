"""How well does the reward model learn from people's ratings, beside the raters themselves and simple baselines?

    python scripts/prove/reward_human.py --data DIR [--sets pandalm finegrained] [--folds 3] [--out FILE.json]

DIR holds the real sets and the small pretrained model: pandalm (999 pairs over 170 prompts, three annotators each, with
ties), finegrained_rlhf_qa (500 questions, four answers, six preferences each, one annotator), models/stories260K. The
prompts are cut into folds by families of near-duplicates; each fold is held out once, and a tenth of the rest chooses
the epoch. Accuracy is on decided ratings of the held-out prompts of all folds together, with intervals over prompts:

    plain        Bradley-Terry, ties as half a win, all annotators as soft labels
    no ties      the same without ties       davidson, rao-kupper   ties with a probability of their own
    one rater    the first annotator alone   dawid-skene            annotators weighed by their estimated reliability
    longer, words   choose the longer answer; logistic regression on word counts (both of `rlhf reward-eval`)

The difference of each to `plain` is paired. What can be asked of a model of 260,000 parameters that has read children's
stories is that it learns something: ends with 1 when the interval of `plain` on pandalm reaches down to chance. The
other set is about facts and is only reported. About a quarter of an hour on one core.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from reward.assess.config import RewardEvalConfig
from reward.assess.run import run as reward_eval
from reward.config import RewardConfig
from reward.train import run as train_reward
from rlhf.core.files import write_jsonl
from rlhf.core.metrics import progress
from rlhf.core.near_duplicates import near_duplicate_groups
from rlhf.core.run import Launch
from rlhf.core.settings import LoraSettings, OptimSettings
from rlhf.core.stats import Interval, bootstrap_mean

Rows = list[dict[str, Any]]
PAIRS = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))


def pandalm(folder: Path) -> Rows:
    """One row an annotator: 0 is a tie, 1 and 2 name the better answer. Six answers are the JSON value true."""
    rows = []
    for item in json.loads((folder / "pandalm" / "testset-v1.json").read_text(encoding="utf-8")):
        prompt = "\n".join(part for part in (item["instruction"], item["input"]) if part)
        answers = [
            json.dumps(a) if isinstance(a, bool) else a for a in (item["response1"], item["response2"])
        ]
        for number in (1, 2, 3):
            rows.append(comparison(prompt, answers[0], answers[1], item[f"annotator{number}"], f"a{number}"))
    return rows


def finegrained(folder: Path) -> Rows:
    """Six comparisons a question, of its four answers."""
    path = folder / "finegrained_rlhf_qa" / "dev_feedback.json"
    rows = []
    for item in json.loads(path.read_text(encoding="utf-8")):
        answers = [item[f"prediction {k}"] for k in (1, 2, 3, 4)]
        for (a, b), verdict in zip(PAIRS, item["preference"], strict=True):
            if answers[a] != answers[b]:
                rows.append(comparison(item["question"], answers[a], answers[b], verdict, "a1"))
    return rows


def comparison(prompt: str, first: str, second: str, verdict: int, annotator: str) -> dict[str, Any]:
    """A preference row; verdict 0 is a tie, 1 the first, 2 the second."""
    chosen, rejected = (second, first) if verdict == 2 else (first, second)
    tie = verdict == 0
    return {
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "tie": tie,
        "margin": float(not tie),
        "annotator_id": annotator,
    }


def first_rater(rows: Rows) -> Rows:
    return [row for row in rows if row["annotator_id"] == "a1"]


def everybody(rows: Rows) -> Rows:
    return rows


VARIANTS: dict[str, tuple[dict[str, Any], Callable[[Rows], Rows]]] = {
    "plain": ({}, everybody),
    "no ties": ({"ties": "ignore"}, everybody),
    "davidson": ({"pair_loss": "davidson"}, everybody),
    "rao-kupper": ({"pair_loss": "rao-kupper"}, everybody),
    "one rater": ({}, first_rater),
    "dawid-skene": ({"rater_weights": "dawid-skene"}, everybody),
}
SETS: dict[str, tuple[Callable[[Path], Rows], tuple[str, ...]]] = {
    "pandalm": (pandalm, tuple(VARIANTS)),
    "finegrained": (finegrained, ("plain", "no ties", "davidson")),
}


def folds_of(rows: Rows, num_folds: int) -> list[int]:
    """The fold of each row: families of near-duplicate prompts, dealt out by size."""
    prompts = list(dict.fromkeys(row["prompt"] for row in rows))
    family = dict(zip(prompts, near_duplicate_groups(prompts, threshold=0.8), strict=True))
    sizes = np.bincount([family[row["prompt"]] for row in rows])
    filled, fold = np.zeros(num_folds), np.zeros(len(sizes), dtype=int)
    for number in np.argsort(-sizes, kind="stable"):
        fold[number] = int(filled.argmin())
        filled[fold[number]] += sizes[number]
    return [int(fold[family[row["prompt"]]]) for row in rows]


class Work:
    """The runs on one set."""

    def __init__(self, workspace: Path, rows: Rows, options: argparse.Namespace) -> None:
        self.launch = Launch(workspace=workspace, db="")
        self.rows, self.options = rows, options
        self.folds = folds_of(rows, options.folds)

    def scores(self, variant: str, fold: int) -> tuple[Rows, dict[str, Any]]:
        """(held-out comparisons with their scores, the figures of `rlhf reward-eval`)."""
        changes, keep = VARIANTS[variant]
        folder = self.launch.workspace / f"{variant}-{fold}"
        prompts = list(
            dict.fromkeys(r["prompt"] for r, f in zip(self.rows, self.folds, strict=True) if f != fold)
        )
        validation = set(prompts[:: self.options.validation_every])
        splits: dict[str, Rows] = {"train": [], "validation": [], "test": []}
        for row, own in zip(self.rows, self.folds, strict=True):
            split = "test" if own == fold else "validation" if row["prompt"] in validation else "train"
            splits[split].append(row)
        splits["train"] = keep(splits["train"])
        for split, found in splits.items():
            write_jsonl(folder / f"{split}.jsonl", found)
        config = RewardConfig(
            backbone="models/base",
            snapshot=str(folder),
            near_duplicates=0.0,  # the folds are cut by families already
            on_too_long="drop",
            max_tokens=self.options.max_tokens,
            num_epochs=self.options.epochs,
            batch_pairs=16,
            lora=LoraSettings(dropout=0.1, adapter_layers=self.options.layers),
            optim=OptimSettings(lr=self.options.lr, schedule="cosine", warmup_steps=5, weight_decay=0.01),
            model={"device": "cpu"},  # type: ignore[arg-type]
            **changes,
        )
        out = folder / "run"
        train_reward(config, Launch(workspace=self.launch.workspace, db="", out=out))
        settings = RewardEvalConfig(reward=str(out), num_probes=20, model={"device": "cpu"})  # type: ignore[arg-type]
        reward_eval(settings, Launch(workspace=self.launch.workspace, db="", out=folder / "eval"))
        lines = (folder / "eval" / "scores.jsonl").read_text(encoding="utf-8").splitlines()
        figures = json.loads((folder / "eval" / "reward_eval.json").read_text(encoding="utf-8"))
        return [json.loads(line) for line in lines], figures["metrics"]


def correct_of(rows: Iterable[dict[str, Any]]) -> tuple[np.ndarray, list[str]]:
    """(1 right, 0.5 equal, 0 wrong of each decided rating; its prompt)"""
    decided = [row for row in rows if not row["tie"]]
    delta = np.array([row["difference"] for row in decided])
    return (delta > 0) + 0.5 * (delta == 0), [row["group_id"] for row in decided]


def text_of(interval: Interval) -> str:
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def one_set(name: str, options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """All variants on one set, printed as they come."""
    read, variants = SETS[name]
    workspace = root / name
    shutil.copytree(options.data / "models" / "stories260K", workspace / "models" / "base")
    work = Work(workspace, read(options.data), options)
    found: dict[str, Any] = {"num_ratings": len(work.rows)}
    reference: np.ndarray | None = None
    for variant in variants:
        if variant != "plain" and variant not in options.variants:
            continue
        scored: Rows = []
        metrics = []
        with progress(f"{name}, {variant}", options.folds, stage="human") as tracker:
            for fold in range(options.folds):
                with contextlib.redirect_stdout(io.StringIO()):
                    rows, figures = work.scores(variant, fold)
                scored, metrics = scored + rows, [*metrics, figures]
                tracker.advance()
        correct, groups = correct_of(scored)
        interval = bootstrap_mean(correct, groups=groups)
        line = f"{name:12s} {variant:12s} accuracy {text_of(interval)}"
        found[variant] = {"accuracy": interval._asdict()}
        if reference is None:
            reference = correct
            found |= baselines_of(metrics)
            found[variant]["ece"] = mean_of(metrics, "ece")
            line += f", ECE {mean_of(metrics, 'ece'):.3f}"
        else:
            difference = bootstrap_mean(correct - reference, groups=groups)
            found[variant]["difference"] = difference._asdict()
            line += f", to plain {difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
        print(line, flush=True)
    print(
        f"{name:12s} raters agree with each other {found['agreement']}, "
        f"longer {found['length']:.3f}, words {found['bow']:.3f}",
        flush=True,
    )
    return found


def mean_of(metrics: list[dict[str, Any]], key: str) -> float:
    """Mean over folds, weighted by their decided ratings; NaN where no fold has the figure."""
    rows = [(m[key], m["num_pairs"] - m["num_ties"]) for m in metrics if m.get(key) is not None]
    return sum(value * n for value, n in rows) / sum(n for _, n in rows) if rows else float("nan")


def baselines_of(metrics: list[dict[str, Any]]) -> dict[str, float]:
    return {
        "agreement": round(mean_of(metrics, "agreement"), 3),
        "length": mean_of(metrics, "accuracy_length"),
        "bow": mean_of(metrics, "accuracy_bow"),
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default, help="folder of the real sets")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="plain is always run"
    )
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--layers", type=float, default=0.6)
    parser.add_argument("--max-tokens", type=int, default=320)
    parser.add_argument(
        "--validation-every", type=int, default=10, help="of the prompts that are not held out"
    )
    parser.add_argument("--out", type=Path, help="the figures as JSON")
    options = parser.parse_args(argv)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.sets:
            results[name] = one_set(name, options, Path(temporary))
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    learned = "pandalm" not in results or results["pandalm"]["plain"]["accuracy"]["low"] > 0.5
    if not learned:
        print("human: nothing learned on pandalm", file=sys.stderr)
    return 0 if learned else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
