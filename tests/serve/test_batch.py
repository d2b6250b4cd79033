"""Rows that join and leave a batch are written as `sampler.sample` writes them, token by token."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlhf.core import onednn
from rlhf.core.backbone import Backbone
from rlhf.core.sampler import Request, sample
from rlhf.core.settings import SamplingSettings
from rlhf.core.stopping import StopRule
from rlhf.serve.batch import Batch, Writer
from rlhf.serve.engine import Engine, EngineStoppedError, QueueFullError
from rlhf.serve.jobs import Job, Piece

LoadTiny = Callable[..., Backbone]
PROMPTS = (
    "the cat sat on a mat",
    "sun",
    "please tell one more tale of rain and of the old man",
    "a red bird",
    "hello",
    "old man",
)


def make_job(backbone: Backbone, writer: Writer, text: str, pieces: list[Piece], **fields: Any) -> Job:
    options = {
        name: fields.pop(name) for name in ("seed", "sample", "num_logprobs", "strip") if name in fields
    }
    ids = [1, *backbone.codec.tokenizer.encode(text, add_special_tokens=False)]
    settings = SamplingSettings(**{"max_completion_tokens": 20, "temperature": 0} | fields)
    return Job(writer, backbone.codec, ids, settings, pieces.append, **{"seed": 0} | options)


def alone(backbone: Backbone, job: Job) -> tuple[list[int], str]:
    """(tokens, text) of the sampler's answer to the same request, by itself."""
    stop = StopRule(backbone.codec, job.settings)
    [found] = sample(
        backbone.model,
        [Request(job.prompt_ids, 0, job.sample)],
        job.settings,
        end_token_ids=stop.token_ids,
        ended_by_text=stop.ended_by_text,
        seed=job.seed,
    )
    return found.tokens, stop.text(found.tokens)


