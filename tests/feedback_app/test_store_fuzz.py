"""Whatever order people do things in, the store's promises hold: checked after random work by several people."""

from __future__ import annotations

import random
import threading
import time

import pytest
from desk_world import make, rows
from sqlalchemy import update

from feedback_app.accounts import create_annotator
from feedback_app.store.adjudication import adjudicate, disputed
from feedback_app.store.annotations import answer, judgements, submit
from feedback_app.store.erasure import erase_ratings
from feedback_app.store.gold import set_gold
from feedback_app.store.leases import expire_leases, heartbeat, lease_next, release, skip
from feedback_app.store.projects import change_settings
from feedback_app.store.schema import leases
from rlhf.core.errors import StoreError

OVERLAP = 2
SAYS = (
    {"preference": "first", "strength": 1},
    {"preference": "second", "strength": 3},
    {"preference": "tie"},
)


def world(store):
    ids = make(store, "pairwise", 2, num_tasks=14, overlap=OVERLAP)
    for task_id in ids[:3]:
        set_gold(store, task_id, {"preference": "first"})
    change_settings(store, "p", {"gold_rate": 0.15, "repeat_rate": 0.25, "repeat_after": 1}, actor="t")
    # Simulated people have ids made from their names: the draws of a seed are the same in every run.
    people = [create_annotator(store, f"person {n}", password=None, simulated=True) for n in range(4)]
    return people, create_annotator(store, "lead", password=None, role="lead")


class Person:
    """Somebody who does what comes to mind, and remembers every answer that the store said was kept."""

    def __init__(self, store, annotator_id, lead, seed):
        self.store, self.me, self.lead = store, annotator_id, lead
        self.chance = random.Random(seed)
        self.views, self.kept = [], {}

    def act(self):
        what = self.chance.choices(
            ("lease", "submit", "resend", "correct", "skip", "release", "heartbeat", "expire", "decide"),
            (8, 9, 2, 2, 1, 1, 1, 1, 1),
        )[0]
        view = self.chance.choice(self.views) if self.views else None
        if what == "lease":
            new = lease_next(self.store, self.me, "p", holding=[v.lease_id for v in self.views[-2:]])
            self.views += [new] if new is not None else []
        elif what == "expire":
            self._expire()
        elif what == "decide":
            self._decide()
        elif view is None:
            return
        elif what in ("submit", "correct"):
            key = f"{view.lease_id}" if what == "submit" else f"{view.lease_id} {self.chance.random()}"
            said = answer(view, self.me, reason=key, **self.chance.choice(SAYS))
            self.kept[key] = submit(self.store, said, lease_id=view.lease_id, client_key=key).annotation_id
        elif what == "resend" and self.kept:
            key = self.chance.choice(sorted(self.kept))
            same = next(v for v in self.views if key.startswith(v.lease_id))
            said = answer(same, self.me, preference="tie")
            receipt = submit(self.store, said, lease_id=same.lease_id, client_key=key)
            assert receipt.repeated
            assert receipt.annotation_id == self.kept[key]
        elif what == "skip":
            skip(self.store, view.lease_id, self.me, reason="no", client_key=f"skip {view.lease_id}")
        elif what == "release":
            release(self.store, view.lease_id, self.me)
        elif what == "heartbeat":
            heartbeat(self.store, view.lease_id, self.me)

    def _expire(self):
        def unit(connection):
            one = update(leases).where(leases.c.annotator_id == self.me, leases.c.state == "active")
            connection.execute(one.values(expires_at=time.time() - 1))
            expire_leases(connection, time.time())

        self.store.run(unit)

    def _decide(self):
        with self.store.read() as connection:
            found = disputed(connection, "p", 1)
        if found:
            decision = answer(found[0].task, self.lead, **self.chance.choice(SAYS))
            key = f"decision {self.me} {self.chance.random()}"
            self.kept[f"!{key}"] = adjudicate(self.store, decision, self.lead, client_key=key).annotation_id
            del self.kept[f"!{key}"]  # resent by nobody; that it is kept is checked below through the view


