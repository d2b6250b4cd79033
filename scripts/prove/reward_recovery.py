"""Does the reward model find a score that is known, from comparisons that follow it only by chance?

    python scripts/prove/reward_recovery.py [--truth teacher manner rubric] [--seeds 0 1 2] [--workspace DIR]

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
Targets hold for `teacher`; with the other two the model's size decides beside the noise. Ends with 1 when a target is
missed. About four minutes for the world and three a run on one core.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

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
from rlhf.demo.run import Demo

NUM_TRAIN, NUM_VALIDATION, NUM_TEST = 5000, 500, 1000
TRUTHS = ("teacher", "manner", "rubric")
MIN_CORRELATION, MAX_ECE = 0.95, 0.05
KIND = ("thank", "sorry", "please", "glad", "happy", "kind", "welcome", "hope")


def world(workspace: Path, seed: int) -> Launch:
    """The demo's world up to the supervised model; what is there already is not made again."""
    launch = Launch(workspace=workspace, db=f"sqlite:///{workspace}/feedback.db")
    demo = Demo(DemoConfig(seed=seed), launch)
    for stage in demo.unfinished():
        if stage.name in ("world", "base", "sft"):
            demo.do(stage)
    return launch


def replies(backbone: Backbone, prompts: Sequence[Prompt], seed: int) -> list[tuple[str, str]]:
    """Two replies of the supervised model to each prompt."""
    settings = SamplingSettings(temperature=1.0, max_completion_tokens=64)
    stop = StopRule(backbone.codec, settings)
    requests = [
        Request(backbone.codec.prompt_ids(prompt.messages), i, g)
        for i, prompt in enumerate(prompts)
        for g in (0, 1)
    ]
    drawn = sample(
        backbone.sampling_model("reference"), requests, settings, end_token_ids=stop.token_ids, seed=seed
    )
    texts = [stop.text(one.tokens) for one in drawn]
    return list(zip(texts[::2], texts[1::2], strict=True))


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
    truth: str, backbone: Backbone, prompts: Sequence[Prompt], pairs: Sequence[tuple[str, str]], seed: int
) -> np.ndarray:
    """[P, 2] with standard deviation 1."""
    if truth == "manner":
        raw = np.array([[manner(text) for text in pair] for pair in pairs])
    elif truth == "rubric":
        raw = np.array(
            [[rubric.score(p.text, t) for t in pair] for p, pair in zip(prompts, pairs, strict=True)]
        )
    else:
        rows = [text_row(backbone.codec, p, t) for p, pair in zip(prompts, pairs, strict=True) for t in pair]
        sequences = Sequences(backbone, rows, max_tokens=8192, max_bytes=0)
        direction = torch.randn(backbone.hidden_size, generator=torch.Generator().manual_seed(seed))
        found = torch.zeros(len(rows))
        with torch.no_grad():
            for start in range(0, len(rows), 64):
                places = list(range(start, min(start + 64, len(rows))))
                found[places] = sequences.last_hidden("reference", sequences.batch(places)) @ direction
        raw = found.view(-1, 2).numpy().astype(float)
    return (raw - raw.mean()) / raw.std()


def one_run(truth: str, seed: int, launch: Launch, options: argparse.Namespace) -> dict[str, float]:
    """Sample, train, measure."""
    path = str(launch.workspace / "runs" / "sft" / "model")
    backbone = Backbone.load(path, ModelSettings(device="cpu"), name=model_name(path, launch))
    count = NUM_TRAIN + NUM_VALIDATION + NUM_TEST
    prompts = corpus.make_prompts(seed, count, name=f"recovery{seed}", heldout=False, taken=set())
    pairs = replies(backbone, prompts, seed)
    scores = true_scores(truth, backbone, prompts, pairs, seed)
    generator = np.random.default_rng(seed)
    first_wins = generator.random(count) < 1 / (1 + np.exp(scores[:, 1] - scores[:, 0]))
    folder = launch.workspace / "recovery" / f"{truth}-{seed}"
    bounds = {
        "train": range(NUM_TRAIN),
        "validation": range(NUM_TRAIN, NUM_TRAIN + NUM_VALIDATION),
        "test": range(NUM_TRAIN + NUM_VALIDATION, count),
    }
    for split, numbers in bounds.items():
        rows: list[dict[str, Any]] = []
        for i in numbers:
            chosen, rejected = pairs[i] if first_wins[i] else pairs[i][::-1]
            rows.append(
                {"prompt": prompts[i].text, "chosen": chosen, "rejected": rejected, "group_id": f"p{i}"}
            )
        write_jsonl(folder / f"{split}.jsonl", rows)
    out = folder.with_name(f"{folder.name}-run")
    config = RewardConfig(
        backbone=path,
        snapshot=str(folder),
        num_epochs=options.epochs,
        near_duplicates=0.0,  # every prompt is one of its own here, though many are alike
        lora=LoraSettings(r=16, alpha=32, adapter_layers=options.layers, dropout=0.1),
        optim=OptimSettings(lr=options.lr, schedule="cosine", warmup_steps=10, weight_decay=0.1),
        model=ModelSettings(device="cpu"),
        seed=seed,
    )
    train_reward(config, Launch(workspace=launch.workspace, db=launch.db, out=out, resume=out.exists()))
    scorer = RewardScorer.attach(backbone, out / "adapter")
    test = list(bounds["test"])
    flat = [text_row(backbone.codec, prompts[i], text) for i in test for text in pairs[i]]
    found = scorer.score_all(Sequences(backbone, flat, max_tokens=8192, max_bytes=0)).numpy().reshape(-1, 2)
    delta = found[:, 0] - found[:, 1]
    won = np.where(first_wins[test], delta, -delta)
    return {
        "correlation": float(np.corrcoef(found.ravel(), scores[test].ravel())[0, 1]),
        "ece": calibration_error(won, scorer.scale.temperature),
        "accuracy": float((won > 0).mean()),
        "possible": float(np.mean((scores[test][:, 0] > scores[test][:, 1]) == first_wins[test])),
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
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--layers", type=float, default=0.5, help="share of the layers with adapters")
    options = parser.parse_args(argv)
    missed = 0
    with tempfile.TemporaryDirectory() as temporary:
        launch = world(options.workspace or Path(temporary), 0)
        print("truth    seed  correlation    ECE  accuracy  of the true score  best epoch")
        for truth in options.truth:
            for seed in options.seeds:
                r = one_run(truth, seed, launch, options)
                met = r["correlation"] >= MIN_CORRELATION and r["ece"] <= MAX_ECE
                missed += truth == "teacher" and not met
                print(
                    f"{truth:8s} {seed:4d}  {r['correlation']:11.3f}  {r['ece']:.3f}  {r['accuracy']:8.3f}"
                    f"  {r['possible']:17.3f}  {r['best_epoch']:10.0f}  {'' if met else 'misses the targets'}",
                    flush=True,
                )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
