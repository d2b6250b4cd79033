"""rlhf plan: bytes counted by hand, shapes that say what real passes keep, and the micro-batch that fits."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.cli import main
from rlhf.core.backbone import Backbone
from rlhf.core.logprobs import token_logprobs
from rlhf.core.run import Launch
from rlhf.core.settings import LoraSettings, ModelSettings
from rlhf.plan.config import PlanConfig
from rlhf.plan.estimate import FIXED_BYTES, cache_bytes, estimate
from rlhf.plan.passes import update_pass
from rlhf.plan.run import USABLE, suggested
from rlhf.plan.sketch import POLICY, draw, merged_bytes, read_config, trained_bytes, weight_bytes
from rlhf.plan.tracer import LiveBytes, flash_attention

CPU = ModelSettings(device="cpu")
LORA = LoraSettings(r=4, alpha=8, adapter_layers=1.0)


@pytest.fixture
def config(tiny_model: Callable[..., Path], tmp_path: Path) -> Any:
    """Of a Llama with 2 layers, H = 32, MLP 64, 4 heads and 2 key heads of 8, and its 300 tokens or fewer."""
    return read_config(str(tiny_model(num_layers=2)), Launch(tmp_path, ""))


def plan(**changes: Any) -> PlanConfig:
    sizes = {"prompt_tokens": 16, "completion_tokens": 16, "batch_size": 8, "micro_batch_size": 4}
    return PlanConfig(**{"base": "tiny", "model": CPU, "lora": LORA, **sizes, **changes})


def test_live_bytes_by_hand() -> None:
    weight = torch.empty(100, 10, device="meta", requires_grad=True)
    with LiveBytes([weight]) as live:
        x = torch.empty(50, 100, device="meta")  # 20,000 bytes
        assert live.live == 20_000
        y = x @ weight  # 2,000 more; the weight is known
        assert live.live == 22_000
        view = y.view(-1)  # a view has no bytes of its own
        z = view.exp()  # 2,000 more, kept for its own backward pass
        del view, y
        assert live.live == 22_000  # exp keeps its result, and not what it was made of
        del z
        assert live.live == 20_000
        (torch.empty(1000, device="meta") + 1).sum()
    assert live.peak == 20_000 + 2 * 4_000  # the two tensors of 1,000 numbers, before the sum


def test_parts_by_hand(config: Any) -> None:
    sketch = draw(config, plan(stage="ppo"))
    vocabulary = config.vocab_size
    layer = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32 + 2 * 32  # q, o; k, v; gate, up, down; two norms
    numbers = 2 * layer + 2 * vocabulary * 32 + 32  # embeddings and output matrix are not tied
    # beside them the inverse frequencies of the rotary positions, 4 numbers and a copy of them
    assert 0 <= weight_bytes(sketch, CPU) - 4 * numbers <= 64
    # A and B of rank 4 on every linear layer: 4 (in + out) numbers; the value head has 32.
    adapters = 2 * 4 * (2 * 64 + 2 * 48 + 3 * 96) + 32
    assert trained_bytes(sketch, [POLICY]) == 4 * adapters
    assert merged_bytes(sketch, POLICY, CPU) == 4 * 2 * (layer - 64)
    # 2 layers x (keys and values) x 2 heads x 8 numbers x 8 rows x 32 tokens
    assert cache_bytes(sketch, plan(stage="ppo")) == 4 * 2 * 2 * 2 * 8 * 8 * 32
    # In 4 bits 0.52 bytes for every number of a linear layer instead of 4.
    quantized = weight_bytes(sketch, CPU.model_copy(update={"quantization": "nf4"}))
    assert weight_bytes(sketch, CPU) - quantized == pytest.approx(2 * (layer - 64) * (4 - 0.52), abs=1)
    half = draw(config, plan(stage="ppo", lora=LORA.model_copy(update={"adapter_layers": 0.5})))
    assert half.first_top_layer == 1
    assert merged_bytes(half, POLICY, CPU) == 4 * (layer - 64)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_shapes_alone_say_what_a_real_update_keeps(
    tiny_model: Callable[..., Path], config: Any, share: float
) -> None:
    lora = LORA.model_copy(update={"adapter_layers": share})
    settings = plan(stage="ppo", lora=lora)
    planned = update_pass(draw(config, settings), settings, 4)

    backbone = Backbone.load(tiny_model(num_layers=2), CPU)
    role = backbone.add_role(POLICY, lora, seed=0, scalar_head=True)
    backbone.enable_trunk(32)
    tokens_BS = torch.randint(5, 200, (4, 32))
    trunk_BSH = backbone.trunk(tokens_BS) if backbone.trunk_enabled else None
    rows_N = torch.arange(4).repeat_interleave(16)
    columns_N = torch.arange(15, 31).repeat(4)

    def work() -> None:
        hidden_NH = backbone.hidden_at(POLICY, tokens_BS, rows_N, columns_N, trunk_BSH)
        logprobs_N, _ = token_logprobs(
            backbone.head, hidden_NH, rows_N, with_entropy=True, entropy_gradient=False
        )
        assert role.head is not None
        (logprobs_N.sum() + role.head(hidden_NH.float()).sum()).backward()

    work()  # forms the merged weights and the first gradients
    known = [*backbone.model.parameters(), *backbone.model.buffers(), *role.model.parameters()]
    known += [p.grad for p in role.parameters() if p.grad is not None] + role.parameters()
    known += [
        m.merged_weight._value for m in role.model.modules() if getattr(m, "merged_weight", None) is not None
    ]
    with flash_attention(), LiveBytes(known) as live:
        work()
    # The sketch forms its merged weights anew and holds its micro-batch's trunk states.
    own = 4 * 32 * 32 * 4 if share < 1 else 0
    merged = merged_bytes(draw(config, settings), POLICY, CPU)
    assert planned - own - merged == pytest.approx(live.peak, rel=0.05)


def test_more_rows_take_more_and_checkpointing_less(config: Any) -> None:
    for stage in ("sft", "reward", "ppo"):
        peaks = [
            estimate(config, plan(stage=stage, micro_batch_size=rows, prompt_tokens=48)).phases[-1].total
            if stage != "sft"
            else estimate(config, plan(micro_batch_size=rows, prompt_tokens=48)).phases[1].total
            for rows in (1, 2, 4)
        ]
        # Beyond what does not depend on the rows, twice the rows are twice the bytes.
        assert peaks[2] - peaks[1] == pytest.approx(2 * (peaks[1] - peaks[0]), rel=0.1), stage
    deep = copy.deepcopy(config)
    deep.num_hidden_layers = 8
    plain, less = (
        estimate(deep, plan(stage="ppo", gradient_checkpointing=on))
        .phases[-1]
        .parts["logits and activations"]
        for on in (False, True)
    )
    assert less < 0.5 * plain  # of one layer and not of eight
    full = estimate(config, plan(method="full")).phases[1].parts
    assert (
        0 <= full["weights"] - full["gradients"] <= 64
    )  # the angles of the rotary positions are not trained
    assert full["optimizer"] == 2 * full["gradients"]


def test_a_gpu_is_planned_without_what_a_process_on_a_cpu_takes(config: Any) -> None:
    on_cpu = estimate(config, plan())
    on_gpu = estimate(config, plan(model=ModelSettings(device="cuda")))
    assert on_cpu.peak.parts["process"] == FIXED_BYTES["sft"]
    assert "process" not in on_gpu.peak.parts
    assert on_gpu.peak.total < on_cpu.peak.total - FIXED_BYTES["sft"]


def test_the_command(
    tiny_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny_model(num_layers=2)
    (tmp_path / "weightless").mkdir()  # the configuration is all that is read
    (tmp_path / "weightless" / "config.json").write_text((base / "config.json").read_text())

    def call(*options: str) -> tuple[int, str, str]:
        common = ["plan", "--workspace", str(tmp_path), "--base", "weightless", "--model.device", "cpu"]
        code = main([*common, "--prompt-tokens", "32", "--completion-tokens", "32", *options])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    code, out, _ = call("--json", "--batch-size", "4", "--memory-gb", "1")
    assert code == 0
    found = json.loads(out)
    assert found["fits"]
    assert found["peak"] == found["phases"][found["peak_phase"]]["total"]
    for phase in found["phases"].values():
        assert phase.pop("total") == sum(phase.values())
    assert found["suggested"] == {"micro_batch_size": 4, "gradient_checkpointing": False}
    assert found["options"] == "--micro-batch-size 4"
    # Memory that holds two rows, but not four.
    two = next(c["peak"] for c in found["choices"] if c["micro_batch_size"] == 2)
    code, out, _ = call("--batch-size", "4", "--memory-gb", str(1.001 * two / USABLE / 1e9))
    assert code == 0
    assert "does not fit" in out
    assert "suggested: rlhf sft --micro-batch-size 2" in out
    code, out, _ = call("--batch-size", "4", "--memory-gb", "0.001", "--stage", "ppo")
    assert code == 0
    assert "nothing fits" in out
    code, _, err = call("--prompt-tokens", "128")
    assert code == 2
    assert "the context of the model is 128" in err
    code, _, err = call("--base", "nothing/here")
    assert code == 2
    assert err.count("\n") == 1
    code, _, err = call("--stage", "ppo", "--method", "full")
    assert code == 2
    assert "ppo trains adapters only" in err


def test_without_checkpointing_is_preferred() -> None:
    rows = [(1, False, True), (2, False, True), (4, False, False), (8, True, True)]
    names = ("micro_batch_size", "gradient_checkpointing", "fits")
    choices = [dict(zip(names, row, strict=True)) for row in rows]
    assert suggested(choices) == choices[1]
    assert suggested(choices[2:]) == choices[3]
    assert suggested(choices[2:3]) is None
