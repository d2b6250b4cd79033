"""`rlhf import FILE`: prompts, completions and existing ratings into the feedback store.

Good rows are kept, bad rows go to a quarantine file with the line and the reason. Importing the same file
again adds nothing. Ratings become what a rater at the desk would have left: a task, an annotator, an answer.
Rows are read and written a thousand at a time, so memory does not grow with the file.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from sqlalchemy import text

from feedback_app.accounts import checked_name, create_annotator, list_accounts
from feedback_app.collector import fewer_collections
from feedback_app.config import ImportConfig
from feedback_app.formats.detect import Reading, parse_mapping
from feedback_app.formats.items import MAX_COMPLETIONS, Answer, Item
from feedback_app.import_work import Work, work_of
from feedback_app.store import audit
from feedback_app.store.annotations import Submission
from feedback_app.store.bulk import canonical_orders, import_answers
from feedback_app.store.engine import Store
from feedback_app.store.gold import set_gold
from feedback_app.store.tasks import (
    add_completions,
    add_prompts,
    chunks,
    create_tasks,
    ensure_project,
    set_rubric,
)
from rlhf.core.errors import DataError
from rlhf.core.files import Limits
from rlhf.core.metrics import progress
from rlhf.core.records import TaskKind, content_id
from rlhf.core.run import Launch
from rlhf.core.tables import read_table

BATCH = 2000
_SAID = ("preference", "ranking", "scores", "demonstration", "thumb")
_NEW_TASKS = text("SELECT count(*) FROM tasks WHERE project_id = :project AND created_at >= :since")
_RUBRIC = text(
    "SELECT title, text, attributes FROM rubrics WHERE project_id = :project ORDER BY version DESC LIMIT 1"
)


@dataclass
class ImportCounts:
    """What an import did. `too_few`: prompts whose completions do not make the task that was asked for."""

    rows: int = 0
    bad_rows: int = 0
    prompts: int = 0
    completions: int = 0
    tasks: int = 0
    ratings: int = 0
    known_ratings: int = 0
    corrected: int = 0
    gold: int = 0
    too_few: int = 0
    annotators: set[str] = field(default_factory=set)


def run(settings: ImportConfig, launch: Launch) -> None:
    """Import one file and say what became of it."""
    quarantine = settings.quarantine or settings.file.with_name(settings.file.name + ".quarantine.jsonl")
    rubric = _read_rubric(settings.rubric)
    with fewer_collections(), Store.open(launch.db) as store:
        counts = import_file(store, settings, quarantine=quarantine, rubric=rubric)
    print(describe(counts, settings, quarantine))


def describe(counts: ImportCounts, settings: ImportConfig, quarantine: Path) -> str:
    """What an import did, in a few lines."""
    new = [
        f"{number} {name}"
        for number, name in (
            (counts.prompts, "prompts"),
            (counts.completions, "completions"),
            (counts.tasks, "tasks"),
            (counts.gold, "gold items"),
            (counts.ratings, f"ratings by {len(counts.annotators)} raters"),
        )
        if number
    ]
    lines = [
        f"{settings.file}: {counts.rows} rows into project '{settings.project}'",
        f"  new: {', '.join(new) or 'nothing'}",
    ]
    for number, what in (
        (counts.known_ratings, "ratings were there already"),
        (counts.corrected, "ratings replace an earlier one of the same person"),
        (counts.too_few, f"prompts have too few or too many completions for a {settings.task} task"),
        (counts.bad_rows, f"bad rows, with the reason for each, are in {quarantine}"),
    ):
        if number:
            lines.append(f"  {number} {what}")
    return "\n".join(lines)


def import_file(
    store: Store,
    settings: ImportConfig,
    *,
    quarantine: Path | None,
    rubric: str | None = None,
    actor: str = "system",
    limits: Limits | None = None,
    silent: bool = False,
) -> ImportCounts:
    """Import a file in batches of one transaction per table. Raises DataError when no row is usable.

    A row whose column names no known format, or that is broken, is bad; with quarantine None the first one
    ends the import.
    """
    counts = ImportCounts()
    reading = Reading(
        format=settings.format,
        rated=bool(settings.task),
        mapping=parse_mapping(settings.map),
        ignored=frozenset(settings.ignore),
        score_columns=settings.score_columns,
        scale=settings.scale,
    )
    raters = _Raters(store, settings)
    if quarantine is not None:
        quarantine.unlink(missing_ok=True)
    read = read_table(settings.file, lambda _, row: reading.item(row), quarantine=quarantine, limits=limits)
    batches = chunks(_joined(item for _, item in _counted(read, counts)), BATCH)
    first = next(batches, [])  # before the progress line and the project: a bad file is one error and no more
    _prepare_project(store, settings, rubric)
    with progress("rows", None, stage="import", silent=silent) as bar:
        for batch in chain([first], _read_ahead(batches)):
            _import_batch(store, settings, batch, raters, counts)
            bar.advance(len(batch))
    if quarantine is not None and quarantine.exists():
        with open(quarantine, "rb") as file:
            counts.bad_rows = sum(1 for _ in file)
    store.run(
        lambda connection: audit.append(
            connection, actor, "import", settings.project, file=settings.file.name, rows=counts.rows
        )
    )
    return counts


def _read_ahead(batches: Iterator[list[Item]]) -> Iterator[list[Item]]:
    """Each batch, the next one being read meanwhile: a database works without Python's lock."""
    with ThreadPoolExecutor(max_workers=1) as reader:
        reading = reader.submit(next, batches, None)
        while (batch := reading.result()) is not None:
            reading = reader.submit(next, batches, None)
            yield batch


