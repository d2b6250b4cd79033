"""Roles over one frozen base: equal at birth, apart from each other, and never a byte of the base changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from rlhf.core.backbone import REFERENCE, Backbone, Role, check_model_dir, load_causal_lm, resolve_device
from rlhf.core.errors import ConfigError, ModelError
from rlhf.core.settings import LoraSettings, ModelSettings

LoadTiny = Callable[..., Backbone]
LORA = LoraSettings(r=4, alpha=8)


def tokens(num_rows: int = 3, length: int = 12, vocab_size: int = 290) -> torch.Tensor:
    return torch.randint(5, vocab_size, (num_rows, length), generator=torch.Generator().manual_seed(3))


def base_hash(backbone: Backbone) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(backbone.model.state_dict().items()):
        total.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def shake(role: Role, seed: int, std: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in role.parameters():
            parameter.normal_(std=std, generator=generator)


def logits(backbone: Backbone, role: str, tokens_BS: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return backbone.logits(backbone.hidden(role, tokens_BS))


def train_a_little(backbone: Backbone, role: Role, num_steps: int = 3) -> None:
    optimizer = torch.optim.SGD(role.parameters(), lr=0.5)
    for _ in range(num_steps):
        hidden = backbone.hidden(role.name, tokens())
        loss = backbone.logits(hidden).logsumexp(-1).mean()
        if role.head is not None:
            loss = loss + (role.head(hidden) - 1).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_new_role_equals_the_base_and_weighs_only_its_adapter(load_tiny: LoadTiny) -> None:
    backbone = load_tiny()
    role = backbone.add_role("policy", LORA, seed=0, scalar_head=True)
    # The role's layers take fewer passes than the base's own, which rounds otherwise in the last digits.
    torch.testing.assert_close(
        logits(backbone, "policy", tokens()), logits(backbone, REFERENCE, tokens()), rtol=1e-5, atol=1e-6
    )
    assert role.head is not None
    assert not role.head.weight.any()
    # adapter_layers 0.5 of 4 layers: layers 2 and 3, 7 linear modules each, A and B, and the head
    assert role.first_adapted_layer == 2
    assert len(role.parameters()) == 2 * 7 * 2 + 1
    assert not any(p.requires_grad for p in backbone.model.parameters())
    own = {p.data_ptr() for p in role.causal_lm.parameters()} - {p.data_ptr() for p in role.parameters()}
    assert own == {p.data_ptr() for p in backbone.model.parameters()}  # the very same weights, not a copy


@pytest.mark.parametrize(("share", "first"), [(0.01, 3), (0.25, 3), (0.5, 2), (0.6, 1), (1.0, 0)])
def test_adapter_layers_counts_from_the_top(load_tiny: LoadTiny, share: float, first: int) -> None:
    role = load_tiny().add_role("policy", LoraSettings(r=2, adapter_layers=share), seed=0)
    assert role.first_adapted_layer == first


def test_training_a_role_changes_no_byte_of_the_base_and_no_other_role(load_tiny: LoadTiny) -> None:
    backbone = load_tiny()
    policy = backbone.add_role("policy", LORA, seed=0, scalar_head=True)
    other = backbone.add_role("reward", LORA, seed=1, scalar_head=True)
    shake(other, seed=5)
    bytes_before, reference = base_hash(backbone), logits(backbone, REFERENCE, tokens())
    reward = logits(backbone, "reward", tokens())
    train_a_little(backbone, policy)
    assert not torch.allclose(logits(backbone, "policy", tokens()), reference, atol=1e-3)  # it did learn
    assert base_hash(backbone) == bytes_before
    assert torch.equal(logits(backbone, REFERENCE, tokens()), reference)
    assert torch.equal(logits(backbone, "reward", tokens()), reward)
    assert all(p.grad is None for p in other.parameters())


def test_an_adapter_is_a_function_of_seed_and_name_and_leaves_the_global_generator(
    load_tiny: LoadTiny,
) -> None:
    def first_matrix(name: str, seed: int) -> torch.Tensor:
        return load_tiny().add_role(name, LORA, seed=seed).parameters()[0].detach()

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one = first_matrix("policy", 0)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one, first_matrix("policy", 0))
    assert not torch.equal(one, first_matrix("policy", 1))
    assert not torch.equal(one, first_matrix("value", 0))


def test_a_name_is_taken_once_and_roles_come_before_the_trunk(load_tiny: LoadTiny) -> None:
    backbone = load_tiny()
    backbone.add_role("policy", LORA, seed=0)
    with pytest.raises(ValueError, match="'policy' exists already"):
        backbone.add_role("policy", LORA, seed=0)
    backbone.enable_trunk(16)
    with pytest.raises(ValueError, match="before enable_trunk"):
        backbone.add_role("value", LORA, seed=0)


ROTARY = [
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3_text",
    "phi3",
    "gpt_neox",
    "olmo2",
    "smollm3",
]


@pytest.mark.parametrize("architecture", ROTARY)
def test_trunk_and_top_equal_the_whole_decoder(load_tiny: LoadTiny, architecture: str) -> None:
    """On a padded batch longer than every sliding window (8) and than the 24 tokens that Gemma 2 needs to err."""
    backbone = load_tiny(architecture)
    policy = backbone.add_role("policy", LORA, seed=0)
    shake(policy, seed=2)
    tokens_BS = tokens(2, 40)
    tokens_BS[1, 17:] = backbone.codec.pad_token_id
    whole = {name: backbone.hidden(name, tokens_BS).detach() for name in (REFERENCE, "policy")}
    assert not torch.allclose(whole["policy"], whole[REFERENCE], atol=1e-2)
    line = backbone.enable_trunk(48)
    assert line == "trunk cache on: layers 0-1 of 4 are computed once and shared"
    trunk_BSH = backbone.trunk(tokens_BS)
    for name, expected in whole.items():
        torch.testing.assert_close(
            backbone.hidden(name, tokens_BS, trunk_BSH).detach(), expected, rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("architecture", ROTARY)
def test_right_padding_needs_no_mask(load_tiny: LoadTiny, architecture: str) -> None:
    backbone = load_tiny(architecture)
    row = tokens(1, 17)
    padded = torch.cat([row, torch.full((1, 13), backbone.codec.pad_token_id)], dim=1)
    alone, beside = (logits(backbone, REFERENCE, t)[:, :17] for t in (row, padded))
    torch.testing.assert_close(beside, alone, rtol=1e-4, atol=1e-4)


def test_learned_positions_turn_the_trunk_off_with_one_line(load_tiny: LoadTiny) -> None:
    backbone = load_tiny("gpt2")
    policy = backbone.add_role("policy", LORA, seed=0)
    shake(policy, seed=2)
    line = backbone.enable_trunk(24)
    assert line.startswith("trunk cache off: reference differs by ")
    assert "\n" not in line
    assert not backbone.trunk_enabled


def test_trunk_is_off_when_adapters_reach_the_lowest_layer(load_tiny: LoadTiny) -> None:
    backbone = load_tiny()
    backbone.add_role("policy", LoraSettings(r=2, adapter_layers=1.0), seed=0)
    assert backbone.enable_trunk(16) == "trunk cache off: adapters reach layer 0 of 4"
    assert not backbone.trunk_enabled


def test_the_trunk_ends_below_the_lowest_adapter_of_any_role(load_tiny: LoadTiny) -> None:
    backbone = load_tiny()
    backbone.add_role("policy", LoraSettings(r=2, adapter_layers=0.25), seed=0)
    value = backbone.add_role("value", LoraSettings(r=2, adapter_layers=0.75), seed=0)
    shake(value, seed=4)
    expected = backbone.hidden("value", tokens()).detach()
    assert backbone.enable_trunk(16).startswith("trunk cache on: layers 0-0 of 4")
    torch.testing.assert_close(backbone.hidden("value", tokens(), backbone.trunk(tokens())), expected)


def gradients(backbone: Backbone, names: list[str], *, use_trunk: bool) -> list[torch.Tensor]:
    """Gradients of a loss over several roles whose forward passes all come before the backward pass."""
    trunk = backbone.trunk(tokens()) if use_trunk else None
    hidden = [backbone.hidden(name, tokens(), trunk) for name in names]
    loss = sum(backbone.logits(h).logsumexp(-1).square().mean() for h in hidden)
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    found = []
    for name in names:
        for parameter in backbone.roles[name].parameters():
            assert parameter.grad is not None
            found.append(parameter.grad.clone())
            parameter.grad = None
    return found


@pytest.mark.parametrize("use_trunk", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_gradient_checkpointing_changes_no_gradient(
    load_tiny: LoadTiny, architecture: str, use_trunk: bool
) -> None:
    """Two roles interleaved: with a switched adapter, checkpointing gave wrong gradients silently."""
    backbone = load_tiny(architecture)
    for seed, name in enumerate(("policy", "value")):
        shake(backbone.add_role(name, LORA, seed=seed), seed)
    if use_trunk:
        backbone.enable_trunk(16)
    plain = gradients(backbone, ["policy", "value"], use_trunk=use_trunk)
    for name in ("policy", "value"):
        backbone.checkpoint_gradients(name)
    calls = count_layer_calls(backbone, "policy")
    checkpointed = gradients(backbone, ["policy", "value"], use_trunk=use_trunk)
    assert calls == {2: 2, 3: 2}  # each adapted layer ran once forward and once again in the backward pass
    assert any(g.abs().max() > 1e-4 for g in plain)
    for expected, found in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def count_layer_calls(backbone: Backbone, name: str) -> dict[int, int]:
    """How often the attention of each adapted layer of a role runs."""
    calls: dict[int, int] = {}
    layers = backbone.roles[name].causal_lm.get_decoder().layers
    for number in (2, 3):

        def note(*_: object, number: int = number) -> None:
            calls[number] = calls.get(number, 0) + 1

        layers[number].self_attn.register_forward_hook(note)
    return calls


@pytest.mark.parametrize("architecture", ["llama", "phi3", "gpt2", "gemma3_text"])
def test_merged_model_equals_the_adapter_and_leaves_the_base(load_tiny: LoadTiny, architecture: str) -> None:
    backbone = load_tiny(architecture)
    role = backbone.add_role("policy", LORA, seed=0)
    shake(role, seed=9)
    before, expected = base_hash(backbone), logits(backbone, "policy", tokens())
    merged = backbone.merged("policy")
    with torch.no_grad():
        found = merged(input_ids=tokens(), use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, logits(backbone, REFERENCE, tokens()), atol=1e-2)
    assert base_hash(backbone) == before
    assert torch.equal(logits(backbone, "policy", tokens()), expected)
    base = {p.data_ptr() for p in backbone.model.parameters()}
    shared = sum(p.data_ptr() in base for p in merged.parameters())
    assert shared >= len(base) - 14  # only the adapted matrices of two layers are new


def test_merging_the_reference_is_the_base_itself(load_tiny: LoadTiny) -> None:
    backbone = load_tiny()
    assert backbone.merged(REFERENCE) is backbone.model


def test_an_architecture_with_scaled_logits_is_refused(load_tiny: LoadTiny) -> None:
    backbone = load_tiny()
    backbone.head = replace(backbone.head, softcap=0.5)  # what a forgotten scaling would look like
    with pytest.raises(ModelError, match="treats its logits in a way that is not supported"):
        backbone._check_logits()


def test_soft_capped_logits_are_the_models_own(load_tiny: LoadTiny) -> None:
    backbone = load_tiny("gemma2")
    assert backbone.head.softcap == 30.0
    with torch.no_grad():
        expected = backbone.model(input_ids=tokens(), use_cache=False).logits
    torch.testing.assert_close(logits(backbone, REFERENCE, tokens()), expected)


def test_what_is_not_a_model_directory_is_named(tmp_path, load_tiny: LoadTiny) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        check_model_dir(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelError, match="is a file"):
        check_model_dir(tmp_path / "file")
    for text in (str(tmp_path / "nothing"), "./here/there", "models/base/x", "word"):
        with pytest.raises(ModelError, match="no such model directory"):
            check_model_dir(text)
    check_model_dir("someone/some-model")  # may be a hub id: left to the loader
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="cannot be loaded as a causal language model"):
        load_causal_lm(tmp_path, ModelSettings())
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_causal_lm(tmp_path, ModelSettings())


def test_devices_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match="'gpu' is not a device"):
        resolve_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="torch sees no GPU"):
            resolve_device("cuda:1")
        assert resolve_device("auto") == torch.device("cpu")


def test_a_sampling_copy_serves_again_with_the_weights_of_now(load_tiny: LoadTiny) -> None:
    """bf16 holds no merged weights, so sampling takes a copy: its modules are kept, its weights are not."""
    backbone = load_tiny(dtype="bfloat16")
    role = backbone.add_role("policy", LoraSettings(r=4, alpha=8), seed=0)
    tokens = torch.arange(5, 15)[None]
    models, logits = [], []
    for scale in (0.1, 0.3):
        with torch.no_grad():
            for parameter in role.parameters():
                parameter.fill_(scale)
        with backbone.sampling("policy") as model, torch.no_grad():
            models.append(model)
            logits.append(model(tokens).logits)
            assert torch.equal(logits[-1], backbone.merged("policy")(tokens).logits)
    assert models[0] is models[1]
    assert not torch.equal(*logits)
    base = {id(p) for p in backbone.model.parameters()}
    assert {id(p) for p in model.parameters()} <= base, "no merged weight outlives the sampling"
