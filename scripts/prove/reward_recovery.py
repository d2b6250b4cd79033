"""Does the reward model find a score that is known, from comparisons that follow it only by chance?

    python scripts/prove/reward_recovery.py [--truth teacher manner rubric] [--setting half all ...] [--seeds 0 1 2]

The embedded world's supervised model writes two replies to each prompt. Their true score has standard deviation 1, and
who wins is drawn from the Bradley-Terry model: P(a beats b) = sigmoid(score_a - score_b). `rlhf reward` is trained on
5,000 such comparisons, one answer each; 500 more choose the epoch and the temperature. Measured on the replies to 1,000
prompts that it has not seen: correlation of the learned score with the true one (target 0.95) and calibration error of
its probabilities on sampled outcomes (target 0.05).

What the true score is:
    teacher   a linear reading of the supervised model's own hidden state at the last token, with random weights: a
              score that the reward model can express, so that what is measured is what the comparisons' noise costs
    manner    read off the reply alone: kind words, length, numbers, exclamation marks
    rubric    the rubric of the world, which also asks whether the reply fits the customer's problem
Targets hold for `teacher`; with the other two what the model can express decides beside the noise. Ends with 1 when a
target is missed. About four minutes for the world and three a run on one core (--workspace DIR keeps the world).

Settings, for those who look for a better one:
    half      adapters of rank 16 on the upper half of the layers, 3 epochs: what the targets are asked of
    all       on all layers, 6 epochs           full      every weight, 3 epochs
    four      from 834 prompts with four replies each, of which all six pairs are compared
    ensemble  the mean of four adapters on all layers, each with a resample of the prompts
    wide      `all` on a world of width 256 (4 layers, 3.1 M parameters), pretrained and tuned as the other
    clean     `all` with 20 answers to each comparison: what is left without the noise of a single answer
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench.reward_world import supervised_world

from reward.calibrate import calibration_error
from reward.config import RewardConfig
from reward.score import RewardScorer, text_row
from reward.train import run as train_reward
from rlhf.core.backbone import Backbone
from rlhf.core.files import write_jsonl
from rlhf.core.inputs import model_name
from rlhf.core.records import Prompt
from rlhf.core.run import Launch, read_manifest
from rlhf.core.sampler import Request, sample
from rlhf.core.sequences import Sequences
from rlhf.core.settings import LoraSettings, ModelSettings, OptimSettings, SamplingSettings
from rlhf.core.stopping import StopRule
from rlhf.demo import corpus, rubric
from rlhf.demo.config import DemoConfig

NUM_COMPARISONS = {"train": 5000, "validation": 500, "test": 1000}
TRUTHS = ("teacher", "manner", "rubric")
MIN_CORRELATION, MAX_ECE = 0.95, 0.05
KIND = ("thank", "sorry", "please", "glad", "happy", "kind", "welcome", "hope")


@dataclass(frozen=True)
class Setting:
    """How a run differs from `half`. replies: of each prompt; answers: to each comparison; width: of the world."""

    layers: float = 0.5
    epochs: int = 3
    lr: float = 1e-3
    method: str = "lora"
    members: int = 1
    replies: int = 2
    answers: int = 1
    width: int = 128


SETTINGS = {
    "half": Setting(),
    "all": Setting(layers=1.0, epochs=6),
    "full": Setting(method="full", lr=5e-4),
    "four": Setting(replies=4),
    "ensemble": Setting(layers=1.0, epochs=4, members=4),
    "wide": Setting(layers=1.0, epochs=4, width=256),
    "clean": Setting(layers=1.0, epochs=6, answers=20),
}


def world(workspace: Path, width: int) -> Launch:
    """The demo's world up to the supervised model; what is there already is not made again."""
    if width != DemoConfig().hidden_size:
        workspace = workspace / f"width-{width}"
    return supervised_world(workspace, hidden_size=width)


