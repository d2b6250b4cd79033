"""One token for every row of a batch through a decoder of Llama's kind, as one launch of a CUDA graph.

While a model decodes on a GPU nearly all of a step is the launching of small kernels: some eight hundred of them in
a model of 24 layers, each of which the processor prepares for longer than the GPU works at it. A graph launches all of
them at once, if every tensor stays where it is: tokens and positions are written into buffers, keys and values into
the cache's room, whose empty places are masked.

The weights are read where they lie; nothing is copied. A decoder is trusted as in `rlhf.core.decode_step`; every other
one keeps its own forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from rlhf.core.attention import turn
from rlhf.core.decode_step import agrees, is_llama_kind
from rlhf.core.decoder import decoder_layers
from rlhf.core.fused import TOLERANCES
from rlhf.core.packed import weight_of

# Whether the probe of a decoder agreed, by its embedding: copies with a merged adapter share it.
_agrees = WeakTensorKeyDictionary()
# Rotary angles that depend on how long the text is have no table.
_GROWING = ("dynamic", "longrope")


def static_step(model: Any) -> StaticStep | None:
    """A step for a causal LM on a GPU with the weights it has now, None where its own forward must do."""
    decoder = model.get_decoder()
    if model.device.type != "cuda" or not is_llama_kind(decoder, weight_of):
        return None
    if getattr(decoder.rotary_emb, "rope_type", "default") in _GROWING:
        return None
    weight_VH = decoder.embed_tokens.weight
    if weight_VH not in _agrees:
        try:
            _agrees[weight_VH] = agrees(model, StaticStep(decoder), tolerance=2 * TOLERANCES[weight_VH.dtype])
        except RuntimeError:  # something in it cannot be captured
            _agrees[weight_VH] = False
    return StaticStep(decoder) if _agrees[weight_VH] else None


class StaticStep:
    """Computes on buffers that stay where they are; on a GPU by a graph for each number of rows.

    Belongs to one cache and may be used for one batch: nothing may be trained meanwhile.
    """

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self._layers = [_Layer(layer) for layer in decoder_layers(decoder)]
        self._graphs: dict[tuple[int, int], _Graph] = {}
        self._angles: tuple[Tensor, Tensor] | None = None
        self._end = 0  # places of the cache that are filled

    @staticmethod
    def handy_rows(rows: int) -> int:
        """The next number of rows, from `rows` up, that there should be: every number costs a graph."""
        return max(8, 1 << (rows - 1).bit_length())

    @torch.no_grad()
    def __call__(
        self,
        tokens_B: Tensor,
        positions_B1: Tensor,
        mask_BS: Tensor | None,
        cache: Any,
        capture_layer: int | None,
    ) -> tuple[Tensor, Tensor | None]:
        """As `DecodeStep`. The mask is known from the positions: the cache is filled from the right of the padding.

        What it returns is overwritten by the next call.
        """
        if not self._end:
            self._end = cache.layers[0].get_seq_length()
        rooms = [layer.rooms for layer in cache.layers]
        key = len(tokens_B), rooms[0][0].data_ptr()
        if key not in self._graphs:
            self._graphs[key] = self._graph(tokens_B, positions_B1, rooms, capture_layer)
        graph = self._graphs[key]
        graph.tokens_B.copy_(tokens_B)
        graph.positions_B1.copy_(positions_B1)
        graph.column_1.fill_(self._end)
        self._end += 1
        if graph.captured is None:
            return self._run(graph, capture_layer)
        graph.captured.replay()
        assert graph.outputs is not None
        return graph.outputs

    def keep_rows(self, cache: Any, indices: Tensor) -> None:
        """Keep these rows of the cache, in this order."""
        for layer in cache.layers:
            layer.show(self._end)
        cache.batch_select_indices(indices)

    def _graph(
        self, tokens_B: Tensor, positions_B1: Tensor, rooms: list[list[Tensor]], capture_layer: int | None
    ) -> _Graph:
        if self._angles is None:
            self._angles = self._angles_of(rooms[0][0].shape[2])
        column_1 = torch.full((1,), self._end, device=tokens_B.device)
        graph = _Graph(tokens_B.clone(), positions_B1.clone(), column_1, rooms)
        if not tokens_B.is_cuda:
            return graph
        here, stream = torch.cuda.current_stream(), torch.cuda.Stream()
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            self._run(graph, capture_layer)  # libraries make their handles before the capture
            captured = torch.cuda.CUDAGraph()
            captured.capture_begin(capture_error_mode="thread_local")
            try:
                graph.outputs = self._run(graph, capture_layer)
            finally:
                captured.capture_end()
        here.wait_stream(stream)
        graph.captured = captured
        return graph

    def _angles_of(self, capacity: int) -> tuple[Tensor, Tensor]:
        """cos and sin [capacity, D] of every position there can be."""
        weight_VH = self._decoder.embed_tokens.weight
        positions_1S = torch.arange(capacity, device=weight_VH.device)[None]
        cos_1SD, sin_1SD = self._decoder.rotary_emb(weight_VH[:1, None], position_ids=positions_1S)
        return cos_1SD[0], sin_1SD[0]

    def _run(self, graph: _Graph, capture_layer: int | None) -> tuple[Tensor, Tensor | None]:
        assert self._angles is not None
        x_BH = self._decoder.embed_tokens(graph.tokens_B)
        cos_B1D, sin_B1D = (angles_SD[graph.positions_B1] for angles_SD in self._angles)
        columns_S = torch.arange(graph.rooms[0][0].shape[2], device=x_BH.device)
        hidden_BS = (columns_S > graph.column_1) | (columns_S < graph.column_1 - graph.positions_B1)
        mask_BS = torch.zeros_like(hidden_BS, dtype=torch.float32).masked_fill_(hidden_BS, float("-inf"))
        captured_BH = None
        for number, (layer, room) in enumerate(zip(self._layers, graph.rooms, strict=True)):
            if number == capture_layer:
                captured_BH = x_BH.clone()
            layer(x_BH, cos_B1D, sin_B1D, mask_BS[:, None], graph.column_1, room)
        return _normed(self._decoder.norm, x_BH), captured_BH


@dataclass
class _Graph:
    """The buffers of a number of rows; on a GPU what was captured on them, and where it leaves its results."""

    tokens_B: Tensor
    positions_B1: Tensor
    column_1: Tensor
    rooms: list[list[Tensor]]
    captured: Any = None
    outputs: tuple[Tensor, Tensor | None] | None = None


class _Layer:
    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.before, self.between = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = [_weight(part) for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
        self.out, self.down = _weight(attention.o_proj), _weight(mlp.down_proj)
        self.gate, self.up = _weight(mlp.gate_proj), _weight(mlp.up_proj)
        self.head_size, self.scaling = attention.head_dim, attention.scaling
        self.head_norms = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)

    def __call__(
        self,
        x_BH: Tensor,
        cos_B1D: Tensor,
        sin_B1D: Tensor,
        mask_B1S: Tensor,
        column_1: Tensor,
        room: list[Tensor],
    ) -> None:
        """Add attention and MLP to x, in place."""
        normed_BH = _normed(self.before, x_BH)
        queries_BAD, keys_BKD, values_BKD = (
            nn.functional.linear(normed_BH, *part).view(len(x_BH), -1, self.head_size) for part in self.qkv
        )
        queries_BAD, keys_BKD = (
            x_BAD if norm is None else _normed(norm, x_BAD)
            for norm, x_BAD in zip(self.head_norms, (queries_BAD, keys_BKD), strict=True)
        )
        keys_BKSD, values_BKSD = room
        keys_BKSD.index_copy_(2, column_1, turn(keys_BKD, cos_B1D, sin_B1D)[:, :, None])
        values_BKSD.index_copy_(2, column_1, values_BKD[:, :, None])
        # Query heads that share a key head are the rows of one product: kernels of attention are made for more.
        num_queries = queries_BAD.shape[1]
        queries_NGD = turn(queries_BAD, cos_B1D, sin_B1D).view(
            -1, num_queries // keys_BKSD.shape[1], self.head_size
        )
        scores_BAS = _scores(queries_NGD, keys_BKSD.flatten(0, 1)).view(len(x_BH), num_queries, -1)
        weights_BAS = torch.softmax(torch.add(mask_B1S, scores_BAS, alpha=self.scaling), -1).to(x_BH.dtype)
        mixed_NGD = torch.bmm(weights_BAS.view(*queries_NGD.shape[:2], -1), values_BKSD.flatten(0, 1))
        _add_product(x_BH, mixed_NGD.view(len(x_BH), -1), self.out)
        normed_BH = _normed(self.between, x_BH)
        gate_BI, up_BI = (nn.functional.linear(normed_BH, *part) for part in (self.gate, self.up))
        _add_product(x_BH, nn.functional.silu(gate_BI).mul_(up_BI), self.down)


def _weight(layer: Any) -> tuple[Tensor, Tensor | None]:
    found = weight_of(layer)
    assert found is not None, "static_step has asked is_llama_kind"
    return found


def _scores(queries_NGD: Tensor, keys_NSD: Tensor) -> Tensor:
    """[N, G, S] in fp32: in bf16 a large score would be rounded by more than its neighbours differ."""
    if queries_NGD.is_cuda and queries_NGD.dtype != torch.float32:
        return torch.bmm(queries_NGD, keys_NSD.transpose(1, 2), out_dtype=torch.float32)
    return torch.bmm(queries_NGD.float(), keys_NSD.float().transpose(1, 2))


def _normed(norm: Any, x: Tensor) -> Tensor:
    return nn.functional.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


def _add_product(y_BO: Tensor, x_BI: Tensor, part: tuple[Tensor, Tensor | None]) -> None:
    weight_OI, bias_O = part
    y_BO.addmm_(x_BI, weight_OI.T)
    if bias_O is not None:
        y_BO += bias_O
