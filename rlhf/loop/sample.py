"""`rlhf sample`: completions of a model become blind pairwise tasks in the feedback store."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from feedback_app.store.engine import Store
from feedback_app.store.tasks import add_completions, add_prompts, create_tasks
from rlhf.core.errors import DataError
from rlhf.core.inputs import find_path, required
from rlhf.core.metrics import progress
from rlhf.core.records import Completion
from rlhf.core.run import Launch
from rlhf.core.sampler import Request, sample
from rlhf.core.settings import SamplingSettings
from rlhf.core.stopping import StopRule
from rlhf.loop.config import SampleConfig
from rlhf.loop.models import Generator, ModelPool
from rlhf.ppo.prompts import EncodedPrompt, load_prompts


def run(config: SampleConfig, launch: Launch) -> None:
    """Sample, then write prompts, completions and tasks. Running it twice adds nothing: ids follow content."""
    prompts_path = find_path(required(config.prompts, "prompts", "a JSONL of prompts"), launch)
    name = required(
        config.model_path, "model-path", "a model directory, ppo run, adapter directory or hub id"
    )
    generator = ModelPool(config.model, launch).generator(name)
    prompts, dropped = load_prompts(
        prompts_path,
        generator.backbone.codec,
        room=config.sampling.max_completion_tokens,
        drop_too_long=config.on_long_prompt == "drop",
    )
    prompts = prompts[: config.max_prompts]
    completions = draw(generator, prompts, config)
    pairs, identical = pair_up(prompts, completions)
    if not pairs:
        raise DataError(f"all {identical} pairs are identical or empty; raise --sampling.temperature")
    with Store.open(launch.db) as store:
        add_prompts(store, [encoded.prompt for encoded in prompts])
        add_completions(store, [completion for group in completions for completion in group])
        tasks = create_tasks(
            store,
            project=config.project,
            kind="pairwise",
            items=pairs,
            overlap=config.overlap,
            simulated=config.simulated,
        )
    notes = [f"{identical} pairs were identical or empty"] * (identical > 0) + [
        f"{dropped} prompts too long"
    ] * (dropped > 0)
    left_out = f" (left out: {', '.join(notes)})" if notes else ""
    print(f"sample: {len(set(tasks))} pairs from {generator.model_id} in project {config.project}{left_out}")


def pair_up(
    prompts: Sequence[EncodedPrompt], completions: Sequence[Sequence[Completion]]
) -> tuple[list[tuple[str, tuple[str, ...]]], int]:
    """((prompt_id, completion ids) of 1st with 2nd, 3rd with 4th, ..., how many pairs were identical or empty)."""
    pairs: list[tuple[str, tuple[str, ...]]] = []
    identical = 0
    for encoded, group in zip(prompts, completions, strict=True):
        for first, second in zip(islice(group, 0, None, 2), islice(group, 1, None, 2), strict=False):
            if first.text == second.text or not first.text or not second.text:
                identical += 1  # nothing to compare
            else:
                pairs.append((encoded.prompt.prompt_id, (first.completion_id, second.completion_id)))
    return pairs, identical


def draw(
    generator: Generator, prompts: Sequence[EncodedPrompt], config: SampleConfig
) -> list[list[Completion]]:
    """`samples_per_prompt` completions for each prompt, with the identity of the model and how they were drawn."""
    requests = [
        Request(encoded.ids, cursor, g)
        for cursor, encoded in enumerate(prompts)
        for g in range(config.samples_per_prompt)
    ]
    stop = StopRule(generator.backbone.codec, config.sampling)
    with progress("completions", len(requests), stage="sample") as tracker:
        drawn = sample(
            generator.backbone.sampling_model(generator.role),
            requests,
            config.sampling,
            end_token_ids=stop.token_ids,
            ended_by_text=stop.ended_by_text,
            seed=config.seed,
            max_batch_tokens=16_384,
            on_done=tracker.advance,
        )
    completions: list[list[Completion]] = [[] for _ in prompts]
    for request, sampled in zip(requests, drawn, strict=True):
        completions[request.cursor].append(
            Completion.model_validate(
                {
                    "prompt_id": prompts[request.cursor].prompt.prompt_id,
                    "text": stop.text(sampled.tokens),
                    "model_id": generator.model_id,
                    "sampling": sampling_record(config.sampling, config.seed, request, sampled.finished),
                }
            )
        )
    return completions


def sampling_record(
    settings: SamplingSettings, seed: int, request: Request, finished: bool
) -> dict[str, object]:
    """What it takes to draw this completion again, and whether it ended by itself."""
    return settings.model_dump() | {
        "seed": seed,
        "cursor": request.cursor,
        "sample": request.sample,
        "finished": finished,
    }