@pytest.mark.parametrize("architecture", ["llama", "llama, a step of its own", "mistral", "gemma2", "gpt2"])
def test_rows_that_come_and_go_change_nothing(
    load_tiny: LoadTiny, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mistral and Gemma 2 have windows shorter than the texts; GPT-2 has learned positions."""
    architecture, own_step = architecture.split(",")[0], "," in architecture
    if own_step:  # the tiny models' layers are smaller than what is worth it
        monkeypatch.setattr(onednn, "MIN_ELEMENTS", 1)
    backbone = load_tiny(architecture)
    writer = Writer(backbone.model, backbone.codec)
    batch = Batch(writer)
    assert (writer.step is not None) == (own_step and onednn.AVAILABLE)
    jobs, heard = [], []
    for number, text in enumerate(PROMPTS):
        heard.append([])
        # Every second one is drawn, with a seed of its own; lengths differ, so rows leave at different times.
        drawn = {"temperature": 0.9, "top_p": 0.8, "seed": number} if number % 2 else {}
        jobs.append(
            make_job(backbone, writer, text, heard[-1], **drawn, max_completion_tokens=9 + 3 * number)
        )
    batch.add(jobs[:2])
    for step in range(60):
        if step == 3:
            batch.add(jobs[2:3])  # longer than all that is there: the others move to the right
        if step == 12:
            batch.add(jobs[3:])
        if batch.jobs:
            batch.advance()
    assert not batch.jobs
    for job, pieces in zip(jobs, heard, strict=True):
        tokens, text = alone(backbone, job)
        assert job.tokens == tokens
        assert "".join(piece.text for piece in pieces) == text
        assert [piece.last for piece in pieces] == [False] * (len(tokens) - 1) + [True]
        assert pieces[-1].finish == (
            "length" if len(tokens) == job.settings.max_completion_tokens else "stop"
        )
    writer.close()


def test_one_prompt_with_several_samples_is_computed_once(load_tiny: LoadTiny) -> None:
    backbone = load_tiny()
    writer = Writer(backbone.model, backbone.codec)
    batch, heard = Batch(writer), [[], []]
    jobs = [
        make_job(backbone, writer, PROMPTS[0], heard[i], temperature=1.0, seed=5, sample=i) for i in range(2)
    ]
    widths = []
    hook = backbone.decoder.register_forward_hook(
        lambda module, args, kwargs, output: widths.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    batch.add(jobs)
    hook.remove()
    assert widths == [1]
    while batch.jobs:
        batch.advance()
    assert [job.tokens for job in jobs] == [alone(backbone, job)[0] for job in jobs]
    assert jobs[0].tokens != jobs[1].tokens
    writer.close()


def test_a_cancelled_row_leaves_and_the_others_go_on(load_tiny: LoadTiny) -> None:
    backbone = load_tiny()
    writer = Writer(backbone.model, backbone.codec)
    batch, heard = Batch(writer), [[] for _ in range(6)]
    jobs = [make_job(backbone, writer, text, heard[i]) for i, text in enumerate(PROMPTS)]
    batch.add(jobs)
    batch.advance()
    jobs[0].cancelled = jobs[3].cancelled = True
    batch.advance()
    assert len(jobs[0].tokens) == 1
    assert batch.num_jobs == 4
    while batch.jobs:
        batch.advance()
    for number in (1, 2, 4, 5):
        assert jobs[number].tokens == alone(backbone, jobs[number])[0]
    assert batch._cache.num_rows == 0
    writer.close()


def test_a_row_that_ended_does_not_run_past_the_context(load_tiny: LoadTiny) -> None:
    """Positions are learned and 128 in number. The first row ends at 118 tokens and stays for the number's sake while
    the second writes 40 more: counted on, its positions would be up to 157."""
    backbone = load_tiny("gpt2")
    writer = Writer(backbone.model, backbone.codec)
    batch, pieces = Batch(writer), []
    long = Job(
        writer,
        backbone.codec,
        [5] * 116,
        SamplingSettings(temperature=0, max_completion_tokens=2),
        pieces.append,
        seed=0,
    )
    short = make_job(backbone, writer, "sun", pieces, max_completion_tokens=42)
    expected, _ = alone(backbone, short)
    assert len(expected) == 42
    batch.add([long, short])
    while batch.jobs:
        batch.advance()
    assert len(long.tokens) == 2
    assert short.tokens == expected
    writer.close()


def test_logprobs_are_those_of_the_model_at_temperature_1(load_tiny: LoadTiny) -> None:
    backbone = load_tiny()
    writer = Writer(backbone.model, backbone.codec)
    batch, pieces = Batch(writer), []
    job = make_job(backbone, writer, PROMPTS[0], pieces, num_logprobs=3, max_completion_tokens=5)
    batch.add([job])
    while batch.jobs:
        batch.advance()
    with torch.no_grad():
        whole = torch.tensor([[*job.prompt_ids, *job.tokens]])
        logprobs_SV = backbone.model(input_ids=whole).logits[0].log_softmax(-1)
    first = len(job.prompt_ids) - 1
    for place, piece in enumerate(pieces):
        [told] = piece.logprobs
        assert told.token_id == job.tokens[place]
        row_V = logprobs_SV[first + place]
        assert told.logprob == pytest.approx(float(row_V[told.token_id]), abs=1e-4)
        assert [token for token, _ in told.top] == row_V.topk(3).indices.tolist()
        assert told.top[0][0] == told.token_id  # greedy takes the most probable
    writer.close()


# ---- the engine ------------------------------------------------------------------------------------------


def run_all(engine: Engine, jobs: list[Job], heard: list[list[Piece]]) -> None:
    engine.submit(jobs)
    deadline = time.monotonic() + 30
    while not all(pieces and pieces[-1].last for pieces in heard):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_engine_bounds_its_rows_and_its_queue(load_tiny: LoadTiny) -> None:
    backbone = load_tiny()
    writer = Writer(backbone.model, backbone.codec)
    engine = Engine(max_rows=2, max_tokens=10_000, max_waiting=6)
    heard: list[list[Piece]] = [[] for _ in PROMPTS]
    jobs = [make_job(backbone, writer, text, heard[i]) for i, text in enumerate(PROMPTS)]
    most = []
    advance = Batch.advance

    with pytest.raises(QueueFullError, match="at most 6 may"):
        engine.submit([*jobs, jobs[0]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batch, "advance", lambda batch: (most.append(batch.num_jobs), advance(batch))[1])
        engine.start()
        run_all(engine, jobs, heard)
    assert max(most) == 2
    assert [job.tokens for job in jobs] == [alone(backbone, job)[0] for job in jobs]
    engine.stop()
    writer.close()


def test_nobody_waits_for_a_thread_that_has_ended(
    load_tiny: LoadTiny, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_tiny()
    writer = Writer(backbone.model, backbone.codec)
    engine = Engine(max_rows=2, max_tokens=10_000, max_waiting=6)
    monkeypatch.setattr(engine, "_admissible", lambda: {}["no such thing"])
    heard: list[list[Piece]] = [[]]
    jobs = [make_job(backbone, writer, "sun", heard[0])]
    engine.start()
    run_all(engine, jobs, heard)
    assert heard[0][-1].error == "decoding has ended: 'no such thing'"
    assert "no such thing" in engine.fault
    with pytest.raises(EngineStoppedError, match="decoding has ended"):
        engine.submit(jobs)
    assert "KeyError" in capfd.readouterr().err
    engine.stop()
    writer.close()


def test_a_failing_model_ends_its_own_requests_only(
    load_tiny: LoadTiny, capfd: pytest.CaptureFixture[str]
) -> None:
    backbone, other = load_tiny(), load_tiny("gpt2")
    good, bad = Writer(backbone.model, backbone.codec), Writer(other.model, other.codec)
    bad.head = None  # type: ignore[assignment]
    engine = Engine(max_rows=8, max_tokens=10_000, max_waiting=8)
    heard: list[list[Piece]] = [[], []]
    jobs = [make_job(backbone, good, "sun", heard[0]), make_job(other, bad, "sun", heard[1])]
    engine.start()
    run_all(engine, jobs, heard)
    assert heard[1][-1].error is not None
    assert "not callable" in heard[1][-1].error
    assert jobs[0].tokens == alone(backbone, jobs[0])[0]
    assert "Traceback" in capfd.readouterr().err  # the fault is in the log of the server
    engine.stop()