def write_replies(
    backbone: Backbone, prompts: Sequence[Prompt], count: int, seed: int
) -> list[tuple[str, ...]]:
    """So many replies of the supervised model to each prompt."""
    settings = SamplingSettings(temperature=1.0, max_completion_tokens=64)
    stop = StopRule(backbone.codec, settings)
    requests = [
        Request(backbone.codec.prompt_ids(prompt.messages), i, g)
        for i, prompt in enumerate(prompts)
        for g in range(count)
    ]
    drawn = sample(
        backbone.sampling_model("reference"), requests, settings, end_token_ids=stop.token_ids, seed=seed
    )
    texts = [stop.text(one.tokens) for one in drawn]
    return [tuple(texts[start : start + count]) for start in range(0, len(texts), count)]


def manner(text: str) -> float:
    """A score that anybody could read off a reply: kindness and length, with fewer exclamation marks and numbers."""
    words = text.lower().split()
    kind = sum(any(word.startswith(k) for k in KIND) for word in words)
    return (
        kind
        - abs(len(words) - 22) / 8
        - text.count("!") / 2
        - sum(w.strip(".,!").isdigit() for w in words) / 2
    )


def true_scores(
    truth: str, backbone: Backbone, prompts: Sequence[Prompt], replies: Sequence[tuple[str, ...]], seed: int
) -> np.ndarray:
    """[P, G] with standard deviation 1."""
    if truth == "manner":
        raw = np.array([[manner(text) for text in texts] for texts in replies])
    elif truth == "rubric":
        raw = np.array(
            [[rubric.score(p.text, t) for t in texts] for p, texts in zip(prompts, replies, strict=True)]
        )
    else:
        rows = [
            text_row(backbone.codec, p, t) for p, texts in zip(prompts, replies, strict=True) for t in texts
        ]
        sequences = Sequences(backbone, rows, max_tokens=8192, max_bytes=0)
        direction = torch.randn(backbone.hidden_size, generator=torch.Generator().manual_seed(seed))
        found = torch.zeros(len(rows))
        with torch.no_grad():
            for start in range(0, len(rows), 64):
                places = list(range(start, min(start + 64, len(rows))))
                found[places] = sequences.last_hidden("reference", sequences.batch(places)) @ direction
        raw = found.view(len(prompts), -1).numpy().astype(float)
    return (raw - raw.mean()) / raw.std()


@dataclass(frozen=True)
class Said:
    """Prompts with their replies and true scores [P, G], and what was answered: (prompt, winner, loser) by split."""

    prompts: list[Prompt]
    replies: list[tuple[str, ...]]
    scores: np.ndarray
    answers: dict[str, list[tuple[int, int, int]]]

    def write(self, folder: Path) -> None:
        for split, answers in self.answers.items():
            rows: list[dict[str, Any]] = [
                {
                    "prompt": self.prompts[i].text,
                    "chosen": self.replies[i][winner],
                    "rejected": self.replies[i][loser],
                    "group_id": f"p{i}",
                }
                for i, winner, loser in answers
            ]
            write_jsonl(folder / f"{split}.jsonl", rows)


