"""An answer fits its task, its project and its kind, by whichever door it comes; otherwise it is refused."""

from __future__ import annotations

import pytest
from desk_world import SAYS, make, rows

from feedback_app.store.annotations import answer, submit
from feedback_app.store.leases import lease_next, skip
from feedback_app.store.projects import change_settings, list_projects, project_settings, set_member
from feedback_app.store.tasks import add_completions, add_prompts, create_tasks, ensure_project, set_rubric
from rlhf.core.errors import DataError, StoreError
from rlhf.core.records import Completion, Judgement, Prompt

KINDS = {"pairwise": 2, "ranking": 3, "scores": 2, "demonstration": 0, "thumbs": 1}


@pytest.fixture
def leased(store, people):
    """leased(kind) is a task of that kind, leased to the first person; scores are for help and care."""

    def _leased(kind):
        make(store, kind, KINDS[kind])
        set_rubric(store, "p", "Read.", attributes=[{"name": "help"}, {"name": "care"}])
        return lease_next(store, people[0], "p")

    return _leased


def forged(view, person, **fields):
    """A judgement that no validator looked at."""
    ids = tuple(c.completion_id for c in view.completions)
    plain = {"judgement_id": "", "task_id": view.task_id, "prompt_id": view.prompt.prompt_id}
    return Judgement.model_construct(
        **plain, annotator_id=person, kind=view.kind, completion_ids=ids, **{"shown_order": ids[:0], **fields}
    )


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("pairwise", {"preference": "left"}, "'preference' expected"),
        ("pairwise", {"preference": "first", "strength": 9}, "'strength'"),
        ("pairwise", {"preference": "tie", "strength": 1}, "'tie' has no strength"),
        ("pairwise", {"preference": "first", "thumb": "up"}, "needs exactly that answer"),
        ("pairwise", {}, "needs exactly that answer; found none"),
        (
            "ranking",
            {"ranking": (("ranking0-0",), ("ranking0-1",))},
            "every completion of the task exactly once",
        ),
        ("ranking", {"ranking": (("ranking0-0", "ranking0-1", "ranking0-2", "x"),)}, "exactly once"),
        ("ranking", {"ranking": (("ranking0-0", "ranking0-1", "ranking0-2"), ())}, "no empty group"),
        (
            "scores",
            {"scores": {"help": {"scores0-0": 3, "scores0-1": 3}}},
            "must name help, care; found help",
        ),
        (
            "scores",
            {"scores": {"help": {"scores0-0": 3}, "care": {"scores0-0": 3, "scores0-1": 3}}},
            "'help' must score every completion .* found 1 scores for 2",
        ),
        (
            "scores",
            {"scores": {name: {"scores0-0": 3, "scores0-1": 6} for name in ("help", "care")}},
            "1 to 5; found 6",
        ),
        ("demonstration", {"demonstration": "  \n"}, "demonstration is empty"),
        ("demonstration", {"demonstration": "x" * 100_001}, "100001 characters; at most 100000"),
        ("thumbs", {"thumb": "sideways"}, "'thumb' expected"),
        ("thumbs", {"thumb": "up", "flags": ("rude",)}, "flag 'rude' is not one of the project's: unsafe"),
        ("thumbs", {"thumb": "up", "flags": ("unsafe", "unsafe")}, "set twice"),
        ("thumbs", {"thumb": "up", "reason": "nul \x00 byte"}, "NUL"),
        ("thumbs", {"thumb": "up", "reason": "half \ud83d"}, "lone surrogate"),
    ],
)
def test_a_hand_made_answer_that_does_not_fit_is_refused_in_one_line(
    store, leased, people, kind, fields, message
):
    view = leased(kind)
    with pytest.raises(DataError, match=message) as caught:
        submit(store, forged(view, people[0], **fields), lease_id=view.lease_id, client_key="k")
    assert "\n" not in str(caught.value)
    assert rows(store, "SELECT count(*) FROM annotations") == [(0,)]
    assert rows(store, "SELECT num_done, num_held FROM tasks") == [(0, 1)]


@pytest.mark.databases("sqlite", "postgresql")
def test_every_kind_is_kept_as_it_was_said(store, leased, people):
    for kind, num in KINDS.items():
        view = leased(kind)
        assert len(view.completions) == num
        fields = SAYS[kind](view)
        if kind == "scores":
            fields = {"scores": dict.fromkeys(("help", "care"), fields["scores"]["help"])}
        said = answer(view, people[0], flags=("unsafe",), reason="weil 🙂 \u202e", **fields)
        submit(store, said, lease_id=view.lease_id, client_key=kind, seconds=1.5)
    found = {r[0]: r[1:] for r in rows(store, "SELECT kind, reason, seconds FROM latest_annotations")}
    assert found == dict.fromkeys(KINDS, ("weil 🙂 \u202e", 1.5))


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), 90_000.0])
def test_a_time_that_cannot_be_is_refused(store, leased, people, seconds):
    view = leased("thumbs")
    with pytest.raises(DataError, match="'seconds' is 0 to 86400"):
        submit(
            store,
            answer(view, people[0], thumb="up"),
            lease_id=view.lease_id,
            client_key="k",
            seconds=seconds,
        )


