"""`rlhf classify` and `rlhf label`: encoders and decoders, what is saved, and that a stop costs no more than time."""

from __future__ import annotations

import json
import math
import os
import signal
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    RobertaConfig,
    RobertaForSequenceClassification,
)

import rlhf.cli as cli
from rlhf.core.errors import ConfigError, DataError, GuardStop, ModelError, Stopped
from rlhf.core.metrics import MetricsLog, read_metrics
from rlhf.core.run import Launch, directory_sha256, is_finished, read_manifest
from sft.classify import model as model_module
from sft.classify import trainer as trainer_module
from sft.classify.config import ClassifyConfig, ClassifyLora
from sft.classify.data import load_labelled
from sft.classify.model import lora_targets, open_saved
from sft.classify.predict import classify_texts
from sft.classify.train import prepared, run
from sft.classify.trainer import class_weights

Options = Callable[..., dict[str, Any]]
TEXTS = ["red mat and green", "hello old man told one tale please", "cat told one tale of rain and birds"]


def classify(out: Path, options: dict[str, Any], **launch: bool) -> Path:
    run(ClassifyConfig(**options), Launch(workspace=out.parent, db="sqlite://", out=out, **launch))
    return out


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, classify_options: Options) -> Path:
    return classify(tmp_path_factory.mktemp("classify") / "run", classify_options())


