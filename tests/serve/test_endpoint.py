"""The endpoint as its callers see it: whole answers and streamed ones, limits, errors in OpenAI's shape."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from rlhf.cli import main
from rlhf.core.adapters import load_adapter
from rlhf.core.backbone import Backbone
from rlhf.core.errors import ConfigError, DataError
from rlhf.core.records import Message
from rlhf.core.run import Launch
from rlhf.core.sampler import Request, sample
from rlhf.core.settings import ModelSettings, SamplingSettings
from rlhf.core.stopping import StopRule
from rlhf.serve import catalog as catalog_module
from rlhf.serve.batch import Batch
from rlhf.serve.catalog import canary_draw
from rlhf.serve.key import read_key
from rlhf.serve.server import check_exposure

Start = Callable[..., Any]
Names = Callable[..., Any]


@pytest.fixture(scope="module")
def one(start: Start, names_of: Names) -> Any:
    """An endpoint whose champion is runs/one."""
    return start(names_of(champion="one"), default_max_tokens=20)


@pytest.fixture(scope="module")
def written(serving_launch: Launch) -> Callable[..., tuple[str, int]]:
    """written("one", text, **sampling) -> (text, number of tokens) of the sampler's answer by an adapter."""
    root = serving_launch.workspace
    backbone = Backbone.load(root / "models" / "base", ModelSettings(device="cpu"), name="models/base")
    for name in ("one", "two"):
        load_adapter(backbone, name, root / "runs" / name, base_name="models/base", scalar_head=False)

    def write(run: str, text: str, *, seed: int = 0, number: int = 0, **sampling: Any) -> tuple[str, int]:
        ids = backbone.codec.prompt_ids([Message(role="user", content=text)])
        settings = SamplingSettings(**{"temperature": 0, "max_completion_tokens": 8} | sampling)
        stop = StopRule(backbone.codec, settings)
        [found] = sample(
            backbone.sampling_model(run),
            [Request(ids, 0, number)],
            settings,
            end_token_ids=stop.token_ids,
            ended_by_text=stop.ended_by_text,
            seed=seed,
        )
        return stop.text(found.tokens), len(found.tokens)

    return write


def error_of(reply: httpx.Response) -> tuple[int, str, str | None, str | None]:
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return reply.status_code, error["message"], error["param"], error["code"]


def events_of(lines: Any) -> list[dict[str, Any]]:
    found = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert found[-1] == "[DONE]"
    return [json.loads(line) for line in found[:-1]]


def test_an_answer_is_what_the_sampler_writes(one: Any, written: Callable[..., tuple[str, int]]) -> None:
    reply = one.chat("tell a tale of rain", temperature=0).json()
    text, num_tokens = written("one", "tell a tale of rain")
    [choice] = reply["choices"]
    assert choice["message"] == {"role": "assistant", "content": text, "refusal": None}
    assert reply["object"] == "chat.completion"
    assert reply["model"] == "champion"
    assert reply["system_fingerprint"].startswith("runs/one@")
    # <|im_start|>user \n tell a tale of rain <|im_end|> \n <|im_start|>assistant \n, in this tokenizer's pieces
    prompt_tokens = reply["usage"]["prompt_tokens"]
    assert prompt_tokens > 5
    assert reply["usage"] == {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": num_tokens,
        "total_tokens": prompt_tokens + num_tokens,
    }
    assert choice["finish_reason"] == ("length" if num_tokens == 8 else "stop")


def test_a_seed_gives_the_same_choices_again(one: Any, written: Callable[..., tuple[str, int]]) -> None:
    fields = {"temperature": 1.2, "top_p": 0.9, "seed": 11, "n": 3}
    reply = one.chat("a red bird", **fields).json()
    texts = [choice["message"]["content"] for choice in reply["choices"]]
    assert texts == [
        written("one", "a red bird", seed=11, number=i, temperature=1.2, top_p=0.9)[0] for i in range(3)
    ]
    assert len(set(texts)) > 1
    assert one.chat("a red bird", **fields).json()["choices"] == reply["choices"]
    assert one.chat("a red bird", **fields | {"seed": 12}).json()["choices"] != reply["choices"]


