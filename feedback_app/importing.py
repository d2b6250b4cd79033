"""`rlhf import FILE`: prompts, completions and existing ratings from JSONL into the feedback store.

Good rows are kept, bad rows go to a quarantine file with the line and the reason. Importing the same file
again adds nothing. Ratings become what a rater at the desk would have left: a task, an annotator, an answer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, combinations
from pathlib import Path

from sqlalchemy import Connection, bindparam, text

from feedback_app.accounts import checked_name, create_annotator, list_accounts
from feedback_app.config import ImportConfig
from feedback_app.import_rows import ImportRow
from feedback_app.store import audit
from feedback_app.store.annotations import Submission, submit_many
from feedback_app.store.engine import Store
from feedback_app.store.schema import annotations_table
from feedback_app.store.tasks import (
    add_completions,
    add_prompts,
    chunks,
    create_tasks,
    ensure_project,
    existing,
)
from rlhf.core.errors import DataError
from rlhf.core.files import read_jsonl
from rlhf.core.metrics import progress
from rlhf.core.records import Judgement, content_id
from rlhf.core.run import Launch

BATCH = 2000
_MAKE_ROOM = text(
    "UPDATE tasks SET overlap = num_done + num_held + :needed, is_open = true "
    "WHERE task_id = :task_id AND overlap < num_done + num_held + :needed"
).bindparams(bindparam("needed"), bindparam("task_id"))


@dataclass
class ImportCounts:
    """What an import did."""

    rows: int = 0
    bad_rows: int = 0
    prompts: int = 0
    completions: int = 0
    tasks: int = 0
    ratings: int = 0
    known_ratings: int = 0
    surplus: int = 0
    annotators: set[str] = field(default_factory=set)


def run(settings: ImportConfig, launch: Launch) -> None:
    """Import one file and say what became of it."""
    quarantine = settings.quarantine or settings.file.with_name(settings.file.name + ".quarantine.jsonl")
    rubric = _read_rubric(settings.rubric)
    with Store.open(launch.db) as store:
        counts = import_file(store, settings, quarantine=quarantine, rubric=rubric)
    new = [
        f"{number} {name}"
        for number, name in (
            (counts.prompts, "prompts"),
            (counts.completions, "completions"),
            (counts.tasks, "tasks"),
            (counts.ratings, f"ratings by {len(counts.annotators)} raters"),
        )
        if number
    ]
    print(f"{settings.file}: {counts.rows} rows into project '{settings.project}'")
    print(f"  new: {', '.join(new) or 'nothing'}")
    if counts.known_ratings:
        print(f"  {counts.known_ratings} ratings were there already")
    if counts.surplus:
        print(f"  {counts.surplus} ratings are kept as surplus: their tasks had all the answers they need")
    if counts.bad_rows:
        print(f"  {counts.bad_rows} bad rows, with the reason for each, are in {quarantine}")


def import_file(
    store: Store, settings: ImportConfig, *, quarantine: Path | None, rubric: str | None = None
) -> ImportCounts:
    """Import a file in batches of one transaction per table. Raises DataError when no row is usable.

    The canonical order of a pair is that of its ids: 'chosen comes first' would put the answer into the order.
    """
    counts = ImportCounts()
    raters = _Raters(store, settings)
    rows = read_jsonl(settings.file, ImportRow, quarantine=quarantine)
    if quarantine is not None:
        quarantine.unlink(missing_ok=True)
    batches = chunks(_of_kind(rows, settings), BATCH)
    first = next(batches, [])  # before the progress line and the project: a bad file is one error and no more
    ensure_project(store, settings.project, rubric=rubric, simulated=settings.simulated)
    with progress("rows", None, stage="import") as bar:
        for batch in chain([first], batches):
            _import_batch(store, settings, batch, raters, counts)
            bar.advance(len(batch))
    if quarantine is not None and quarantine.exists():
        with open(quarantine, "rb") as file:
            counts.bad_rows = sum(1 for _ in file)
    store.run(
        lambda connection: audit.append(
            connection, "system", "import", settings.project, file=settings.file.name, rows=counts.rows
        )
    )
    return counts


def _of_kind(rows: Iterator[ImportRow], settings: ImportConfig) -> Iterator[ImportRow]:
    for number, row in enumerate(rows, start=1):
        if settings.kind not in ("auto", row.kind):
            raise DataError(
                f"{settings.file}: usable row {number} is of kind '{row.kind}'; --kind says '{settings.kind}'"
            )
        yield row


def _import_batch(
    store: Store, settings: ImportConfig, batch: list[ImportRow], raters: _Raters, counts: ImportCounts
) -> None:
    counts.rows += len(batch)
    counts.prompts += add_prompts(store, [row.prompt for row in batch])
    counts.completions += add_completions(store, [c for row in batch for c in row.completions])
    pairs = [
        (row.prompt.prompt_id, tuple(sorted(c.completion_id for c in pair)))
        for row in batch
        for pair in combinations(row.completions, 2)
    ]
    before = _num_tasks(store, settings.project)
    task_ids = create_tasks(
        store,
        project=settings.project,
        kind="pairwise",
        items=pairs,
        overlap=settings.overlap,
        simulated=settings.simulated,
    )
    counts.tasks += _num_tasks(store, settings.project) - before
    ratings = [row for row in batch if row.kind == "preferences"]
    if ratings:
        task_of = dict(zip(((p, frozenset(ids)) for p, ids in pairs), task_ids, strict=True))
        _import_ratings(store, settings, ratings, task_of, raters, counts)


def _import_ratings(
    store: Store,
    settings: ImportConfig,
    ratings: list[ImportRow],
    task_of: dict[tuple[str, frozenset[str]], str],
    raters: _Raters,
    counts: ImportCounts,
) -> None:
    canonical = _canonical_orders(store, set(task_of.values()))
    submissions = []
    for row in ratings:
        ids = tuple(c.completion_id for c in row.completions)
        task_id = task_of[row.prompt.prompt_id, frozenset(ids)]
        order = canonical[task_id]
        annotator_id = raters.id_for(row.annotator, task_id)
        verdict = "tie" if row.tie else ("first" if ids[0] == order[0] else "second")
        judgement = Judgement(
            judgement_id="",
            task_id=task_id,
            prompt_id=row.prompt.prompt_id,
            annotator_id=annotator_id,
            completion_ids=order,
            preference=verdict,
            strength=row.strength,
            reason=row.reason,
        )
        key = content_id("import", task_id, annotator_id, verdict, row.strength, row.reason)
        submissions.append(Submission(judgement, key, origin="import"))
        counts.annotators.add(annotator_id)
    _make_room(store, submissions)
    for receipt in submit_many(store, submissions):
        counts.ratings += not receipt.repeated
        counts.known_ratings += receipt.repeated
        counts.surplus += receipt.surplus and not receipt.repeated


def _make_room(store: Store, submissions: list[Submission]) -> None:
    """Ratings that somebody brings are wanted: the tasks' overlap grows to hold those that are new."""

    def unit(connection: Connection) -> None:
        known = existing(connection, annotations_table.c.client_key, (s.client_key for s in submissions))
        raters_of: dict[str, set[str]] = defaultdict(set)
        for submission in submissions:
            if submission.client_key not in known:
                raters_of[submission.judgement.task_id].add(submission.judgement.annotator_id)
        wanted = [{"task_id": task_id, "needed": len(raters)} for task_id, raters in raters_of.items()]
        if wanted:
            connection.execute(_MAKE_ROOM, wanted)

    store.run(unit)


