"""Supervised tuning: what trl sees is what the codec made, and no stop or fault costs more than time."""

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
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import rlhf.cli as cli
import sft.methods as methods
import sft.train as train_module
from rlhf.core.backbone import Backbone
from rlhf.core.errors import ConfigError, GuardStop, Stopped
from rlhf.core.metrics import MetricsLog, read_metrics
from rlhf.core.run import Launch, directory_sha256, is_finished, read_manifest
from sft.config import SFTConfig
from sft.data import load_examples
from sft.train import ROLE, make_trainer, mean_loss, run

Options = Callable[..., dict[str, Any]]


def launch(root: Path, name: str = "one", **options: bool) -> Launch:
    return Launch(workspace=root, db="sqlite://", out=root / "runs" / name, **options)


def tune(root: Path, config: SFTConfig, name: str = "one", **options: bool) -> Path:
    run(config, launch(root, name, **options))
    return root / "runs" / name


def prepared(config: SFTConfig, limit: int | None = None) -> tuple[Backbone, Any, list[Any]]:
    assert config.base
    assert config.data
    backbone = Backbone.load(config.base, config.model)
    role = backbone.add_role(ROLE, config.lora, seed=0)
    examples, _ = load_examples(Path(config.data[0]), backbone.codec, max_tokens=backbone.codec.max_tokens)
    return backbone, role, examples[:limit]


def check_tokens(config: SFTConfig, tmp_path: Path, limit: int | None = None) -> None:
    backbone, role, examples = prepared(config, limit)
    trainer = make_trainer(backbone, role, examples, config, tmp_path / "trl")
    seen = trainer.train_dataset
    assert len(seen) == len(examples)
    for row, example in zip(seen, examples, strict=True):
        assert row["input_ids"] == example.input_ids
        expected = [i if m else -100 for i, m in zip(example.input_ids, example.completion_mask, strict=True)]
        assert row["labels"] == expected
    wanted = {tuple(example.input_ids) for example in examples}
    pad = backbone.codec.pad_token_id
    for batch in trainer.get_train_dataloader():
        for ids, labels, mask in zip(
            batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True
        ):
            real = int(mask.sum())
            assert tuple(ids[:real].tolist()) in wanted
            assert (ids[real:] == pad).all()
            assert (labels[real:] == -100).all()
            assert labels[real - 1] == backbone.codec.end_token_id  # stopping is trained


def test_trl_sees_the_tokens_of_the_codec(tmp_path: Path, sft_options: Options) -> None:
    check_tokens(SFTConfig(**sft_options()), tmp_path)


def test_trl_minimises_our_loss(tmp_path: Path, sft_options: Options) -> None:
    # One batch holds everything and nothing is dropped out: the first logged loss is the base's mean loss.
    options = sft_options(batch_size=24, micro_batch_size=24, num_epochs=1, lora={"adapter_layers": 1.0})
    config = SFTConfig(**options)
    backbone, role, examples = prepared(config)
    trainer = make_trainer(backbone, role, examples, config, tmp_path / "trl")
    before = mean_loss(backbone, role, examples, 10_000)
    trainer.train()
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert logged[0] == pytest.approx(before, abs=1e-4)


def test_mean_loss_is_the_mean_over_completion_tokens(chat_model: Path, sft_options: Options) -> None:
    config = SFTConfig(**sft_options())
    backbone, role, examples = prepared(config, limit=7)
    plain = AutoModelForCausalLM.from_pretrained(chat_model).eval()
    total, count = 0.0, 0
    for example in examples:  # one by one, through plain transformers
        ids = torch.tensor([example.input_ids])
        logprobs = plain(ids).logits.log_softmax(-1)
        for t in range(1, ids.shape[1]):
            if example.completion_mask[t]:
                total -= logprobs[0, t - 1, ids[0, t]].item()
                count += 1
    for budget in (1, 40, 10_000):
        assert mean_loss(backbone, role, examples, budget) == pytest.approx(total / count, abs=1e-5)
    assert mean_loss(backbone, role, examples[::-1], 40) == pytest.approx(total / count, abs=1e-5)


def test_mean_loss_is_free_of_dropout_and_leaves_the_mode_as_it_was(sft_options: Options) -> None:
    backbone, role, examples = prepared(
        SFTConfig(**sft_options(lora={"dropout": 0.5, "adapter_layers": 1.0}))
    )
    with torch.no_grad():
        for parameter in role.parameters():  # a fresh adapter adds nothing, with or without dropout
            parameter.normal_(std=0.3)
    still = mean_loss(backbone, role, examples, 100)
    role.model.train()
    assert mean_loss(backbone, role, examples, 100) == still
    assert role.model.training


