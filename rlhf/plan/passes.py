"""One forward and backward of each stage on a sketch, and what was alive at its peak, in bytes.

The passes call what the stages themselves call (`token_logprobs` in ppo, the roles' fused layers), so that a change
there changes the estimate too; trl's loss in sft is followed by hand. Optimizers and caches are counted, not traced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlhf.core.backbone import REFERENCE
from rlhf.core.logprobs import MAX_CHUNK_LOGITS, token_logprobs
from rlhf.plan.config import PlanConfig
from rlhf.plan.sketch import POLICY, REWARD, VALUE, Sketch, unique
from rlhf.plan.tracer import LiveBytes, flash_attention

META = torch.device("meta")
# trl's loss on a CPU (trl 1.16, trl/kernels/chunked_logprob.py): tokens and vocabulary of a tile of logits, and how
# many fp32 tensors of a tile's size are alive at once.
TILE_TOKENS, TILE_VOCABULARY = 4096, 32_768
FORWARD_TILES, BACKWARD_TILES = 4.25, 8.25


def peak_of(sketch: Sketch, work: Callable[[], object]) -> int:
    """Bytes alive at once while `work` runs, beyond the base's and the adapters' own and their gradients."""
    known = unique(sketch.model)
    for role in sketch.roles.values():
        known += list(role.model.parameters())
        known += list(role.model.buffers())
        known += list(role.head.parameters()) if role.head is not None else []
    trained = [p for p in known if p.requires_grad]
    for parameter in trained:  # counted as gradients, and there already in every micro-batch but the first
        parameter.grad = torch.empty_like(parameter)
    known += [p.grad for p in trained if p.grad is not None]
    with flash_attention(), LiveBytes(known) as live:
        work()
    for parameter in trained:
        parameter.grad = None
    return live.peak


class _TiledLoss(torch.autograd.Function):
    """What trl's loss over tiles of logits keeps and takes, without computing it: it cannot run on `meta`."""

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, compiled: bool) -> Tensor:
        ctx.save_for_backward(hidden_NH, weight_VH)
        ctx.compiled = compiled
        _tiles(hidden_NH, weight_VH, 1.0 if compiled else FORWARD_TILES)
        return hidden_NH.new_empty(len(hidden_NH), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Any, ...]:
        hidden_NH, weight_VH = ctx.saved_tensors
        hidden_grad = torch.empty_like(hidden_NH, dtype=torch.float32)
        weight_grad = torch.empty_like(weight_VH, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        _tiles(hidden_NH, weight_VH, 1.0 if ctx.compiled else BACKWARD_TILES)
        return hidden_grad.to(hidden_NH.dtype), weight_grad, None


def _tiles(hidden_NH: Tensor, weight_VH: Tensor, count: float) -> None:
    size = min(len(hidden_NH), TILE_TOKENS) * min(len(weight_VH), TILE_VOCABULARY)
    hidden_NH.new_empty(round(count * size), dtype=torch.float32)


def sft_pass(sketch: Sketch, plan: PlanConfig, rows: int) -> int:
    """trl's loss of a micro-batch of rows of unequal length, which need a mask, with dropout at work."""
    role: Any = sketch.model if plan.method == "full" else sketch.roles[POLICY].model
    base: Any = sketch.model if plan.method == "full" else role.get_base_model()
    if plan.method == "full" and plan.gradient_checkpointing:
        role.train()
        role.gradient_checkpointing_enable({"use_reentrant": False})
    elif not plan.gradient_checkpointing:  # else the layers were set one by one
        role.train()

    def work() -> None:
        size = plan.row_tokens
        tokens_BS = torch.zeros(rows, size, dtype=torch.int64, device=META)
        mask_B1SS = torch.ones(rows, 1, size, size, dtype=torch.bool, device=META)
        output = base.get_decoder()(input_ids=tokens_BS, attention_mask=mask_B1SS, use_cache=False)
        hidden_NH = output.last_hidden_state[:, :-1].flatten(0, 1)
        compiled = plan.model.device.startswith("cuda")
        loss_N = _TiledLoss.apply(hidden_NH, base.get_output_embeddings().weight, compiled)
        loss_N.sum().backward()

    peak = peak_of(sketch, work)
    role.eval()
    return peak


def update_pass(sketch: Sketch, plan: PlanConfig, rows: int) -> int:
    """The losses of a micro-batch of completions: policy, value and entropy."""
    device = plan.model.device if plan.model.device in MAX_CHUNK_LOGITS else "cpu"

    def work() -> None:
        trunk_BSH = _trunk(sketch, rows, plan.row_tokens)
        tokens_BS = torch.zeros(rows, plan.row_tokens, dtype=torch.int64, device=META)
        count = rows * plan.completion_tokens
        rows_N = torch.zeros(count, dtype=torch.int64, device=META)
        hidden_NH = sketch.hidden_at(POLICY, tokens_BS, rows_N, rows_N, trunk_BSH)
        logprobs_N, _ = token_logprobs(
            sketch.head,
            hidden_NH,
            rows_N,
            with_entropy=True,
            entropy_gradient=False,
            max_chunk_logits=MAX_CHUNK_LOGITS[device],
        )
        reader, read_NH = POLICY, hidden_NH
        if plan.value_adapter:
            reader, read_NH = VALUE, sketch.hidden_at(VALUE, tokens_BS, rows_N, rows_N, trunk_BSH)
        head = sketch.roles[reader].head
        assert head is not None
        (logprobs_N.sum() + head(read_NH.float()).sum()).backward()

    return peak_of(sketch, work)


def reward_pass(sketch: Sketch, plan: PlanConfig, rows: int) -> int:
    """The loss of a micro-batch of texts, each read at its last token."""

    def work() -> None:
        trunk_BSH = _trunk(sketch, rows, plan.row_tokens)
        tokens_BS = torch.zeros(rows, plan.row_tokens, dtype=torch.int64, device=META)
        rows_B = torch.zeros(rows, dtype=torch.int64, device=META)
        role = sketch.roles[REWARD]
        hidden_BH = sketch.hidden_at(REWARD, tokens_BS, rows_B, rows_B, trunk_BSH)
        assert role.head is not None
        role.head(hidden_BH.float()).sum().backward()

    role: Any = sketch.roles[REWARD]
    role.model.train(bool(plan.lora.dropout) and not plan.gradient_checkpointing)
    peak = peak_of(sketch, work)
    role.model.eval()
    return peak


def prefill_pass(sketch: Sketch, plan: PlanConfig, rows: int) -> int:
    """The prompts of a rollout through the whole decoder, without gradients."""

    @torch.no_grad()
    def work() -> None:
        tokens_BS = torch.zeros(rows, plan.prompt_tokens, dtype=torch.int64, device=META)
        sketch.hidden(REFERENCE, tokens_BS)

    return peak_of(sketch, work)


def _trunk(sketch: Sketch, rows: int, tokens: int) -> Tensor | None:
    """States below the adapters as a micro-batch reads them, padded together."""
    if sketch.first_top_layer is None:
        return None
    return torch.empty(rows, tokens, sketch.hidden_size, dtype=sketch.dtype, device=META)
