"""`rlhf best-of-n`: draw n completions of each prompt and keep the one that a reward scores highest.

As a way of decoding it is the baseline that any tuning has to beat: no training, n times the price of an answer. What
it keeps is also what rejection-sampling fine-tuning imitates (RAFT, Dong et al., arXiv:2304.06767): `rlhf sft` on
OUT/demonstrations.jsonl is one step of it, `rlhf prefer --method raft` does many.

The KL of the best of n to the policy that drew them is at most log n - (n - 1) / n nats per completion (Beirami et al.,
arXiv:2401.01879).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.core.adapters import base_path, load_adapter
from rlhf.core.backbone import REFERENCE, Backbone
from rlhf.core.errors import DataError
from rlhf.core.files import write_jsonl
from rlhf.core.guards import SignalGuard
from rlhf.core.inputs import find_adapter, find_model, find_path, model_name, required
from rlhf.core.metrics import progress
from rlhf.core.run import Launch, Run, Workspace
from rlhf.core.sampler import Request, Sampled, sample
from rlhf.core.settings import SamplingSettings
from rlhf.core.stats import bootstrap_mean
from rlhf.core.stopping import StopRule
from rlhf.ppo.completions import Completions
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.prompts import EncodedPrompt, load_prompts
from rlhf.ppo.rewards import Reward, RewardSources, check_prompts, score_completions
from rlhf.preference.config import BestOfNConfig

DEMONSTRATIONS, COMPLETIONS = "demonstrations.jsonl", "completions.jsonl"


@dataclass(frozen=True)
class Candidates:
    """n completions of each prompt, in the order of the prompts: what was drawn, as text, and its raw score."""

    requests: list[Request]
    drawn: list[Sampled]
    texts: list[str]
    scores_PN: np.ndarray

    @property
    def n(self) -> int:
        return int(self.scores_PN.shape[1])

    def best(self) -> list[int]:
        """The row of the highest score of every prompt; among equals the first that was drawn."""
        return [number * self.n + int(place) for number, place in enumerate(self.scores_PN.argmax(1))]


def kl_bound(n: int) -> float:
    """Largest KL divergence, in nats, of the best of n to what they were drawn from."""
    return math.log(n) - (n - 1) / n


def run(config: BestOfNConfig, launch: Launch) -> None:
    """Write OUT/demonstrations.jsonl, OUT/completions.jsonl, the manifest. Raises DataError where nothing is kept."""
    name = required(config.model_path, "model-path", "a model directory, ppo or prefer run, or a hub id")
    prompts_path = find_path(required(config.prompts, "prompts", "a JSONL of prompts"), launch)
    as_ppo = reward_settings(config.reward, config)
    sources = RewardSources.find(as_ppo, launch)
    out = launch.out or Workspace(launch.workspace).runs / "best-of-n"
    model = find_model(name, launch)
    adapter = (
        None
        if (Path(model) / "config.json").is_file() or not Path(model).exists()
        else find_adapter(name, launch)
    )
    parents = {"prompts": prompts_path, **sources.parents}
    if adapter is not None or Path(model).exists():
        parents["model"] = adapter or Path(model)
    with Run.open(
        out, stage="best-of-n", settings=config, launch=launch, parents=parents, seed=config.seed
    ) as record:
        if record.finished:
            print(f"best-of-n: {out} is already finished")
            return
        base = base_path(adapter, launch) if adapter is not None else model
        backbone = Backbone.load(base, config.model, name=model_name(base, launch))
        role = REFERENCE
        if adapter is not None:
            role = "policy"
            load_adapter(backbone, role, adapter, base_name=backbone.name, scalar_head=False)
        reward, _ = sources.load(backbone, launch)
        prompts, dropped = load_prompts(
            prompts_path,
            backbone.codec,
            room=config.sampling.max_completion_tokens,
            drop_too_long=config.on_long_prompt == "drop",
        )
        prompts = prompts[: config.max_prompts]
        check_prompts(reward, [encoded.prompt for encoded in prompts])
        record.begin()
        with SignalGuard() as guard:
            found = draw(
                backbone,
                role,
                reward,
                prompts,
                config.sampling,
                n=config.n,
                seed=config.seed,
                max_tokens=config.micro_batch_tokens,
                check=guard.check,
            )
        figures = _write(found, prompts, config, record.path)
        record.finish(figures | {"num_too_long": dropped})
    print(
        f"best-of-n: kept {figures['num_kept']} of {len(prompts)} prompts; mean score "
        f"{figures['score_mean']:.3f} -> {figures['score_best']:.3f}; imitate them with: rlhf sft --data "
        f"{record.path / DEMONSTRATIONS}"
    )


def reward_settings(reward: str | None, config: Any) -> PPOConfig:
    """Settings under which PPO's rewards are found and loaded."""
    return PPOConfig(reward=reward, micro_batch_tokens=config.micro_batch_tokens, model=config.model)


