"""Has the candidate forgotten ordinary text? Its perplexity there, against the backbone's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel

from rlhf.core.backbone import REFERENCE, Backbone
from rlhf.core.batching import token_budget_batches
from rlhf.core.errors import DataError
from rlhf.core.files import read_jsonl
from rlhf.core.logprobs import token_logprobs
from rlhf.core.sequences import Sequences
from rlhf.loop.gates.verdict import Verdict
from rlhf.loop.models import Generator


class TextRow(BaseModel):
    """A row of a file of general text; other keys are not looked at."""

    text: str


def read_texts(path: Path, backbone: Backbone) -> list[list[int]]:
    """Token rows of a file of {text}, cut to the model's context. Raises DataError where none has two tokens."""
    codec = backbone.codec
    rows = [
        codec.tokenizer(row.text, add_special_tokens=False)["input_ids"] for row in read_jsonl(path, TextRow)
    ]
    rows = [row[: codec.max_tokens] for row in rows if len(row) > 1]
    if not rows:
        raise DataError(f"{path}: no text of two tokens or more")
    return rows


@torch.no_grad()
def loss_of(
    backbone: Backbone, role: str, rows: Sequence[Sequence[int]], max_tokens: int
) -> tuple[float, int]:
    """(mean negative log-likelihood per token in nats, number of tokens), each text's first token given."""
    sequences = Sequences(backbone, [list(row) for row in rows], max_tokens=max_tokens, max_bytes=0)
    total, count = 0.0, 0
    for places in token_budget_batches(sequences.lengths, max_tokens):
        batch = sequences.batch(places)
        lengths = [len(rows[row]) - 1 for row in places]
        owners = torch.tensor([place for place, n in enumerate(lengths) for _ in range(n)])
        columns = torch.cat([torch.arange(n) for n in lengths])
        targets = torch.tensor([token for row in places for token in rows[row][1:]])
        where = owners.to(backbone.device), columns.to(backbone.device)
        logprobs, _ = token_logprobs(
            backbone.head, sequences.hidden_at(role, batch, *where), targets.to(backbone.device)
        )
        total -= float(logprobs.sum())
        count += len(targets)
    return total / count, count


def perplexity(candidate: Generator, path: Path, limit: float, max_tokens: int) -> Verdict:
    """exp(loss of the candidate - loss of its backbone) on the texts of a file, against a limit above 1."""
    backbone = candidate.backbone
    rows = read_texts(path, backbone)
    before, count = loss_of(backbone, REFERENCE, rows, max_tokens)
    after, _ = loss_of(backbone, candidate.role, rows, max_tokens)
    ratio = math.exp(min(50.0, after - before))
    passed = ratio <= limit
    shown = [f"{math.exp(min(50.0, loss)):.2f}" for loss in (before, after)]
    reason = f"perplexity on general text went from {shown[0]} to {shown[1]}"
    reason += "" if passed else f"; at most {limit:.2f} times the backbone's is accepted"
    return Verdict("perplexity", passed, reason, ratio, threshold=limit, details={"num_tokens": count})
