"""Every method: trl's loss is ours, a stopped run resumes to the same bits, and what is saved is what was validated."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, T5Config

import rlhf.cli as cli
from rlhf.core.adapters import base_path, load_adapter
from rlhf.core.backbone import REFERENCE, Backbone
from rlhf.core.errors import CheckpointError, ModelError, Stopped
from rlhf.core.metrics import MetricsLog, read_metrics
from rlhf.core.run import Launch, directory_sha256, read_manifest
from rlhf.core.sampler import Request, sample
from rlhf.core.settings import ModelSettings, SamplingSettings
from rlhf.loop.models import ModelPool
from sft.config import LEARNING_RATES, UNMERGED_METHODS, SFTConfig
from sft.data import load_examples
from sft.methods import add_method, count_parameters, load_trained, trained_tensors
from sft.tasks import find_data, load_tasks
from sft.train import ROLE, mean_loss, run
from sft.trainer import make_trainer

METHODS = [method for method in LEARNING_RATES if method != "qlora"]  # which needs bitsandbytes: tests/ppo
MERGED = [method for method in METHODS if method not in UNMERGED_METHODS]
# Beside the methods: LoRA with packed blocks, noise and two tasks with weights, whose order is our own sampler's.
VARIANTS = [*METHODS, "everything"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 answers to 8 prompts: the answer repeats the letter that was asked for."""
    path = tmp_path_factory.mktemp("data") / "letters.jsonl"
    rows = [{"prompt": f"say {c}", "completion": c * n} for c in "abcdefgh" for n in (3, 4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path.parent / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:6]))
    return path


def options(method: str, base: Path, data: Path, **changes: Any) -> SFTConfig:
    """4 steps of 2 micro-batches, a validation and a save every 2, dropout at work."""
    values: dict[str, Any] = {
        "base": str(base),
        "data": [str(data)],
        "method": "lora" if method == "everything" else method,
        "validation": [
            str(data)
        ],  # learned by heart in 4 steps: other letters would be no easier than before
        "num_epochs": 2,
        "batch_size": 8,
        "micro_batch_size": 4,
        "eval_steps": 2,
        "patience": 10,
        "num_samples": 0,
        "bottleneck": 4,
        "virtual_tokens": 3,
        "lora": {"r": 2, "alpha": 4, "dropout": 0.1, "adapter_layers": 1.0},
        "optim": {"lr": 2e-2, "warmup_steps": 0, "schedule": "linear"},
        "model": {"device": "cpu"},
    }
    if method == "full":
        values["optim"]["lr"] = 5e-3
    if method == "everything":
        values |= {
            "data": [str(data), str(data.with_name("more.jsonl"))],
            "validation": [str(data), str(data.with_name("more.jsonl"))],
            "weights": [1.0, 3.0],
            "packing": True,
            "batch_size": 2,
            "micro_batch_size": 1,
            "neftune_alpha": 5.0,
        }
    return SFTConfig.model_validate(values | changes)


def tune(out: Path, config: SFTConfig, **how: bool) -> Path:
    # The base lies beside the runs: an adapter names it by a path relative to the workspace.
    run(config, Launch(workspace=out.parent, db="sqlite://", out=out, **how))
    return out


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path], data: Path
) -> Callable[[str], Path]:
    """A finished run of each variant, made when it is first asked for."""
    base = tiny_model(chat_template=True, context=64, num_layers=2)
    root = tmp_path_factory.mktemp("runs")

    def make(method: str) -> Path:
        out = root / method
        return out if out.exists() else tune(out, options(method, base, data))

    return make


def role_of(config: SFTConfig) -> tuple[Backbone, Any, list[Any]]:
    """A role with random weights, so that no method is equal to the base."""
    assert config.base
    backbone = Backbone.load(config.base, config.base_settings)
    examples, _ = load_examples(Path(config.data[0]), backbone.codec, max_tokens=config.room(64))
    role = add_method(backbone, ROLE, config, examples[0].input_ids)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in role.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return backbone, role, examples