def test_a_stream_joined_is_the_whole_answer(one: Any) -> None:
    """Eight prompts: random tokens hold characters of several bytes, which no part may cut in two."""
    for number in range(8):
        fields = {"temperature": 1.5, "seed": number, "max_tokens": 24, "logprobs": True, "top_logprobs": 2}
        whole = one.chat(f"hello {number}", **fields).json()
        streamed = {"stream": True, "stream_options": {"include_usage": True}}
        events = events_of(one.chat(f"hello {number}", **fields, **streamed).iter_lines())
        assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        parts = [e["choices"][0] for e in events[1:-1]]
        content = whole["choices"][0]["message"]["content"]
        assert "".join(part["delta"].get("content", "") for part in parts) == content
        assert parts[-1]["finish_reason"] == whole["choices"][0]["finish_reason"]
        assert [part["finish_reason"] for part in parts[:-1]] == [None] * (len(parts) - 1)
        assert len(parts) > 3  # it came in parts
        told = [row for part in parts if part["logprobs"] for row in part["logprobs"]["content"]]
        assert told == whole["choices"][0]["logprobs"]["content"]
        assert len(told) == whole["usage"]["completion_tokens"]
        assert events[-1]["choices"] == []
        assert events[-1]["usage"] == whole["usage"]


def test_stop_strings_are_held_back(one: Any) -> None:
    free = one.chat("old man", temperature=0, max_tokens=20).json()["choices"][0]["message"]["content"]
    stop = free[len(free) // 2 :][:3]
    place = free.find(stop)
    fields = {"temperature": 0, "max_tokens": 20, "stop": [stop, "never written"]}
    found = one.chat("old man", **fields).json()["choices"][0]
    assert found["message"]["content"] == free[:place].strip()
    assert found["finish_reason"] == "stop"
    events = events_of(one.chat("old man", **fields, stream=True).iter_lines())
    said = "".join(e["choices"][0]["delta"].get("content", "") for e in events)
    assert said == free[:place].strip()


def test_raw_completions(one: Any) -> None:
    body = {
        "model": "champion",
        "prompt": ["the cat", "sun"],
        "temperature": 0,
        "max_tokens": 4,
        "logprobs": 1,
    }
    reply = one.client.post("/v1/completions", json=body).json()
    assert reply["object"] == "text_completion"
    assert [choice["index"] for choice in reply["choices"]] == [0, 1]
    for choice in reply["choices"]:
        assert len(choice["logprobs"]["tokens"]) <= 4
        ended = choice["finish_reason"] == "stop"
        # with the spaces at its ends, without the token that ended it
        assert "".join(choice["logprobs"]["tokens"][: -1 if ended else None]) == choice["text"]
    tokens = one.service.catalog.names()["champion"].writer.codec.tokenizer("the cat")["input_ids"]
    by_tokens = one.client.post("/v1/completions", json={**body, "prompt": [1, *tokens]}).json()
    assert by_tokens["choices"][0]["text"] == reply["choices"][0]["text"]
    refused = one.client.post("/v1/completions", json={**body, "prompt": [10**6]})
    assert "not in the vocabulary" in error_of(refused)[1]
    events = events_of(
        one.client.post("/v1/completions", json={**body, "prompt": "the cat", "stream": True}).iter_lines()
    )
    assert "".join(e["choices"][0]["text"] for e in events) == reply["choices"][0]["text"]


def test_the_openai_client(one: Any, written: Callable[..., tuple[str, int]]) -> None:
    client = openai.OpenAI(base_url=f"{one.url}/v1", api_key="none needed", max_retries=0)
    messages: Any = [{"role": "user", "content": "sun"}]
    reply = client.chat.completions.create(model="champion", messages=messages, temperature=0, max_tokens=8)
    assert reply.choices[0].message.content == written("one", "sun")[0]
    parts = client.chat.completions.create(
        model="champion", messages=messages, temperature=0, max_tokens=8, stream=True
    )
    assert "".join(p.choices[0].delta.content or "" for p in parts) == written("one", "sun")[0]
    assert "champion" in [model.id for model in client.models.list()]
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4'"):
        client.chat.completions.create(model="gpt-4", messages=messages)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="champion", messages=messages, temperature=3)
    client.close()


