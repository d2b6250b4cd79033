"""The chat: what people say about answers becomes accepted ratings, and nothing tells them which model wrote what."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from feedback_app.accounts import Person, create_annotator, log_in
from feedback_app.security import COOKIE
from feedback_app.store.annotations import judgements
from feedback_app.store.engine import Store
from feedback_app.store.snapshots import export_snapshot
from feedback_app.store.tasks import ensure_project
from rlhf.core.errors import ConfigError, DataError, StoreError
from rlhf.serve.chat.app import build_chat
from rlhf.serve.chat.endpoint import Endpoint, EndpointError
from rlhf.serve.chat.talks import AskBody, ChooseBody, CorrectBody, Talks, ThumbBody
from rlhf.serve.config import ChatConfig
from tests.serve.fake_endpoint import Fake

KEY = "0123456789abcdef"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path}/feedback.db") as opened:
        yield opened


@pytest.fixture
def me(store: Store) -> Person:
    return Person(create_annotator(store, "maria", password=None), "maria", "annotator")


@pytest.fixture
def talk_with(store: Store) -> Callable[..., Talks]:
    def make(fake: Fake, **settings: Any) -> Talks:
        ensure_project(store, "live")
        return Talks(store, fake.endpoint(), ChatConfig(**{"compare_share": 0} | settings), seed=1)

    return make


def ask(talks: Talks, me: Person, text: str, talk: str | None = None, *, compare: bool = False) -> list[dict]:
    async def collect() -> list[dict]:
        return [event async for event in talks.ask(me, AskBody(text=text, talk=talk, compare=compare))]

    return asyncio.run(collect())


def test_thumbs_and_a_correction_are_kept_and_exported(
    store: Store, me: Person, talk_with: Callable[..., Talks], tmp_path: Path
) -> None:
    fake = Fake("champion")
    talks = talk_with(fake)
    events = ask(talks, me, " Where is my order? ")
    talk, [answer] = events[0]["start"]["talk"], events[0]["start"]["answers"]
    assert events[-1] == {"done": {"choose": False, "answers": [answer]}}
    end = next(event["end"] for event in events if "end" in event)
    assert end["tree"][0][2][0][:2] == ["strong", {}]  # rendered as the desk renders
    assert "champion" not in json.dumps([e for e in events if "part" not in e])

    assert talks.thumb(me, ThumbBody(answer=answer, thumb="up", key=KEY)) == {"saved": True}
    talks.thumb(me, ThumbBody(answer=answer, thumb="up", key=KEY))  # a retry
    talks.thumb(me, ThumbBody(answer=answer, thumb="down", reason="too short", key=KEY + "2"))
    [judged] = judgements(store, "live")
    assert (judged.kind, judged.thumb, judged.reason, judged.version) == ("thumbs", "down", "too short", 2)

    fixed = CorrectBody(answer=answer, text="It comes *tomorrow*.", key=KEY + "3")
    assert talks.correct(me, fixed)["saved"]
    ask(talks, me, "Thanks!", talk)
    # The conversation goes on with the correction, not with what the model wrote.
    assert [m["content"] for m in fake.asked[-1]["messages"]] == [
        "Where is my order?",
        "It comes *tomorrow*.",
        "Thanks!",
    ]
    export_snapshot(store, tmp_path / "snapshot", project="live", seed=0, fractions=(1, 0, 0))
    [demonstration] = (tmp_path / "snapshot" / "sft" / "train.jsonl").read_text().splitlines()
    assert json.loads(demonstration)["messages"][-1]["content"] == "It comes *tomorrow*."
    [unpaired] = (tmp_path / "snapshot" / "unpaired" / "train.jsonl").read_text().splitlines()
    assert json.loads(unpaired)["label"] is False


def test_a_choice_between_champion_and_candidate(
    store: Store, me: Person, talk_with: Callable[..., Talks], tmp_path: Path
) -> None:
    fake = Fake("champion", "candidate")
    talks = talk_with(fake)
    events = ask(talks, me, "Which is better?", compare=True)
    talk, answers = events[0]["start"]["talk"], events[0]["start"]["answers"]
    assert events[-1]["done"] == {"choose": True, "answers": answers}
    assert sorted(body["model"] for body in fake.asked) == ["artifact-candidate", "artifact-champion"]
    with pytest.raises(StoreError, match="choose one of the two"):
        ask(talks, me, "And now?", talk)
    body = ChooseBody(answers=tuple(answers), choice="b", reason="clearer", key=KEY)
    assert talks.choose(me, body) == {"saved": True, "goes_on_with": answers[1]}
    export_snapshot(store, tmp_path / "snapshot", project="live", seed=0, fractions=(1, 0, 0))
    [row] = [json.loads(line) for line in (tmp_path / "snapshot" / "train.jsonl").read_text().splitlines()]
    chosen = row["chosen"][0]["content"]
    shown_second = next(
        "".join(e["part"]["text"] for e in events if "part" in e and e["part"]["side"] == side).strip()
        for side in (1,)
    )
    assert chosen == shown_second
    assert {row["chosen_model"], row["rejected_model"]} == {
        "runs/artifact-champion@1",
        "runs/artifact-candidate@1",
    }
    assert row["source"] == "live"
    ask(talks, me, "And now?", talk)
    assert fake.asked[-1]["messages"][1] == {"role": "assistant", "content": chosen}
    # a tie, and going on without having said anything
    events = ask(talks, me, "Once more?", compare=True)
    answers = events[0]["start"]["answers"]
    talks.choose(me, ChooseBody(answers=tuple(answers), choice="tie", key=KEY + "2"))
    answers = ask(talks, me, "Again?", compare=True)[0]["start"]["answers"]
    gone_on = talks.choose(me, ChooseBody(answers=tuple(answers), choice="none", key=KEY + "3"))
    assert gone_on == {"saved": False, "goes_on_with": answers[0]}
    assert sorted(j.preference for j in judgements(store, "live") if j.preference == "tie") == ["tie"]
    assert len(list(judgements(store, "live"))) == 2


def test_sides_are_shuffled(me: Person, talk_with: Callable[..., Talks]) -> None:
    fake = Fake("champion", "candidate")
    talks = talk_with(fake)
    firsts = set()
    for number in range(12):
        events = ask(talks, me, f"question {number}", compare=True)
        firsts.add("".join(e["part"]["text"] for e in events if "part" in e and e["part"]["side"] == 0)[2:5])
    assert firsts == {"ion", "ate"}  # of 'champion' and of 'candidate'


def test_a_question_that_fails_leaves_the_conversation_as_it_was(
    me: Person, talk_with: Callable[..., Talks]
) -> None:
    fake = Fake("champion")
    talks = talk_with(fake)
    talk = ask(talks, me, "one")[0]["start"]["talk"]
    fake.fail = "break"
    assert ask(talks, me, "two", talk)[-1] == {"error": "the model fell over"}
    fake.fail = "busy"
    assert ask(talks, me, "three", talk)[-1] == {"error": "too many wait"}
    fake.fail = ""
    ask(talks, me, "four", talk)
    assert [m["content"] for m in fake.asked[-1]["messages"]][::2] == ["one", "four"]

    async def leave() -> None:
        events = talks.ask(me, AskBody(text="five", talk=talk))
        await anext(events)
        await events.aclose()  # the person has closed the page

    asyncio.run(leave())
    ask(talks, me, "six", talk)
    assert [m["content"] for m in fake.asked[-1]["messages"]][::2] == ["one", "four", "six"]


def test_a_pair_is_chosen_once_and_never_for_the_next_one(
    me: Person, talk_with: Callable[..., Talks]
) -> None:
    fake = Fake("champion", "candidate")
    talks = talk_with(fake)
    events = ask(talks, me, "one", compare=True)
    talk, first = events[0]["start"]["talk"], tuple(events[0]["start"]["answers"])
    talks.choose(me, ChooseBody(answers=first, choice="a", key=KEY))
    ask(talks, me, "two", talk, compare=True)
    # The first choice once more, and changed, while the second pair waits: a rating, and no turn of the conversation.
    again = talks.choose(me, ChooseBody(answers=first, choice="b", key=KEY + "2"))
    assert again == {"saved": True, "goes_on_with": first[0]}
    assert [m.role for m in talks._talks[talk].messages] == ["user", "assistant", "user"]
    with pytest.raises(StoreError, match="choose one of the two"):
        ask(talks, me, "three", talk)


def test_an_answer_of_another_form_ends_the_question(me: Person, talk_with: Callable[..., Talks]) -> None:
    fake = Fake("champion")
    talks = talk_with(fake)
    fake.event = lambda body, delta, finish=None: b'data: {"choices": ["text"]}\n\n'  # type: ignore[method-assign]
    assert ask(talks, me, "one")[-1] == {"error": "the endpoint sent an event of another form"}

    async def faulty(*args: Any, **options: Any) -> Any:
        raise ZeroDivisionError
        yield

    talks.endpoint.stream = faulty  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):  # and does not wait for ever
        asyncio.run(asyncio.wait_for(_collect(talks, me), 10))
    assert not talks._asking


async def _collect(talks: Talks, me: Person) -> list[dict]:
    return [event async for event in talks.ask(me, AskBody(text="two"))]


def test_a_model_that_has_gone_is_not_named(me: Person, talk_with: Callable[..., Talks]) -> None:
    fake = Fake("champion", "candidate")
    fake.fail = "gone"
    [_, event] = ask(talk_with(fake), me, "one", compare=True)
    assert event == {"error": "the model has just been replaced"}


def test_one_guest_does_not_keep_the_others_waiting(me: Person, talk_with: Callable[..., Talks]) -> None:
    talks = talk_with(Fake("champion"))

    async def go() -> None:
        open_questions = [talks.ask(me, AskBody(text="x"), caller="guest at 1.2.3.4") for _ in range(9)]
        for question in open_questions[:8]:
            await anext(question)
        with pytest.raises(StoreError, match="8 questions are being answered"):
            await anext(open_questions[8])
        other = talks.ask(me, AskBody(text="x"), caller="guest at 5.6.7.8")
        assert "start" in await anext(other)
        for question in (*open_questions, other):
            await question.aclose()

    asyncio.run(go())
    assert not talks._asking


def test_only_what_is_mine_can_be_rated(store: Store, me: Person, talk_with: Callable[..., Talks]) -> None:
    talks = talk_with(Fake("champion"))
    events = ask(talks, me, "hello")
    [answer] = events[0]["start"]["answers"]
    other = Person(create_annotator(store, "otto", password=None), "otto", "annotator")
    with pytest.raises(StoreError, match="too old to be rated"):
        talks.thumb(other, ThumbBody(answer=answer, thumb="up", key=KEY))
    with pytest.raises(StoreError, match="has ended"):
        ask(talks, other, "hello", events[0]["start"]["talk"])
    text = talks._mine(me, [answer])[0].answer.text
    with pytest.raises(DataError, match="the answer as it was"):
        talks.correct(me, CorrectBody(answer=answer, text=text, key=KEY))
    assert list(judgements(store, "live")) == []


def test_a_model_without_turns_is_asked_single_questions(me: Person, talk_with: Callable[..., Talks]) -> None:
    fake = Fake("base", multi_turn=False)
    talks = talk_with(fake)
    talk = ask(talks, me, "one")[0]["start"]["talk"]
    ask(talks, me, "two", talk)
    assert [m["content"] for m in fake.asked[-1]["messages"]] == ["two"]
    assert asyncio.run(talks.overview(me, is_guest=False))["multi_turn"] is False


def test_an_endpoint_that_is_not_there(me: Person, store: Store) -> None:
    endpoint = Endpoint("http://127.0.0.1:9/v1")
    talks = Talks(store, endpoint, ChatConfig(), seed=0)
    overview = asyncio.run(talks.overview(me, is_guest=False))
    assert overview["ready"] is False
    assert "cannot be reached" in overview["why"]
    with pytest.raises(ConfigError, match="expected a URL"):
        Endpoint("http://m:8x/v1")
    wanted = Endpoint("http://m/v1", model="gpt", transport=httpx.ASGITransport(app=Fake("a").app))
    with pytest.raises(EndpointError, match="no model 'gpt'"):
        asyncio.run(wanted.models())


# ---- over HTTP -------------------------------------------------------------------------------------------


def call(app: Any, method: str, path: str, **options: Any) -> httpx.Response:
    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **options)

    return asyncio.run(go())


def test_accounts_and_guests_come_in_and_nobody_else(store: Store, tmp_path: Path) -> None:
    create_annotator(store, "maria", password="correct horse battery")
    cookie = {COOKIE: log_in(store, "maria", "correct horse battery", address="127.0.0.1")}
    fake = Fake("champion")
    app = build_chat(store, ChatConfig(compare_share=0), fake.endpoint())
    for path in ("/api/v1/chat", "/chat/", "/chat/config"):
        assert call(app, "GET", path).status_code == 401
    assert call(app, "POST", "/api/v1/chat/ask", json={"text": "hello"}).status_code == 401
    assert call(app, "GET", "/api/v1/chat", cookies=cookie).json()["name"] == "maria"
    page = call(app, "GET", "/chat/", cookies=cookie)
    assert page.status_code == 200
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert call(app, "GET", "/desk/", cookies=cookie).headers["location"] == "/chat/"
    assert (
        call(app, "POST", "/chat/upload", cookies=cookie).status_code == 404
    )  # of Gradio's own routes none is open
    foreign = {"origin": "http://evil.example"}
    assert (
        call(app, "POST", "/api/v1/chat/ask", json={"text": "x"}, cookies=cookie, headers=foreign).status_code
        == 403
    )
    refused = call(app, "POST", "/api/v1/chat/ask", json={"text": " "}, cookies=cookie)
    assert (refused.status_code, refused.json()["detail"]) == (422, "the question is empty")
    reply = call(app, "POST", "/api/v1/chat/ask", json={"text": "hello"}, cookies=cookie)
    events = [json.loads(line) for line in reply.text.splitlines()]
    body = {"answer": events[0]["start"]["answers"][0], "thumb": "up", "key": KEY}
    assert call(app, "POST", "/api/v1/chat/thumb", json=body, cookies=cookie).json() == {"saved": True}
    [judged] = judgements(store, "live")
    with store.read() as connection:
        origin = connection.exec_driver_sql("SELECT origin, seconds >= 0 FROM annotations").one()
    assert tuple(origin) == ("live", 1)
    assert judged.thumb == "up"

    guests = build_chat(store, ChatConfig(compare_share=0, guests=True), fake.endpoint())
    overview = call(guests, "GET", "/api/v1/chat").json()
    assert (overview["guest"], overview["name"]) == (True, "chat-guest")
    assert call(guests, "GET", "/chat/").status_code == 200
    assert call(guests, "GET", "/").headers["location"] == "/chat/"
    assert call(guests, "GET", "/lead/").status_code == 401
    assert call(guests, "POST", "/api/v1/chat/ask", json={"text": "x"}, headers=foreign).status_code == 403


def test_a_project_of_blind_evaluations_takes_no_live_ratings(store: Store) -> None:
    ensure_project(store, "blind", purpose="evaluate")
    with pytest.raises(StoreError, match="holds blind evaluations"):
        build_chat(store, ChatConfig(project="blind"), Fake("champion").endpoint())