class _Raters:
    """Accounts of the raters that a file names. Unnamed ratings of one pair go to different stand-ins."""

    def __init__(self, store: Store, settings: ImportConfig) -> None:
        self.store, self.settings = store, settings
        self.ids = {account.name: account.annotator_id for account in list_accounts(store)}
        self.unnamed: Counter[str] = Counter()

    def id_for(self, name: str, task_id: str) -> str:
        if not name:
            self.unnamed[task_id] += 1
            nth = self.unnamed[task_id]
            name = self.settings.annotator if nth == 1 else f"{self.settings.annotator} {nth}"
        name = checked_name(name)
        if name not in self.ids:
            self.ids[name] = create_annotator(
                self.store, name, password=None, simulated=self.settings.simulated
            )
        return self.ids[name]


def _canonical_orders(store: Store, task_ids: set[str]) -> dict[str, tuple[str, ...]]:
    orders: dict[str, list[str]] = defaultdict(list)
    query = text(
        "SELECT task_id, completion_id FROM task_completions WHERE task_id IN :ids ORDER BY task_id, position"
    ).bindparams(bindparam("ids", expanding=True))
    with store.read() as connection:
        for chunk in chunks(task_ids):
            for task_id, completion_id in connection.execute(query, {"ids": chunk}).tuples():
                orders[task_id].append(completion_id)
    return {task_id: tuple(ids) for task_id, ids in orders.items()}


def _num_tasks(store: Store, project: str) -> int:
    with store.read() as connection:
        query = text("SELECT count(*) FROM tasks WHERE project_id = :project")
        return int(connection.execute(query, {"project": project}).scalar_one())


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
