"""Which methods reach the best policy, where the best policy is known exactly?

    python scripts/prove/preference_optimum.py [--seeds 2] [--iterations 150] [--rewards additive pattern variety]

The problems of `scripts/prove/closed_form.py`: every completion is enumerated, so that the objective
E[r] - beta KL(policy || reference) of the trained policy, of the reference and of the optimum are exact; progress is 0
at the reference and 1 at the optimum. The online methods see the same number of completions. DPO learns from
comparisons of completions of the reference whose outcomes follow Bradley-Terry with the known reward: its optimum is
the same policy (Rafailov et al., arXiv:2305.18290, section 4), so with ever more comparisons it must come ever closer.
`exact odds` has infinitely many raters for each of the most pairs: its shares of wins are the probabilities themselves.

Prints a table and ends with 1 when PPO, RLOO or DPO on the most comparisons falls below its median target, or when more
comparisons do not help DPO. What the division by the group's deviation and the mean over a completion's tokens do to
GRPO is shown beside it: they change what is maximised, so it has no target.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from optimum.rewards import PROMPT, REWARDS

from reward.examples import Comparison
from rlhf.core.records import Prompt
from rlhf.core.settings import LoraSettings, OptimSettings, SamplingSettings
from rlhf.ppo.closed_form import ExactProblem, TokenReward, toy_backbone
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.prompts import EncodedPrompt, PromptStream
from rlhf.ppo.train import PPOTrainer
from rlhf.preference.config import OnlineSettings, PreferConfig
from rlhf.preference.data import PreferenceData
from rlhf.preference.online import GroupTrainer
from rlhf.preference.trainer import OfflineTrainer

NUM_COMPLETIONS, GROUP = 256, 8
COMPARISONS = (300, 3_000, 30_000)
EXACT = "dpo, exact odds"
TARGETS = {"ppo": 0.95, "rloo": 0.95, EXACT: 0.90}
SAMPLING = SamplingSettings(max_completion_tokens=4)
LORA = LoraSettings(adapter_layers=1.0)


def online(method: str, name: str, beta: float, seed: int, iterations: int) -> float:
    """Progress of ppo, grpo, 'grpo, unscaled', rloo or online-dpo."""
    backbone = toy_backbone(seed, pad_is_end=seed % 2 == 0)
    common: dict[str, Any] = {"score_normalization": "none", "missing_end_penalty": 0.0, "score_clip": 1e9}
    common |= {"num_iterations": iterations, "num_minibatches": 4}
    optim = OptimSettings(lr=3e-3, schedule="linear")
    if method == "ppo":
        config = PPOConfig(
            **common,
            num_prompts=NUM_COMPLETIONS,
            num_epochs=4,
            kl_coef=beta,
            sampling=SAMPLING,
            lora=LORA,
            optim=optim,
            seed=seed,
        )
        make: Callable[..., PPOTrainer] = PPOTrainer
    else:
        prefer = PreferConfig(
            method=method.split(",")[0],
            beta=beta,
            sampling=SAMPLING,
            lora=LORA,
            optim=optim,
            online=OnlineSettings(
                **common,
                num_prompts=NUM_COMPLETIONS // GROUP,
                samples_per_prompt=GROUP,
                num_epochs=4,
                group_scale="unscaled" not in method,
            ),
            seed=seed,
        )
        config, make = prefer.as_ppo(), partial(GroupTrainer, prefer=prefer)
    trainer = make(backbone, TokenReward(REWARDS[name], len(PROMPT)), config, max_tokens=8)
    problem = ExactProblem.enumerate(backbone, PROMPT, REWARDS[name], config)
    stream = PromptStream([EncodedPrompt(Prompt.model_validate({"prompt": "toy"}), PROMPT)], seed)
    for _ in range(iterations):
        batch = trainer.collect(stream)
        trainer.update(batch, trainer.targets(batch))
        trainer.finish_iteration(0.0, len(batch.texts))
    return problem.progress("policy")


def dpo(num_comparisons: int, name: str, beta: float, seed: int, steps: int, *, exact: bool = False) -> float:
    """Progress of DPO on so many comparisons of the reference's completions. exact: their odds are known."""
    backbone = toy_backbone(seed, pad_is_end=seed % 2 == 0)
    as_ppo = PPOConfig(kl_coef=beta, sampling=SAMPLING)
    problem = ExactProblem.enumerate(backbone, PROMPT, REWARDS[name], as_ppo)
    rows = [list(row) for row in problem.completions.sequences.rows]
    examples = comparisons(problem, num_comparisons, seed, exact=exact)
    config = PreferConfig(
        method="dpo",
        beta=beta,
        num_epochs=10**6,
        batch_size=256,
        sampling=SAMPLING,
        lora=LORA,
        optim=OptimSettings(lr=3e-3, schedule="linear"),
        seed=seed,
    )
    data = PreferenceData(rows, [len(PROMPT)] * len(rows))
    data.examples["train"] = data.examples["validation"] = examples
    trainer = OfflineTrainer(backbone, data, config)
    trainer.schedule = trainer.spent.schedule(trainer.optimizer, config.optim, steps)
    for _ in range(steps):
        if trainer.step >= trainer.steps_per_epoch:
            trainer.epoch, trainer.step = trainer.epoch + 1, 0
        trainer.train_step()
    return problem.progress("policy")


