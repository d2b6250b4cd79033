"""`rlhf score FILE`: a reward model's score for every {"prompt", "completion"} row of a file."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict

from reward.config import ScoreConfig
from reward.texts import context_of, find_scorer, load_scorer, score_rows, shortened, token_row
from rlhf.core.errors import ConfigError, DataError
from rlhf.core.files import read_numbered, write_jsonl
from rlhf.core.inputs import find_path, required
from rlhf.core.metrics import progress
from rlhf.core.records import Prompt, Record
from rlhf.core.run import Launch


class ScoredRow(Record):
    """A prompt (text or messages) with one completion. Other columns are kept as they are."""

    model_config = ConfigDict(frozen=True, extra="allow")

    prompt: str | tuple[dict[str, str], ...]
    completion: str


def run(config: ScoreConfig, launch: Launch) -> None:
    """Write the rows with their raw `score` and their `score_normalized`. Never overwrites without --force."""
    source = find_path(config.file, launch)
    target = launch.out or source.with_suffix(".scored.jsonl")
    if target.exists() and not launch.force:
        raise ConfigError(f"{target}: exists already; choose another --out, or --force to replace it")
    name = required(
        config.reward, "reward", "a reward run, adapter directory or sequence-classification model"
    )
    scorer = load_scorer(find_scorer(name, launch), config.model, launch, backbone=config.backbone)

    given, rows = [], []
    for line, row in read_numbered(source, ScoredRow):
        try:
            ids = token_row(scorer, Prompt.model_validate({"prompt": row.prompt}), row.completion)
        except (DataError, ValueError) as error:
            raise DataError(f"{source}:{line}: {error}") from error
        if len(ids) > context_of(scorer) and config.on_too_long == "error":
            raise DataError(
                f"{source}:{line}: prompt and completion have {len(ids)} tokens; the model's context is "
                f"{context_of(scorer)} (--on-too-long drop or truncate-left)"
            )
        given.append(row)
        rows.append(ids)
    fits = [len(ids) <= context_of(scorer) or config.on_too_long == "truncate-left" for ids in rows]
    num_too_long = sum(len(ids) > context_of(scorer) for ids in rows)
    if not any(fits):
        raise DataError(
            f"{source}: all {num_too_long} rows are longer than the context of {context_of(scorer)}"
        )
    with progress("completions", len(rows), stage="score") as tracker:
        kept = [shortened(scorer, ids) for ids, fit in zip(rows, fits, strict=True) if fit]
        scores = iter(score_rows(scorer, kept, max_tokens=config.micro_batch_tokens).tolist())
        tracker.advance(len(rows))
    scale = scorer.scale
    written: list[dict[str, Any]] = []
    for row, fit in zip(given, fits, strict=True):
        score = next(scores) if fit else None
        normalized = None if score is None else (score - scale.mean) / scale.std
        written.append(row.model_dump() | {"score": score, "score_normalized": normalized})
    write_jsonl(target, written)
    found = [row["score"] for row in written if row["score"] is not None]
    print(
        f"score: {len(found)} completions, mean {sum(found) / len(found):.3f}{_too_long(num_too_long, config)}; "
        f"written to {target}"
    )


def _too_long(number: int, config: ScoreConfig) -> str:
    what = "got no score" if config.on_too_long == "drop" else "lost the beginning of their prompts"
    return f" ({number} too long: {what})" if number else ""