@pytest.mark.parametrize("method", METHODS)
def test_trl_minimises_our_loss(
    method: str, tmp_path: Path, tiny_model: Callable[..., Path], data: Path
) -> None:
    # one batch holds everything and nothing is dropped out, so the first logged loss is that of the random weights
    base = tiny_model(chat_template=True, context=64, num_layers=2)
    still = {"r": 2, "alpha": 4, "adapter_layers": 1.0}
    config = options(method, base, data, batch_size=16, micro_batch_size=16, num_epochs=1, lora=still)
    backbone, role, examples = role_of(config)
    before, untouched = mean_loss(backbone, role, examples, 10_000), None
    if method != "full":
        untouched = mean_loss(backbone, backbone.roles[REFERENCE], examples, 10_000)
    trainer = make_trainer(backbone, role, examples, config, tmp_path / "trl")
    trainer.train()
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert logged[0] == pytest.approx(before, abs=1e-4)
    assert untouched != pytest.approx(before, abs=1e-3)
    assert mean_loss(backbone, role, examples, 10_000) != pytest.approx(before, abs=1e-5)  # it did train
    if untouched is not None:  # and the base beside it is as it was
        assert mean_loss(backbone, backbone.roles[REFERENCE], examples, 10_000) == untouched


@pytest.mark.parametrize("method", VARIANTS)
def test_a_stopped_run_resumes_to_the_same_bits(
    method: str, finished: Callable[[str], Path], tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finished(method)
    base = Path(str(read_manifest(whole).settings["base"]))
    config, out, log = options(method, base, data), whole.with_name(f"{method}-stopped"), MetricsLog.log

    def log_and_stop(self: MetricsLog, step: int, **values: Any) -> None:
        log(self, step, **values)
        if step == 3 and "loss" in values:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "log", log_and_stop)
        with pytest.raises(Stopped):
            tune(out, config)
    tune(out, config, resume=True)
    assert (out / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    assert read_manifest(out).metrics == read_manifest(whole).metrics
    saved = [name for name in ("adapter", "model") if (whole / name).exists()]
    assert saved == [n for n in ("adapter", "model") if (out / n).exists()]
    assert all(directory_sha256(out / name) == directory_sha256(whole / name) for name in saved)
    report = json.loads((out / "report.json").read_text())
    assert report == json.loads((whole / "report.json").read_text())


@pytest.mark.parametrize("method", METHODS)
def test_what_is_saved_is_what_was_validated(method: str, finished: Callable[[str], Path]) -> None:
    out = finished(method)
    manifest = read_manifest(out)
    config = SFTConfig.model_validate(manifest.settings)
    launch = Launch(workspace=out.parent, db="sqlite://")
    if method in MERGED:
        backbone = Backbone.load(out / "model", config.model)
        role = backbone.roles[REFERENCE]
    else:
        assert not (out / "model").exists()
        adapter = out / "adapter"
        backbone = Backbone.load(base_path(adapter, launch), config.model)
        role = load_adapter(backbone, "tuned", adapter, base_name=manifest.extra["base"], scalar_head=False)
    (task,) = load_tasks(find_data(config, launch), backbone.codec, config)
    loss = mean_loss(backbone, role, task.validation, 1000)
    assert loss == pytest.approx(manifest.metrics["validation_loss"], abs=1e-5)
    assert loss < manifest.metrics["validation_loss_before"]


@pytest.mark.parametrize("method", ["dora", "rslora", "ia3", "prefix-tuning", "prompt-tuning"])
def test_plain_peft_loads_the_adapter(method: str, finished: Callable[[str], Path]) -> None:
    out = finished(method)
    base = str(read_manifest(out).settings["base"])
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out / "adapter").eval()
    backbone = Backbone.load(base, ModelSettings(device="cpu"))
    load_adapter(backbone, "tuned", out / "adapter", base_name=None, scalar_head=False)
    tokens = torch.tensor([[5, 80, 90, 100, 110]])
    with torch.no_grad():
        expected = plain(tokens, attention_mask=torch.ones_like(tokens)).logits[:, -5:]
        found = backbone.logits(backbone.hidden("tuned", tokens))
        assert torch.allclose(found, expected, atol=1e-4)
        assert not torch.allclose(found, backbone.logits(backbone.hidden(REFERENCE, tokens)), atol=1e-2)