@pytest.mark.parametrize(
    ("fields", "status", "message", "param", "code"),
    [
        ({"temperature": 2.5}, 400, "less than or equal to 2", "temperature", "invalid_value"),
        ({"temperature": "warm"}, 400, "valid number", "temperature", "invalid_value"),
        ({"top_p": -0.1}, 400, "greater than or equal to 0", "top_p", "invalid_value"),
        ({"top_k": 10**23}, 400, "less than 2147483648", "top_k", "invalid_value"),
        ({"n": 0}, 400, "greater than or equal to 1", "n", "invalid_value"),
        ({"max_tokens": 0}, 400, "greater than or equal to 1", "max_tokens", "invalid_value"),
        ({"max_tokens": 200}, 400, "context of 128", "messages", "context_length_exceeded"),
        ({"stop": [""]}, 400, "at least 1 character", "stop", "invalid_value"),
        ({"tempreature": 1}, 400, "did you mean 'temperature'", "tempreature", "unknown_parameter"),
        ({"frequency_penalty": 0.5}, 400, "not supported", "frequency_penalty", "unsupported_value"),
        ({"messages": []}, 400, "at least 1 item", "messages", "invalid_value"),
        ({"messages": [{"role": "boss", "content": "x"}]}, 400, "'system'", "messages", "invalid_value"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "", None, None),
        ({"stream_options": {"include_usage": True}}, 400, "'stream': true", "stream_options", None),
        ({"model": "nobody"}, 404, "known: champion, ppo-one", "model", "model_not_found"),
    ],
)
def test_what_cannot_be_served_is_said(
    one: Any, fields: dict[str, Any], status: int, message: str, param: str | None, code: str | None
) -> None:
    body = {"model": "champion", "messages": [{"role": "user", "content": "hello"}]} | fields
    reply = one.client.post(
        "/v1/chat/completions", content=json.dumps(body), headers={"content-type": "application/json"}
    )
    found = error_of(reply)
    assert found[0] == status
    assert message in found[1]
    if code is not None or param is not None:
        assert found[2:] == (param, code)


def test_neutral_fields_are_accepted(one: Any) -> None:
    neutral = {
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "response_format": {"type": "text"},
    }
    assert one.chat("hello", **neutral, user="somebody", tools=[]).status_code == 200


def test_bodies_and_addresses_that_are_none(one: Any) -> None:
    post = one.client.post
    assert error_of(post("/v1/chat/completions", content="{"))[:2] == (400, "the body is not JSON")
    assert error_of(post("/v1/chat/completions", content="[1]"))[1] == "expected a JSON object; found list"
    none = {"model": "champion", "prompt": []}
    assert error_of(post("/v1/completions", json=none))[0] == 400
    assert error_of(one.client.get("/v1/nothing"))[0] == 404
    assert error_of(one.client.get("/v1/chat/completions"))[0] == 405
    assert error_of(one.client.get("/v1/models/nobody"))[3] == "model_not_found"
    assert error_of(one.client.get("/v1/models", headers={"host": "evil.example"}))[0] == 421
    for origin in ("http://evil.example", "http://["):
        assert error_of(one.client.get("/v1/models", headers={"origin": origin}))[0] == 403
    unpaired = error_of(post("/v1/chat/completions", content=r'{"\ud800": 1}'))
    assert unpaired[0] == 400
    assert r"unknown field '\ud800'" in unpaired[1]
    big = post("/v1/chat/completions", content=b" " * ((4 << 20) + 1))
    assert error_of(big)[0] == 413
    unsaid = post("/v1/chat/completions", content=(b" " * (1 << 20) for _ in range(5)))  # without a length
    assert error_of(unsaid)[:2] == (413, "a request may have at most 4194304 bytes")


