"""rlhf distill: the divergence by hand, students from a teacher's layers, a stop that costs nothing, and a report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf.after import distill
from rlhf.after.config import DistillConfig
from rlhf.after.divergence import generalised_jsd, student_losses
from rlhf.after.student import StudentTrainer, chosen_layers, copied_student
from rlhf.core.backbone import Backbone
from rlhf.core.errors import ConfigError, ModelError, Stopped
from rlhf.core.metrics import read_metrics
from rlhf.core.run import Launch, is_finished, read_manifest
from rlhf.core.settings import ModelSettings

CPU = ModelSettings(device="cpu")


def test_the_divergence_by_hand() -> None:
    # Two tokens: the teacher gives P = (3/4, 1/4), the student Q = (1/2, 1/2).
    teacher, student = torch.tensor([[3.0, 1.0]]).log(), torch.tensor([[0.0, 0.0]])
    kl_pq = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    kl_qp = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert generalised_jsd(student, teacher, 0.0).item() == pytest.approx(kl_pq, abs=1e-6)
    assert generalised_jsd(student, teacher, 1.0).item() == pytest.approx(kl_qp, abs=1e-6)
    # beta = 1/4: M = P/4 + 3Q/4 = (9/16, 7/16)
    m = (9 / 16, 7 / 16)
    kl_pm = 0.75 * math.log(0.75 / m[0]) + 0.25 * math.log(0.25 / m[1])
    kl_qm = 0.5 * math.log(0.5 / m[0]) + 0.5 * math.log(0.5 / m[1])
    expected = 0.25 * kl_pm + 0.75 * kl_qm
    assert generalised_jsd(student, teacher, 0.25).item() == pytest.approx(expected, abs=1e-6)
    # At temperature 2 the teacher's odds 3:1 become sqrt(3):1.
    p = math.sqrt(3) / (math.sqrt(3) + 1)
    expected = p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)
    assert generalised_jsd(student, teacher, 0.0, 2.0).item() == pytest.approx(expected, abs=1e-6)


def test_chunks_change_neither_losses_nor_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(7, 4, generator=generator, requires_grad=True)
    teacher = torch.randn(7, 3, generator=generator)
    heads = torch.nn.Linear(4, 6, bias=False), torch.nn.Linear(3, 8, bias=False)
    targets = torch.tensor([0, 1, 2, 3, 4, 0, 1])

    def losses() -> tuple[Any, ...]:
        found = student_losses(*heads, student, teacher, targets, vocab_size=5, beta=0.3, temperature=1.5)
        (gradient,) = torch.autograd.grad(found[0] + 2 * found[1], student)
        return (*found, gradient)

    whole = losses()
    monkeypatch.setattr("rlhf.after.divergence.MAX_CHUNK_LOGITS", 10)  # two rows at a time
    for one, two in zip(whole, losses(), strict=True):
        torch.testing.assert_close(one, two)
    # Rows of the output matrices beyond the vocabulary of 5 mean no token.
    logits = heads[0](student)[:, :5]
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    torch.testing.assert_close(whole[1], expected)


def test_the_layers_of_a_student_are_spread_evenly(tiny_model: Callable[..., Path]) -> None:
    assert chosen_layers(12, 4) == [0, 4, 7, 11]
    assert chosen_layers(4, 2) == [0, 3]
    assert chosen_layers(4, 1) == [3]
    with pytest.raises(ConfigError, match="fewer than the teacher's 4 layers"):
        chosen_layers(4, 4)
    teacher = Backbone.load(tiny_model(), CPU)
    student = copied_student(teacher, 2)
    assert student.num_layers == 2
    mine, theirs = student.model.state_dict(), teacher.model.state_dict()
    for name in ("self_attn.q_proj.weight", "mlp.down_proj.weight"):
        assert torch.equal(mine[f"model.layers.1.{name}"], theirs[f"model.layers.3.{name}"])
        assert mine[f"model.layers.1.{name}"].data_ptr() != theirs[f"model.layers.3.{name}"].data_ptr()
    assert torch.equal(mine["lm_head.weight"], theirs["lm_head.weight"])


def test_a_student_without_the_teacher_s_tokens_is_refused(
    launch: Launch, tiny_model: Callable[..., Path], letters: Path
) -> None:
    other = tiny_model(pad_is_eos=True, num_layers=2)
    config = DistillConfig(teacher=str(tiny_model()), student=str(other), data=str(letters), model=CPU)
    with pytest.raises(ModelError, match="has another vocabulary"):
        distill.run(config, launch)
    assert not (launch.workspace / "runs").exists()


def settings(tiny_model: Callable[..., Path], letters: Path) -> DistillConfig:
    return DistillConfig(
        teacher=str(tiny_model(context=64)),
        student_layers=1,
        data=str(letters),
        num_epochs=3,
        batch_size=6,
        micro_batch_tokens=64,
        optim={"lr": 3e-3, "warmup_steps": 1, "schedule": "cosine"},
        patience=5,
        test_fraction=0.2,
        validation_fraction=0.2,
        model=CPU,
    )


def test_a_run_compares_everybody_and_a_stop_costs_nothing(
    launch: Launch, tiny_model: Callable[..., Path], letters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(tiny_model, letters)
    out = launch.workspace / "runs" / "distill"
    distill.run(config, launch)
    assert is_finished(out)
    result = json.loads((out / "distill.json").read_text())
    rows = {row["model"]: row for row in result["rows"]}
    assert list(rows) == ["student", "teacher", "student before", "student without teacher"]
    assert rows["student"]["parameters"] < rows["teacher"]["parameters"]
    assert rows["student"]["loss"] < rows["student before"]["loss"]
    metrics = read_manifest(out).metrics
    assert metrics["gain_over_alone"] == pytest.approx(
        rows["student without teacher"]["loss"] - rows["student"]["loss"], abs=1e-6
    )
    for text in ("Held-out loss", "of the teacher&#x27;s parameters", "tokens/s", "<svg"):
        assert text in (out / "distill.html").read_text(), text
    AutoModelForCausalLM.from_pretrained(out / "model")
    losses = read_metrics(out / "metrics.jsonl")
    weights = (out / "model" / "model.safetensors").read_bytes()

    # Stopped in the second student's second epoch, in the midst of a step, and continued: the same bits.
    original, calls = StudentTrainer._losses, []

    def stopping(trainer: StudentTrainer, rows: Any) -> Any:
        if trainer.weight and trainer.step == trainer.steps_per_epoch + 1:
            calls.append(1)
            if len(calls) == 2:
                raise Stopped("stopped by SIGTERM; continue with --resume", 15)
        return original(trainer, rows)

    again = Launch(launch.workspace, launch.db, out=launch.workspace / "runs" / "again")
    with monkeypatch.context() as patch:
        patch.setattr(StudentTrainer, "_losses", stopping)
        with pytest.raises(Stopped):
            distill.run(config, again)
    assert not is_finished(again.out)
    distill.run(config, Launch(launch.workspace, launch.db, out=again.out, resume=True))
    assert (again.out / "model" / "model.safetensors").read_bytes() == weights
    assert read_metrics(again.out / "metrics.jsonl") == losses
