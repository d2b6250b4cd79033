"""What keeps a model from forgetting while it learns something else.

Replay: rows of general text or demonstrations are mixed into every epoch, `replay_share` of its rows; over the epochs
the whole file is gone through (rehearsal; Robins, "Catastrophic forgetting, rehearsal and pseudorehearsal", 1995).

KL to the base: `kl_to_base` times the mean over tokens of KL(base || tuned) joins the loss: the tuned model is to
keep the base's distribution over the next token, whichever token the data has there (learning without forgetting; Li
and Hoiem, arXiv:1606.09282, with the whole distribution at temperature 1). The base is the frozen backbone.

    loss = -1/N sum log p_tuned(y_t)  +  kl_to_base / N  sum_{t in K} sum_v p_base(v) log (p_base(v) / p_tuned(v))

N counts the target tokens of the batch, replayed ones too; K is all of them or, with `kl_tokens: replay`, the replayed
ones alone. The denominator is the batch's in every part of it, so that cutting a batch changes nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlhf.core.backbone import REFERENCE, Backbone, Role
from rlhf.core.chat import ChatCodec
from rlhf.core.logprobs import MAX_CHUNK_LOGITS
from rlhf.core.vocabulary import OutputHead
from sft.config import SFTConfig
from sft.data import Example, load_examples

REPLAY = "replay"
IGNORED = -100
# What a forward pass reads of a batch, beside the labels.
_MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids")


def load_replay(path: Path, codec: ChatCodec, config: SFTConfig) -> list[Example]:
    """The rows of the replay file; demonstrations that are too long are left out. Raises DataError."""
    room = config.room(codec.max_tokens)
    return load_examples(path, codec, max_tokens=room, drop_too_long=True, task=REPLAY)[0]


def with_replay(num_rows: Sequence[int], weights: Sequence[float], share: float) -> tuple[int, list[float]]:
    """(rows of an epoch, shares of the tasks and of the replayed rows, which come last).

    num_rows: of each task. weights: of the tasks, empty for as many rows as each has. The tasks keep their number of
    rows; the replayed ones are added to them, at least one.
    """
    total = sum(num_rows)
    sizes = list(weights) or [float(number) for number in num_rows]
    of_tasks = [(1 - share) * size / sum(sizes) for size in sizes]
    return total + max(1, round(total * share / (1 - share))), [*of_tasks, share]


def sum_of_kl(
    base: OutputHead, hidden_base_NH: Tensor, tuned: OutputHead, hidden_NH: Tensor, rows: int | None = None
) -> Tensor:
    """Sum over N tokens of KL(base || tuned) in nats, with a gradient for `hidden_NH` (and a trained output matrix).

    No more than `rows` tokens' logits exist at a time: they are computed again in the backward pass.
    """
    budget = MAX_CHUNK_LOGITS.get(hidden_NH.device.type, 2**24)
    rows = rows or max(1, budget // tuned.vocab_size)
    total = hidden_NH.new_zeros((), dtype=torch.float32)
    for hidden_base_nH, hidden_nH in zip(hidden_base_NH.split(rows), hidden_NH.split(rows), strict=True):
        if torch.is_grad_enabled():
            total = total + checkpoint(_kl, base, hidden_base_nH, tuned, hidden_nH, use_reentrant=False)
        else:
            total = total + _kl(base, hidden_base_nH, tuned, hidden_nH)
    return total


def _kl(base: OutputHead, hidden_base_nH: Tensor, tuned: OutputHead, hidden_nH: Tensor) -> Tensor:
    with torch.no_grad():
        base_nV = torch.log_softmax(base(hidden_base_nH).float(), dim=-1)
    tuned_nV = torch.log_softmax(tuned(hidden_nH).float(), dim=-1)
    return (base_nV.exp() * (base_nV - tuned_nV)).sum()


class KlToBase:
    """The second term of the loss. It takes the hidden states that the first one has computed, so that the tuned model
    passes over a batch once; the base passes over it once more, without gradients.

    rows: the training rows (blocks, with packing); those of the replay file are known by their tokens, since a
    collator keeps no other column.
    """

    def __init__(
        self, backbone: Backbone, role: Role, config: SFTConfig, rows: Sequence[Sequence[Example]]
    ) -> None:
        self.coefficient = config.kl_to_base
        self._head = OutputHead.of(role.causal_lm)
        self._base = backbone.roles[REFERENCE].causal_lm
        if self._base is role.causal_lm:  # method full trains the loaded model itself
            self._base = copy.deepcopy(self._base).eval().requires_grad_(False)
        self._base_head = OutputHead.of(self._base)
        self._replayed: set[tuple[int, ...]] | None = None
        if config.kl_tokens == "replay":
            self._replayed = {
                tuple(token for example in row for token in example.input_ids)
                for row in rows
                if row[0].task == REPLAY
            }
        self._hidden_BSH: Tensor | None = None
        self._watched = False
        role.causal_lm.get_decoder().register_forward_hook(self._keep)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep the last hidden states of the forward passes inside."""
        self._watched = True
        try:
            yield
        finally:
            self._watched = False

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._watched:
            self._hidden_BSH = output.last_hidden_state

    def term(self, inputs: dict[str, Any], num_targets: Tensor | int) -> tuple[Tensor, float | None]:
        """(coefficient times the KL of this part of a batch over the batch's target tokens, mean KL of the tokens that
        count here, None where none does). num_targets: of the whole batch."""
        assert self._hidden_BSH is not None
        tokens_BS = inputs["input_ids"]
        hidden_BSH, self._hidden_BSH = self._hidden_BSH[:, -tokens_BS.shape[1] :], None
        counts_BS = inputs["labels"][:, 1:] != IGNORED
        if self._replayed is not None:
            counts_BS = counts_BS & self._replay_rows(inputs)[:, None]
        number = int(counts_BS.sum())
        if not number:
            return hidden_BSH.sum() * 0.0, None
        with torch.no_grad():
            read = {name: inputs[name] for name in _MODEL_INPUTS if name in inputs}
            hidden_base_BSH = self._base.get_decoder()(**read, use_cache=False).last_hidden_state
        total = sum_of_kl(
            self._base_head, hidden_base_BSH[:, :-1][counts_BS], self._head, hidden_BSH[:, :-1][counts_BS]
        )
        return self.coefficient * total / num_targets, float(total.detach()) / number

    def _replay_rows(self, inputs: dict[str, Any]) -> Tensor:
        """[B] True for rows of the replay file."""
        assert self._replayed is not None
        found = []
        for ids, labels in zip(inputs["input_ids"].tolist(), inputs["labels"], strict=True):
            # The last token of every row and block is a target; what comes after it is padding.
            last = int((labels != IGNORED).nonzero().max())
            found.append(tuple(ids[: last + 1]) in self._replayed)
        return torch.tensor(found, device=inputs["labels"].device)