def comparisons(problem: ExactProblem, number: int, seed: int, *, exact: bool) -> list[Comparison]:
    """Pairs of different completions of the reference, each judged once with the odds that their rewards give (or by
    as many raters as it takes to know these odds); equal pairs together, as raters' answers are."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(problem.ref_logprobs_N.exp(), 2 * number, replacement=True, generator=generator)
    pairs = drawn.reshape(-1, 2).sort(1).values
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    difference = problem.rewards_N[pairs[:, 0]] - problem.rewards_N[pairs[:, 1]]
    odds = torch.sigmoid(difference)
    won = torch.rand(len(pairs), generator=generator, dtype=torch.float64) < odds
    shares = odds if exact else won.double()
    sums: dict[tuple[int, int], list[float]] = {}
    for (first, second), share in zip(pairs.tolist(), shares.tolist(), strict=True):
        counts = sums.setdefault((first, second), [0.0, 0.0])
        counts[0] += share
        counts[1] += 1 - share
    return [
        Comparison(
            pair, float(sum(counts)), "toy", (counts[0] / sum(counts), 0.0, counts[1] / sum(counts)), 0.0
        )
        for pair, counts in sums.items()
    ]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps of DPO")
    parser.add_argument("--beta", type=float, default=0.3)
    parser.add_argument("--rewards", nargs="+", choices=list(REWARDS), default=list(REWARDS))
    parser.add_argument(
        "--methods", nargs="+", default=["ppo", "rloo", "grpo", "grpo, unscaled", "online-dpo", "dpo"]
    )
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    runs: dict[str, Callable[[str, int], float]] = {}
    for method in options.methods:
        if method == "dpo":
            for number in COMPARISONS:
                runs[f"dpo, {number}"] = lambda name, seed, number=number: dpo(
                    number, name, options.beta, seed, options.steps
                )
            runs[EXACT] = lambda name, seed: dpo(
                COMPARISONS[-1], name, options.beta, seed, options.steps, exact=True
            )
        else:
            runs[method] = lambda name, seed, method=method: online(
                method, name, options.beta, seed, options.iterations
            )
    reached: dict[str, list[float]] = {method: [] for method in runs}
    for name, seed in itertools.product(options.rewards, range(options.seeds)):
        for method, one in runs.items():
            started = time.perf_counter()
            reached[method].append(one(name, seed))
            print(
                f"{name:9s} seed {seed}  {method:15s} reached {reached[method][-1]:7.4f}  "
                f"{time.perf_counter() - started:.0f} s",
                flush=True,
            )
    print(f"\nbeta {options.beta}, {options.iterations} iterations of {NUM_COMPLETIONS} completions")
    print("method            median   worst")
    for method, values in sorted(reached.items(), key=lambda item: -statistics.median(item[1])):
        print(f"{method:15s}  {statistics.median(values):7.4f}  {min(values):6.4f}")
    return 0 if holds(reached) else 1


def holds(reached: dict[str, list[float]]) -> bool:
    """Whether the medians meet their targets and DPO gains from more comparisons."""
    short = [m for m, target in TARGETS.items() if m in reached and statistics.median(reached[m]) < target]
    for method in short:
        print(f"{method}: median below {TARGETS[method]}", file=sys.stderr)
    kinds = [*(f"dpo, {n}" for n in COMPARISONS), EXACT]
    medians = [statistics.median(reached[kind]) for kind in kinds if kind in reached]
    if medians != sorted(medians):
        print(f"dpo did not gain from more comparisons: {medians}", file=sys.stderr)
    return not short and medians == sorted(medians)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
