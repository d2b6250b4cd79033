"""`rlhf distill`: a smaller student that gives the teacher's next-token distributions, and what that cost and gained.

    read -> split -> [the student without the teacher, for the comparison] -> the student -> compare on unseen prompts

OUT/model is the student; distill.html and distill.json compare teacher, student, the same student trained without the
teacher (with as many steps at most) and the student as it began: size, speed and held-out loss.

The loss is the generalised Jensen-Shannon divergence of arXiv:2306.13649 on the demonstrations' completions, plus
the usual loss on their tokens. trl's GKDTrainer (experimental in 1.16) tokenises chats by itself and keeps whole
logits; here tokens come from `ChatCodec`, and the state is checkpointed as in our other stages. That paper's on-policy
part, where the student writes the completions, is not done.

Logged per step: `loss`, `divergence` and `nll` (nats per completion token), `grad_norm` before clipping, `lr`; per
epoch `validation_loss`. Those of the student without a teacher begin with `alone_`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlhf.after.config import DistillConfig
from rlhf.after.heldout import HeldOut
from rlhf.after.pages import distill_page
from rlhf.after.student import StudentTrainer, copied_student, loaded_student, size_of
from rlhf.core.backbone import REFERENCE, Backbone
from rlhf.core.checkpoint import StateCheckpoints
from rlhf.core.errors import ConfigError, Stopped
from rlhf.core.figures import flat
from rlhf.core.files import atomic_folder, clear_folders, write_json, write_text
from rlhf.core.guards import SignalGuard
from rlhf.core.inputs import find_model, find_path, model_name, require_one_process, required
from rlhf.core.metrics import finite, progress
from rlhf.core.run import CHECKPOINTS, Launch, Run, Workspace
from rlhf.core.sampler import Request, sample
from rlhf.core.settings import SamplingSettings
from sft.data import Example, load_examples, split_examples
from sft.methods import save_model

REPORT = "distill"
ALONE, TAUGHT = "alone", "taught"
SPEED_ROWS, SPEED_TOKENS = 8, 32


@dataclass(frozen=True)
class Data:
    train: Sequence[Example]
    validation: HeldOut
    test: HeldOut


def run(config: DistillConfig, launch: Launch) -> None:
    """Writes OUT/model, report, metrics and manifest; see `rlhf.core.run` for OUT."""
    require_one_process("distill")
    teacher_path = find_model(required(config.teacher, "teacher", "the model to learn from"), launch)
    if not config.student and not config.student_layers:
        raise ConfigError("--student or --student-layers is required: the model that learns")
    student_path = find_model(config.student, launch) if config.student else None
    data_path = find_path(required(config.data, "data", "demonstrations to learn on"), launch)
    out = launch.out or Workspace(launch.workspace).runs / "distill"
    given = {"teacher": Path(teacher_path), "data": data_path}
    given |= {"student": Path(student_path)} if student_path else {}
    parents = {name: path for name, path in given.items() if path.exists()}
    if launch.dry_run:
        teacher, student, data = _load(teacher_path, student_path, data_path, config, launch)
        print(
            f"distill: would train {size_of(student.model)[0]:,} parameters to answer like {teacher.name} "
            f"({size_of(teacher.model)[0]:,}) on {len(data.train)} demonstrations, into {out}"
        )
        return
    with Run.open(
        out, stage="distill", settings=config, launch=launch, parents=parents, seed=config.seed
    ) as record:
        if record.finished:
            print(f"distill: {out} is already finished")
            return
        teacher, student, data = _load(teacher_path, student_path, data_path, config, launch)
        record.begin()
        rows = [_row("teacher", teacher, data.test), _row("student before", student, data.test)]
        curves = {}
        if config.compare:
            alone = trained(student, teacher, data, config, record, name=ALONE)
            rows.append(_row("student without teacher", student, data.test))
            curves["without teacher"] = alone.curve
            _, student, _ = _load(teacher_path, student_path, None, config, launch, teacher)
        taught = trained(student, teacher, data, config, record, name=TAUGHT)
        curves["with teacher"] = taught.curve
        clear_folders(record.path, "model")
        with atomic_folder(record.path / "model") as folder:
            save_model(student, student.roles[REFERENCE], folder, torch.float32)
        rows.insert(0, _row("student", student, data.test))
        result = finite(summary(rows, curves, data, config))
        write_json(record.path / f"{REPORT}.json", result)
        write_text(record.path / f"{REPORT}.html", distill_page(result))
        record.finish(result["metrics"], extra={"teacher": teacher.name})
    print(f"distill: {words(result['metrics'])}; saved in {out / 'model'}")


def _load(
    teacher_path: str,
    student_path: str | None,
    data_path: Path | None,
    config: DistillConfig,
    launch: Launch,
    teacher: Backbone | None = None,
) -> tuple[Backbone, Backbone, Data]:
    """Teacher, a fresh student, and the data (empty where no path is given: it was read before)."""
    if teacher is None:
        teacher = Backbone.load(teacher_path, config.model, name=model_name(teacher_path, launch))
    if student_path is not None:
        student = loaded_student(student_path, teacher, config.model)
    else:
        assert config.student_layers is not None
        student = copied_student(teacher, config.student_layers)
    if data_path is None:
        empty = HeldOut([], 0)
        return teacher, student, Data([], empty, empty)
    most = min(teacher.codec.max_tokens, student.codec.max_tokens)
    examples, num_too_long = load_examples(data_path, teacher.codec, max_tokens=most, drop_too_long=True)
    rest, test = split_examples(examples, config.test_fraction, config.seed, str(data_path))
    # another seed: the same one would put the same prompts on the same side again
    train, validation = split_examples(rest, config.validation_fraction, config.seed + 1, str(data_path))
    return teacher, student, Data(train, HeldOut(validation, 0), HeldOut(test, num_too_long))


def trained(
    student: Backbone, teacher: Backbone, data: Data, config: DistillConfig, record: Run, *, name: str
) -> StudentTrainer:
    """Train the student and leave it at its best epoch. Resumes from its newest checkpoint. Raises GuardStop and
    Stopped."""
    weight = config.distill_weight if name == TAUGHT else 0.0
    trainer = StudentTrainer(student, teacher, data.train, data.validation, config, weight)
    checkpoints = StateCheckpoints(record.path / CHECKPOINTS / name, "distill")
    state = checkpoints.newest() if record.resuming else None
    if state is not None:
        trainer.load_state_dict(state)
        if trainer.done:  # the other student's rows, which follow in the metrics, stay
            trainer.restore_best()
            return trainer
    prefix = "" if name == TAUGHT else "alone_"
    # Steps of the second student follow those of the first in the file.
    total = trainer.steps_per_epoch * config.num_epochs
    offset = total + 1 if name == TAUGHT and config.compare else 0
    record.metrics.truncate_after(offset + trainer.step if state is not None else offset - 1)

    def log(figures: dict[str, float]) -> None:
        record.metrics.log(offset + trainer.step, **{prefix + key: value for key, value in figures.items()})

    label = "student" if name == TAUGHT else "student without teacher"
    with SignalGuard() as guard, progress(label, total, stage="distill") as tracker:
        tracker.advance(trainer.step)
        try:
            if trainer.step == 0:
                log({"validation_loss": trainer.before})
            while not trainer.done:
                figures = trainer.train_step(guard.check)
                log(figures)
                tracker.advance(loss=figures["loss"])
                if trainer.step % trainer.steps_per_epoch == 0:
                    log({"validation_loss": trainer.finish_epoch()})
                    checkpoints.save(trainer.step, trainer.state_dict())
                guard.check()
        except Stopped:
            if not trainer.done:
                checkpoints.save(trainer.step, trainer.state_dict())
            raise
    trainer.restore_best()
    return trainer


def _row(name: str, backbone: Backbone, test: HeldOut) -> dict[str, Any]:
    """Size, speed and held-out loss of a model. nats: [N] per row, for paired differences."""
    numbers, size = size_of(backbone.model)
    return {
        "model": name,
        "parameters": numbers,
        "bytes": size,
        "tokens_per_s": speed(backbone, test.examples),
        "nats": test.nats(backbone, REFERENCE),
    }


def speed(backbone: Backbone, examples: Sequence[Example]) -> float:
    """Tokens per second of writing completions, the fastest of three."""
    ids = [e.input_ids[: max(1, e.completion_mask.index(1))] for e in examples]
    room = max(1, backbone.codec.max_tokens - SPEED_TOKENS)
    requests = [Request(ids[i % len(ids)][:room], i) for i in range(SPEED_ROWS)]
    settings = SamplingSettings(max_completion_tokens=min(SPEED_TOKENS, backbone.codec.max_tokens - 1))
    best = 0.0
    for _ in range(3):
        started = time.perf_counter()
        drawn = sample(backbone.sampling_model(REFERENCE), requests, settings, end_token_ids=[], seed=0)
        best = max(best, sum(len(one.tokens) for one in drawn) / (time.perf_counter() - started))
    return best


def summary(
    rows: list[dict[str, Any]], curves: dict[str, Any], data: Data, config: DistillConfig
) -> dict[str, Any]:
    """Figures for page and manifest. The first row is the student."""
    student = rows[0]
    shown = []
    for row in rows:
        figures = {key: value for key, value in row.items() if key != "nats"}
        figures |= flat("loss", data.test.loss(row["nats"]))
        shown.append(figures | flat("over_student", data.test.difference(row["nats"], student["nats"])))
    by_name = {row["model"]: row for row in shown}
    teacher, mine, before = by_name["teacher"], by_name["student"], by_name["student before"]
    metrics = {
        **{name: mine[name] for name in ("loss", "loss_low", "loss_high", "tokens_per_s")},
        "loss_teacher": teacher["loss"],
        "loss_before": before["loss"],
        "size_share": mine["parameters"] / teacher["parameters"],
        "speed_factor": mine["tokens_per_s"] / teacher["tokens_per_s"],
        "num_train": len(data.train),
        "num_test": len(data.test.examples),
    }
    alone = by_name.get("student without teacher")
    if alone is not None:
        metrics |= {"loss_alone": alone["loss"], "gain_over_alone": alone["over_student"]}
        metrics |= {f"gain_over_alone{end}": alone[f"over_student{end}"] for end in ("_low", "_high")}
    return {
        "rows": shown,
        "curves": curves,
        "num_rows": len(data.test.examples),
        "num_too_long": data.test.num_too_long,
        "beta": config.beta,
        "temperature": config.temperature,
        "distill_weight": config.distill_weight,
        "metrics": metrics,
    }


def words(metrics: dict[str, Any]) -> str:
    """The result in one line."""
    said = (
        f"{metrics['size_share']:.0%} of the teacher's parameters, {metrics['speed_factor']:.2f}x its speed, held-out "
        f"loss {metrics['loss']:.4f} (teacher {metrics['loss_teacher']:.4f}, before {metrics['loss_before']:.4f}"
    )
    alone = metrics.get("loss_alone")
    return said + (f", without teacher {alone:.4f})" if alone is not None else ")")