def test_a_run_learns_and_leaves_a_plain_model(
    tmp_path: Path, chat_model: Path, sft_options: Options
) -> None:
    base_hash = directory_sha256(chat_model)
    out = tune(tmp_path, SFTConfig(**sft_options(num_epochs=12)))
    assert directory_sha256(chat_model) == base_hash
    manifest = read_manifest(out)
    assert manifest.metrics["validation_loss"] < manifest.metrics["validation_loss_before"] - 0.1
    assert set(manifest.parents) == {"base", "data"}
    rows = read_metrics(out / "metrics.jsonl")
    validations = {row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row}
    assert validations[0] == manifest.metrics["validation_loss_before"]
    assert (
        validations[manifest.metrics["best_step"]]
        == manifest.metrics["validation_loss"]
        == min(validations.values())
    )
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, manifest.metrics["num_steps"] + 1))

    # plain transformers, plain peft: the merged model is the base with the adapter
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    merged = AutoModelForCausalLM.from_pretrained(out / "model").eval()
    base = AutoModelForCausalLM.from_pretrained(chat_model)
    adapted = PeftModel.from_pretrained(base, out / "adapter").eval()
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "say c"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=False,
    )
    assert torch.allclose(merged(ids).logits, adapted(ids).logits, atol=1e-4)
    with adapted.disable_adapter():
        assert not torch.allclose(merged(ids).logits, adapted(ids).logits, atol=1e-2)

    # it is also what the next stage loads: same loss, same end token
    again = Backbone.load(out / "model", SFTConfig().model)
    generation = GenerationConfig.from_pretrained(out / "model")
    assert generation.eos_token_id == list(again.codec.end_token_ids)
    assert merged.config.pad_token_id == again.codec.pad_token_id
    assert again.codec.pad_token_id not in again.codec.end_token_ids


def test_pad_equal_to_eos_is_repaired(
    tmp_path: Path, tiny_model: Callable[..., Path], sft_options: Options
) -> None:
    base = tiny_model(pad_is_eos=True, num_layers=2)
    assert (
        AutoModelForCausalLM.from_pretrained(base).config.pad_token_id
        == AutoTokenizer.from_pretrained(base).eos_token_id
    )
    out = tune(tmp_path, SFTConfig(**sft_options(base=str(base), num_epochs=1)))
    saved = AutoModelForCausalLM.from_pretrained(out / "model")
    assert saved.config.pad_token_id not in GenerationConfig.from_pretrained(out / "model").eos_token_id


def test_stopping_early_keeps_the_best_step(
    tmp_path: Path, sft_options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[int, Any] = {}
    # the base, then every second step: one bad look is forgiven, two in a row end the run; 0.5 is never reached
    losses = iter([3.0, 2.0, 2.5, 1.9, 2.0, 2.1, 0.5])

    def scripted(backbone: Backbone, role: Any, examples: Any, max_tokens: int) -> float:
        kept[len(kept)] = weights(role)
        return next(losses)

    monkeypatch.setattr(train_module, "mean_loss", scripted)
    out = tune(tmp_path, SFTConfig(**sft_options(num_epochs=6, eval_steps=2, patience=2)))
    metrics = read_manifest(out).metrics
    assert (metrics["best_step"], metrics["validation_loss"], metrics["num_steps"]) == (6, 1.9, 10)
    config = SFTConfig(**sft_options())
    assert config.base
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(config.base), out / "adapter")
    saved = {name: value for name, value in adapted.named_parameters() if "lora_" in name}
    best = kept[3]
    assert all(torch.equal(saved[name], best[name]) for name in best)
    assert any(not torch.equal(best[name], kept[5][name]) for name in best)


def weights(role: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in role.model.named_parameters() if "lora_" in name}


