"""My last answers: mine alone, in pages, unmarked, and open to correction."""

from __future__ import annotations

import pytest
from desk_world import make, rate, rate_all, rows

from feedback_app.store.annotations import answer, submit
from feedback_app.store.gold import set_gold
from feedback_app.store.history import Answered, my_answers, open_answer
from feedback_app.store.projects import change_settings
from rlhf.core.errors import StoreError

pytestmark = pytest.mark.databases("sqlite", "postgresql")


def test_answers_come_in_pages_newest_first_and_are_mine(store, fill, people):
    fill(store, 7, overlap=2)
    mine = [receipt.annotation_id for _, receipt in rate_all(store, people[0])]
    rate_all(store, people[1])
    pages, before = [], None
    with store.read() as connection:
        while page := my_answers(connection, people[0], "p", limit=3, before=before):
            pages.append([answered.annotation_id for answered in page])
            before = page[-1].annotation_id
        assert my_answers(connection, people[0], "elsewhere") == []
    assert [len(page) for page in pages] == [3, 3, 1]
    assert [i for page in pages for i in page] == mine[::-1]


def test_a_correction_starts_from_what_was_shown_and_said(store, fill, people):
    fill(store, 1)
    view, receipt = rate(store, people[0], preference="second", strength=3, reason="shorter")
    with store.read() as connection:
        opened = open_answer(connection, receipt.annotation_id, people[0])
    assert opened.shown_order == view.shown_order
    assert opened.completions == view.completions
    assert (opened.answer.preference, opened.answer.reason) == ("second", "shorter")
    better = answer(opened, people[0], preference="first", strength=1)
    assert submit(store, better, lease_id=opened.lease_id, client_key="better").version == 2
    with store.read() as connection:
        (listed,) = my_answers(connection, people[0], "p")
        assert (listed.version, listed.answer.preference) == (2, "first")
        # The id of the old version opens the new one.
        assert open_answer(connection, receipt.annotation_id, people[0]).answer.version == 2
    assert rows(store, "SELECT num_done FROM tasks") == [(1,)]


def test_nobody_opens_another_persons_answer(store, fill, people):
    fill(store, 1)
    _, receipt = rate(store, people[0])
    with store.read() as connection, pytest.raises(StoreError, match="not an answer of this annotator"):
        open_answer(connection, receipt.annotation_id, people[1])


def test_gold_is_not_marked_in_the_list(store, fill, people):
    ids = fill(store, 2)
    set_gold(store, ids[0], {"preference": "first"})
    change_settings(store, "p", {"gold_rate": 0.5}, actor="test")
    rate_all(store, people[0])
    with store.read() as connection:
        listed = my_answers(connection, people[0], "p")
    assert {answered.task_id for answered in listed} >= {ids[1]}
    assert not {"purpose", "gold", "correct"} & set(Answered.__dataclass_fields__)


def test_every_kind_of_answer_can_be_opened(store, people):
    make(store, "ranking", 3)
    make(store, "thumbs", 1)
    make(store, "demonstration", 0)
    done = {view.kind: receipt.annotation_id for view, receipt in rate_all(store, people[0])}
    with store.read() as connection:
        opened = {kind: open_answer(connection, i, people[0]).answer for kind, i in done.items()}
    assert opened["ranking"].ranking == (("ranking0-0",), ("ranking0-1",), ("ranking0-2",))
    assert opened["thumbs"].thumb == "up"
    assert opened["demonstration"].demonstration == "Like this."