def test_the_order_that_was_shown_cannot_be_changed_afterwards(store, leased, people):
    view = leased("pairwise")
    turned = answer(view, people[0], preference="tie").model_copy(
        update={"shown_order": view.shown_order[::-1]}
    )
    with pytest.raises(DataError, match="were shown in the order"):
        submit(store, turned, lease_id=view.lease_id, client_key="k")


def test_answers_faster_than_the_projects_minimum_are_kept_and_marked(store, people):
    make(store, "thumbs", 1, num_tasks=3)
    change_settings(store, "p", {"min_seconds": 4}, actor="test")
    for number, seconds in enumerate((3.9, 4.0, None)):
        view = lease_next(store, people[0], "p")
        submit(
            store,
            answer(view, people[0], thumb="up"),
            lease_id=view.lease_id,
            client_key=str(number),
            seconds=seconds,
        )
    assert rows(store, "SELECT seconds FROM annotations WHERE too_fast") == [(3.9,)]


def test_conversations_are_tasks_like_any_other(store, people):
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello!"), ("user", "And now?")]
    prompt = Prompt.model_validate({"messages": [{"role": r, "content": c} for r, c in turns]})
    add_prompts(store, [prompt])
    add_completions(store, [Completion(completion_id="c", prompt_id=prompt.prompt_id, text="Now.")])
    create_tasks(store, project="p", kind="thumbs", items=[(prompt.prompt_id, ("c",))])
    view = lease_next(store, people[0], "p")
    assert [(m.role, m.content) for m in view.prompt.messages] == turns


def test_work_that_a_database_cannot_hold_is_refused(store):
    prompt = Prompt.model_validate({"prompt": "fine"})
    with pytest.raises(DataError, match="lone surrogate"):
        add_prompts(store, [Prompt.model_validate({"prompt_id": "p1", "prompt": "half \udc00"})])
    add_prompts(store, [prompt])
    with pytest.raises(DataError, match="'completion c' holds a NUL"):
        add_completions(store, [Completion(completion_id="c", prompt_id=prompt.prompt_id, text="\x00")])
    with pytest.raises(DataError, match=r"'pairwize' is not a kind of task; did you mean 'pairwise'\?"):
        create_tasks(store, project="p", kind="pairwize", items=[])  # type: ignore[arg-type]
    with pytest.raises(DataError, match="overlap must be 1 to"):
        create_tasks(store, project="p", kind="pairwise", items=[], overlap=0)


def test_rubric_attributes_have_names_of_their_own(store):
    ensure_project(store, "p")
    with pytest.raises(DataError, match="'name' is missing"):
        set_rubric(store, "p", "x", attributes=[{"definition": "no name"}])
    with pytest.raises(DataError, match="one name: help, help"):
        set_rubric(store, "p", "x", attributes=[{"name": "help"}, {"name": "help"}])
    with pytest.raises(DataError, match="anchors"):
        set_rubric(store, "p", "x", attributes=[{"name": "help", "anchors": {"6": "beyond"}}])
    assert set_rubric(store, "p", "x", attributes=[{"name": "help", "anchors": {"5": "exactly"}}]) == 2


def test_settings_are_checked_kept_and_audited(store):
    ensure_project(store, "p")
    for changes, message in (
        ({"gold_rat": 1}, r"'gold_rat' is not a project setting; did you mean 'gold_rate'\?"),
        ({"gold_rate": 1.5}, "project setting 'gold_rate'"),
        ({"gold_rate": 0.6, "repeat_rate": 0.6}, "at most 1 together"),
        ({"flags": ["a", "a"]}, "named twice"),
    ):
        with pytest.raises(DataError, match=message):
            change_settings(store, "p", changes, actor="lead")
    change_settings(store, "p", {"gold_rate": 0.1}, actor="lead")
    change_settings(store, "p", {"flags": ["rude"]}, actor="lead")
    with store.read() as connection:
        settings = project_settings(connection, "p")
        with pytest.raises(StoreError, match="no project 'x'"):
            project_settings(connection, "x")
    assert (settings.gold_rate, settings.flags, settings.repeat_after) == (0.1, ("rude",), 10)
    assert len(rows(store, "SELECT 1 FROM audit_log WHERE action = 'project.settings'")) == 2


def test_a_project_for_members_shows_itself_to_them_and_to_leads(store, fill, people):
    class Someone:
        def __init__(self, annotator_id, role):
            self.annotator_id, self.role = annotator_id, role

    fill(store, 2)
    change_settings(store, "p", {"members_only": True}, actor="lead")
    set_member(store, "p", people[0], True, actor="lead")
    with store.read() as connection:
        seen = {
            (person, role): [p.project_id for p in list_projects(connection, Someone(person, role))]
            for person, role in ((people[0], "annotator"), (people[1], "annotator"), (people[1], "lead"))
        }
    assert list(seen.values()) == [["p"], [], ["p"]]
    view = lease_next(store, people[0], "p")
    with pytest.raises(StoreError, match="for its members only"):
        lease_next(store, people[1], "p")
    set_member(store, "p", people[0], False, actor="lead")
    with pytest.raises(StoreError, match="for its members only"):
        lease_next(store, people[0], "p")
    # What they had on screen is still taken.
    submit(store, answer(view, people[0], preference="tie"), lease_id=view.lease_id, client_key="k")


def test_a_reason_for_a_skip_is_checked_too(store, leased, people):
    view = leased("thumbs")
    with pytest.raises(DataError, match="NUL"):
        skip(store, view.lease_id, people[0], reason="\x00", client_key="s")
