"""OUT/report.json of a supervised run, and its page: data, curves and what they say, answers before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlhf.core.backbone import Backbone
from rlhf.core.files import write_json, write_text
from rlhf.core.metrics import finite, read_metrics
from rlhf.core.run import METRICS
from rlhf.core.sampler import Request, sample
from rlhf.core.settings import SamplingSettings
from sft.config import SFTConfig
from sft.curves import draw, judge, read_curves
from sft.data import Example
from sft.packing import to_rows
from sft.page import page
from sft.tasks import Task
from sft.trainer import room_of

JSON_FILE, PAGE_FILE = "report.json", "report.html"
NUM_BINS = 12


@dataclass
class Samples:
    """Validation examples whose prompts are answered before and after; `wanted` is what the data says."""

    examples: list[Example]
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)

    @classmethod
    def choose(cls, examples: Sequence[Example], config: SFTConfig, context: int) -> Samples:
        """Evenly spread over the validation examples that leave room for an answer, each prompt once."""
        room = context - config.sample_tokens
        distinct = list({tuple(e.prompt_ids): e for e in examples if len(e.prompt_ids) <= room}.values())
        count = min(config.num_samples, len(distinct))
        return cls([distinct[i * len(distinct) // count] for i in range(count)])


def draw_samples(backbone: Backbone, role: str, samples: Samples, config: SFTConfig) -> list[str]:
    """The most probable answers of a role to the chosen prompts."""
    if not samples.examples:
        return []
    codec = backbone.codec
    drawn = sample(
        backbone.sampling_model(role),
        [Request(example.prompt_ids, cursor) for cursor, example in enumerate(samples.examples)],
        SamplingSettings(temperature=0.0, max_completion_tokens=config.sample_tokens),
        end_token_ids=codec.end_token_ids,
        seed=config.seed,
    )
    return [codec.decode(one.tokens) for one in drawn]


def write_report(
    out: Path,
    config: SFTConfig,
    tasks: Sequence[Task],
    backbone: Backbone,
    samples: Samples,
    metrics: Mapping[str, Any],
) -> None:
    """Both files and OUT/sft.png, from the run's metrics. The same run gives the same bytes."""
    curves = read_curves(read_metrics(out / METRICS))
    verdicts = judge(curves, metrics["validation_loss_before"])
    codec = backbone.codec
    shown = [
        {
            "prompt": codec.decode(example.prompt_ids),
            "wanted": codec.decode(example.input_ids[len(example.prompt_ids) :]),
            "before": before,
            "after": after,
        }
        for example, before, after in zip(samples.examples, samples.before, samples.after, strict=True)
    ]
    result = {
        "base": backbone.name,
        "method": config.method,
        "metrics": dict(metrics),
        "verdicts": [asdict(verdict) for verdict in verdicts],
        "curves": asdict(curves),
        "tasks": [task_figures(task) for task in tasks],
        "packing": packing_figures(tasks, config, backbone),
        "samples": shown,
    }
    write_json(out / JSON_FILE, finite(result))
    write_text(out / PAGE_FILE, page(result, curves, verdicts, out.name))
    draw(out, metrics["best_step"])


def task_figures(task: Task) -> dict[str, Any]:
    """Counts and lengths of one task; lengths are tokens of prompt and completion, or of a part of a text."""
    lengths = sorted(len(example.input_ids) for example in task.train)
    return {
        "name": task.name,
        "training": len(task.train),
        "validation": len(task.validation),
        "left out as too long": task.num_too_long,
        "weight": task.weight,
        "training tokens": sum(lengths),
        "of them targets": sum(example.num_targets for example in task.train),
        "lengths": {
            "shortest": lengths[0],
            "median": lengths[len(lengths) // 2],
            "95 %": lengths[math.ceil(0.95 * len(lengths)) - 1],
            "longest": lengths[-1],
        },
        "histogram": histogram(lengths),
    }


def histogram(lengths: Sequence[int]) -> dict[str, int]:
    """'from-to' -> how many, in bins of one width."""
    width = max(1, -(-(max(lengths) + 1) // NUM_BINS))
    counts = [0] * (max(lengths) // width + 1)
    for length in lengths:
        counts[length // width] += 1
    return {f"{i * width}-{(i + 1) * width - 1}": count for i, count in enumerate(counts)}


def packing_figures(tasks: Sequence[Task], config: SFTConfig, backbone: Backbone) -> dict[str, Any] | None:
    """How well the blocks are filled; None without packing."""
    room = room_of(config, backbone)
    if room is None:
        return None
    blocks = to_rows([example for task in tasks for example in task.train], room)
    tokens = sum(len(example.input_ids) for block in blocks for example in block)
    return {"blocks": len(blocks), "tokens of a block": room, "filled": tokens / (room * len(blocks))}
