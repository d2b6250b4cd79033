"""A base in 4 bits: for real where bitsandbytes lies in .venv/qlora (`make .venv` puts it there), and the refusals."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rlhf.core.backbone import Backbone
from rlhf.core.errors import ConfigError
from rlhf.core.settings import ModelSettings
from sft.config import SFTConfig

REPOSITORY = Path(__file__).resolve().parents[2]
BITSANDBYTES = Path(sys.prefix) / "qlora"


@pytest.fixture(scope="module")
def found(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the program saw in two iterations over the tiny Llama in 4 bits."""
    if not (BITSANDBYTES / "bitsandbytes").is_dir():
        pytest.skip(f"bitsandbytes is not in {BITSANDBYTES}; run `make .venv`")
    command = [sys.executable, str(Path(__file__).with_name("four_bit.py")), str(tiny_model())]
    done = subprocess.run(
        [*command, str(tmp_path_factory.mktemp("adapter"))],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(BITSANDBYTES)])},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_decoder_is_held_in_4_bits(found: dict[str, Any]) -> None:
    assert found["num_4bit_layers"] == 4 * 7
    assert found["bytes_per_weight"] == 0.5
    # another model than the one in fp32, but not a broken one: its logits are of the order of 1
    assert 1e-3 < found["distance_to_fp32"] < 1.0


def test_no_byte_of_the_base_changes_and_its_scales_exist_once(found: dict[str, Any]) -> None:
    assert found["base_unchanged"]
    assert found["states_shared"]


def test_two_iterations_learn_from_ratio_one_with_the_trunk_cached(found: dict[str, Any]) -> None:
    assert found["trunk"] == "trunk cache on: layers 0-1 of 4 are computed once and shared"
    assert all(found["weights_moved"])
    assert max(found["ratio_errors"]) < 1e-4
    assert max(found["sampler_gaps"]) < 1e-3


def test_sampling_runs_on_the_adapter_model_and_the_adapter_comes_back(found: dict[str, Any]) -> None:
    assert found["greedy_equals_generate"]
    assert found["reloaded_difference"] == 0


def test_qlora_ends_merged_into_the_base_in_full_precision(found: dict[str, Any]) -> None:
    metrics = found["sft"]["metrics"]
    assert metrics["validation_loss"] < metrics["validation_loss_before"] - 0.1
    # the adapter was trained beside rounded weights: on the exact ones it is nearly as good, not just as good
    assert metrics["validation_loss_merged"] == pytest.approx(metrics["validation_loss"], abs=0.3)
    assert metrics["validation_loss_merged"] != metrics["validation_loss"]
    assert found["sft"]["reloaded_loss"] == pytest.approx(metrics["validation_loss_merged"], abs=1e-5)
    assert found["sft"]["resumed_equal"]


def test_a_missing_extra_is_one_line(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else find_spec(name, *a)
    )
    with pytest.raises(ConfigError) as caught:
        Backbone.load(tiny_model(), ModelSettings(device="cpu", quantization="nf4"))
    assert str(caught.value) == (
        "model.quantization is nf4, which needs bitsandbytes: pip install rlhf-loop[qlora]"
    )
    assert caught.value.exit_code == 2


def test_sft_refuses_a_base_in_4_bits_for_other_methods() -> None:
    with pytest.raises(ValidationError, match=r"model\.quantization is nf4; sft needs none with method lora"):
        SFTConfig.model_validate({"model": {"quantization": "nf4"}})
