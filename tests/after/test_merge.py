"""rlhf merge: the merged model is base + update to the bit of a sum, blends are what their formulas say, and what
cannot merge is one line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rlhf.cli import main
from rlhf.core.run import Launch, is_finished, read_manifest

PROJECTION = "model.layers.0.mlp.down_proj.weight"


def merge(launch: Launch, *options: Any) -> int:
    return main(["merge", "--workspace", str(launch.workspace), "--model.device", "cpu", *map(str, options)])


def update(folder: Path) -> torch.Tensor:
    """B A alpha / r of one projection of a saved adapter (alpha / r is 2)."""
    tensors = load_file(folder / "adapter_model.safetensors")
    name = f"base_model.model.{PROJECTION.removesuffix('.weight')}"
    return 2.0 * tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]


def weight(folder: Path) -> torch.Tensor:
    return load_file(folder / "model.safetensors")[PROJECTION]


@pytest.fixture
def out(launch: Launch) -> Path:
    return launch.workspace / "runs" / "merge"


def test_one_adapter_is_folded_in_as_peft_would(
    launch: Launch,
    adapter: Callable[..., Path],
    tiny_model: Callable[..., Path],
    letters: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base, one = tiny_model(num_layers=2), adapter("one", seed=1)
    assert merge(launch, "--adapters", "runs/one", "--data", letters) == 0
    assert is_finished(out)
    torch.testing.assert_close(weight(out / "model"), weight(base) + update(one), atol=1e-6, rtol=1e-6)
    model = AutoModelForCausalLM.from_pretrained(out / "model").eval()
    with_adapter = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), out / "adapter"
    ).eval()
    tokens = torch.arange(5, 17)[None]
    torch.testing.assert_close(model(tokens).logits, with_adapter(tokens).logits, atol=1e-4, rtol=1e-4)
    result = json.loads((out / "merge.json").read_text())
    found = {row["model"]: row for row in result["rows"]}
    assert set(found) == {"result", "base", "one"}
    # The result is the one part: no difference at all, where the base's loss is another.
    assert found["one"]["over_result"] == pytest.approx(0, abs=1e-4)
    assert abs(found["base"]["over_result"]) > 0.01
    assert found["base"]["loss_low"] < found["base"]["loss"] < found["base"]["loss_high"]
    manifest = read_manifest(out)
    assert manifest.metrics["loss"] == found["result"]["loss"]
    assert set(manifest.parents) == {"adapter_1", "base", "data"}
    assert "<svg" in (out / "merge.html").read_text()
    # Again: done already, nothing is touched.
    assert merge(launch, "--adapters", "runs/one", "--data", letters) == 0
    assert "already finished" in capsys.readouterr().out


def test_svd_adds_the_updates_also_of_other_ranks(
    launch: Launch, adapter: Callable[..., Path], tiny_model: Callable[..., Path], out: Path
) -> None:
    one, two = adapter("one", seed=1, r=2), adapter("two", seed=2, r=3)
    options = ("--adapters", one, two, "--how", "svd", "--weights", 0.75, 0.5)
    assert merge(launch, *options) == 0
    # By default the result has 2 + 3 ranks, which hold the weighted sum of a rank-2 and a rank-3 matrix exactly.
    expected = weight(tiny_model(num_layers=2)) + 0.75 * update(one) + 0.5 * update(two)
    torch.testing.assert_close(weight(out / "model"), expected, atol=1e-4, rtol=1e-4)
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 5
    assert not Path(config["base_model_name_or_path"]).is_absolute()
    assert read_manifest(out).extra["parts"] == [
        {"name": "one", "weight": 0.75},
        {"name": "two", "weight": 0.5},
    ]


def test_linear_adds_the_factors(
    launch: Launch, adapter: Callable[..., Path], tiny_model: Callable[..., Path], out: Path, letters: Path
) -> None:
    one, two = adapter("one", seed=1), adapter("two", seed=2)
    assert merge(launch, "--adapters", one, two, "--data", letters) == 0
    # Weights of 1/2: the factors are added times sqrt(1/2 * scaling 2) = 1, and multiplied: (A1 + A2), (B1 + B2).
    parts = [load_file(folder / "adapter_model.safetensors") for folder in (one, two)]
    name = f"base_model.model.{PROJECTION.removesuffix('.weight')}"
    a, b = (sum(part[f"{name}.lora_{matrix}.weight"] for part in parts) for matrix in "AB")
    expected = weight(tiny_model(num_layers=2)) + b @ a
    torch.testing.assert_close(weight(out / "model"), expected, atol=1e-4, rtol=1e-4)
    rows = json.loads((out / "merge.json").read_text())["rows"]
    assert [row["model"] for row in rows] == ["result", "base", "one", "two"]
    assert rows[0]["over_result"] == 0
    for row in rows:  # paired: the difference is that of the losses
        assert row["over_result"] == pytest.approx(row["loss"] - rows[0]["loss"], abs=1e-6)


@pytest.mark.parametrize("how", ["ties", "dare_linear"])
def test_sparse_blends_repeat_with_their_seed(
    launch: Launch, adapter: Callable[..., Path], out: Path, how: str
) -> None:
    parts = (adapter("one", seed=1), adapter("two", seed=2))
    found = []
    for seed in (0, 0, 1):
        assert merge(launch, "--adapters", *parts, "--how", how, "--seed", seed, "--force") == 0
        found.append(weight(out / "model"))
    assert torch.equal(found[0], found[1])
    # ties draws nothing; what dare drops depends on the seed
    assert torch.equal(found[0], found[2]) == (how == "ties")


def test_what_cannot_merge_is_one_line(
    launch: Launch, adapter: Callable[..., Path], capsys: pytest.CaptureFixture[str], out: Path
) -> None:
    one, two = adapter("one", seed=1), adapter("two", seed=2, r=3)

    def refused(*options: Any) -> str:
        assert merge(launch, *options) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert not (out / "manifest.json").exists() or not is_finished(out)
        return error

    assert "do not combine by linear" in refused("--adapters", one, two)
    assert "expected as many" in refused("--adapters", one, two, "--weights", 1.0)
    assert "never merged" in refused("--adapters", one, "--model.quantization", "nf4")
    assert "--adapters is required" in refused()
    path = one / "adapter_config.json"
    settings = json.loads(path.read_text())
    for kind, said in (("PREFIX_TUNING", "prefix-tuning"), ("PROMPT_TUNING", "prompt-tuning")):
        path.write_text(json.dumps(settings | {"peft_type": kind}))
        assert f"{said}, which changes no weight" in refused("--adapters", one, "--force")
    path.write_text(json.dumps(settings | {"task_type": "SEQ_CLS"}))
    assert "is a reward adapter" in refused("--adapters", one, "--force")
    path.write_text(json.dumps(settings | {"base_model_name_or_path": "owner/other"}))
    assert "different bases" in refused("--adapters", one, two, "--force")


def test_rank_stabilised_adapters_keep_their_scale_and_several_dora_are_refused(
    launch: Launch,
    adapter: Callable[..., Path],
    tiny_model: Callable[..., Path],
    out: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """alpha 4, r 2: rsLoRA's scale is 4 / sqrt(2) where LoRA's is 2, and the blend's matrices hold it already."""
    parts = (adapter("one", seed=1), adapter("two", seed=2))

    def told(**changes: bool) -> None:
        for folder in parts:
            path = folder / "adapter_config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    told(use_rslora=True)
    assert merge(launch, "--adapters", *parts, "--how", "svd") == 0
    blend = (update(parts[0]) + update(parts[1])) / 2 * math.sqrt(2)
    expected = weight(tiny_model(num_layers=2)) + blend
    torch.testing.assert_close(weight(out / "model"), expected, atol=1e-4, rtol=1e-4)
    told(use_rslora=False, use_dora=True)
    assert merge(launch, "--adapters", *parts, "--how", "svd", "--force") == 2
    assert "is a DoRA adapter, which can be merged only alone and whole" in capsys.readouterr().err