def test_a_full_queue_is_429_and_a_caller_who_leaves_frees_the_row(
    start: Start, names_of: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is held between two steps, so that what waits waits for certain."""
    held = threading.Event()
    held.set()
    advance = Batch.advance
    monkeypatch.setattr(Batch, "advance", lambda batch: (held.wait(20), advance(batch))[1])
    slow = start(names_of(champion="one"), max_batch_rows=1, max_waiting=2)
    load = lambda: slow.service.engine.load  # noqa: E731

    def until(what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not what():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    held.clear()
    with ThreadPoolExecutor(3) as callers:
        replies = [callers.submit(slow.chat, "sun", temperature=0)]
        until(lambda: load().waiting == 0 and bool(slow.service.engine._batches))
        replies += [callers.submit(slow.chat, "sun", temperature=0) for _ in range(2)]
        until(lambda: load().waiting == 2)
        assert error_of(slow.chat("sun", n=3))[:2] == (
            400,
            "3 completions in one request; at most 2 can wait",
        )
        full = slow.chat("sun", n=1)
        assert error_of(full)[0] == 429
        assert full.headers["retry-after"] == "1"
        held.set()
        assert {reply.result().status_code for reply in replies} == {200}
    # A caller who leaves in the middle of a stream of 100 tokens.
    before = load().steps
    with slow.client.stream(
        "POST",
        "/v1/chat/completions",
        json={
            "model": "champion",
            "messages": [{"role": "user", "content": "sun"}],
            "stream": True,
            "max_tokens": 100,
            "temperature": 0,
            "stop": ["never written"],
        },
    ) as reply:
        next(reply.iter_lines())
        held.clear()
    until(lambda: slow.service.monitor.rows[-1]["state"] == "gone")
    held.set()
    until(lambda: load().writing == 0 and not slow.service.engine._batches)
    assert load().steps - before < 100


def test_a_key_opens_everything_but_health(
    start: Start, names_of: Names, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = start(names_of(champion="one"), key="s3cret")
    assert locked.client.get("/health").json() == {"status": "ok"}  # nor does it name models to strangers
    health = locked.client.get("/health", headers={"authorization": "Bearer s3cret"}).json()
    assert health["models"]["champion"].startswith("runs/one@")
    for path in ("/v1/models", "/metrics", "/monitor"):
        assert error_of(locked.client.get(path))[0] == 401
    assert error_of(locked.client.get("/v1/models", headers={"authorization": "Bearer s3cre"}))[0] == 401
    assert locked.client.get("/v1/models", headers={"authorization": "Bearer s3cret"}).status_code == 200
    assert locked.client.get("/monitor", auth=("anyone", "s3cret")).status_code == 200  # as a browser asks
    (tmp_path / "key").write_text("s3cret\n")
    assert read_key(tmp_path / "key") == "s3cret"
    (tmp_path / "key").write_text("\n")
    with pytest.raises(ConfigError, match="expected one key"):
        read_key(tmp_path / "key")
    monkeypatch.setenv("RLHF_API_KEY", "s3cret\n")
    assert read_key(None) == "s3cret"
    monkeypatch.setenv("RLHF_API_KEY", "clé")
    with pytest.raises(ConfigError, match="RLHF_API_KEY: expected one key, printable ASCII"):
        read_key(None)
    with pytest.raises(ConfigError, match="open to the network and needs a key"):
        check_exposure("0.0.0.0", None)
    check_exposure("0.0.0.0", "s3cret")


def test_names_that_move_under_load_drop_nothing(
    start: Start, names_of: Names, written: Callable[..., tuple[str, int]]
) -> None:
    """Every answer is whole, and that of the model that its fingerprint names."""
    names = names_of(champion="one")
    running = start(names)
    wanted = {
        run: {text: written(run, text)[0] for text in ("sun", "old man", "hello")} for run in ("one", "two")
    }
    assert wanted["one"] != wanted["two"]
    seen: set[str] = set()
    ended = threading.Event()

    def call(number: int) -> int:
        done = 0
        while not ended.is_set():
            text = ("sun", "old man", "hello")[(number + done) % 3]
            reply = running.chat(text, temperature=0)
            assert reply.status_code == 200
            body = reply.json()
            run = body["system_fingerprint"].split("@")[0].removeprefix("runs/")
            assert body["choices"][0]["message"]["content"] == wanted[run][text]
            seen.add(run)
            done += 1
        return done

    with ThreadPoolExecutor(4) as callers:
        calls = [callers.submit(call, number) for number in range(4)]
        for move in range(6):
            names.move("champion", ("two", "one")[move % 2])
            time.sleep(0.2)
        ended.set()
        assert all(done.result() > 0 for done in calls)
    assert seen == {"one", "two"}
    switches = [text for _, kind, text in running.service.monitor.events if kind == "switch"]
    assert len(switches) >= 4


def test_a_model_that_cannot_be_loaded_changes_nothing(start: Start, names_of: Names) -> None:
    names = names_of(champion="one")
    running = start(names)
    names.move("champion", "nothing-there")
    deadline = time.monotonic() + 20
    while not running.service.catalog.fault:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    health = running.client.get("/health")
    assert health.status_code == 200
    assert health.json()["status"] == "degraded"
    assert "nothing-there" in health.json()["fault"]
    assert running.chat("sun").json()["system_fingerprint"].startswith("runs/one@")


def test_a_registry_that_cannot_be_read_is_told(start: Start, names_of: Names) -> None:
    running = start(names_of(champion="one"), poll_s=60)
    catalog, names = running.service.catalog, running.service.catalog._aliases
    catalog._aliases = lambda: {}["nobody"]
    catalog.look()
    assert running.client.get("/health").json()["status"] == "degraded"
    assert "registry cannot be read" in catalog.fault
    catalog._aliases = names
    catalog.look()
    assert running.client.get("/health").json()["status"] == "ok"


def test_a_model_that_fails_half_way_leaves_nothing_behind(
    start: Start, names_of: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter is loaded and then cannot be made ready, by a fault of a kind that nobody foresaw."""
    names = names_of(champion="one")
    running = start(names, poll_s=60)
    catalog = running.service.catalog
    roles = set(catalog.routes()["champion"].generator.backbone.roles)
    monkeypatch.setattr(catalog_module, "Writer", lambda model, codec: {}["half"])
    names.move("champion", "two")
    catalog.look()
    catalog.look()  # not tried again at once
    assert "ppo-two cannot be served: 'half'" in catalog.fault
    assert set(catalog.routes()["champion"].generator.backbone.roles) == roles


def test_an_engine_that_ended_is_unhealthy(start: Start, names_of: Names) -> None:
    running = start(names_of(champion="one"))
    running.service.engine.fault = "decoding has ended: it fell over"
    running.service.engine._stopped = True
    health = running.client.get("/health")
    assert (health.status_code, health.json()["status"]) == (503, "failed")
    assert "it fell over" in health.json()["fault"]
    assert error_of(running.chat("sun"))[0] == 503


def test_a_prompt_listed_twice_has_two_answers(one: Any) -> None:
    body = {"model": "champion", "prompt": ["sun", "sun"], "max_tokens": 12, "temperature": 1.5}
    first, second = (c["text"] for c in one.client.post("/v1/completions", json=body).json()["choices"])
    assert first != second
    texts = [c["text"] for c in one.client.post("/v1/completions", json=body | {"seed": 3}).json()["choices"]]
    assert texts[0] == texts[1]  # a seed means one answer to one prompt, whatever stands beside it
    cold = body | {"temperature": 1e-30}
    greedy = one.client.post("/v1/completions", json=body | {"temperature": 0}).json()["choices"]
    assert one.client.post("/v1/completions", json=cold).json()["choices"] == greedy


def test_a_canary_answers_its_share_and_keeps_its_people(start: Start, names_of: Names) -> None:
    running = start(names_of(champion="one", candidate="two"), canary_share=0.5)
    found = {}
    for number in range(12):
        for _ in range(2):
            body = running.chat("sun", user=f"person {number}", max_tokens=1).json()
            found.setdefault(number, set()).add(body["system_fingerprint"].split("@")[0])
    assert all(len(models) == 1 for models in found.values())  # a person stays with a model
    expected = {
        number: "runs/two" if canary_draw(f"user\0person {number}", "ppo-two") < 0.5 else "runs/one"
        for number in range(12)
    }
    assert {number: next(iter(models)) for number, models in found.items()} == expected
    assert set(expected.values()) == {"runs/one", "runs/two"}
    # by its own name each model is asked for certain
    for name, run in (("ppo-one", "runs/one"), ("ppo-two", "runs/two"), ("candidate", "runs/two")):
        body = running.chat("sun", model=name, user="person 0", max_tokens=1).json()
        assert body["system_fingerprint"].startswith(f"{run}@")
    # 10,000 conversations with a share of 0.1: the standard error is 0.003
    drawn = sum(canary_draw(f"user\0{i}", "ppo-two") < 0.1 for i in range(10_000))
    assert 0.088 < drawn / 10_000 < 0.112


def test_without_a_champion_there_is_nothing_to_serve(start: Start, names_of: Names) -> None:
    names = names_of(champion="one")
    running = start(names)
    running.service.catalog._routes.clear()
    names.clear()
    with pytest.raises(DataError, match="no champion yet"):
        running.service.catalog.look()
    reply = running.chat("sun")
    assert error_of(reply)[0] == 503
    assert reply.headers["retry-after"] == "2"
    assert running.client.get("/health").status_code == 503


def test_a_stop_answers_what_is_in_flight_and_nothing_new(
    start: Start, names_of: Names, written: Callable[..., tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = threading.Event()
    advance = Batch.advance
    monkeypatch.setattr(Batch, "advance", lambda batch: (held.wait(20), advance(batch))[1])
    running = start(names_of(champion="one"))
    kept = httpx.Client(base_url=running.url)
    assert kept.get("/health").json()["status"] == "ok"
    with ThreadPoolExecutor(1) as callers:
        reply = callers.submit(running.chat, "sun", temperature=0)
        deadline = time.monotonic() + 20
        while not running.service.engine._batches:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        running.server.handle_exit(signal.SIGTERM, None)
        assert running.service.state.draining
        time.sleep(0.3)
        with pytest.raises(httpx.TransportError):  # nobody new is let in
            httpx.get(f"{running.url}/health")
        assert not reply.done()
        held.set()
        assert reply.result().json()["choices"][0]["message"]["content"] == written("one", "sun")[0]
    assert running.server.received == signal.SIGTERM
    running.server.handle_exit(signal.SIGTERM, None)  # a second one does not wait
    assert running.server.force_exit
    kept.close()


def test_draining_refuses_new_requests(start: Start, names_of: Names) -> None:
    running = start(names_of(champion="one"))
    running.service.state.draining = True
    assert error_of(running.chat("sun"))[3] == "draining"
    assert running.client.get("/health").json()["status"] == "draining"


def test_what_keeps_serve_from_starting_is_one_line(
    serving_launch: Launch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def line(*options: str) -> str:
        where = ["--workspace", str(tmp_path / "empty"), "--port", "0", "--model.device", "cpu"]
        assert main(["serve", *where, *options]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "the registry has no champion yet" in line()
    assert "nowhere" in line("--model-path", "nowhere/at/all")
    assert "needs a key" in line("--host", "0.0.0.0")
    assert "no such file" in line("--reference-prompts", "nothing.jsonl")
    assert "cannot be read" in line("--api-key-file", str(tmp_path / "no-key"))
