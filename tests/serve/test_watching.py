"""What is watched: drift against numbers by hand, control limits, journals that turn over, the page."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feedback_app.accounts import create_annotator
from feedback_app.store.engine import Store
from feedback_app.store.live import record
from rlhf.core.errors import DataError
from rlhf.core.records import Completion, Prompt
from rlhf.serve.drift import PromptFeatures, psi, shifts
from rlhf.serve.journal import Journal
from rlhf.serve.monitor_page import Figures, monitor_page
from rlhf.serve.scoring import Scoring
from rlhf.serve.thumbs import Ratings, Thumb, live_ratings, p_chart


def test_psi_by_hand() -> None:
    # Counts (30, 10) and (10, 30), half a count added: shares 30.5/41, 10.5/41 and the other way round.
    # Each bin: (20/41) ln(30.5/10.5); both alike: 2 * 0.48780 * 1.06638 = 1.04037.
    assert psi(np.array([30, 10]), np.array([10, 30])) == pytest.approx(2 * (20 / 41) * math.log(30.5 / 10.5))
    assert psi(np.array([30, 10]), np.array([30, 10])) == 0


def test_drift_is_seen_and_chance_is_not() -> None:
    generator = np.random.default_rng(0)

    def prompts(words: list[str], count: int, length: float) -> list[PromptFeatures]:
        return [
            PromptFeatures.of(" ".join(generator.choice(words, max(1, generator.poisson(length)))))
            for _ in range(count)
        ]

    orders = ["order", "parcel", "late", "refund", "please", "ticket", "paid", "date"]
    weather = ["rain", "sun", "wind", "snow", "cloud", "storm", "warm", "cold"]
    reference = prompts(orders, 300, 8)
    for shift in shifts(reference, prompts(orders, 80, 8)):
        assert not shift.is_change
    length, words = shifts(reference, prompts(weather, 80, 8))
    assert words.is_change
    assert words.psi > 1
    assert not length.is_change
    length, words = shifts(reference, prompts(orders, 80, 25))
    assert length.is_change
    assert (length.what, length.live, length.reference) == ("length", 80, 300)
    assert shifts([], reference) == []


def test_control_limits_by_hand() -> None:
    # Groups of 20: 16, 16, 16 and 4 up; p = 52/80 = 0.65; 3 sqrt(0.65 * 0.35 / 20) = 0.31996.
    ups = [n < 16 for _ in range(3) for n in range(20)] + [n < 4 for n in range(20)] + [True] * 5
    groups = p_chart([Thumb(float(i), up, "m") for i, up in enumerate(ups)])
    assert [group.share for group in groups] == [0.8, 0.8, 0.8, 0.2]  # the last five wait for their group
    assert groups[0].low == pytest.approx(0.65 - 0.31996, abs=1e-5)
    assert groups[0].high == pytest.approx(0.96996, abs=1e-5)
    assert [group.out_of_control for group in groups] == [False, False, False, True]
    assert groups[0].at == 19.0
    assert p_chart([]) == []


def test_a_journal_turns_over_and_reads_on(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "rows.jsonl", max_bytes=200, num_kept=2)
    for number in range(40):
        journal.add({"number": number, "text": "x" * 20})
    journal.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["rows.jsonl", "rows.jsonl.1", "rows.jsonl.2"]
    assert all(path.stat().st_size <= 200 for path in tmp_path.iterdir())
    with open(tmp_path / "rows.jsonl", "ab") as file:
        file.write(b'{"number": 40, "te')  # a machine that stopped
    again = Journal(tmp_path / "rows.jsonl", max_bytes=10_000)
    numbers = [row["number"] for row in again.newest(100)]
    assert numbers == list(range(numbers[0], 40))
    again.add({"number": 41})
    assert [row["number"] for row in again.newest(3)] == [
        38,
        39,
        41,
    ]  # not lost with the line that was broken off
    again.close()


def test_a_full_disk_costs_rows_and_no_answer(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    journal = Journal(tmp_path / "rows.jsonl")
    journal.add({"number": 0})
    journal._file.close()
    journal._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115 - every write says that the disk is full
    journal.add({"number": 1})
    assert "rows are lost: [Errno 28]" in capfd.readouterr().err
    journal.add({"number": 2})  # there is room again
    assert [row["number"] for row in journal.newest(3)] == [0, 2]
    journal.close()
    journal.add({"number": 3})
    assert len(journal.newest(9)) == 2


def test_live_ratings_of_a_store(tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/feedback.db") as store:
        me = create_annotator(store, "me", password=None)
        prompt = Prompt.model_validate({"prompt": "hello"})
        one, two = (
            Completion.model_validate({"prompt_id": prompt.prompt_id, "text": name, "model_id": name})
            for name in ("one", "two")
        )
        record(store, "live", "thumbs", prompt, [one], me, client_key="key-1-up", thumb="up")
        record(store, "live", "thumbs", prompt, [two], me, client_key="key-2-up", thumb="up")
        record(store, "live", "thumbs", prompt, [two], me, client_key="key-2-down", thumb="down")
        record(
            store,
            "live",
            "pairwise",
            prompt,
            [two, one],
            me,
            client_key="key-3-choice",
            chosen=two.completion_id,
        )
        ratings = live_ratings(store, "live")
    assert [(thumb.model, thumb.up) for thumb in ratings.thumbs] == [("one", True), ("two", False)]
    assert ratings.choices == (("one", "two", 0.0, 1),)
    assert ratings.counts == (("pairwise", 1), ("thumbs", 2))
    assert live_ratings(None, "live") == Ratings()


def rows_of(count: int, now: float) -> list[dict[str, Any]]:
    generator = np.random.default_rng(1)
    return [
        {
            "at": now - 3000 + 3000 * i / count,
            "model": "runs/one@0123456789" if i % 10 else "runs/two@9876543210",
            "route": "champion" if i % 10 else "candidate",
            "state": "ok" if i % 37 else "failed",
            "seconds": float(generator.gamma(4, 0.2)),
            "first_token_s": float(generator.gamma(2, 0.05)),
            "queue_s": 0.01,
            "prompt_tokens": 40,
            "completion_tokens": int(generator.poisson(60)),
            "finishes": ["stop" if i % 5 else "length"],
            "stream": True,
            "num_words": int(generator.poisson(12)),
            "bins": [int(b) for b in generator.integers(0, 64, 12)],
        }
        for i in range(count)
    ]


def page_figures(count: int, now: float) -> Figures:
    generator = np.random.default_rng(2)
    rows = rows_of(count, now)
    features = [PromptFeatures(row["num_words"], tuple(row["bins"])) for row in rows]
    thumbs = [
        Thumb(now - i, bool(generator.random() < 0.8), rows[i]["model"]) for i in range(min(count, 130))
    ]
    return Figures(
        now=now,
        rows=rows,
        scores=[
            {"model": row["model"], "route": row["route"], "score": float(generator.normal())}
            for row in rows[::4]
        ],
        loads=[(now - 600 + i, i % 5, 3 + i % 7) for i in range(600)],
        events=[(now - 100, "switch", "champion: runs/one@0123456789")],
        models={"champion": "runs/one@0123456789", "candidate": "runs/two@9876543210"},
        fault="candidate ppo-3 cannot be served: <missing>",
        canary_share=0.1,
        reference=features[: count // 2],
        live=features[count // 2 :],
        named_reference=True,
        ratings=Ratings(tuple(thumbs), (("one", "two", 4.5, 9),), (("pairwise", 9), ("thumbs", len(thumbs)))),
    )


def test_the_page_shows_what_was_measured() -> None:
    page = monitor_page(page_figures(400, time.time()))
    for heading in ("Requests", "What people say", "Reward model", "Prompts", "Models"):
        assert f"<h2>{heading}</h2>" in page
    # latency, tokens, queue; p-chart, thumbs by model; scores; drift
    assert page.count("<figure>") == 7
    assert "cannot be served: &lt;missing&gt;" in page
    assert "no more than chance" in page
    assert "400" in page  # requests in the last hour
    assert "<script" not in page


def test_a_name_that_looks_like_a_formula_is_drawn() -> None:
    now = time.time()
    odd = r"a$\bad{$b"
    thumbs, score = (Thumb(now, True, odd),), {"model": odd, "route": "champion", "score": 1.0}
    figures = Figures(
        now,
        [],
        [score, score | {"route": "candidate"}],
        [],
        [],
        {},
        "",
        0.0,
        [],
        [],
        False,
        Ratings(thumbs, counts=(("thumbs", 1),)),
    )
    assert monitor_page(figures).count(r"a$\bad{$b") >= 3  # both plots and the table


def test_an_empty_page_says_what_it_waits_for() -> None:
    empty = Figures(time.time(), [], [], [], [], {}, "", 0.0, [], [], False, Ratings())
    page = monitor_page(empty)
    for text in ("No request yet", "Nobody has said anything yet", "--score-with", "20 live prompts"):
        assert text in page


class Judge:
    """Scores an answer by its length; a text with 'long' does not fit, one with 'bug' meets a fault, one with
    'broken' is no number."""

    def score_texts(self, prompts: list[Prompt], texts: list[str], *, max_tokens: int) -> list[float]:
        for prompt in prompts:
            if "long" in prompt.text:
                raise DataError("does not fit")
            if "bug" in prompt.text:
                raise ZeroDivisionError
        if "broken" in prompts[0].text:
            return [float("nan")]
        return [float(len(text)) for text in texts]


def test_a_share_of_the_answers_is_scored(
    start: Callable[..., Any], names_of: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    running = start(names_of(champion="one"))
    monitor = running.service.monitor
    found: list[tuple[str, str, float]] = []
    scoring = Scoring(Judge(), 1.0, lambda *score: (found.append(score), monitor.scored(*score)))  # type: ignore[arg-type]
    scoring.start()
    monitor.on_reply = scoring.offer
    texts = []
    for question in ("sun", "too long", "a bug", "broken", "hello"):
        body = running.chat(question, temperature=0).json()
        texts.append(body["choices"][0]["message"]["content"])
    model = body["system_fingerprint"]
    deadline = time.monotonic() + 20
    while len(found) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    scoring.stop()
    assert found == [(model, "champion", float(len(texts[0]))), (model, "champion", float(len(texts[4])))]
    assert [row["score"] for row in monitor.scores][-2:] == [found[0][2], found[1][2]]
    told = capfd.readouterr().err
    assert "ZeroDivisionError" in told
    assert "is nan" in told
    never = Scoring(Judge(), 1e-9, lambda *score: None, seed=0)  # type: ignore[arg-type]
    monitor.on_reply = never.offer
    running.chat("sun", temperature=0)
    assert never._waiting.empty()


def test_the_endpoint_is_watched(start: Callable[..., Any], names_of: Callable[..., Any]) -> None:
    running = start(names_of(champion="one"))
    before = len(running.service.monitor.rows)
    for number in range(3):
        running.chat(f"hello {number}", n=2, max_tokens=4, temperature=0, stop=["never written"])
    running.chat("hello", temperature=9)
    rows = list(running.service.monitor.rows)[before:]
    assert len(rows) == 3  # what was refused is no request to a model
    assert rows[0]["completion_tokens"] <= 8
    assert 0 <= rows[0]["queue_s"] <= rows[0]["first_token_s"] <= rows[0]["seconds"]
    assert "hello" not in json.dumps(rows)
    exposition = running.client.get("/metrics").text
    assert (
        'rlhf_serve_requests_total{method="POST",route="/v1/chat/completions",status="400"} 1.0' in exposition
    )
    model = rows[0]["model"]
    written = sum(row["completion_tokens"] for row in rows)
    assert f'rlhf_serve_tokens_total{{kind="completion",model="{model}"}} {written}.0' in exposition
    page = running.client.get("/monitor")
    assert page.status_code == 200
    assert "script-src" not in page.headers["content-security-policy"]
    assert "champion is runs/one@" in page.text
