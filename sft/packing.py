"""Several rows in one block, each as if it were alone.

Rows are put into blocks of at most so many tokens by best fit, longest first, so that little is padding. In a block
the positions of each row begin at 0, and no attention mask is given: from the positions transformers builds one in
which a row sees nothing of its neighbours. The first token of a row is no target, since what stands before it belongs
to another row. `separates` tells whether a model does so; one that does not would mix documents silently.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from rlhf.core.backbone import REFERENCE, Backbone
from rlhf.core.errors import ModelError
from sft.data import Example

IGNORED = -100


def blocks_of(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Places of the rows of each block: best fit decreasing. A row longer than `room` has a block of its own."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    blocks: list[list[int]] = []
    space: list[
        tuple[int, int]
    ] = []  # (free tokens, block), sorted: the tightest block that fits comes first
    for place in order:
        found = bisect.bisect_left(space, (lengths[place], -1))
        if found == len(space):
            blocks.append([])
            free, block = room, len(blocks) - 1
        else:
            free, block = space.pop(found)
        blocks[block].append(place)
        bisect.insort(space, (max(0, free - lengths[place]), block))
    return blocks


def to_rows(examples: Sequence[Example], room: int | None) -> list[list[Example]]:
    """The rows of the training set: each example alone, or with `room` the examples of each block, of one task."""
    if room is None:
        return [[example] for example in examples]
    rows = []
    for task in dict.fromkeys(example.task for example in examples):
        of_task = [example for example in examples if example.task == task]
        rows += [
            [of_task[i] for i in block] for block in blocks_of([len(e.input_ids) for e in of_task], room)
        ]
    return rows


def to_dataset(rows: Sequence[Sequence[Example]]) -> Dataset:
    """The pre-tokenised form that trl's SFTTrainer takes, labels made."""
    columns: dict[str, list[Any]] = {"input_ids": [], "labels": [], "seq_lengths": []}
    for row in rows:
        columns["input_ids"].append([token for example in row for token in example.input_ids])
        columns["labels"].append([label for example in row for label in _labels(example)])
        columns["seq_lengths"].append([len(example.input_ids) for example in row])
    return Dataset.from_dict(columns)


def _labels(example: Example) -> list[int]:
    counts = [0, *example.completion_mask[1:]]
    return [token if count else IGNORED for token, count in zip(example.input_ids, counts, strict=True)]


class PackedCollator(DataCollatorForLanguageModeling):
    """Blocks with positions and without an attention mask. Each token of padding is a row of its own."""

    def __init__(self, pad_token_id: int) -> None:
        super().__init__(pad_token_id=pad_token_id, return_position_ids=True)

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        del batch["attention_mask"]
        return batch


@torch.no_grad()
def require_separation(backbone: Backbone) -> None:
    """Raise ModelError where two rows in one block do not give what each gives alone.

    In reduced precision rounding alone is large; a model that mixes is then known by giving what it gives where an
    attention mask of ones tells it that all is one row.
    """
    generator = torch.Generator().manual_seed(0)
    lengths = (7, 5)
    tokens_1S = torch.randint(0, backbone.vocab_size, (1, sum(lengths)), generator=generator).to(
        backbone.device
    )
    positions_1S = torch.cat([torch.arange(n) for n in lengths])[None].to(backbone.device)
    decoder = backbone.roles[REFERENCE].causal_lm.get_decoder()
    packed = decoder(input_ids=tokens_1S, position_ids=positions_1S, use_cache=False).last_hidden_state
    alone = torch.cat([backbone.hidden(REFERENCE, part) for part in tokens_1S.split(lengths, dim=1)], dim=1)
    mixed = decoder(
        input_ids=tokens_1S,
        position_ids=positions_1S,
        attention_mask=torch.ones_like(tokens_1S),
        use_cache=False,
    ).last_hidden_state
    scale, eps = max(1.0, alone.abs().max().item()), torch.finfo(backbone.dtype).eps
    off, off_mixed = ((one - alone).float().abs() for one in (packed, mixed))
    near = off.max().item() <= eps * 100 * scale
    apart = off.mean().item() <= max(eps * scale, 0.25 * off_mixed.mean().item())
    if not (near and apart):
        raise ModelError(
            f"{backbone.name}: {type(backbone.model).__name__} mixes the rows of a block; expected --no-packing"
        )
