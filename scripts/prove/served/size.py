"""Do a million ratings slow the next one down? The same work on a new store and on a full one, in turn."""

from __future__ import annotations

import statistics
import time

from sqlalchemy import text

from feedback_app.store.annotations import answer, submit
from feedback_app.store.engine import Store
from feedback_app.store.leases import lease_next
from served.client import PROJECT
from served.figures import Verdicts
from served.world import make_people, make_tasks

NUM_RATERS = 20
ROUNDS = 10
EACH = 40
OVERLAP = 5
MAX_SLOWER = 1.5

_SERIES = {
    "sqlite": "(WITH RECURSIVE s(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM s WHERE n + 1 < :count) SELECT n FROM s)",
    "postgresql": "(SELECT generate_series(0, CAST(:count AS integer) - 1) AS n)",
}
# Every task has been answered by OVERLAP of the raters; the ids are those of `world.make_tasks`.
_LEASES = (
    "INSERT INTO leases (lease_id, task_id, project_id, annotator_id, state, shown_order, created_at, heartbeat_at, "
    "expires_at, closed_at) SELECT 'old-' || s.n, 't-' || (s.n / :overlap), :project, "
    "p.annotator_id, 'submitted', '[]', s.n * 0.1, s.n * 0.1, s.n * 0.1, s.n * 0.1 "
    "FROM {series} s JOIN people p ON p.i = (s.n + s.n / :overlap) % :num_raters"
)
_ANSWERS = (
    "INSERT INTO annotations (annotation_id, task_id, project_id, annotator_id, lease_id, client_key, version, kind, "
    "preference, strength, shown_order, seconds, created_at) SELECT 'old-' || s.n, 't-' || (s.n / :overlap), :project, "
    "p.annotator_id, 'old-' || s.n, 'old-key-' || s.n, 1, 'pairwise', 'first', 1, '[]', 5, s.n * 0.1 "
    "FROM {series} s JOIN people p ON p.i = (s.n + s.n / :overlap) % :num_raters"
)


def measure(small_url: str, full_url: str, verdicts: Verdicts, database: str, num_ratings: int) -> None:
    """The median lease and submit on both stores; the machine's moods meet both alike."""
    print(f"{num_ratings} ratings in the store, {database}", flush=True)
    started = time.monotonic()
    stores = {"new": Store.open(small_url), "full": Store.open(full_url)}
    try:
        people = {name: fill(store, num_ratings * (name == "full")) for name, store in stores.items()}
        verdicts.note(f"filled in {time.monotonic() - started:.0f} s")
        times: dict[tuple[str, str], list[float]] = {}
        for round_number in range(ROUNDS):
            for name in sorted(stores, reverse=bool(round_number % 2)):
                _rate(stores[name], name, people[name], round_number, times)
        for call in ("lease", "submit"):
            medians = {name: 1000 * statistics.median(times[name, call]) for name in stores}
            tails = {name: 1000 * sorted(times[name, call])[-ROUNDS * EACH // 20] for name in stores}
            verdicts.note(
                f"{call}: median {medians['new']:.2f} -> {medians['full']:.2f} ms, "
                f"p95 {tails['new']:.2f} -> {tails['full']:.2f} ms"
            )
            verdicts.at_most(
                f"{database}: {call} slower by", medians["full"] / medians["new"], MAX_SLOWER, "x"
            )
    finally:
        for store in stores.values():
            store.close()


def fill(store: Store, num_ratings: int) -> list[str]:
    """Answered tasks by plain SQL, and open ones behind them as on the new store."""
    people = make_people(store, NUM_RATERS)
    num_old = num_ratings // OVERLAP
    make_tasks(store, num_old + ROUNDS * EACH * 2, overlap=OVERLAP)
    if num_ratings:
        values = {"count": num_ratings, "overlap": OVERLAP, "project": PROJECT, "num_raters": NUM_RATERS}
        with store.write() as connection:
            connection.execute(
                text("CREATE TEMPORARY TABLE people (i INTEGER PRIMARY KEY, annotator_id VARCHAR(64))")
            )
            rows = [{"i": i, "annotator_id": person} for i, person in enumerate(people)]
            connection.execute(text("INSERT INTO people VALUES (:i, :annotator_id)"), rows)
            for statement in (_LEASES, _ANSWERS):
                connection.execute(text(statement.format(series=_SERIES[store.dialect])), values)
            connection.execute(
                text(
                    "UPDATE tasks SET num_done = overlap, is_open = (1 = 0) WHERE task_id IN "
                    "(SELECT task_id FROM annotations)"
                )
            )
            connection.execute(text("DROP TABLE people"))
    with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE")
    return people


def _rate(
    store: Store, name: str, people: list[str], round_number: int, times: dict[tuple[str, str], list[float]]
) -> None:
    for i in range(EACH):
        person = people[i % len(people)]
        started = time.perf_counter()
        view = lease_next(store, person, PROJECT)
        leased = time.perf_counter()
        assert view is not None
        judgement = answer(view, person, preference="first", strength=1)
        begun = time.perf_counter()
        submit(store, judgement, lease_id=view.lease_id, client_key=f"{round_number}-{i}")
        times.setdefault((name, "submit"), []).append(time.perf_counter() - begun)
        times.setdefault((name, "lease"), []).append(leased - started)