def ask(truth: str, seed: int, backbone: Backbone, setting: Setting) -> Said:
    """Sample replies, and who wins of each comparison. The test split has one comparison of two replies a prompt."""
    sides = list(combinations(range(setting.replies), 2))
    counts = {
        split: number if split == "test" else -(-number // len(sides))
        for split, number in NUM_COMPARISONS.items()
    }
    prompts = corpus.make_prompts(
        seed, sum(counts.values()), name=f"recovery{seed}", heldout=False, taken=set()
    )
    replies = write_replies(backbone, prompts, setting.replies, seed)
    scores = true_scores(truth, backbone, prompts, replies, seed)
    generator = np.random.default_rng(seed)
    answers: dict[str, list[tuple[int, int, int]]] = {}
    start = 0
    for split, count in counts.items():
        asked = [(i, *pair) for i in range(start, start + count) for pair in sides][: NUM_COMPARISONS[split]]
        if split == "test":
            asked = [(i, 0, 1) for i in range(start, start + count)]
        answers[split] = []
        for i, a, b in asked:
            wins = generator.random(setting.answers if split != "test" else 1) < 1 / (
                1 + np.exp(scores[i, b] - scores[i, a])
            )
            answers[split] += [(i, a, b) if win else (i, b, a) for win in wins]
        start += count
    return Said(prompts, replies, scores, answers)


def one_run(truth: str, seed: int, launch: Launch, name: str) -> dict[str, float]:
    """Sample, train, measure."""
    setting = SETTINGS[name]
    path = str(launch.workspace / "runs" / "sft" / "model")
    model = ModelSettings(device="cpu")
    backbone = Backbone.load(path, model, name=model_name(path, launch))
    said = ask(truth, seed, backbone, setting)
    folder = launch.workspace / "recovery" / f"{truth}-{name}-{seed}"
    said.write(folder)
    out = folder.with_name(f"{folder.name}-run")
    config = RewardConfig(
        backbone=path,
        snapshot=str(folder),
        num_epochs=setting.epochs,
        method=setting.method,
        ensemble=setting.members,
        ensemble_of="adapters" if setting.members > 1 else "heads",
        near_duplicates=0.0,  # every prompt is one of its own here, though many are alike
        lora=LoraSettings(r=16, alpha=32, adapter_layers=setting.layers, dropout=0.1),
        optim=OptimSettings(lr=setting.lr, schedule="cosine", warmup_steps=10, weight_decay=0.1),
        model=model,
        seed=seed,
    )
    train_reward(config, Launch(workspace=launch.workspace, db=launch.db, out=out, resume=out.exists()))
    if setting.method == "full":
        scorer = RewardScorer.open_model(out / "model", model, name="full")
    else:
        scorer = RewardScorer.attach(backbone, out / "adapter")
    test = said.answers["test"]
    flat = [
        text_row(backbone.codec, said.prompts[i], said.replies[i][side]) for i, *both in test for side in both
    ]
    found = scorer.score_all(Sequences(scorer.backbone, flat, max_tokens=8192, max_bytes=0)).numpy()
    true = np.array([said.scores[i, side] for i, *both in test for side in both])
    delta = found[::2] - found[1::2]
    return {
        "correlation": float(np.corrcoef(found, true)[0, 1]),
        "ece": calibration_error(scorer.scale.logits(delta)),
        "accuracy": float((delta > 0).mean()),
        "possible": float((true[::2] > true[1::2]).mean()),
        "best_epoch": float(read_manifest(out).metrics["best_epoch"]),
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--truth", nargs="+", choices=TRUTHS, default=list(TRUTHS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--workspace", type=Path, help="kept, and the world in it used again; default temporary"
    )
    parser.add_argument("--setting", nargs="+", choices=tuple(SETTINGS), default=["half"])
    options = parser.parse_args(argv)
    missed = 0
    with tempfile.TemporaryDirectory() as temporary:
        workspace = options.workspace or Path(temporary)
        print("truth    setting   seed  correlation    ECE  accuracy  of the true score  best epoch")
        for truth in options.truth:
            for name in options.setting:
                launch = world(workspace, SETTINGS[name].width)
                for seed in options.seeds:
                    r = one_run(truth, seed, launch, name)
                    met = r["correlation"] >= MIN_CORRELATION and r["ece"] <= MAX_ECE
                    missed += (truth, name) == ("teacher", "half") and not met
                    print(
                        f"{truth:8s} {name:8s}  {seed:4d}  {r['correlation']:11.3f}  {r['ece']:.3f}  "
                        f"{r['accuracy']:8.3f}  {r['possible']:17.3f}  {r['best_epoch']:10.0f}  "
                        f"{'' if met else 'misses the targets'}",
                        flush=True,
                    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
