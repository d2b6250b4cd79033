"""`rlhf sft-eval`: what supervised tuning gained and what it lost, as a page for people and as figures for gates.

OUT/sft_eval.html, OUT/sft_eval.json, and OUT/answers.jsonl with every held-out demonstration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rlhf.core.backbone import resolve_device
from rlhf.core.errors import DataError
from rlhf.core.files import write_json, write_jsonl, write_text
from rlhf.core.inputs import find_model, find_path, require_one_process, required
from rlhf.core.metrics import finite
from rlhf.core.run import Launch, Run, Workspace
from rlhf.core.terms import load_terms
from sft.assess.config import SFTEvalConfig
from sft.assess.encode import fitting, general_windows
from sft.assess.examine import Examination, Inputs
from sft.assess.fewshot import example_pool
from sft.assess.harness import Harness
from sft.assess.page import page
from sft.assess.rows import Item, Text, read_held_out, read_items
from sft.assess.subjects import (
    Named,
    Subject,
    base_of,
    find_named,
    open_subject,
    require_same_tokens,
)
from sft.assess.words import verdict

REPORT = "sft_eval"


@dataclass(frozen=True)
class Files:
    """What the settings name, found. train: the demonstrations that few-shot examples come from."""

    data: Path
    train: tuple[Path, ...]
    general: Path | None
    questions: Path | None
    terms: Path | None
    include: Path | None

    def parents(self) -> dict[str, Path]:
        """All that exists, by role, for the manifest."""
        found = {"data": self.data, "general": self.general, "questions": self.questions, "terms": self.terms}
        named = {role: path for role, path in found.items() if path is not None}
        return named | {f"train_{i}": path for i, path in enumerate(self.train, start=1)}


@dataclass(frozen=True)
class Rows:
    """The rows of all files."""

    items: list[Item]
    texts: list[Text]
    train: list[Item]
    general_items: list[Item]
    general_texts: list[Text]
    questions: list[Item]


def run(config: SFTEvalConfig, launch: Launch) -> None:
    """Measure, write the three files, and print the verdict in one line."""
    require_one_process("sft-eval")
    what = "an sft run, model directory, adapter directory or hub id"
    named = find_named(required(config.model, "model", what), launch)
    base_text = find_model(config.base, launch) if config.base else base_of(named, launch)
    files, notes = find_files(config, named, launch)
    resolve_device(config.load.device)
    out = launch.out or Workspace(launch.workspace).runs / f"{named.name}-eval"
    parents = files.parents()
    if named.folder is not None:
        parents["model"] = named.folder
    if base_text is not None and Path(base_text).exists():
        parents["base"] = Path(base_text)
    # An evaluation that was killed has nothing to continue: it is made again.
    again = replace(launch, resume=True)
    with Run.open(
        out, stage="sft-eval", settings=config, launch=again, parents=parents, seed=config.seed
    ) as record:
        if record.finished:
            print(f"sft-eval: {out} is already finished")
            return
        tasks = Harness(config.harness, files.include) if config.harness.tasks else None
        terms = load_terms(files.terms)
        rows = read_files(files, config, notes)
        tokens = config.micro_batch_tokens
        tuned = open_subject("tuned", named.path, config.load, launch, adapter=named.adapter, tokens=tokens)
        base = None
        if base_text is not None:
            base = open_subject("base", base_text, config.load, launch, tokens=tokens)
            require_same_tokens(tuned, base)
        else:
            notes.append(f"{named.name} does not say what it was tuned from: give the base with --base.")
        inputs = encode(rows, files, tuned, base, config, notes)
        inputs.terms = terms
        examination = Examination(tuned, base, inputs, config, tasks)
        record.begin()
        result = finite(examination.run())
        result["model"], result["base"] = named.name, None if base is None else base.backbone.name
        write_jsonl(record.path / "answers.jsonl", examination.rows)
        write_json(record.path / f"{REPORT}.json", result)
        write_text(record.path / f"{REPORT}.html", page(result, named.name))
        record.finish(result["metrics"])
    print(f"sft-eval: {verdict(result['metrics'], result)}; page at {out / f'{REPORT}.html'}")


def find_files(config: SFTEvalConfig, named: Named, launch: Launch) -> tuple[Files, list[str]]:
    """All files that the settings or the run name, and notes on those that are gone. Raises DataError."""
    notes: list[str] = []
    data = find_path(required(config.data, "data", "a file of held-out demonstrations or texts"), launch)
    train = tuple(find_path(name, launch) for name in config.train)
    if not train and named.manifest is not None:
        known = [
            p.path for role, p in named.manifest.parents.items() if role == "data" or role.startswith("data ")
        ]
        paths = [Workspace(launch.workspace).resolve(path) for path in known]
        train = tuple(path for path in paths if path.is_file())
        if len(train) < len(paths):
            gone = next(path for path in paths if not path.is_file())
            notes.append(
                f"The training data {gone.name} is gone: it gave no few-shot examples, and was not searched for "
                "held-out prompts."
            )
    if not train and config.shots:
        notes.append(
            "Few-shot prompting was not measured: name the training demonstrations with --train, which its examples "
            "are drawn from."
        )

    def optional(text: str | None) -> Path | None:
        return find_path(text, launch) if text else None

    files = Files(
        data,
        train,
        optional(config.general),
        optional(config.questions),
        optional(config.terms),
        optional(config.harness.include),
    )
    return files, notes


def read_files(files: Files, config: SFTEvalConfig, notes: list[str]) -> Rows:
    """The rows of all files. Raises DataError naming file and line."""
    items, texts = read_held_out(files.data, config.max_items)
    train: list[Item] = []
    if items:
        train = [item for path in files.train for item in read_held_out(path)[0]]
        asked = {item.prompt for item in train}
        seen = sum(item.prompt in asked for item in items)
        if seen:
            notes.append(
                f"{seen} of the {len(items)} held-out prompts stand in the training data: these figures flatter the "
                "tuned model."
            )
    general: tuple[list[Item], list[Text]] = ([], [])
    if files.general is not None:
        general = read_held_out(files.general)
    questions = read_items(files.questions, "a fixed question and its answer") if files.questions else []
    return Rows(items, texts, train, *general, questions)


def encode(
    rows: Rows,
    files: Files,
    tuned: Subject,
    base: Subject | None,
    config: SFTEvalConfig,
    notes: list[str],
) -> Inputs:
    """What is measured, in tokens of the tuned model, without what does not fit the context. Raises DataError."""
    codecs = [subject.codec for subject in (tuned, base) if subject is not None]
    room = config.sampling.max_completion_tokens

    def fit(items: Sequence[Item], path: Path) -> list[Item]:
        kept, num_left_out = fitting(items, codecs, room, str(path))
        if num_left_out:
            notes.append(
                f"{num_left_out} of {len(items)} rows of {path.name} were left out: they leave no room for an answer "
                f"of {room} tokens in the context of {min(codec.max_tokens for codec in codecs)}."
            )
        return kept

    inputs = Inputs(files.data, fit(rows.items, files.data), notes=notes)
    if rows.texts:
        inputs.texts, inputs.texts_shown = general_windows(tuned.codec, [], rows.texts, str(files.data))
    if config.shots and base is not None and rows.train and inputs.items:
        inputs.pool = example_pool(rows.train, inputs.items, ", ".join(map(str, files.train)))
    elif config.shots and rows.items and files.train and not rows.train:
        raise DataError(f"{files.train[0]}: holds no demonstration; expected few-shot examples, or --shots 0")
    if files.general is not None:
        inputs.general, inputs.general_shown = general_windows(
            tuned.codec, rows.general_items, rows.general_texts, str(files.general)
        )
    if files.questions is not None:
        inputs.questions = fit(rows.questions, files.questions)
    return inputs