def check(store, workers):
    assert (
        rows(
            store,
            "SELECT t.task_id FROM tasks t WHERE t.num_held <> (SELECT count(*) FROM leases l WHERE "
            "l.task_id = t.task_id AND l.state = 'active' AND l.purpose = 'rate') OR t.num_done <> "
            "(SELECT count(*) FROM annotations a WHERE a.task_id = t.task_id AND a.purpose = 'rate' "
            "AND a.supersedes IS NULL AND NOT a.surplus "
            "AND NOT EXISTS (SELECT 1 FROM tombstones d WHERE d.annotation_id = a.annotation_id)) "
            "OR t.num_done + t.num_held > t.overlap "
            "OR t.is_open <> (t.pool = 'queue' AND t.num_done + t.num_held < t.overlap)",
        )
        == []
    )
    # Nobody holds or answers one task twice, and every answer the store acknowledged is there once.
    assert (
        rows(
            store,
            "SELECT task_id FROM leases WHERE state = 'active' GROUP BY task_id, annotator_id HAVING count(*) > 1",
        )
        == []
    )
    stored = dict(rows(store, "SELECT client_key, annotation_id FROM annotations"))
    for worker in workers:
        assert worker.kept.items() <= stored.items()
    assert (
        rows(
            store,
            "SELECT a.task_id FROM latest_annotations a GROUP BY a.task_id, a.annotator_id, "
            "a.purpose = 'adjudicate' HAVING count(*) > 1",
        )
        == []
    )
    # An exported task has its accepted answers, or one decision; gold and repeats are not there.
    exported = {}
    for judgement in judgements(store, "p"):
        exported.setdefault(judgement.task_id, []).append(judgement)
    expected = rows(
        store,
        "SELECT t.task_id, t.pool, CASE WHEN t.dispute = 'decided' THEN 1 ELSE t.num_done END FROM tasks t",
    )
    assert {task: len(found) for task, found in exported.items()} == {
        task: number for task, pool, number in expected if number and pool == "queue"
    }
    # The counters say what counting would.
    counted = rows(
        store,
        "SELECT annotator_id, count(*) FROM annotations WHERE supersedes IS NULL AND purpose <> 'adjudicate' "
        "GROUP BY annotator_id ORDER BY annotator_id",
    )
    assert counted == rows(
        store, "SELECT annotator_id, num_answers FROM progress WHERE num_answers > 0 ORDER BY annotator_id"
    )


@pytest.mark.databases("sqlite", "postgresql")
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_work_one_step_at_a_time_keeps_every_promise(store, seed):
    people, lead = world(store)
    workers = [Person(store, person, lead, f"{seed}{person}") for person in people]
    chance = random.Random(seed)
    for step in range(150):
        chance.choice(workers).act()
        if step % 10 == 9:
            check(store, workers)
    assert {r[0] for r in rows(store, "SELECT purpose FROM annotations")} >= {"rate", "gold", "repeat"}
    erase_ratings(store, "person 0", requested_by="system")
    workers[0].kept.clear()
    assert rows(store, "SELECT count(*) FROM latest_annotations WHERE annotator_id = :me", me=people[0]) == [
        (0,)
    ]


@pytest.mark.databases("sqlite", "postgresql")
def test_random_work_all_at_once_keeps_every_promise(store):
    people, lead = world(store)
    workers = [Person(store, person, lead, person) for person in people]
    # Two tabs of the first person: their keys differ, their place in every task is one.
    workers.append(Person(store, people[0], lead, "second tab"))
    failures = []

    def work(worker):
        try:
            for _ in range(40):
                try:
                    worker.act()
                except StoreError as error:
                    failures.extend([error] if "used for another answer" not in str(error) else [])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    check(store, workers)
