"""Roles on disk: plain peft and transformers load them and agree; anything that does not fit is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from rlhf.core.adapters import (
    CONFIG_FILE,
    SCORE_KEY,
    WEIGHTS_FILE,
    load_adapter,
    read_adapter_config,
    save_policy,
    save_reward,
)
from rlhf.core.backbone import Backbone, Role, right_padded
from rlhf.core.errors import CheckpointError
from rlhf.core.settings import LoraSettings, ModelSettings

BASE = "models/base"
PROMPTS = ("the red cat", "please hello sorry about the late order", "sun")
COMPLETIONS = ("thank you", "one more tale of rain and sun", "birds")


def shake(role: Role) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in role.parameters():
            parameter.normal_(std=0.1, generator=generator)


def rows_of(backbone: Backbone) -> list[list[int]]:
    codec = backbone.codec
    return [
        [codec.tokenizer.bos_token_id, *codec.completion_ids(f"{p} {c}")]
        for p, c in zip(PROMPTS, COMPLETIONS, strict=True)
    ]


def scores_of(backbone: Backbone, role: Role) -> torch.Tensor:
    """One row at a time, without padding: the plainest possible reading of a reward."""
    assert role.head is not None
    with torch.no_grad():
        hidden = [backbone.hidden(role.name, torch.tensor([row]))[0, -1] for row in rows_of(backbone)]
        return role.head(torch.stack(hidden)).squeeze(1)


def logprobs_of(model_logits: Callable[[torch.Tensor], torch.Tensor], backbone: Backbone) -> torch.Tensor:
    rows = [torch.tensor([row]) for row in rows_of(backbone)]
    with torch.no_grad():
        return torch.cat(
            [model_logits(r)[0, :-1].log_softmax(-1).gather(1, r[0, 1:, None]).squeeze(1) for r in rows]
        )


@pytest.fixture(params=[False, True], ids=["own pad", "pad is eos"])
def saved(
    request: pytest.FixtureRequest, tiny_model: Callable[..., Path], tmp_path: Path
) -> tuple[Path, Backbone]:
    """A workspace with models/base, runs/reward and runs/ppo, and the backbone whose roles were saved."""
    root = tmp_path / "workspace"
    shutil.copytree(tiny_model(pad_is_eos=request.param), root / BASE)
    backbone = Backbone.load(root / BASE, ModelSettings(), name=BASE)
    for name, folder, save in (("reward", "runs/reward", save_reward), ("policy", "runs/ppo", save_policy)):
        role = backbone.add_role(name, LoraSettings(r=4, dropout=0.1), seed=0, scalar_head=True)
        shake(role)
        save(role, root / folder, backbone)
    return root, backbone


def plain_scores(model: Any, backbone: Backbone, pad_token_id: int) -> torch.Tensor:
    """One padded batch, as a stranger would: transformers pools at the last token that is not padding."""
    rows = rows_of(backbone)
    batch = right_padded(rows, pad_token_id)
    mask = torch.arange(batch.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    with torch.no_grad():
        return model(input_ids=batch, attention_mask=mask.long()).logits.squeeze(1)


def test_reward_loads_with_plain_peft_from_a_moved_workspace(
    saved: tuple[Path, Backbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory's own config.json says how to pool, whatever the base calls its padding."""
    root, backbone = saved
    expected = scores_of(backbone, backbone.roles["reward"])
    assert expected.std() > 0.01
    moved = root.rename(root.with_name("moved"))
    monkeypatch.chdir(moved)
    base = json.loads(Path("runs/reward", CONFIG_FILE).read_text())["base_model_name_or_path"]
    config = AutoConfig.from_pretrained("runs/reward")
    classifier = AutoModelForSequenceClassification.from_pretrained(base, config=config)
    plain = PeftModel.from_pretrained(classifier, "runs/reward").eval()
    tokenizer = AutoTokenizer.from_pretrained("runs/reward")
    assert config.pad_token_id == tokenizer.pad_token_id == backbone.codec.pad_token_id
    assert tokenizer.pad_token_id not in backbone.codec.end_token_ids
    found = plain_scores(plain, backbone, tokenizer.pad_token_id)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_reward_loads_with_auto_peft(saved: tuple[Path, Backbone], monkeypatch: pytest.MonkeyPatch) -> None:
    """AutoPeftModel takes its config from the base, so where pad == eos it must be told the padding; what
    `rlhf sft` writes as a backbone needs no such line."""
    root, backbone = saved
    monkeypatch.chdir(root)
    plain = AutoPeftModelForSequenceClassification.from_pretrained("runs/reward", num_labels=1).eval()
    plain.config.pad_token_id = AutoTokenizer.from_pretrained("runs/reward").pad_token_id
    found = plain_scores(plain, backbone, plain.config.pad_token_id)
    torch.testing.assert_close(found, scores_of(backbone, backbone.roles["reward"]), rtol=0, atol=1e-4)


