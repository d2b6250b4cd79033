"""Simulated raters: more or less in accord with the true score, and at work only through the store."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from feedback_app.store.annotations import judgements
from feedback_app.store.engine import Store
from feedback_app.store.tasks import add_completions, add_prompts, create_tasks
from rlhf.core.records import Completion
from rlhf.demo import corpus, raters, rubric


def _pairs(num: int) -> list[tuple[str, str, str]]:
    rng = random.Random(0)
    return [
        (prompt.text, *(corpus.write_reply(rng, case, corpus.DEMONSTRATED) for _ in range(2)))
        for prompt, case in corpus._cases(0, num, "any", False, set())
    ]


def _accuracy(rater: raters.Rater, pairs: list[tuple[str, str, str]]) -> float:
    """Share of pairs judged as the true score says, ties of either kind left out."""
    rng, right, total = random.Random(1), 0, 0
    for prompt, first, second in pairs:
        verdict, _ = rater.judge(prompt, first, second, rng)
        difference = rubric.score(prompt, first) - rubric.score(prompt, second)
        if verdict in ("first", "second") and difference != 0:
            total += 1
            right += (verdict == "first") == (difference > 0)
    return right / total


def test_raters_differ_in_accuracy_as_they_are_meant_to() -> None:
    accuracy = {rater.name: _accuracy(rater, _pairs(1500)) for rater in raters.RATERS}
    careful, strict, kind, hurried, careless = accuracy.values()
    assert careful > max(strict, kind) > hurried > careless > 0.55
    assert careful > 0.85


def test_stricter_raters_tie_less_and_strength_grows_with_the_difference() -> None:
    pairs, rng = _pairs(600), random.Random(2)
    ties = []
    for tie_below in (0.01, 0.06, 0.2):
        rater = raters.Rater("r", noise=0.05, tie_below=tie_below)
        ties.append(sum(rater.judge(*pair, rng)[0] in ("tie", "both_bad") for pair in pairs))
    assert ties[0] < ties[1] < ties[2]
    exact = raters.Rater("exact", noise=0.0, tie_below=0.01)
    for prompt, first, second in pairs:
        difference = abs(rubric.score(prompt, first) - rubric.score(prompt, second))
        _, strength = exact.judge(prompt, first, second, rng)
        # steps at 0.2 and 0.45, no strength below the tie threshold
        expected = None if difference < 0.01 else 1 if difference <= 0.2 else 2 if difference <= 0.45 else 3
        assert strength == expected


def test_the_careless_rater_prefers_the_top_when_not_reading() -> None:
    rater, rng = raters.Rater("asleep", noise=0.0, tie_below=0.0, inattention=1.0), random.Random(3)
    seen = Counter(rater.judge("p", "a", "b", rng, first_on_top=False)[0] for _ in range(2000))
    assert seen["second"] / 2000 == pytest.approx(0.65, abs=0.04)


@pytest.fixture
def store(tmp_path: Path):
    with Store.open(f"sqlite:///{tmp_path / 'feedback.db'}") as opened:
        rng = random.Random(0)
        cases = list(corpus._cases(0, 12, "rated", False, set()))
        add_prompts(opened, [prompt for prompt, _ in cases])
        items = []
        for prompt, case in cases:
            pair = [
                Completion(
                    completion_id="",
                    prompt_id=prompt.prompt_id,
                    text=corpus.write_reply(rng, case, corpus.WILD),
                    sampling={"index": index},
                )
                for index in range(2)
            ]
            add_completions(opened, pair)
            items.append((prompt.prompt_id, tuple(c.completion_id for c in pair)))
        create_tasks(opened, project="demo", kind="pairwise", items=items, overlap=2, simulated=True)
        yield opened


def test_raters_answer_every_task_through_the_store_exactly_as_often_as_asked(store: Store) -> None:
    assert raters.rate_all(store, "demo", seed=0) == 24
    found = list(judgements(store, "demo"))
    assert len(found) == 24
    assert set(Counter(j.task_id for j in found).values()) == {2}
    assert len({j.annotator_id for j in found}) == 5
    assert raters.rate_all(store, "demo", seed=0) == 0, "nothing is left, and nothing is answered twice"
