"""`rlhf score FILE`: a reward model's score for every {"prompt", "completion"} row of a file."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict

from reward.config import ScoreConfig
from reward.score import RewardScorer, text_row
from rlhf.core.adapters import base_path
from rlhf.core.backbone import Backbone
from rlhf.core.errors import ConfigError, DataError
from rlhf.core.files import read_numbered, write_jsonl
from rlhf.core.inputs import find_adapter, find_model, find_path, model_name, required
from rlhf.core.metrics import progress
from rlhf.core.records import Prompt, Record
from rlhf.core.run import Launch
from rlhf.core.sequences import Sequences


class ScoredRow(Record):
    """A prompt (text or messages) with one completion. Other columns are kept as they are."""

    model_config = ConfigDict(frozen=True, extra="allow")

    prompt: str | tuple[dict[str, str], ...]
    completion: str


def run(config: ScoreConfig, launch: Launch) -> None:
    """Write the rows with their raw `score` and their `score_normalized`. Never overwrites without --force."""
    source = find_path(config.file, launch)
    folder = find_adapter(required(config.reward, "reward", "a reward run or adapter directory"), launch)
    target = launch.out or source.with_suffix(".scored.jsonl")
    if target.exists() and not launch.force:
        raise ConfigError(f"{target}: exists already; choose another --out, or --force to replace it")
    backbone_path = find_model(config.backbone, launch) if config.backbone else base_path(folder, launch)
    backbone = Backbone.load(backbone_path, config.model, name=model_name(backbone_path, launch))
    scorer = RewardScorer.attach(backbone, folder)

    rows, given = [], []
    for line, row in read_numbered(source, ScoredRow):
        try:
            prompt = Prompt.model_validate({"prompt": row.prompt})
            rows.append(text_row(backbone.codec, prompt, row.completion))
        except (DataError, ValueError) as error:
            raise DataError(f"{source}:{line}: {error}") from error
        given.append(row)
    with progress("completions", len(rows), stage="score") as tracker:
        scores = scorer.score_all(
            Sequences(backbone, rows, max_tokens=config.micro_batch_tokens, max_bytes=0)
        ).tolist()
        tracker.advance(len(rows))
    scale = scorer.scale
    written: list[dict[str, Any]] = [
        row.model_dump() | {"score": score, "score_normalized": (score - scale.mean) / scale.std}
        for row, score in zip(given, scores, strict=True)
    ]
    write_jsonl(target, written)
    print(f"score: {len(written)} completions, mean {sum(scores) / len(scores):.3f}; written to {target}")
