"""One method of a comparison: its settings, its training within the budget, its answers to the held-out prompts."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from rlhf.core.backbone import REFERENCE
from rlhf.core.errors import ConfigError
from rlhf.core.files import write_json
from rlhf.core.inputs import find_model, find_path, model_name
from rlhf.core.run import MANIFEST, Launch, Run, is_finished, read_manifest
from rlhf.core.sampler import Sampled
from rlhf.core.validation import problems
from rlhf.loop.compare.config import BEST_OF_N, PPO, CompareConfig
from rlhf.loop.config import EvaluateConfig
from rlhf.loop.evaluate import Answers, compare_answers, judge_of, select_prompts
from rlhf.loop.evaluate import answer as answer_prompts
from rlhf.loop.evaluate import run as evaluate
from rlhf.loop.models import Generator, ModelPool
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.prompts import EncodedPrompt
from rlhf.ppo.rewards import RewardSources, check_prompts
from rlhf.ppo.train import run_with
from rlhf.preference.best_of_n import Candidates, draw, kl_bound, reward_settings
from rlhf.preference.budget import FORWARD
from rlhf.preference.config import ONLINE, PreferConfig
from rlhf.preference.online import BudgetedTrainer
from rlhf.preference.train import run as prefer

# A budget ends the runs, not a number of steps: these are only so large that they never do.
MANY_ITERATIONS, MANY_EPOCHS = 1_000_000, 10_000
MIB = 2**20


class BudgetedPPOConfig(PPOConfig):
    """`rlhf ppo` with an end that is a price."""

    budget_seconds: float | None = None
    budget_tokens: int | None = None


@dataclass(frozen=True)
class Place:
    """Where one run of a method and its evaluation are, and what its figures are written to."""

    run: Path
    evaluation: Path
    result: Path

    @classmethod
    def of(cls, out: Path, name: str) -> Place:
        return cls(out / "runs" / name, out / "evaluations" / name, out / "results" / f"{name}.json")


def settings_of(config: CompareConfig, method: str, seed: int) -> PreferConfig | BudgetedPPOConfig:
    """The settings that a method is run with. Raises ConfigError for overrides that do not fit it."""
    shared: dict[str, Any] = {
        "backbone": config.backbone,
        "lora": config.lora.model_dump(),
        "model": config.model.model_dump(),
        "sampling": config.sampling.model_dump(),
        "budget_seconds": config.budget_seconds,
        "budget_tokens": config.budget_tokens,
        "seed": seed,
    }
    online = {name: getattr(config, name) for name in ("reward", "prompts", "eval_prompts")}
    cls: type[PreferConfig] | type[BudgetedPPOConfig] = PreferConfig
    if method == PPO:
        cls, values = BudgetedPPOConfig, shared | online | {"num_iterations": MANY_ITERATIONS}
    elif method in ONLINE:
        values = shared | online | {"method": method, "online": {"num_iterations": MANY_ITERATIONS}}
    else:
        values = shared | {"method": method, "snapshot": config.snapshot, "num_epochs": MANY_EPOCHS}
    known = set(cls.model_fields)
    return _validated(cls, values, config.overrides_of(method, known), method)


def _validated(
    cls: type[PreferConfig] | type[BudgetedPPOConfig],
    values: dict[str, Any],
    overrides: dict[str, Any],
    method: str,
) -> PreferConfig | BudgetedPPOConfig:
    """Defaults, then what the comparison decides, then the overrides."""
    whole = cls().model_dump(mode="json")
    _overlay(whole, values)
    _overlay(whole, overrides)
    try:
        return cls.model_validate(whole)
    except ValidationError as error:
        path, message = problems(error)[0]
        where = ".".join((method, *path))
        raise ConfigError(f"rlhf compare: {where}: {message}") from error


def _overlay(values: dict[str, Any], changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(values.get(name), dict):
            _overlay(values[name], value)
        else:
            values[name] = value


def run_method(config: CompareConfig, launch: Launch, out: Path, method: str, seed: int, name: str) -> None:
    """Train (unless it is best-of-n), answer, judge, and write the figures. What is finished is not done again."""
    place = Place.of(out, name)
    if place.result.exists():
        return
    figures: dict[str, Any] = {"method": method, "seed": seed}
    if method == BEST_OF_N:
        figures |= _best_of_n(config, launch, place, seed)
    else:
        settings = settings_of(config, method, seed)
        there, was_trained = _into(launch, place.run), is_finished(place.run)
        if isinstance(settings, BudgetedPPOConfig):
            trainer = partial(
                BudgetedTrainer, budget_seconds=settings.budget_seconds, budget_tokens=settings.budget_tokens
            )
            run_with(trainer, settings, settings, there)
        else:
            prefer(settings, there)
        # A process that goes on behind an interruption has not seen the training that was finished before.
        figures |= {"peak_memory_mib": None if was_trained else peak_memory_mib(), "answers_drawn": 1}
        evaluate(_evaluation(config, str(place.run)), _into(launch, place.evaluation))
        metrics = read_manifest(place.run).metrics
        kept = ("seconds_training", "tokens_spent", "best_epoch", "num_epochs", "best_iteration", "step")
        figures |= {key: metrics[key] for key in kept if key in metrics}
        figures |= read_manifest(place.evaluation).metrics
    if not config.isolate:
        figures["peak_memory_mib"] = None
    write_json(place.result, figures)


def _into(launch: Launch, out: Path) -> Launch:
    """Launch for a run directory; one that an interruption left unfinished is continued."""
    resume = (out / MANIFEST).exists() and not is_finished(out)
    return replace(launch, out=out, resume=resume, force=False, dry_run=False)


def _evaluation(config: CompareConfig, candidate: str) -> EvaluateConfig:
    return EvaluateConfig(
        candidate=candidate,
        prompts=config.heldout,
        judge=config.judge,
        sampling=config.sampling,
        max_prompts=config.max_prompts,
        model=config.model,
        seed=config.seed,
    )


def _best_of_n(config: CompareConfig, launch: Launch, place: Place, seed: int) -> dict[str, Any]:
    """The backbone's best of n against its first, by the same judge; nothing is trained."""
    backbone_text, judge = str(config.backbone), str(config.judge)
    settings = _evaluation(config, backbone_text).model_copy(update={"seed": seed})
    heldout = find_path(str(config.heldout), launch)
    as_ppo = reward_settings(config.reward, settings)
    sources = RewardSources.find(as_ppo, launch)
    pool = ModelPool(config.model, launch)
    path = find_model(backbone_text, launch)
    backbone = pool.backbone(path)
    generator = Generator(backbone, REFERENCE, model_name(path, launch), None)
    prompts = select_prompts(heldout, [generator], settings)
    parents = {"prompts": heldout, **sources.parents}
    with Run.start(
        place.evaluation,
        stage="evaluate",
        settings=settings,
        launch=_into(launch, place.evaluation),
        parents=parents,
        seed=seed,
    ) as record:
        if not record.finished:
            reward, _ = sources.load(backbone, launch)
            check_prompts(reward, prompts)
            found = draw(
                backbone,
                REFERENCE,
                reward,
                [EncodedPrompt(p, backbone.codec.prompt_ids(p.messages)) for p in prompts],
                config.sampling,
                n=config.n,
                seed=seed,
                max_tokens=settings.micro_batch_tokens,
            )
            peak = peak_memory_mib()
            baseline = answer_prompts(generator, prompts, settings)
            compare = judge_of(pool, judge, settings.micro_batch_tokens)
            figures = compare_answers(prompts, baseline, _kept(found), compare, settings, record.path)
            lengths = [
                len(r.prompt_ids) + len(s.tokens) for r, s in zip(found.requests, found.drawn, strict=True)
            ]
            figures |= {
                "kl": kl_bound(config.n),
                "kl_is_bound": True,
                "answers_drawn": config.n,
                "tokens_per_answer": 2 * FORWARD * sum(lengths) / len(prompts),
                "peak_memory_mib": peak,
            }
            write_json(record.path / "evaluation.json", figures)
            record.finish(figures)
        return {"seconds_training": 0.0, "tokens_spent": 0.0} | dict(record.manifest.metrics)


def _kept(found: Candidates) -> Answers:
    best = found.best()
    drawn: list[Sampled] = [found.drawn[row] for row in best]
    return Answers([found.requests[row] for row in best], drawn, [found.texts[row] for row in best])


def peak_memory_mib() -> float:
    """Most memory that this process has held so far: on its GPU where it uses one, else of the machine."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / MIB
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MIB if sys.platform == "darwin" else 1024)
