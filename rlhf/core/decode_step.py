"""One token for every row of a batch through a decoder of Llama's kind, in few operations.

While a small model decodes on a CPU more than half of a step is not arithmetic: modules, operations of a few
microseconds, attention kernels made for many queries. Here q, k and v are one product, gate and up another, with the
norm before them folded into their weights; the products after them add to the residual stream in place; attention is
two batched products over the cache.

A decoder is recognised by the names of its parts and trusted only after two steps on a padded probe gave what its own
forward gives; every other decoder keeps its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from rlhf.core.attention import ATTENTION, is_rotary_attention, turn
from rlhf.core.decoder import decoder_layers
from rlhf.core.few_rows import FewRows
from rlhf.core.fused import is_gated_silu, is_rms_norm
from rlhf.core.kv_cache import RoomyLayer, key_value_cache
from rlhf.core.lora import forget_merged
from rlhf.core.packed import plain_weight

_DECODER = {"embed_tokens", "layers", "norm", "rotary_emb"}
_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
# Whether the probe of a decoder agreed. Its weights may have changed since, its structure cannot.
_agrees: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def decode_step(model: Any) -> DecodeStep | None:
    """A step for a causal LM with the weights it has now, None where its own forward must do."""
    decoder = model.get_decoder()
    if _agrees.get(decoder) is False or not is_llama_kind(decoder, plain_weight):
        return None
    if decoder not in _agrees:
        _agrees[decoder] = agrees(model, DecodeStep(decoder), tolerance=1e-4)
        if not _agrees[decoder]:
            return None
    return DecodeStep(decoder)


class DecodeStep:
    """Holds arranged copies of a decoder's weights; nothing may be trained while it is used."""

    @torch.no_grad()
    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self._layers = [_Layer(layer) for layer in decoder_layers(decoder)]

    @torch.no_grad()
    def __call__(
        self,
        tokens_B: Tensor,
        positions_B1: Tensor,
        mask_BS: Tensor | None,
        cache: Any,
        capture_layer: int | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Final hidden states [B, H] and, with `capture_layer`, the states [B, H] that enter that layer.

        mask_BS: 1 where the cache holds a token, this one included; None where it holds nothing else.
        """
        decoder = self._decoder
        x_BH = decoder.embed_tokens(tokens_B)
        cos_B1D, sin_B1D = decoder.rotary_emb(x_BH[:, None], position_ids=positions_B1)
        hidden_from_B1S = None
        if mask_BS is not None:
            lowest = torch.finfo(x_BH.dtype).min
            hidden_from_B1S = torch.zeros_like(mask_BS, dtype=x_BH.dtype).masked_fill_(mask_BS == 0, lowest)[
                :, None
            ]
        captured_BH = None
        for number, layer in enumerate(self._layers):
            if number == capture_layer:
                captured_BH = x_BH.clone()
            layer(x_BH, cos_B1D, sin_B1D, hidden_from_B1S, cache.layers[number])
        return decoder.norm(x_BH), captured_BH


class _Layer:
    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.before, self.between = _Scale(layer.input_layernorm), _Scale(layer.post_attention_layernorm)
        self.qkv = _few_rows([attention.q_proj, attention.k_proj, attention.v_proj], self.before.weight_H)
        self.out = _few_rows([attention.o_proj])
        self.gate_up = _few_rows([mlp.gate_proj, mlp.up_proj], self.between.weight_H)
        self.down = _few_rows([mlp.down_proj])
        self.head_size, self.scaling = attention.head_dim, attention.scaling
        self.head_norms = [
            getattr(attention, name) for name in ("q_norm", "k_norm") if hasattr(attention, name)
        ]
        self.num_queries, self.num_keys = (
            plain_weight(part)[0].shape[0] // self.head_size  # type: ignore[index]
            for part in (attention.q_proj, attention.k_proj)
        )
        for part in layer.modules():
            if isinstance(part, LoraLayer):
                forget_merged(part)  # the arranged copy of it is enough meanwhile

    def __call__(
        self, x_BH: Tensor, cos_B1D: Tensor, sin_B1D: Tensor, mask_B1S: Tensor | None, cache: RoomyLayer
    ) -> None:
        """Add attention and MLP to x, in place."""
        queries, keys, size = self.num_queries, self.num_keys, self.head_size
        heads_BAD = self.qkv(self.before(x_BH)).view(len(x_BH), -1, size)
        turning_BAD = heads_BAD[:, : queries + keys]
        if self.head_norms:
            parts = turning_BAD.split([queries, keys], dim=1)
            normed = [norm(part) for norm, part in zip(self.head_norms, parts, strict=True)]
            turning_BAD = torch.cat(normed, dim=1)
        turned_BAD = turn(turning_BAD, cos_B1D, sin_B1D)
        keys_BKSD, values_BKSD = cache.append(turned_BAD[:, queries:], heads_BAD[:, queries + keys :])
        # Query heads that share a key head are the rows of one product.
        queries_NGD = turned_BAD[:, :queries].reshape(len(x_BH) * keys, queries // keys, size)
        scores_NGS = torch.bmm(queries_NGD, keys_BKSD.transpose(1, 2)).mul_(self.scaling)
        if mask_B1S is not None:
            scores_NGS.view(len(x_BH), queries, -1).add_(mask_B1S)
        mixed_NGD = torch.bmm(torch.softmax(scores_NGS, -1), values_BKSD)
        self.out.add_to(x_BH, mixed_NGD.view(len(x_BH), queries * size))
        gate_BI, up_BI = self.gate_up(self.between(x_BH)).chunk(2, dim=1)
        self.down.add_to(x_BH, nn.functional.silu(gate_BI).mul_(up_BI))


class _Scale:
    """A root-mean-square norm without its weight, which the products after it carry."""

    def __init__(self, norm: Any) -> None:
        self.weight_H: Tensor = norm.weight
        self._added = norm.variance_epsilon * norm.weight.shape[-1]
        self._root = norm.weight.shape[-1] ** 0.5

    def __call__(self, x_BH: Tensor) -> Tensor:
        squares_B1 = torch.linalg.vector_norm(x_BH, dim=-1, keepdim=True).square_()
        return x_BH * squares_B1.add_(self._added).rsqrt_().mul_(self._root)


def _few_rows(layers: list[Any], norm_weight_H: Tensor | None = None) -> FewRows:
    weights, biases = zip(*(plain_weight(layer) for layer in layers), strict=True)
    if norm_weight_H is not None:
        weights = [weight * norm_weight_H for weight in weights]
    return FewRows(list(weights), list(biases))


def _children(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


def is_llama_kind(decoder: Any, weight_of: Callable[[Any], Any]) -> bool:
    """Whether all parts have the names and kinds that a step computes with, and `weight_of` a weight of each linear
    layer."""
    if _children(decoder) != _DECODER or type(decoder.embed_tokens) is not nn.Embedding:
        return False
    if not is_rms_norm(decoder.norm):
        return False
    return all(
        _children(layer) == _LAYER
        and is_rotary_attention(layer.self_attn)
        and is_gated_silu(layer.mlp)
        and is_rms_norm(layer.input_layernorm)
        and is_rms_norm(layer.post_attention_layernorm)
        and all(weight_of(getattr(layer.self_attn, name)) is not None for name in ATTENTION)
        and all(weight_of(getattr(layer.mlp, f"{name}_proj")) is not None for name in ("gate", "up", "down"))
        for layer in decoder_layers(decoder)
    )


@torch.no_grad()
def agrees(model: Any, step: Any, *, tolerance: float) -> bool:
    """Whether two steps after a padded prompt give what the decoder's own forward gives, caches included.

    tolerance: of the difference, as a share of the largest hidden state.
    """
    decoder, device = model.get_decoder(), model.device
    generator = torch.Generator().manual_seed(0)
    tokens_BS = torch.randint(0, decoder.embed_tokens.num_embeddings, (2, 7), generator=generator).to(device)
    mask_BS = torch.ones_like(tokens_BS)
    mask_BS[0, :2] = 0
    positions_BS = (mask_BS.cumsum(1) - 1).clamp(min=0)
    own, ours = (key_value_cache(model.config, 7) for _ in range(2))
    if not all(type(layer) is RoomyLayer for layer in own.layers):
        return False

    def forward(cache: Any, first: int, last: int) -> Tensor:
        return decoder(
            input_ids=tokens_BS[:, first:last],
            attention_mask=mask_BS[:, :last],
            position_ids=positions_BS[:, first:last],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]

    for cache in (own, ours):
        forward(cache, 0, 5)
    for place in (5, 6):
        expected_BH = forward(own, place, place + 1)
        arguments = tokens_BS[:, place], positions_BS[:, place : place + 1], mask_BS[:, : place + 1]
        found_BH, _ = step(*arguments, ours, None)
        atol = tolerance * expected_BH.abs().max().item()
        if not torch.allclose(found_BH, expected_BH, atol=atol, rtol=0):
            return False
    return True