def _counted(rows: Iterable[tuple[int, Item]], counts: ImportCounts) -> Iterator[tuple[int, Item]]:
    for row in rows:
        counts.rows += 1
        yield row


def _joined(items: Iterable[Item]) -> Iterator[Item]:
    """Completions of one prompt in rows that follow each other become one item, as in a CSV of completions."""
    held: Item | None = None
    for item in items:
        if (
            held is not None
            and held.kind == item.kind == "completions"
            and held.prompt.prompt_id == item.prompt.prompt_id
            and len(held.completions) + len(item.completions) <= MAX_COMPLETIONS
        ):
            both = {c.completion_id: c for c in (*held.completions, *item.completions)}
            held = Item(held.prompt, tuple(both.values()))
            continue
        if held is not None:
            yield held
        held = item
    if held is not None:
        yield held


def _prepare_project(store: Store, settings: ImportConfig, rubric: str | None) -> None:
    """Make the project unless it is there; score columns that are named become its rubric's attributes."""
    ensure_project(store, settings.project, rubric=rubric, simulated=settings.simulated)
    if not settings.score_columns:
        return
    with store.read() as connection:
        title, words, attributes = connection.execute(_RUBRIC, {"project": settings.project}).one()
    if attributes in ("[]", []):
        named = [{"name": name, "definition": ""} for name in settings.score_columns]
        set_rubric(store, settings.project, words, title=title, attributes=named)


def _import_batch(
    store: Store, settings: ImportConfig, batch: list[Item], raters: _Raters, counts: ImportCounts
) -> None:
    began = time.time()
    counts.prompts += add_prompts(store, [item.prompt for item in batch])
    counts.completions += add_completions(store, [c for item in batch for c in item.completions])
    work = [work_of(item, settings.task or None) for item in batch]
    task_ids = _make_tasks(store, settings, work)
    with store.read() as connection:
        keys = {"project": settings.project, "since": began}
        counts.tasks += int(connection.execute(_NEW_TASKS, keys).scalar_one())
        orders = canonical_orders(connection, list(task_ids.values()))
    submissions = []
    for item, found in zip(batch, work, strict=True):
        counts.too_few += found.too_few
        for answer, task in found.answers:
            task_id = task_ids[task]
            order = orders.get(task_id, ())
            if settings.gold:
                expected = found.expected(answer, order)
                set_gold(store, task_id, expected, explanation=answer.explanation or answer.reason)
                counts.gold += 1
                continue
            annotator_id = raters.id_for(answer, task_id)
            judgement = found.judgement(answer, item, task_id, annotator_id, order)
            said = {name: value for name in _SAID if (value := getattr(judgement, name)) is not None}
            # the key of a pair's rating is that of earlier versions: the verdict and its strength
            what = (said.get("preference"), answer.strength) if answer.kind == "pairwise" else (said,)
            key = content_id("import", task_id, annotator_id, *what, answer.reason)
            submissions.append(Submission(judgement, key, origin="import"))
            counts.annotators.add(annotator_id)
    done = import_answers(store, submissions)
    counts.ratings += done.new
    counts.known_ratings += done.known
    counts.corrected += done.corrected


def _make_tasks(
    store: Store, settings: ImportConfig, work: list[Work]
) -> dict[tuple[str, str, frozenset[str]], str]:
    """The tasks of a batch, by kind, prompt and completions."""
    wanted: dict[TaskKind, dict[tuple[str, str, frozenset[str]], tuple[str, tuple[str, ...]]]] = {}
    for found in work:
        for kind, prompt_id, ids in found.tasks:
            wanted.setdefault(kind, {})[kind, prompt_id, frozenset(ids)] = (prompt_id, tuple(sorted(ids)))
    made: dict[tuple[str, str, frozenset[str]], str] = {}
    for kind, items in wanted.items():
        task_ids = create_tasks(
            store,
            project=settings.project,
            kind=kind,
            items=items.values(),
            overlap=settings.overlap,
            simulated=settings.simulated,
        )
        made.update(zip(items, task_ids, strict=True))
    return made


class _Raters:
    """Accounts of the raters that a file names. Unnamed ratings of one task go to different stand-ins."""

    def __init__(self, store: Store, settings: ImportConfig) -> None:
        self.store, self.settings = store, settings
        self.ids = {account.name: account.annotator_id for account in list_accounts(store)}
        self.unnamed: Counter[str] = Counter()

    def id_for(self, answer: Answer, task_id: str) -> str:
        name = answer.annotator
        if not name:
            self.unnamed[task_id] += 1
            nth = self.unnamed[task_id]
            name = self.settings.annotator if nth == 1 else f"{self.settings.annotator} {nth}"
        if name not in self.ids:
            checked = checked_name(name)
            if checked not in self.ids:
                self.ids[checked] = create_annotator(
                    self.store, checked, password=None, simulated=self.settings.simulated
                )
            self.ids[name] = self.ids[checked]
        return self.ids[name]


def _read_rubric(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        rubric = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the rubric cannot be read as UTF-8 text") from error
    if not rubric or len(rubric) > 100_000:
        raise DataError(f"{path}: expected a rubric of 1 to 100,000 characters; found {len(rubric)}")
    return rubric