@pytest.mark.parametrize("method", [*UNMERGED_METHODS, "ia3"])
def test_a_run_is_sampled_from_like_any_other(method: str, finished: Callable[[str], Path]) -> None:
    """Greedy completions of prompts of different length in one batch, against one forward pass per token."""
    out = finished(method)
    generator = ModelPool(ModelSettings(device="cpu"), Launch(out.parent, "")).generator(str(out))
    backbone, role = generator.backbone, generator.role
    assert (role == REFERENCE) == (method == "ia3")  # which is merged
    prompts = [[5, 80, 90], [100, 110, 120, 130, 140, 150]]
    drawn = sample(
        backbone.sampling_model(role),
        [Request(ids, i) for i, ids in enumerate(prompts)],
        SamplingSettings(temperature=0.0, max_completion_tokens=6),
        end_token_ids=[],
        seed=0,
    )
    for ids, row in zip(prompts, drawn, strict=True):
        sequence = list(ids)
        with torch.no_grad():
            for _ in range(6):
                hidden = backbone.hidden(role, torch.tensor([sequence]))
                sequence.append(int(backbone.logits(hidden[:, -1]).argmax()))
        assert row.tokens == sequence[len(ids) :]


@pytest.mark.parametrize("method", UNMERGED_METHODS)
def test_later_stages_refuse_what_cannot_be_merged_in_one_line(
    method: str, finished: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = finished(method)
    assert read_manifest(out).extra["merged"] is False
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "say a"}\n')
    (tmp_path / "reward.py").write_text("def score(prompts, completions):\n    return [0.0] * len(prompts)\n")
    common = ["--workspace", str(tmp_path / "w"), "--model.device", "cpu", "--backbone", str(out)]
    reward = f"{tmp_path}/reward.py:score"
    for command in (
        ["ppo", "--prompts", str(prompts), "--reward", reward],
        ["reward", "--snapshot", str(tmp_path)],
    ):
        assert cli.main([*command, *common]) == 2
        error = capsys.readouterr().err
        if command[0] == "ppo" or "was tuned by" in error:
            assert f"was tuned by {method}" in error
            assert "so it ends at sft; expected a run of lora" in error
        assert error.count("\n") == 1
    with pytest.raises(ModelError, match=f"was tuned by {method}"):
        Backbone.load(out, ModelSettings(device="cpu"))


def test_counts_of_trained_parameters(finished: Callable[[str], Path]) -> None:
    # a layer: q 32x32, k and v 32->16, o 32x32, gate and up 32->64, down 64->32; two layers, rank 2
    per_rank = (32 + 32) + 2 * (32 + 16) + (32 + 32) + 2 * (32 + 64) + (64 + 32)
    expected = {
        "lora": 2 * 2 * per_rank,
        "dora": 2 * (2 * per_rank + 32 + 2 * 16 + 32 + 2 * 64 + 32),  # and a length for each output
        "ia3": 2 * (16 + 16 + 64),  # keys, values, and the inner numbers of the MLP
        "adapters": 2 * 2 * (32 * 4 + 4 + 4 * 32 + 32),  # two bottlenecks of 4 a layer
        "prompt-tuning": 3 * 32,
        "prefix-tuning": 3 * 2 * 2 * 16,  # keys and values of 16 numbers in two layers
    }
    for method, number in expected.items():
        assert read_manifest(finished(method)).metrics["num_trained_parameters"] == number, method
    full = read_manifest(finished("full")).metrics
    assert full["share_trained"] == 1.0