def plain_probabilities(folder: Path, base: Path | None, texts: list[str], temperature: float) -> np.ndarray:
    """As somebody without this project would: transformers, peft, one padded batch."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if base is None:
        model = AutoModelForSequenceClassification.from_pretrained(folder)
    else:
        config = AutoConfig.from_pretrained(folder)
        model = AutoModelForSequenceClassification.from_pretrained(base, config=config)
        model = PeftModel.from_pretrained(model, folder)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    found: np.ndarray = (logits / temperature).softmax(-1).numpy()
    return found


def test_an_encoder_learns_and_says_how_well(finished: Path, classify_options: Options) -> None:
    metrics = read_manifest(finished).metrics
    assert metrics["accuracy"] > 0.9
    assert metrics["accuracy_low"] <= metrics["accuracy"] <= metrics["accuracy_high"]
    assert metrics["accuracy_majority"] < 0.6
    assert {"macro_f1", "weighted_f1", "ece", "brier", "temperature", "macro_f1_bow"} <= set(metrics)
    result = json.loads((finished / "classify.json").read_text())
    assert sum(map(sum, result["confusion"])) == result["n"] == metrics["num_test"]
    rows = [json.loads(line) for line in (finished / "predictions.jsonl").read_text().splitlines()]
    assert sum(row["label"] == row["predicted"] for row in rows) / len(rows) == metrics["accuracy"]
    assert all(sum(row["probabilities"].values()) == pytest.approx(1) for row in rows)
    page = (finished / "classify.html").read_text()
    for heading in ("Beside simpler predictors", "Label by label", "Calibration", "Training", "The data"):
        assert f"<h2>{heading}</h2>" in page
    logged = {row["step"]: row for row in read_metrics(finished / "metrics.jsonl")}
    assert min(row["validation_loss"] for row in logged.values()) == metrics["validation_loss"]
    assert logged[metrics["best_step"]]["validation_loss"] == metrics["validation_loss"]


def test_the_adapter_loads_in_plain_transformers_and_peft(finished: Path, encoder: Path) -> None:
    adapter = finished / "adapter"
    temperature = read_manifest(finished).metrics["temperature"]
    ours = classify_texts("run", TEXTS, workspace=finished.parent, device="cpu")
    plain = plain_probabilities(adapter, encoder, TEXTS, temperature)
    found = np.array([[row[label] for label in ("animal", "colour", "greeting")] for row in ours])
    assert np.allclose(found, plain, atol=1e-5)
    assert found.argmax(1).tolist() == [1, 2, 0]
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert settings["target_modules"] == sorted(
        f"distilbert.transformer.layer.{n}.attention.{name}" for n in (0, 1) for name in ("q_lin", "v_lin")
    )
    # DistilBERT's head has two layers and the base brings neither: one of them would be lost with peft's defaults
    assert settings["modules_to_save"] == ["classifier", "pre_classifier", "score"]
    assert AutoConfig.from_pretrained(adapter).id2label == {0: "animal", 1: "colour", 2: "greeting"}


def test_the_base_stays_as_it_is_and_the_run_is_one(
    finished: Path, encoder: Path, classify_options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    before = directory_sha256(encoder)
    assert set(read_manifest(finished).parents) == {"base", "data"}
    assert read_manifest(finished).parents["base"].sha256 == before
    classify(finished, classify_options())
    assert "is already finished" in capsys.readouterr().out
    classify_texts(finished, [], workspace=finished.parent)


def test_a_decoder_learns_with_all_weights_or_an_adapter_and_pools_the_last_token(
    tmp_path: Path, tiny_model: Callable[..., Path], classify_options: Options
) -> None:
    base = tiny_model(num_layers=2, pad_is_eos=True)
    lora = {"r": 4, "alpha": 8, "adapter_layers": 0.5}
    options = classify_options(base=str(base), lora=lora, num_epochs=2, class_weights="balanced")
    for method, name in (("lora", "adapter"), ("full", "model")):
        settings = options | {"method": method, "optim": {"lr": 1e-2 if method == "lora" else 2e-3}}
        out = classify(tmp_path / method, settings)
        metrics = read_manifest(out).metrics
        assert metrics["accuracy"] > 0.6, method
        plain = plain_probabilities(
            out / name, base if method == "lora" else None, TEXTS, metrics["temperature"]
        )
        ours = classify_texts(out, TEXTS, workspace=tmp_path, device="cpu")
        assert np.allclose([list(row.values()) for row in ours], plain, atol=1e-4), method
        alone = classify_texts(out, TEXTS[:1], workspace=tmp_path, device="cpu", max_tokens=1)
        assert np.allclose(list(alone[0].values()), plain[0], atol=1e-4), method
    targets = json.loads((tmp_path / "lora/adapter/adapter_config.json").read_text())["target_modules"]
    assert {name.split(".")[2] for name in targets} == {"1"}


# ---- labelling files ----------------------------------------------------------------------------------------


def test_label_adds_columns_and_a_report_where_labels_are_known(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new.csv"
    path.write_text("text,label,id\nred mat and blue,colour,1\nhello old man please,colour,2\n")
    command = ["label", str(path), "--classifier", "run", "--workspace", str(finished.parent)]
    command += ["--model.device", "cpu"]
    assert cli.main(command) == 0
    rows = [json.loads(line) for line in (tmp_path / "new.labelled.jsonl").read_text().splitlines()]
    assert [(row["id"], row["predicted"]) for row in rows] == [("1", "colour"), ("2", "greeting")]
    assert rows[0]["probability"] == max(rows[0]["probabilities"].values())
    result = json.loads((tmp_path / "new-report" / "classify.json").read_text())
    assert result["accuracy"] == 0.5
    assert cli.main(command) == 2
    assert "exists already" in capsys.readouterr().err
    path.write_text("text\n" + "the red mat " * 60 + "\nhello man please\n")
    assert cli.main([*command, "--force"]) == 2
    assert "new.csv:2: the text has" in capsys.readouterr().err
    assert cli.main([*command, "--force", "--on-too-long", "drop"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "new.labelled.jsonl").read_text().splitlines()]
    assert [row["predicted"] for row in rows] == [None, "greeting"]
    path.write_text("text,label\nthe red mat,planet\n")
    assert cli.main([*command, "--force"]) == 2
    assert (
        "new.csv:2: label 'planet'; the classifier knows animal, colour, greeting" in capsys.readouterr().err
    )


def test_what_is_no_classifier_is_refused(finished: Path, tmp_path: Path, encoder: Path) -> None:
    with pytest.raises(DataError, match=r"holds no classifier\.json"):
        classify_texts(encoder, ["x"], workspace=tmp_path, device="cpu")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "manifest.json").write_bytes((finished / "manifest.json").read_bytes())
    with pytest.raises(DataError, match="is an unfinished run"):
        classify_texts("half", ["x"], workspace=tmp_path, device="cpu")


# ---- settings that do not fit -------------------------------------------------------------------------------


def test_a_layer_that_is_not_there_ends_in_the_list_of_those_that_are(
    tmp_path: Path, tiny_model: Callable[..., Path], classify_options: Options
) -> None:
    with pytest.raises(ConfigError) as caught:
        classify(tmp_path / "run", classify_options(base=str(tiny_model(num_layers=2))))
    assert "has no linear layer 'q_lin'; it has self_attn.q_proj, self_attn.k_proj" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_named_layers_are_found_in_the_top_share(encoder: Path, tiny_model: Callable[..., Path]) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(encoder)
    half = ClassifyLora(adapter_layers=0.5, target_modules=["q_lin"])
    assert lora_targets(model, half, ["pre_classifier", "classifier"], "m") == [
        "distilbert.transformer.layer.1.attention.q_lin"
    ]
    every = lora_targets(model, ClassifyLora(adapter_layers=1.0), ["pre_classifier", "classifier"], "m")
    assert len(every) == 2 * 6
    gpt2 = AutoModelForSequenceClassification.from_pretrained(tiny_model("gpt2"))
    assert len(lora_targets(gpt2, ClassifyLora(adapter_layers=1.0), ["score"], "m")) == 4 * 4


def test_models_of_other_kinds_are_refused_in_one_line(tmp_path: Path, classify_options: Options) -> None:
    folder = tmp_path / "t5"
    folder.mkdir()
    (folder / "config.json").write_text(
        '{"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}'
    )
    with pytest.raises(
        ModelError, match="t5 is a sequence-to-sequence model; expected an encoder or a decoder"
    ):
        classify(tmp_path / "run", classify_options(base=str(folder)))


def test_long_texts_stop_or_are_cut_or_left_out_and_counted(
    tmp_path: Path, classify_options: Options, labelled: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(labelled.read_text() + json.dumps({"text": "cat " * 90, "label": "animal"}) + "\n")

    def lengths(what: str) -> list[int]:
        config = ClassifyConfig(**classify_options(data=str(path), on_too_long=what))
        data = load_labelled(config, path, None, None)
        launch = Launch(workspace=tmp_path, db="")
        _, tokenised = prepared(str(config.base), data, config, launch)
        assert tokenised.num_too_long == 1
        return [length for tokens in tokenised.tokens.values() for length in tokens.lengths]

    with pytest.raises(DataError, match=r"rows.jsonl:181: the text has \d+ tokens; at most 64 are used"):
        lengths("error")
    assert max(lengths("truncate")) == 64
    assert len(lengths("drop")) == 180
    assert max(lengths("drop")) < 64


def test_settings_that_contradict_each_other() -> None:
    for changes, said in (
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
        ({"method": "full", "model": {"dtype": "bfloat16"}}, "expected model.dtype float32"),
        ({"labels": ["a"]}, "at least two"),
    ):
        with pytest.raises(ValueError, match=said):
            ClassifyConfig(**changes)


def test_balanced_weights_make_every_label_count_alike() -> None:
    # 6 of a, 2 of b: 8 / (2 * 6) and 8 / (2 * 2); the mean over the rows is 1
    weights = class_weights([0] * 6 + [1] * 2, 2, "balanced")
    assert weights.tolist() == pytest.approx([2 / 3, 2.0])
    assert class_weights([0, 1], 2, "none").tolist() == [1.0, 1.0]


# ---- stops and faults ---------------------------------------------------------------------------------------


def same_result(one: Path, other: Path) -> None:
    for name in ("adapter/adapter_model.safetensors", "metrics.jsonl", "predictions.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_a_stopped_and_a_killed_run_go_on_to_the_same_bits(
    tmp_path: Path, finished: Path, classify_options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = classify_options(save_steps=4)  # saves change nothing
    out, step = tmp_path / "stopped", trainer_module.ClassifyTrainer.train_step

    def stopping(at: int, act: Callable[[], None]) -> Any:
        def train_step(self: Any, check: Callable[[], None]) -> float:
            loss = step(self, check)
            if self.step == at:
                act()
            return loss

        return train_step

    with monkeypatch.context() as patch:  # at the end of an epoch, before it is validated
        patch.setattr(
            trainer_module.ClassifyTrainer,
            "train_step",
            stopping(8, lambda: os.kill(os.getpid(), signal.SIGTERM)),
        )
        with pytest.raises(Stopped, match="continue with --resume"):
            classify(out, options)
    assert not is_finished(out)

    def crash() -> None:
        raise OSError("the machine went away")

    for at in (14, 15):
        with monkeypatch.context() as patch:
            patch.setattr(trainer_module.ClassifyTrainer, "train_step", stopping(at, crash))
            with pytest.raises(OSError, match="went away"):
                classify(out, options, resume=True)
    classify(out, options, resume=True)
    same_result(out, finished)


def test_a_loss_that_is_no_number_ends_the_run(
    tmp_path: Path, classify_options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MetricsLog.log

    def poison(self: MetricsLog, step: int, **values: Any) -> None:
        log(self, step, **values)
        if step == 8:
            monkeypatch.setattr(
                trainer_module.ClassifyTrainer,
                "_loss_sum",
                lambda self, logits, *_: logits.sum() * float("nan"),
            )

    monkeypatch.setattr(MetricsLog, "log", poison)
    with pytest.raises(GuardStop, match="step 9: loss is nan"):
        classify(tmp_path / "run", classify_options())
    assert not is_finished(tmp_path / "run")


def test_a_pass_that_does_not_fit_is_halved_to_the_same_step(
    classify_options: Options,
    labelled: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = ClassifyConfig(**classify_options(class_weights="balanced", micro_batch_tokens=10_000))
    forward = trainer_module.TextClassifier.forward

    def small(self: Any, rows: Any) -> Any:
        if self.model.training and len(rows) > 5:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return forward(self, rows)

    def stepped() -> tuple[float, dict[str, torch.Tensor]]:
        trainer = made_trainer(config, labelled)
        for module in trainer.classifier.model.modules():  # its draws would depend on the passes
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        loss = trainer.train_step(lambda: None)
        return loss, {name: p.detach() for name, p in trainer.parameters.items()}

    whole, weights = stepped()
    monkeypatch.setattr(trainer_module.TextClassifier, "forward", small)
    parts, same = stepped()
    assert "micro_batch_tokens is" in capsys.readouterr().out
    assert parts == pytest.approx(whole, rel=1e-5)
    for name, value in weights.items():
        assert torch.allclose(same[name], value, atol=1e-5), name


def made_trainer(config: ClassifyConfig, path: Path) -> Any:
    data = load_labelled(config, path, None, None)
    classifier, tokenised = prepared(str(config.base), data, config, Launch(workspace=path.parent, db=""))
    tokens = tokenised.tokens
    return trainer_module.ClassifyTrainer(classifier, tokens["train"], tokens["validation"], config)


def test_a_base_in_bfloat16_is_trained_in_full_precision(classify_options: Options, labelled: Path) -> None:
    options = classify_options(model={"device": "cpu", "dtype": "bfloat16"})
    trainer = made_trainer(ClassifyConfig(**options), labelled)
    assert trainer.train_step(lambda: None) == pytest.approx(math.log(3), abs=0.3)
    assert {p.dtype for p in trainer.parameters.values()} == {torch.float32}
    assert torch.bfloat16 in {p.dtype for p in trainer.classifier.model.parameters()}


def test_the_context_of_roberta_begins_behind_its_pad_token() -> None:
    config = RobertaConfig(
        vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    model = RobertaForSequenceClassification(config)  # 512 positions, those of the pads 0 and 1 aside
    tokenizer = types.SimpleNamespace(model_max_length=10**30)
    assert model_module._context(model, tokenizer) == 512 - 2


def test_saved_weights_of_another_base_are_refused(finished: Path, tiny_model: Callable[..., Path]) -> None:
    with pytest.raises(Exception, match="does not fit the base"):
        open_saved(finished / "adapter", str(tiny_model(num_layers=2)), ClassifyConfig().model)
