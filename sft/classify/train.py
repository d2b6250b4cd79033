"""`rlhf classify`: labelled texts -> a classifier, its calibration, and a report on texts it has not seen.

    read -> families of near-duplicates -> split -> train, validating as it goes -> best step
         -> temperature on validation -> figures on test, beside a bag of words -> adapter or model directory

Logged per validation: `validation_loss` (nats per text, weighted as in training, without dropout and smoothing),
`validation_accuracy`, `validation_macro_f1`; `train_loss` and `grad_norm` (before clipping), means since the last one;
`lr`. Step 0 is the fresh head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rlhf.core.backbone import resolve_device
from rlhf.core.checkpoint import StateCheckpoints
from rlhf.core.errors import ConfigError, DataError, Stopped
from rlhf.core.files import atomic_folder, clear_folders
from rlhf.core.guards import SignalGuard
from rlhf.core.inputs import find_model, find_path, model_name, require_one_process, required
from rlhf.core.metrics import progress
from rlhf.core.records import Split
from rlhf.core.run import CHECKPOINTS, Launch, Run, Workspace
from sft.classify.baselines import Texts, baselines
from sft.classify.config import ClassifyConfig
from sft.classify.data import SPLITS, LabelledData, LabelledText, load_labelled
from sft.classify.measure import fit_temperature
from sft.classify.model import TextClassifier, load_base, make_trainable, save
from sft.classify.report import Judged, write_report
from sft.classify.trainer import ClassifyTrainer, TokenSet

STAGE = "classify"


@dataclass
class Tokenised:
    """The rows of each split that are used, as tokens, and how many were cut or left out as too long."""

    rows: dict[Split, list[LabelledText]]
    tokens: dict[Split, TokenSet]
    num_too_long: int


def run(config: ClassifyConfig, launch: Launch) -> None:
    """Writes OUT/adapter or OUT/model, classify.html, classify.json, predictions.jsonl; see `rlhf.core.run` for OUT."""
    require_one_process(STAGE)
    base_path = find_model(required(config.base, "base", "the model to tune"), launch)
    data_path = find_path(required(config.data, "data", "labelled rows"), launch)
    beside = {
        name: find_path(path, launch)
        for name, path in (("validation", config.validation), ("test", config.test))
        if path is not None
    }
    if resolve_device(config.model.device).index:
        raise ConfigError(
            f"model.device is {config.model.device}; for classify set CUDA_VISIBLE_DEVICES instead"
        )
    out = launch.out or Workspace(launch.workspace).runs / STAGE
    parents = {"data": data_path, **beside}
    parents |= {"base": Path(base_path)} if Path(base_path).exists() else {}
    if launch.dry_run:
        data = load_labelled(config, data_path, beside.get("validation"), beside.get("test"))
        classifier, _ = prepared(base_path, data, config, launch)
        print(f"classify: would tune {_size(classifier)} of {base_path} on {counts(data)}, into {out}")
        return
    # Opened before the model is loaded: a second launcher and a finished run are answered at once.
    with Run.open(
        out, stage=STAGE, settings=config, launch=launch, parents=parents, seed=config.seed
    ) as record:
        if record.finished:
            print(f"classify: {out} is already finished")
            return
        data = load_labelled(config, data_path, beside.get("validation"), beside.get("test"))
        classifier, tokenised = prepared(base_path, data, config, launch)
        record.begin()
        print(f"classify: {counts(data)}; {_size(classifier)}")
        trainer = train(classifier, tokenised, config, record)
        _finish(trainer, data, tokenised, record, model_name(base_path, launch))


def counts(data: LabelledData) -> str:
    """How much there is, in words."""
    sizes = " / ".join(str(len(data.rows[split])) for split in SPLITS)
    text = f"{sizes} texts (train / validation / test) with {len(data.labels)} labels in {data.num_families} families"
    return text + (
        f"; {data.num_leaked} left out as near-duplicates of held-out ones" if data.num_leaked else ""
    )


def _size(classifier: TextClassifier) -> str:
    trained = sum(p.numel() for p in classifier.trained().values())
    total = sum(p.numel() for p in classifier.model.parameters())
    return f"{trained:,} of {total:,} weights ({100 * trained / total:.1f} %)"


def prepared(
    base_path: str, data: LabelledData, config: ClassifyConfig, launch: Launch
) -> tuple[TextClassifier, Tokenised]:
    """The model with what is trained, and the texts in its tokens. Raises ModelError, ConfigError and DataError."""
    classifier = load_base(
        base_path,
        data.labels,
        config,
        text_column=config.text_column,
        label_column=config.label_column,
    )
    make_trainable(classifier, config, model_name(base_path, launch))
    return classifier, tokenise(classifier, data, config)


def tokenise(classifier: TextClassifier, data: LabelledData, config: ClassifyConfig) -> Tokenised:
    """Raises DataError naming the row of a text that is too long, unless it is to be cut or left out, and for a split
    or a label of which nothing is left."""
    limit, num_too_long = classifier.labelling.max_tokens, 0
    number = {label: k for k, label in enumerate(data.labels)}
    rows: dict[Split, list[LabelledText]] = {}
    tokens: dict[Split, TokenSet] = {}
    for split in SPLITS:
        rows[split], found = [], []
        for row in data.rows[split]:
            ids = classifier.tokens(row.text)
            if len(ids) > limit:
                num_too_long += 1
                if config.on_too_long == "error":
                    raise DataError(
                        f"{row.where}: the text has {len(ids)} tokens; at most {limit} are used (shorten it, or give "
                        "--on-too-long truncate or drop)"
                    )
                if config.on_too_long == "drop":
                    continue
                ids = classifier.tokens(row.text, truncate=True)
            rows[split].append(row)
            found.append(ids)
        tokens[split] = TokenSet(found, [number[row.label] for row in rows[split]])
        if not found:
            raise DataError(f"all {split} texts are longer than {limit} tokens")
    untrained = set(range(len(data.labels))) - set(tokens["train"].targets)
    if untrained:
        label = data.labels[min(untrained)]
        raise DataError(f"all training texts with the label {label!r} are longer than {limit} tokens")
    if num_too_long:
        what = "left out" if config.on_too_long == "drop" else "cut off"
        print(f"classify: {num_too_long} texts longer than {limit} tokens were {what}")
    return Tokenised(rows, tokens, num_too_long)


def train(
    classifier: TextClassifier, tokenised: Tokenised, config: ClassifyConfig, record: Run
) -> ClassifyTrainer:
    """Steps, validations and checkpoints until done; leaves the best step. Raises GuardStop and Stopped."""
    trainer = ClassifyTrainer(classifier, tokenised.tokens["train"], tokenised.tokens["validation"], config)
    checkpoints = StateCheckpoints(record.path / CHECKPOINTS, STAGE)
    state = checkpoints.newest() if record.resuming else None
    if state is not None:
        trainer.load_state_dict(state)
    # What a state has not been validated yet is logged (again).
    record.metrics.truncate_after(trainer.step - trainer.due)
    with SignalGuard() as guard, progress("steps", trainer.num_steps, stage=STAGE) as tracker:
        tracker.advance(trainer.step)
        try:
            while not trainer.done:
                guard.check()
                if trainer.due:
                    record.metrics.log(trainer.step, **trainer.validate())
                    checkpoints.save(trainer.step, trainer.state_dict())
                    continue
                tracker.advance(loss=trainer.train_step(guard.check))
                if trainer.step % config.save_steps == 0 and not trainer.due:
                    checkpoints.save(trainer.step, trainer.state_dict())
        except Stopped:
            # Raised between steps or before one was made: what is in memory is the state of the last one.
            checkpoints.save(trainer.step, trainer.state_dict())
            raise
    trainer.restore_best()
    return trainer


def _finish(
    trainer: ClassifyTrainer, data: LabelledData, tokenised: Tokenised, record: Run, base_name: str
) -> None:
    """Calibrate on validation, measure on test, save, close the run."""
    config, classifier = trainer.config, trainer.classifier
    validation, test = tokenised.tokens["validation"], tokenised.tokens["test"]
    temperature = fit_temperature(trainer.validation_logits().numpy(), np.array(validation.targets))
    classifier.labelling = replace(classifier.labelling, temperature=temperature)
    logits = trainer.budget.fit(lambda tokens: classifier.logits(test.rows, tokens), test.lengths).numpy()
    name = "adapter" if config.method == "lora" else "model"
    clear_folders(record.path, "adapter", "model")
    with atomic_folder(record.path / name) as folder:
        save(classifier, folder, base_name)

    def texts(split: Split) -> Texts:
        return Texts([row.text for row in tokenised.rows[split]], tokenised.tokens[split].targets)

    judged = Judged(
        rows=tokenised.rows["test"],
        targets=np.array(test.targets),
        logits=logits,
        labels=data.labels,
        temperature=temperature,
        baselines=baselines(
            texts("train"),
            texts("validation"),
            texts("test"),
            data.labels,
            balanced=config.class_weights == "balanced",
        ),
    )
    about = {
        "name": record.path.name,
        "base": base_name,
        "method": config.method,
        "weights": _size(classifier),
        "best_step": trainer.best_step,
        "num_steps": trainer.step,
        "counts": data.counts(),
        "num_families": data.num_families,
        "contradictions": data.contradictions[:20],
        "num_contradictions": len(data.contradictions),
        "notes": notes(data, tokenised, trainer),
    }
    metrics = write_report(record.path, judged, about, config.seed, record.path / "metrics.jsonl")
    metrics |= {
        "validation_loss": trainer.best_figures["validation_loss"],
        "validation_macro_f1": trainer.best_figures["validation_macro_f1"],
        "best_step": trainer.best_step,
        "num_steps": trainer.step,
        "temperature": temperature,
        "num_too_long": tokenised.num_too_long,
    }
    record.finish(metrics, extra={"base": base_name, "labels": list(data.labels)})
    print(f"classify: {verdict(metrics)}; page at {record.path / 'classify.html'}")


def notes(data: LabelledData, tokenised: Tokenised, trainer: ClassifyTrainer) -> Sequence[str]:
    """What a reader has to know about how the figures came about."""
    said = []
    if data.num_leaked:
        said.append(
            "Rows left out of training (or validation) because the validation or test file holds a near-duplicate of "
            f"them: {data.num_leaked}."
        )
    if data.contradictions:
        said.append(
            f"Texts that carry more than one label: {len(data.contradictions)}; they are listed below."
        )
    if data.num_moved:
        said.append(
            f"Families of texts that changed sides, so that each split has texts and each label is trained: "
            f"{data.num_moved}."
        )
    if tokenised.num_too_long:
        what = "left out" if trainer.config.on_too_long == "drop" else "cut off at that length"
        said.append(
            f"Texts longer than {trainer.classifier.labelling.max_tokens} tokens, {what}: {tokenised.num_too_long}."
        )
    tested = set(tokenised.tokens["test"].targets)
    missing = [label for k, label in enumerate(data.labels) if k not in tested]
    if missing:
        said.append(f"No test text has the label {', '.join(missing)}: nothing is known about it.")
    if trainer.best_step == trainer.step == trainer.num_steps:
        said.append("The last step was the best: with more epochs it may get better still.")
    return said


def verdict(metrics: dict[str, float]) -> str:
    """One line: accuracy and macro F1 with intervals, beside the bag of words."""
    text = ", ".join(
        f"{words} {metrics[name]:.3f} [{metrics[f'{name}_low']:.3f}, {metrics[f'{name}_high']:.3f}]"
        for name, words in (("accuracy", "accuracy"), ("macro_f1", "macro F1"))
    )
    if metrics.get("macro_f1_bow") is not None:
        text += f", bag of words {metrics['macro_f1_bow']:.3f}"
    return text
