"""Many processes that lease and submit on one store at the same moment, as scripts and several servers do."""

from __future__ import annotations

import multiprocessing
import time

from feedback_app.store.annotations import answer, submit
from feedback_app.store.engine import Store
from feedback_app.store.leases import lease_next
from served.client import PROJECT
from served.figures import Verdicts
from served.world import faults, make_people, make_tasks

EACH = 20
OVERLAP = 5


def measure(url: str, verdicts: Verdicts, database: str, num_processes: int) -> None:
    """`num_processes` processes submit EACH answers each; none may fail."""
    print(f"{num_processes} processes on {database}, {EACH} answers each", flush=True)
    with Store.open(url) as store:
        make_tasks(store, num_processes * EACH // OVERLAP + 2 * num_processes, overlap=OVERLAP)
        people = make_people(store, num_processes)
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(num_processes + 1), context.Queue()
    processes = [context.Process(target=_work, args=(url, person, ready, results)) for person in people]
    for process in processes:
        process.start()
    ready.wait(300)
    started = time.monotonic()
    done = [results.get(timeout=300) for _ in processes]
    took = time.monotonic() - started
    for process in processes:
        process.join()
    acknowledged = {key: lease for keys, _ in done for key, lease in keys.items()}
    errors = [error for _, error in done if error]
    verdicts.note(f"{len(acknowledged)} answers in {took:.1f} s, {len(acknowledged) / took:.0f}/s")
    for error in errors[:3]:
        verdicts.note(error)
    verdicts.at_most(f"{database}: processes with an error", len(errors), 0)
    with Store.open(url) as store:
        found = faults(store, acknowledged)
    for fault in found:
        verdicts.note(fault)
    verdicts.at_most(f"{database}: faults in the store after {num_processes} processes", len(found), 0)


def _work(url: str, person: str, ready, results) -> None:  # type: ignore[no-untyped-def]
    keys: dict[str, str] = {}
    try:
        with Store.open(url) as store:
            ready.wait(300)
            for i in range(EACH):
                view = lease_next(store, person, PROJECT)
                if view is None:
                    raise RuntimeError("nothing left to rate")
                key = f"{person}-{i}"
                judgement = answer(view, person, preference="first", strength=1)
                submit(store, judgement, lease_id=view.lease_id, client_key=key)
                keys[key] = view.lease_id
        results.put((keys, ""))
    except Exception as error:
        results.put((keys, f"{type(error).__name__}: {error}"))
