"""OUT/report.html and report.json of a supervised run: data, curves and what they say, answers before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlhf.core import html, plots
from rlhf.core.backbone import Backbone
from rlhf.core.files import write_json, write_text
from rlhf.core.metrics import finite, read_metrics
from rlhf.core.run import METRICS
from rlhf.core.sampler import Request, sample
from rlhf.core.settings import SamplingSettings
from sft.config import SFTConfig
from sft.curves import Reading, Verdict, draw, judge, read_curves
from sft.data import Example
from sft.packing import to_rows
from sft.tasks import Task
from sft.trainer import room_of

JSON_FILE, PAGE_FILE = "report.json", "report.html"
MAX_SHOWN_CHARS = 600
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


# ---- the page ------------------------------------------------------------------------------------------------------


def page(result: Mapping[str, Any], curves: Reading, verdicts: Sequence[Verdict], name: str) -> str:
    metrics = result["metrics"]
    sections = [
        ("", _headline(metrics)),
        (
            "",
            "".join(
                html.note(v.text) if v.kind != "levelled off" else html.paragraph(v.text) for v in verdicts
            ),
        ),
        ("Learning curves", _curves(curves, metrics)),
        ("Data", _data(result)),
    ]
    if result["samples"]:
        sections.append(("Answers before and after", _samples(result["samples"])))
    lead = f"{result['base']} tuned by method {result['method']}."
    return html.page(
        f"Supervised tuning: {name}", sections, lead=lead, footer="Losses are nats per target token."
    )


def _headline(metrics: Mapping[str, Any]) -> str:
    before, after = metrics["validation_loss_before"], metrics["validation_loss"]
    cards = [
        (f"{before:.3f} → {after:.3f}", "validation loss, base and tuned, nats per token"),
        (f"{math.exp(min(before, 50)):.2f} → {math.exp(min(after, 50)):.2f}", "perplexity, base and tuned"),
        (f"{metrics['best_step']} of {metrics['num_steps']}", "steps: the best one was kept"),
        (
            f"{metrics['num_trained_parameters']:,}",
            f"trained parameters, {100 * metrics['share_trained']:.2f} % of the base's",
        ),
    ]
    if "validation_loss_merged" in metrics:
        cards.append(
            (
                f"{metrics['validation_loss_merged']:.3f}",
                "validation loss of the model merged in full precision",
            )
        )
    return html.cards(cards)


def _curves(curves: Reading, metrics: Mapping[str, Any]) -> str:
    if not curves.steps:
        return html.paragraph("There was no validation after the first.")
    series = {
        "training": (curves.steps, curves.training),
        "validation": ([0, *curves.steps], [curves.first, *curves.validation]),
    }
    picture = plots.line_plot(series, "Loss", "step", "nats per token")
    alt = f"validation loss from {curves.first:.3f} to {min(curves.validation):.3f} over {curves.steps[-1]} steps"
    caption = (
        f"Training loss is the mean since the validation before, with dropout. Step {metrics['best_step']} was kept. "
        "Every step is in metrics.jsonl, and drawn in sft.png."
    )
    return html.figures([html.figure(picture, caption, alt=alt)])


def _data(result: Mapping[str, Any]) -> str:
    rows, pictures = [], []
    for task in result["tasks"]:
        lengths = task["lengths"]
        rows.append({k: v for k, v in task.items() if k not in ("lengths", "histogram")} | lengths)
        picture = plots.bar_plot(
            task["histogram"] if len(task["histogram"]) < 7 else _every_other(task["histogram"]),
            f"Lengths: {task['name']}",
            "tokens",
            "training rows",
        )
        alt = "; ".join(f"{name} tokens: {count}" for name, count in task["histogram"].items())
        pictures.append(html.figure(picture, "Prompt and completion together.", alt=alt))
    packing = result["packing"]
    words = ""
    if packing is not None:
        words = html.paragraph(
            f"Packed into {packing['blocks']} blocks of {packing['tokens of a block']} tokens, "
            f"{100 * packing['filled']:.1f} % of which are filled."
        )
    return html.table(rows) + words + html.figures(pictures)


def _every_other(bins: Mapping[str, int]) -> dict[str, int]:
    """Two bins as one, so that the names below the bars have room."""
    names, counts = list(bins), list(bins.values())
    merged = {}
    for i in range(0, len(names), 2):
        last = names[min(i + 1, len(names) - 1)]
        merged[f"{names[i].split('-')[0]}-{last.split('-')[1]}"] = sum(counts[i : i + 2])
    return merged


def _samples(samples: Sequence[Mapping[str, str]]) -> str:
    rows = [{name: _cut(text) for name, text in row.items()} for row in samples]
    return html.paragraph(
        "The most probable answers to validation prompts; 'wanted' is what the data says."
    ) + html.table(rows)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + " ..."