def draw(
    backbone: Backbone,
    role: str,
    reward: Reward,
    prompts: Sequence[EncodedPrompt],
    sampling: SamplingSettings,
    *,
    n: int,
    seed: int,
    max_tokens: int,
    check: Callable[[], None] = lambda: None,
) -> Candidates:
    """n completions of every prompt and their scores. The first of the n is the one that n = 1 would draw."""
    requests = [Request(encoded.ids, cursor, g) for cursor, encoded in enumerate(prompts) for g in range(n)]
    stop = StopRule(backbone.codec, sampling)
    with progress("completions", len(requests), stage="best-of-n") as tracker:
        drawn = sample(
            backbone.sampling_model(role),
            requests,
            sampling,
            end_token_ids=stop.token_ids,
            ended_by_text=stop.ended_by_text,
            seed=seed,
            max_batch_tokens=max_tokens,
            on_done=tracker.advance,
            on_step=check,
        )
    texts = [stop.text(sampled.tokens) for sampled in drawn]
    owners = [encoded.prompt for encoded in prompts for _ in range(n)]
    scores: list[float] = []
    with progress("scores", len(requests), stage="best-of-n") as tracker:
        for rows in _portions(requests, drawn, max_tokens):
            check()
            some = Completions(
                backbone, [requests[i] for i in rows], [drawn[i] for i in rows], max_tokens=max_tokens
            )
            found = score_completions(reward, some, [owners[i] for i in rows], [texts[i] for i in rows])
            scores += found.total_B.tolist()
            tracker.advance(len(rows))
    return Candidates(requests, drawn, texts, np.array(scores).reshape(len(prompts), n))


def _portions(requests: Sequence[Request], drawn: Sequence[Sampled], max_tokens: int) -> list[range]:
    """Consecutive rows for one call of the reward: as many as 16 full passes hold."""
    lengths = [len(r.prompt_ids) + len(s.tokens) for r, s in zip(requests, drawn, strict=True)]
    size = max(1, 16 * max_tokens // max(lengths))
    return [range(start, min(start + size, len(lengths))) for start in range(0, len(lengths), size)]


def _write(
    found: Candidates, prompts: Sequence[EncodedPrompt], config: BestOfNConfig, folder: Path
) -> dict[str, Any]:
    """Every completion, and the kept ones as demonstrations. Returns the figures of the manifest."""
    best = found.best()
    scores = found.scores_PN.flatten()
    kept = [
        row
        for row in best
        if (found.drawn[row].finished or not config.finished_only)
        and (config.min_score is None or scores[row] >= config.min_score)
        and found.texts[row]
    ]
    if not kept:
        raise DataError(
            f"none of the best completions of {len(best)} prompts was kept: they are unfinished, empty or below "
            f"min_score ({config.min_score})"
        )
    chosen = set(kept)
    write_jsonl(
        folder / COMPLETIONS,
        (
            {
                "prompt_id": prompts[row // found.n].prompt.prompt_id,
                "prompt": [m.model_dump() for m in prompts[row // found.n].prompt.messages],
                "completion": found.texts[row],
                "score": float(scores[row]),
                "finished": found.drawn[row].finished,
                "kept": row in chosen,
            }
            for row in range(len(scores))
        ),
    )
    write_jsonl(
        folder / DEMONSTRATIONS,
        (
            {
                "prompt": [m.model_dump() for m in prompts[row // found.n].prompt.messages],
                "completion": found.texts[row],
                "prompt_id": prompts[row // found.n].prompt.prompt_id,
                "group_id": prompts[row // found.n].prompt.group_id,
            }
            for row in kept
        ),
    )
    groups = [encoded.prompt.group_id for encoded in prompts]
    mean = bootstrap_mean(found.scores_PN.mean(1), groups=groups, seed=config.seed)
    top = bootstrap_mean(found.scores_PN.max(1), groups=groups, seed=config.seed)
    return {
        "num_prompts": len(prompts),
        "num_kept": len(kept),
        "n": found.n,
        "kl_bound": kl_bound(found.n),
        "score_mean": mean.mean,
        "score_mean_low": mean.low,
        "score_mean_high": mean.high,
        "score_best": top.mean,
        "score_best_low": top.low,
        "score_best_high": top.high,
        "length_mean": float(np.mean([len(sampled.tokens) for sampled in found.drawn])),
        "length_best": float(np.mean([len(found.drawn[row].tokens) for row in best])),
    }