def test_virtual_tokens_begin_as_real_ones(tiny_model: Callable[..., Path], data: Path) -> None:
    # a prefix that holds exactly the keys and values of three tokens is those tokens
    base = tiny_model(chat_template=True, context=64, num_layers=2)
    for method in ("prefix-tuning", "prompt-tuning"):
        backbone = Backbone.load(base, ModelSettings(device="cpu"))
        add_method(backbone, ROLE, options(method, base, data), [7, 70, 77])
        rest = torch.tensor([[90, 100, 110]])
        with torch.no_grad():
            whole = backbone.hidden(REFERENCE, torch.tensor([[7, 70, 77, 90, 100, 110]]))[:, 3:]
            assert torch.allclose(backbone.hidden(ROLE, rest), whole, atol=1e-4), method


def test_states_that_do_not_fit_are_refused(tiny_model: Callable[..., Path], data: Path) -> None:
    base = tiny_model(chat_template=True, context=64, num_layers=2)
    _, narrow, _ = role_of(options("adapters", base, data))
    _, wide, _ = role_of(options("adapters", base, data, bottleneck=8))
    with pytest.raises(CheckpointError, match="the best step: does not fit"):
        load_trained(wide, trained_tensors(narrow), "the best step")


def test_ia3_names_the_layers_of_a_model_without_its_targets(
    tiny_model: Callable[..., Path], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sft.methods.IA3_OUTPUTS", ("key",))
    base = tiny_model(chat_template=True, context=64, num_layers=2)
    backbone = Backbone.load(base, ModelSettings(device="cpu"))
    with pytest.raises(
        ModelError, match=r"linear layers are q_proj, k_proj, v_proj, .* ia3 expects one of key and one of"
    ):
        add_method(backbone, ROLE, options("ia3", base, data), [1])


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3_text", "gpt_neox"])
def test_other_architectures(architecture: str, tiny_model: Callable[..., Path]) -> None:
    """Each method gives a role that differs from the base, and the merging ones merge to the same hidden states."""
    base = tiny_model(architecture)
    tokens = torch.tensor([[5, 80, 90, 100, 110, 120, 130, 140, 150, 160, 170]])
    for method in METHODS:
        backbone = Backbone.load(base, ModelSettings(device="cpu"))
        config = SFTConfig.model_validate({"method": method, "lora": {"r": 2, "alpha": 4}, "bottleneck": 4})
        with torch.no_grad():
            untouched = backbone.hidden(REFERENCE, tokens)
            role = add_method(backbone, ROLE, config, [7, 70, 77])
            for parameter in role.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
            adapted = backbone.hidden(ROLE, tokens)
            assert not torch.allclose(adapted, untouched, atol=1e-2), method
            if method in MERGED:
                merged = backbone.merged(ROLE).get_decoder()(input_ids=tokens).last_hidden_state
                assert torch.allclose(merged, adapted, atol=1e-3), method
        trained, total = count_parameters(backbone, role)
        assert 0 < trained <= total


def test_a_sequence_to_sequence_model_is_refused_in_one_line(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    T5Config(d_model=8, d_ff=8, num_layers=1, num_heads=1, vocab_size=32).save_pretrained(tmp_path / "t5")
    assert (
        cli.main(["sft", "--workspace", str(tmp_path), "--base", str(tmp_path / "t5"), "--data", str(data)])
        == 2
    )
    error = capsys.readouterr().err
    assert "t5: is a sequence-to-sequence model (t5), which is not supported" in error
    assert error.count("\n") == 1


def test_metrics_of_tasks(finished: Callable[[str], Path]) -> None:
    """The mean by weights 1 : 3 is what the best step was chosen by."""
    out = finished("everything")
    rows = [row for row in read_metrics(out / "metrics.jsonl") if "validation_loss" in row]
    for row in rows:
        mean = (row["validation_loss_letters"] + 3 * row["validation_loss_more"]) / 4
        assert row["validation_loss"] == pytest.approx(mean)
    metrics = read_manifest(out).metrics
    best = next(row for row in rows if row["step"] == metrics["best_step"])
    assert metrics["validation_loss_more"] == best["validation_loss_more"]
    names = {f"{part} {name}" for part in ("data", "validation") for name in ("letters", "more")}
    assert set(read_manifest(out).parents) == {"base", *names}
