"""The decoding step on buffers that stay where they are, run without a graph, against the model's own forward.

`scripts/prove/gpu_checks.py` runs it as a graph, where there is a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlhf.core import sampler
from rlhf.core.backbone import Backbone
from rlhf.core.decode_step import agrees, is_llama_kind
from rlhf.core.fused import TOLERANCES
from rlhf.core.kv_cache import RoomyLayer
from rlhf.core.packed import weight_of
from rlhf.core.sampler import Request, Sampled, sample
from rlhf.core.settings import LoraSettings, SamplingSettings
from rlhf.core.static_step import StaticStep, static_step

LoadTiny = Callable[..., Backbone]
PROMPTS = [[1, 7, 9, 30], [1, 8], [1, 8], [1, 50, 60, 70, 80, 90], [1]] * 6


@pytest.fixture(autouse=True)
def clean_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: empty places hold zeros."""

    def zeros(self: RoomyLayer, states: torch.Tensor, end: int) -> torch.Tensor:
        batch, heads, _, size = states.shape
        return states.new_zeros(batch, heads, max(self.capacity, end), size)

    monkeypatch.setattr(RoomyLayer, "_with_room", zeros)


def moved(backbone: Backbone) -> Any:
    role = backbone.add_role("policy", LoraSettings(r=4, alpha=12), seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in role.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return backbone.sampling_model("policy")


def drawn(model: Any) -> list[Sampled]:
    return sample(
        model,
        [Request(prompt, cursor) for cursor, prompt in enumerate(PROMPTS)],
        SamplingSettings(max_completion_tokens=24),
        end_token_ids=list(range(100, 130)),
        seed=0,
        capture_layer=2,
        read=lambda hidden_BH: hidden_BH.sum(1),
    )


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_sampling_gives_what_the_models_own_forward_gives(
    load_tiny: LoadTiny, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    """30 rows with prompts of five lengths; they end on the way, so the batch shrinks from 32 to 8."""
    model = moved(load_tiny(architecture))
    monkeypatch.setattr(sampler, "decode_step", lambda model: None)
    own = drawn(model)
    steps: list[StaticStep] = []

    def watched(model: Any) -> StaticStep:
        steps.append(StaticStep(model.get_decoder()))
        return steps[-1]

    monkeypatch.setattr(sampler, "static_step", watched)
    found = drawn(model)
    assert [rows for rows, _ in steps[0]._graphs][:2] == [30, 16], "rows left in powers of two"
    assert len({len(row.tokens) for row in own}) > 5
    for ours, expected in zip(found, own, strict=True):
        assert (ours.tokens, ours.finished) == (expected.tokens, expected.finished)
        torch.testing.assert_close(ours.trunk_SH, expected.trunk_SH, atol=1e-4, rtol=1e-4)
        for name in ("logprobs", "readings"):
            torch.testing.assert_close(
                torch.tensor(getattr(ours, name)),
                torch.tensor(getattr(expected, name)),
                atol=1e-3,
                rtol=1e-4,
            )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_a_probe_agrees_and_a_wrong_step_does_not(load_tiny: LoadTiny, architecture: str, dtype: str) -> None:
    model = moved(load_tiny(architecture, dtype=dtype))
    decoder = model.get_decoder()
    assert is_llama_kind(decoder, weight_of)
    tolerance = 2 * TOLERANCES[model.dtype]
    assert agrees(model, StaticStep(decoder), tolerance=max(tolerance, 1e-4))
    wrong = StaticStep(decoder)
    wrong._layers[0].scaling *= 2
    assert not agrees(model, wrong, tolerance=max(tolerance, 1e-4))


@pytest.mark.parametrize("architecture", ["olmo2", "gemma2", "gpt2", "phi3"])
def test_decoders_of_another_kind_keep_their_own_forward(load_tiny: LoadTiny, architecture: str) -> None:
    assert not is_llama_kind(load_tiny(architecture).model.get_decoder(), weight_of)


def test_there_is_no_graph_on_a_cpu(load_tiny: LoadTiny) -> None:
    assert static_step(load_tiny().model) is None


def test_rows_leave_in_powers_of_two() -> None:
    assert [StaticStep.handy_rows(n) for n in (1, 8, 9, 16, 17, 33)] == [8, 8, 16, 16, 32, 64]
