"""`rlhf evaluate`: is the candidate better than the baseline, and what did it cost?

Both answer the same held-out prompts with the same random numbers. A judge compares the answers: a reward
run or a function that scores each answer (the order cannot matter), or a function that compares two, which
is asked in both orders, or people at the rating desk (see `people`). Ties count half. Intervals are
bootstrapped over prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf.core.backbone import REFERENCE, Backbone
from rlhf.core.batching import token_budget_batches
from rlhf.core.callables import ScoringFunction, is_callable_spec
from rlhf.core.errors import ConfigError, DataError
from rlhf.core.files import write_json, write_jsonl
from rlhf.core.inputs import find_path, required
from rlhf.core.logprobs import token_logprobs
from rlhf.core.metrics import progress
from rlhf.core.records import Completion, Prompt
from rlhf.core.run import Launch, Run, Workspace
from rlhf.core.sampler import Request, Sampled, sample
from rlhf.core.stats import Interval, bootstrap_mean, distinct_n
from rlhf.core.stopping import StopRule
from rlhf.loop import people
from rlhf.loop.config import EvaluateConfig
from rlhf.loop.models import Generator, ModelPool
from rlhf.loop.sample import sampling_record
from rlhf.ppo.completions import Completions
from rlhf.ppo.kl import k1
from rlhf.ppo.prompts import EncodedPrompt, load_prompts
from rlhf.ppo.rewards import content_of

# Scores of equal texts differ by rounding when they were computed in different batches.
EQUAL_SCORES = 1e-6

Comparison = Callable[[Sequence[Prompt], Sequence[str], Sequence[str]], "Verdicts"]


@dataclass(frozen=True)
class Verdicts:
    """wins [N]: 1 where the candidate is better, 0.5 for a tie, 0 where the baseline is. Scores where the judge
    gives them."""

    wins: np.ndarray
    baseline_scores: np.ndarray | None = None
    candidate_scores: np.ndarray | None = None


@dataclass(frozen=True)
class Answers:
    """What one model said: one completion per prompt."""

    requests: list[Request]
    drawn: list[Sampled]
    texts: list[str]


def run(config: EvaluateConfig, launch: Launch) -> None:
    """Write OUT/evaluation.json and OUT/pairs.jsonl, and print the verdict in one line."""
    candidate_text = required(config.candidate, "candidate", "a ppo run, adapter or model directory")
    judge_text = required(config.judge, "judge", "a reward run, file.py:function, or people")
    by_people = judge_text == people.PEOPLE
    prompts_path = find_path(required(config.prompts, "prompts", "a JSONL of held-out prompts"), launch)
    out = launch.out or Workspace(launch.workspace).runs / "evaluate"
    if by_people and people.has_asked(out) and not launch.force:
        people.report(config, launch, out)
        return
    if by_people:
        people.check_project(config, launch)
    pool = ModelPool(config.model, launch)
    candidate = pool.generator(candidate_text)
    baseline = _baseline(pool, candidate, config)
    compare = None if by_people else judge_of(pool, judge_text, config.micro_batch_tokens)
    # Read before the run begins: a bad prompt must not leave an unfinished run behind.
    prompts = select_prompts(prompts_path, [candidate, baseline], config)
    parents = {"prompts": prompts_path} | {
        name: path
        for name, path in (
            ("candidate", candidate.path),
            ("baseline", baseline.path),
            ("judge", _judge_path(judge_text, pool)),
        )
        if path is not None
    }
    with Run.start(
        out, stage="evaluate", settings=config, launch=launch, parents=parents, seed=config.seed
    ) as record:
        if record.finished:
            print(f"evaluate: {out} is already finished")
            return
        answers = [answer(generator, prompts, config) for generator in (baseline, candidate)]
        figures: dict[str, Any] = dict(divergence(prompts, candidate, baseline, answers[1], config))
        figures |= {"judge": judge_text, "candidate": candidate.model_id, "baseline": baseline.model_id}
        if compare is None:
            figures |= length_and_diversity(answers[0], answers[1])
            sides = [
                completions(generator, prompts, drawn, config)
                for generator, drawn in zip((baseline, candidate), answers, strict=True)
            ]
            people.ask(record, prompts, sides[0], sides[1], figures, config, launch)
        else:
            figures |= compare_answers(prompts, answers[0], answers[1], compare, config, record.path)
            write_json(record.path / "evaluation.json", figures)
            record.finish(figures)
    if by_people:
        people.report(config, launch, out)
        return
    print(f"evaluate: {summary(figures)}; details in {out}")


def summary(figures: dict[str, Any]) -> str:
    text = (
        f"win rate {figures['win_rate']:.3f} [{figures['win_rate_low']:.3f}, {figures['win_rate_high']:.3f}] "
        f"over {figures['num_prompts']} prompts"
    )
    if figures.get("kl") is not None:
        text += f", KL {figures['kl']:.2f} nats"
    return text + f", length {figures['length_before']:.1f} -> {figures['length_after']:.1f} tokens"


def _baseline(pool: ModelPool, candidate: Generator, config: EvaluateConfig) -> Generator:
    if config.baseline:
        return pool.generator(config.baseline)
    if candidate.role == REFERENCE:
        raise ConfigError("--baseline is required when the candidate is a whole model")
    return Generator(candidate.backbone, REFERENCE, candidate.backbone.name, None)


def judge_of(pool: ModelPool, text: str, micro_batch_tokens: int) -> Comparison:
    """Who compares answers: the reward model or the function that `text` names."""
    if not is_callable_spec(text):
        scorer = pool.scorer(text)

        def by_reward(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
            return scorer.score_texts(prompts, texts, max_tokens=micro_batch_tokens)

        return lambda prompts, first, second: _by_score(by_reward, prompts, first, second)
    function = ScoringFunction(text)
    if function.num_parameters >= 3:
        return lambda prompts, first, second: _by_pair(function, prompts, first, second)
    return lambda prompts, first, second: _by_score(function, prompts, first, second)


def _by_score(
    score: Callable[[Sequence[Prompt], Sequence[str]], list[float]],
    prompts: Sequence[Prompt],
    baseline: Sequence[str],
    candidate: Sequence[str],
) -> Verdicts:
    before, after = np.array(score(prompts, baseline)), np.array(score(prompts, candidate))
    wins = np.where(np.abs(after - before) <= EQUAL_SCORES, 0.5, (after > before).astype(float))
    return Verdicts(wins, before, after)


def _by_pair(
    function: ScoringFunction, prompts: Sequence[Prompt], baseline: Sequence[str], candidate: Sequence[str]
) -> Verdicts:
    """The judge sees every pair in both orders; a preference for one side cancels to a tie."""
    forwards = np.sign(function(prompts, candidate, baseline))
    backwards = np.sign(function(prompts, baseline, candidate))
    return Verdicts((forwards - backwards + 2) / 4)


def _judge_path(text: str, pool: ModelPool) -> Path | None:
    """What the judge is made of, for the manifest; people leave no file."""
    if text == people.PEOPLE:
        return None
    return content_of(text) if is_callable_spec(text) else pool.reward_path(text)


def completions(
    generator: Generator, prompts: Sequence[Prompt], answers: Answers, config: EvaluateConfig
) -> list[Completion]:
    """The answers of one model as the store keeps them, with its identity and how they were drawn."""
    return [
        Completion.model_validate(
            {
                "prompt_id": prompt.prompt_id,
                "text": text,
                "model_id": generator.model_id,
                "sampling": sampling_record(config.sampling, config.seed, request, sampled.finished),
            }
        )
        for prompt, text, request, sampled in zip(
            prompts, answers.texts, answers.requests, answers.drawn, strict=True
        )
    ]


def select_prompts(path: Path, generators: Sequence[Generator], config: EvaluateConfig) -> list[Prompt]:
    """Prompts that fit every model that has to answer them. Raises DataError when there are none."""
    room, drop = config.sampling.max_completion_tokens, config.on_long_prompt == "drop"
    fitting: list[list[EncodedPrompt]] = [
        load_prompts(path, generator.backbone.codec, room=room, drop_too_long=drop)[0]
        for generator in generators
    ]
    shared = set.intersection(*({encoded.prompt.prompt_id for encoded in prompts} for prompts in fitting))
    prompts = [encoded.prompt for encoded in fitting[0] if encoded.prompt.prompt_id in shared]
    if not prompts:
        raise DataError(f"{path}: no prompt fits both models")
    return prompts[: config.max_prompts]


def answer(generator: Generator, prompts: Sequence[Prompt], config: EvaluateConfig) -> Answers:
    """One completion per prompt."""
    codec = generator.backbone.codec
    stop = StopRule(codec, config.sampling)
    requests = [Request(codec.prompt_ids(prompt.messages), cursor) for cursor, prompt in enumerate(prompts)]
    with progress(f"answers of {generator.model_id}", len(requests), stage="evaluate") as tracker:
        drawn = sample(
            generator.backbone.sampling_model(generator.role),
            requests,
            config.sampling,
            end_token_ids=stop.token_ids,
            ended_by_text=stop.ended_by_text,
            seed=config.seed,
            max_batch_tokens=config.micro_batch_tokens,
            on_done=tracker.advance,
        )
    return Answers(requests, drawn, [stop.text(sampled.tokens) for sampled in drawn])


def compare_answers(
    prompts: Sequence[Prompt],
    baseline: Answers,
    candidate: Answers,
    compare: Comparison,
    config: EvaluateConfig,
    folder: Path,
) -> dict[str, Any]:
    """Win rate, scores, length and diversity; writes every pair to folder/pairs.jsonl."""
    verdicts = compare(prompts, baseline.texts, candidate.texts)

    def interval(values: np.ndarray) -> Interval:
        groups = [prompt.group_id for prompt in prompts]
        return bootstrap_mean(values, groups=groups, num_resamples=config.num_resamples, seed=config.seed)

    win = interval(verdicts.wins)
    figures: dict[str, Any] = {
        "win_rate": win.mean,
        "win_rate_low": win.low,
        "win_rate_high": win.high,
        "ties": float(np.mean(verdicts.wins == 0.5)),
        "num_prompts": len(prompts),
    }
    columns: list[dict[str, Any]] = [{} for _ in prompts]
    for when, scores in (("before", verdicts.baseline_scores), ("after", verdicts.candidate_scores)):
        if scores is not None:
            mean = interval(scores)
            figures |= {
                f"score_{when}": mean.mean,
                f"score_{when}_low": mean.low,
                f"score_{when}_high": mean.high,
            }
            for column, score in zip(columns, scores, strict=True):
                column[f"score_{when}"] = float(score)
    figures |= length_and_diversity(baseline, candidate)
    rows = [
        {"prompt_id": p.prompt_id, "prompt": p.text, "baseline": b, "candidate": c, "win": float(w), **column}
        for p, b, c, w, column in zip(
            prompts, baseline.texts, candidate.texts, verdicts.wins, columns, strict=True
        )
    ]
    write_jsonl(folder / "pairs.jsonl", rows)
    return figures


def length_and_diversity(baseline: Answers, candidate: Answers) -> dict[str, Any]:
    """What needs no judge: tokens per completion, share that ended by itself, distinct word pairs."""
    figures: dict[str, Any] = {}
    for when, answers in (("before", baseline), ("after", candidate)):
        figures[f"length_{when}"] = float(np.mean([len(sampled.tokens) for sampled in answers.drawn]))
        figures[f"finished_{when}"] = float(np.mean([sampled.finished for sampled in answers.drawn]))
        figures[f"distinct_2_{when}"] = distinct_n(answers.texts, 2)
    return figures


def divergence(
    prompts: Sequence[Prompt],
    candidate: Generator,
    baseline: Generator,
    answers: Answers,
    config: EvaluateConfig,
) -> dict[str, float | None]:
    """KL(candidate || reference) in nats per completion, from the candidate's own samples, with its interval.

    The reference is the backbone of an adapter, else the baseline; None where their vocabularies differ.
    """
    reference = candidate.backbone if candidate.role != REFERENCE else baseline.backbone
    codecs = candidate.backbone.codec, reference.codec
    same_tokens = codecs[0] is codecs[1] or codecs[0].tokenizer.get_vocab() == codecs[1].tokenizer.get_vocab()
    if not same_tokens:
        return {"kl": None}
    own = _logprobs(candidate.backbone, candidate.role, answers, config)
    under_reference = _logprobs(reference, REFERENCE, answers, config)
    kl = bootstrap_mean(
        [k1(a, b).sum().item() for a, b in zip(own, under_reference, strict=True)],
        groups=[prompt.group_id for prompt in prompts],
        num_resamples=config.num_resamples,
        seed=config.seed,
    )
    return {"kl": kl.mean, "kl_low": kl.low, "kl_high": kl.high}


@torch.no_grad()
def _logprobs(backbone: Backbone, role: str, answers: Answers, config: EvaluateConfig) -> list[torch.Tensor]:
    """Log-probabilities [T] of each completion's tokens, at the sampling temperature (greedy: at 1)."""
    completions = Completions(backbone, answers.requests, answers.drawn, max_tokens=config.micro_batch_tokens)
    logprobs_BT = torch.zeros(completions.mask_BT.shape, device=backbone.device)
    for indices in token_budget_batches(completions.sequences.lengths, config.micro_batch_tokens):
        batch = completions.batch(indices)
        logprobs_BT[batch.rows_N, batch.columns_N], _ = token_logprobs(
            backbone.head,
            completions.hidden(role, batch),
            batch.of(completions.tokens_BT),
            temperature=config.sampling.temperature or 1.0,
        )
    return [row[mask].cpu() for row, mask in zip(logprobs_BT, completions.mask_BT, strict=True)]