def test_policy_loads_with_plain_peft_from_a_moved_workspace(
    saved: tuple[Path, Backbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, backbone = saved
    expected = logprobs_of(lambda r: backbone.logits(backbone.hidden("policy", r)), backbone)
    reference = logprobs_of(lambda r: backbone.logits(backbone.hidden("reference", r)), backbone)
    moved = root.rename(root.with_name("moved"))
    monkeypatch.chdir(moved)
    settings = json.loads(Path("runs/ppo", CONFIG_FILE).read_text())
    base = AutoModelForCausalLM.from_pretrained(settings["base_model_name_or_path"])
    plain = PeftModel.from_pretrained(base, "runs/ppo").eval()
    found = logprobs_of(lambda r: plain(input_ids=r).logits, backbone)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert not torch.allclose(expected, reference, atol=1e-2)


def test_saved_roles_come_back_as_they_were(saved: tuple[Path, Backbone]) -> None:
    root, backbone = saved
    fresh = Backbone.load(root / BASE, ModelSettings(), name=BASE)
    reward = load_adapter(fresh, "judge", root / "runs/reward", base_name=BASE, scalar_head=True)
    policy = load_adapter(fresh, "actor", root / "runs/ppo", base_name=BASE, scalar_head=False)
    assert reward.head is not None
    assert backbone.roles["reward"].head is not None
    assert torch.equal(reward.head.weight, backbone.roles["reward"].head.weight)
    assert policy.head is None
    tokens = torch.tensor(rows_of(backbone)[1:2])
    for name, original in (("judge", "reward"), ("actor", "policy")):
        assert torch.equal(fresh.hidden(name, tokens), backbone.hidden(original, tokens))
        assert fresh.roles[name].first_adapted_layer == 2
        assert not any(p.requires_grad for p in fresh.roles[name].model.parameters())
    value_head = load_file(root / "runs/ppo/value_head.safetensors")
    assert backbone.roles["policy"].head is not None
    assert torch.equal(value_head["weight"], backbone.roles["policy"].head.weight)
    assert not (root / "runs/reward/value_head.safetensors").exists()


def test_saving_a_reward_leaves_the_codecs_tokenizer_alone(saved: tuple[Path, Backbone]) -> None:
    root, backbone = saved
    original = AutoTokenizer.from_pretrained(root / BASE)
    assert backbone.codec.tokenizer.pad_token == original.pad_token


def change_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS_FILE)
        change(tensors)
        save_file(tensors, folder / WEIGHTS_FILE)

    return apply


def change_config(**values: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        settings = json.loads((folder / CONFIG_FILE).read_text())
        (folder / CONFIG_FILE).write_text(json.dumps(settings | values))

    return apply


def flip_a_byte(name: str, place: int) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[place] ^= 0xFF
        (folder / name).write_bytes(data)

    return apply


def first_lora(tensors: dict[str, torch.Tensor]) -> str:
    return sorted(key for key in tensors if "lora_A" in key)[0]


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "key missing": (change_weights(lambda t: t.pop(first_lora(t))), "1 keys missing, 0 unexpected"),
    "key unexpected": (
        change_weights(lambda t: t.update({"base_model.model.extra": torch.zeros(1)})),
        r"0 keys missing, 1 unexpected, 0 of another shape \(first: base_model\.model\.extra\)",
    ),
    "key misshapen": (
        change_weights(lambda t: t.update({first_lora(t): torch.zeros(4, 7)})),
        "0 keys missing, 0 unexpected, 1 of another shape",
    ),
    "head missing": (change_weights(lambda t: t.pop(SCORE_KEY)), r"score\.weight has shape None"),
    "head misshapen": (
        change_weights(lambda t: t.update({SCORE_KEY: torch.zeros(2, 32)})),
        r"score\.weight has shape \(2, 32\); expected \(1, 32\)",
    ),
    "weights damaged": (flip_a_byte(WEIGHTS_FILE, 3), "damaged"),
    "weights missing": (lambda f: (f / WEIGHTS_FILE).unlink(), f"{WEIGHTS_FILE}: missing"),
    "config missing": (lambda f: (f / CONFIG_FILE).unlink(), "not an adapter directory"),
    "config not JSON": (lambda f: (f / CONFIG_FILE).write_text("{"), "not JSON"),
    "config a list": (lambda f: (f / CONFIG_FILE).write_text("[]"), "peft_type is 'list'"),
    "other method": (change_config(peft_type="PREFIX_TUNING"), "'PREFIX_TUNING'; expected 'LORA'"),
    "absolute base": (change_config(base_model_name_or_path="/models/base"), "relative to the workspace"),
    "home as base": (change_config(base_model_name_or_path="~/base"), "relative to the workspace"),
    "windows path as base": (change_config(base_model_name_or_path="C:/base"), "relative to the workspace"),
    "URL as base": (change_config(base_model_name_or_path="https://host/base"), "relative to the workspace"),
    "number as base": (change_config(base_model_name_or_path=7), "relative to the workspace"),
    "auto_mapping": (change_config(auto_mapping={"parent_library": "os"}), "auto_mapping is not accepted"),
    "megatron": (change_config(megatron_config={"x": 1}), "megatron_config is not accepted"),
    "wrong base": (
        change_config(base_model_name_or_path="models/other"),
        "'models/other'; expected 'models/base'",
    ),
    "other modules": (change_config(target_modules=["model.layers.2.nothing"]), "does not fit the backbone"),
    "other rank": (change_config(r=8), "of another shape"),
}


@pytest.mark.parametrize("saved", [False], indirect=True, ids=["own pad"])
@pytest.mark.parametrize("case", BROKEN)
def test_a_reward_that_does_not_fit_is_refused_in_one_line(saved: tuple[Path, Backbone], case: str) -> None:
    root, _ = saved
    folder = root / "runs/reward"
    damage, message = BROKEN[case]
    damage(folder)
    fresh = Backbone.load(root / BASE, ModelSettings(), name=BASE)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_adapter(fresh, "reward", folder, base_name=BASE, scalar_head=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("saved", [False], indirect=True, ids=["own pad"])
def test_a_reward_as_a_policy_is_refused(saved: tuple[Path, Backbone]) -> None:
    """Plain peft drops score.weight here without a word."""
    root, _ = saved
    fresh = Backbone.load(root / BASE, ModelSettings(), name=BASE)
    with pytest.raises(CheckpointError, match="0 keys missing, 1 unexpected"):
        load_adapter(fresh, "policy", root / "runs/reward", base_name=BASE, scalar_head=False)


def test_a_hub_id_is_an_acceptable_base(tmp_path: Path) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": "someone/some-model"}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(settings))
    assert read_adapter_config(tmp_path) == settings