def test_a_stopped_run_resumes_to_the_same_bits(
    tmp_path: Path, sft_options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SFTConfig(**sft_options())
    whole = tune(tmp_path, config, "whole")
    log = MetricsLog.log

    def log_and_stop(self: MetricsLog, step: int, **values: Any) -> None:
        log(self, step, **values)
        if step == 4 and "loss" in values:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(MetricsLog, "log", log_and_stop)
    with pytest.raises(Stopped) as stopped:
        tune(tmp_path, config, "halves")
    assert stopped.value.exit_code == 143
    monkeypatch.undo()
    out = tmp_path / "runs" / "halves"
    assert not is_finished(out)
    assert not (out / "model").exists()
    with pytest.raises(ConfigError, match="--resume"):
        tune(tmp_path, config, "halves")
    MetricsLog(out / "metrics.jsonl").log(
        6, loss=99.0
    )  # a step after the checkpoint, as a kill would leave it

    tune(tmp_path, config, "halves", resume=True)
    assert (out / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    assert read_manifest(out).metrics == read_manifest(whole).metrics
    for name in ("adapter/adapter_model.safetensors", "model/model.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_a_run_killed_while_saving_adds_no_step(
    tmp_path: Path, sft_options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SFTConfig(**sft_options())

    monkeypatch.setattr(methods, "save_model", raise_interrupt)
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path, config)
    monkeypatch.undo()
    out = tmp_path / "runs" / "one"
    before = (out / "metrics.jsonl").read_text()
    tune(tmp_path, config, resume=True)
    assert (out / "metrics.jsonl").read_text() == before
    assert is_finished(out)
    assert (out / "model" / "config.json").is_file()


def test_a_run_killed_after_its_patience_ran_out_trains_no_further(
    tmp_path: Path, sft_options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SFTConfig(**sft_options(eval_steps=2, patience=1))
    losses = iter([1.0, 2.0])
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "mean_loss", lambda *args: next(losses))
        patch.setattr(methods, "save_policy", raise_interrupt)
        with pytest.raises(KeyboardInterrupt):
            tune(tmp_path, config)
    metrics = read_manifest(tune(tmp_path, config, resume=True)).metrics
    assert (metrics["best_step"], metrics["num_steps"], metrics["validation_loss"]) == (0, 2, 1.0)


def raise_interrupt(*args: Any) -> None:
    raise KeyboardInterrupt


def test_a_finished_run_is_left_alone(
    tmp_path: Path, sft_options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    config = SFTConfig(**sft_options(num_epochs=1))
    out = tune(tmp_path, config)
    before = directory_sha256(out)
    tune(tmp_path, config)
    assert "is already finished" in capsys.readouterr().out
    assert directory_sha256(out) == before


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, sft_options: Options) -> None:
    # the first update ruins the weights, and the second loss says so
    config = SFTConfig(**sft_options(optim={"lr": 1e30, "warmup_steps": 0}, eval_steps=100))
    with pytest.raises(GuardStop, match=r"step 2: loss is (nan|inf)"):
        tune(tmp_path, config)
    out = tmp_path / "runs" / "one"
    assert not is_finished(out)
    assert not (out / "model").exists()


def test_a_dry_run_writes_nothing(
    tmp_path: Path, sft_options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    tune(tmp_path, SFTConfig(**sft_options()), dry_run=True)
    assert "would tune" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_settings_that_cannot_work(
    tmp_path: Path, sft_options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"batch_size \(8\) must be divisible by micro_batch_size \(3\)"):
        SFTConfig(**sft_options(micro_batch_size=3))
    for name in ("base", "data"):
        with pytest.raises(ConfigError, match=f"--{name} is required"):
            tune(tmp_path, SFTConfig(**sft_options(**{name: None})))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="WORLD_SIZE=2"):
        tune(tmp_path, SFTConfig(**sft_options()))


# ---- a real pretrained model on real text ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def stories(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 story openings, each with the two sentences that follow."""
    text = (shared_data / "tinystories" / "train_first2MiB.txt").read_text(encoding="utf-8")
    path = tmp_path_factory.mktemp("stories") / "stories.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for story in text.split("<|endoftext|>")[:120]:
            first, *rest = " ".join(story.split()).split(". ")
            file.write(json.dumps({"prompt": f"{first}.", "completion": ". ".join(rest[:2]) + "."}) + "\n")
    return path


def test_trl_sees_the_tokens_of_the_story_model(tmp_path: Path, shared_data: Path, stories: Path) -> None:
    # no chat template; <s> (id 1) ends documents and begins prompts; <unk> (id 0) doubles as padding
    base = shared_data / "models" / "stories260K"
    config = SFTConfig(base=str(base), data=str(stories), model={"device": "cpu"})  # type: ignore[arg-type]
    check_tokens(config, tmp_path, limit=40)
    backbone, _, examples = prepared(config, limit=1)
    assert examples[0].input_ids[0] == 1
    assert examples[0].input_ids[-1] == 1
    assert backbone.codec.pad_token_id == 0


def test_the_story_model_is_tuned_from_the_command_line(
    tmp_path: Path, shared_data: Path, stories: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = shared_data / "models" / "stories260K"
    command = ["sft", "--base", str(base), "--data", str(stories), "--workspace", str(tmp_path)]
    command += [
        "--num-epochs",
        "1",
        "--optim.lr",
        "2e-3",
        "--optim.warmup-steps",
        "2",
        "--model.device",
        "cpu",
    ]
    assert cli.main(command) == 0
    metrics = read_manifest(tmp_path / "runs" / "sft").metrics
    # known: 1.305 nats per token on held-out stories; their second and third sentences are like the rest
    assert 1.15 < metrics["validation_loss_before"] < 1.55
    assert metrics["validation_loss"] < metrics["validation_loss_before"] - 0.02
    assert cli.main(command) == 0
    assert "is already finished" in capsys.readouterr().out
    assert cli.main([*command, "--num-epochs", "2"]) == 2
    assert "finished with other settings (num_epochs: 1 -> 2)" in capsys.readouterr().err


def test_bad_input_ends_in_one_line(
    tmp_path: Path, shared_data: Path, stories: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = str(shared_data / "models" / "stories260K")
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"prompt": "Once upon a time " * 200, "completion": "The end."}) + "\n")
    cases = {
        f"{tmp_path}/none: no such model directory": ["--base", f"{tmp_path}/none", "--data", str(stories)],
        "not a model directory (no config.json)": ["--base", str(tmp_path), "--data", str(stories)],
        "none.jsonl: no such file": ["--base", base, "--data", "none.jsonl"],
        "long.jsonl:1: the prompt has": ["--base", base, "--data", str(long)],
        "unknown option '--bas'; did you mean '--base'?": ["--bas", base],
    }
    for message, options in cases.items():
        assert cli.main(["sft", "--workspace", str(tmp_path / "w"), *options]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "w").exists()
