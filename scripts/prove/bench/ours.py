"""One measurement of this project's PPOTrainer, in a process of its own: python -m bench.ours CASE MODEL RESULT.

The public steps `collect`, `targets`, `update`, `finish_iteration` are called as a user's script would.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.cases import END, PAD, SHAPES, Case, Result, load_case, save
from bench.measure import PeakMemory, Phases, now
from rlhf.core import sampler
from rlhf.core.backbone import Backbone
from rlhf.core.records import Prompt
from rlhf.core.sampler import Request, sample
from rlhf.core.settings import LoraSettings, ModelSettings, OptimSettings, SamplingSettings
from rlhf.ppo import rollout
from rlhf.ppo.closed_form import TokenReward
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.prompts import EncodedPrompt, PromptStream
from rlhf.ppo.train import PPOTrainer

# Added to the uniform number behind a token that has to be the end token: uniforms lie below 1.
IMPOSED = 2.0


def impose_lengths(case: Case) -> None:
    """Let each row of each rollout draw its end token at its imposed position and never before.

    The sampler's `uniforms` says which row and position a number is for, and its `choose` spends the number:
    the first marks the numbers, the second obeys the mark. Log-probabilities stay those of the policy.
    """
    lengths = torch.tensor(case.lengths(), device=case.device).flatten()
    uniforms, choose = sampler.uniforms, sampler.choose

    def marked(seed: int, cursors_B: Any, samples_B: Any, positions_B: Any) -> torch.Tensor:
        ends = lengths[cursors_B % len(lengths)] == positions_B + 1
        return uniforms(seed, cursors_B, samples_B, positions_B) + IMPOSED * ends

    def obeyed(logits_BV: torch.Tensor, uniforms_B: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
        ends_B = uniforms_B >= IMPOSED
        free_BV = logits_BV.clone()
        free_BV[:, [PAD, END]] = float("-inf")
        next_B, _, *more = choose(free_BV, uniforms_B - IMPOSED * ends_B, *rest)
        next_B = torch.where(ends_B, END, next_B)
        logprobs_BV = torch.log_softmax(logits_BV, dim=-1)
        return next_B, logprobs_BV.gather(1, next_B[:, None]).squeeze(1), *more

    sampler.uniforms, sampler.choose = marked, obeyed


def share_of_wanted(case: Case, tokens: Sequence[int]) -> float:
    return sum(token in case.wanted for token in tokens) / max(1, len(tokens))


def encoded(ids: list[list[int]]) -> list[EncodedPrompt]:
    prompts = [Prompt.model_validate({"prompt": " ".join(f"t{i}" for i in row)}) for row in ids]
    return [EncodedPrompt(prompt, row) for prompt, row in zip(prompts, ids, strict=True)]


class InOrder(PromptStream):
    """The prompts in the order they were made: the same prompts and imposed lengths meet on every run."""

    def __getitem__(self, cursor: int) -> EncodedPrompt:
        return self.prompts[cursor % len(self.prompts)]


def settings(case: Case) -> PPOConfig:
    return PPOConfig(
        num_iterations=case.iterations,
        num_prompts=case.batch,
        num_epochs=case.epochs,
        num_minibatches=case.minibatches,
        micro_batch_tokens=case.micro_rows * case.context,
        kl_coef=case.kl_coef,
        missing_end_penalty=0.0,
        sampling=SamplingSettings(max_completion_tokens=case.completion),
        lora=LoraSettings(
            r=case.rank,
            alpha=2.0 * case.rank,
            adapter_layers=1 - case.first_layer / SHAPES[case.shape].layers,
        ),
        optim=OptimSettings(lr=case.lr),
        value_coef=case.value_coef,
        value_lr=case.value_lr,
        seed=case.seed,
    )


def held_out(trainer: PPOTrainer, case: Case) -> tuple[float, float]:
    """(mean share of wanted tokens on held-out prompts, half width of its 95 % interval)."""
    # Cursors beyond those of training: no lengths are imposed on them unless the case is a mixed one.
    requests = [Request(ids, i) for i, ids in enumerate(case.prompts("held-out"))]
    drawn = sample(
        trainer.backbone.merged("policy"),
        requests,
        trainer.config.sampling,
        end_token_ids=[],
        seed=case.seed + 1,
    )
    shares = torch.tensor([share_of_wanted(case, row.tokens) for row in drawn]).double()
    return shares.mean().item(), 1.96 * (shares.std() / len(shares) ** 0.5).item()


def measure(case: Case, model_dir: Path) -> Result:
    torch.set_num_threads(case.threads)
    memory, phases = PeakMemory(case.device), Phases()
    backbone = Backbone.load(
        str(model_dir), ModelSettings(dtype=case.dtype, device=case.device), name="bench"
    )
    reward = TokenReward(lambda tokens: share_of_wanted(case, tokens), case.prompt)
    trainer = PPOTrainer(backbone, reward, settings(case), max_tokens=case.context)
    stream = InOrder(encoded(case.prompts()), case.seed)
    phases.watch_optimizer(trainer.optimizer)
    torch.Tensor.backward = phases.watch("backward", torch.Tensor.backward)
    rollout.sample = phases.watch("generation", rollout.sample)
    impose_lengths(case)

    seconds, lengths_seen, curve = [], [], []

    def score(done: int) -> None:
        if case.eval_every and done % case.eval_every == 0:
            curve.append((done, sum(seconds), *held_out(trainer, case)))

    score(0)
    for done in range(1, case.iterations + 1):
        started = now()
        batch = trainer.collect(stream)
        targets = trainer.targets(batch)
        collected = now()
        trainer.update(batch, targets)
        trainer.finish_iteration(0.0, case.batch)
        ended = now()
        seconds.append(ended - started)
        lengths_seen.append(batch.completions.lengths_B.float().mean().item())
        if phases.on:
            phases.end_iteration(collected - started, ended - collected)
        if done == case.warmup + case.timed:
            phases.start()
        score(done)
    timed = range(case.warmup, case.warmup + case.timed)
    return Result(
        seconds=[seconds[i] for i in timed],
        tokens=[case.num_tokens(i) for i in timed],
        memory_mb=memory.peak_mb(),
        phases=phases.means(),
        steps=phases.steps,
        adapter_parameters=sum(
            p.numel() for p in backbone.roles["policy"].model.parameters() if p.requires_grad
        ),
        trained_parameters=sum(p.numel() for p in trainer.parameters),
        curve=curve,
        lengths_seen=lengths_seen,
    )


if __name__ == "__main__":
    case_path, model_path, result_path = map(Path, sys.argv[1:])
    save(measure(load_case(case_path), model_path), result_path)
