"""Five simulated raters. They answer through the store's own doors, one leased task at a time, like people.

Each rater reads the rubric's four criteria off a reply, weighs them in their own way, and is not quite sure:
the difference of two replies is seen with noise, a difference below their own threshold is a tie, and larger
ones are stronger preferences. One of them is careless: half of the time they do not read, and then mostly
take the reply on top. All are noisy on purpose: people agree with each other on 63 % (Anthropic HH) to 77 %
(InstructGPT) of their comparisons, and so do these. Accounts, project, tasks and answers are marked as
simulated wherever they are stored.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from feedback_app.auth import create_annotator
from feedback_app.store.annotations import answer, submit
from feedback_app.store.engine import Store
from feedback_app.store.tasks import TaskView, lease_next
from rlhf.core.metrics import progress
from rlhf.core.records import Verdict, content_id
from rlhf.demo import rubric

BAD_BELOW = 0.12
STRENGTH_STEPS = (0.2, 0.45)


@dataclass(frozen=True)
class Rater:
    """One simulated rater.

    noise: standard deviation added to the difference of two scores in [0, 1].
    tie_below: differences smaller than this are ties: the stricter, the smaller.
    weights: what each criterion is worth to them (the rubric's own where not given).
    inattention: share of tasks that are answered without reading.
    """

    name: str
    noise: float
    tie_below: float
    weights: dict[str, float] = field(default_factory=dict)
    inattention: float = 0.0

    def judge(
        self, prompt: str, first: str, second: str, rng: random.Random, *, first_on_top: bool = True
    ) -> tuple[Verdict, int | None]:
        """(verdict, strength 1..3 or None) on two completions in canonical order."""
        if rng.random() < self.inattention:
            top = rng.random() < 0.65
            return ("first" if top == first_on_top else "second"), 1
        weights = {**rubric.WEIGHTS, **self.weights}
        scores = [rubric.criteria(prompt, text).total(weights) for text in (first, second)]
        seen = scores[0] - scores[1] + rng.gauss(0.0, self.noise)
        if abs(seen) < self.tie_below:
            return ("both_bad" if max(scores) < BAD_BELOW else "tie"), None
        strength = 1 + sum(abs(seen) > step for step in STRENGTH_STEPS)
        return ("first" if seen > 0 else "second"), strength


RATERS: tuple[Rater, ...] = (
    Rater("simulated careful", noise=0.14, tie_below=0.03),
    Rater("simulated strict", noise=0.22, tie_below=0.01, weights={"honest": 0.38, "concise": 0.28}),
    Rater("simulated kind", noise=0.27, tie_below=0.06, weights={"polite": 0.38}),
    Rater("simulated hurried", noise=0.45, tie_below=0.05, weights={"concise": 0.33, "honest": 0.11}),
    Rater("simulated careless", noise=0.36, tie_below=0.02, inattention=0.5),
)


def rate_all(store: Store, project: str, *, seed: int, raters: Sequence[Rater] = RATERS) -> int:
    """Let the raters take turns until no task of the project is left for any of them; returns the answers.

    A second call, or one after an interruption, answers only what is still open.
    """
    ids = {r.name: create_annotator(store, r.name, password=None, simulated=True) for r in raters}
    at_work = list(raters)
    num_answers = 0
    with progress("simulated raters judge pairs", None, stage="ratings") as tracker:
        while at_work:
            for rater in tuple(at_work):
                task = lease_next(store, ids[rater.name], project)
                if task is None:
                    at_work.remove(rater)
                    continue
                _answer(store, task, rater, ids[rater.name], seed)
                num_answers += 1
                tracker.advance()
    return num_answers


def _answer(store: Store, task: TaskView, rater: Rater, annotator_id: str, seed: int) -> None:
    first, second = task.completions
    # The noise belongs to (rater, task), not to the order in which tasks come.
    rng = random.Random(f"{seed}:{rater.name}:{task.task_id}")
    verdict, strength = rater.judge(
        task.prompt.text,
        first.text,
        second.text,
        rng,
        first_on_top=task.shown_order[0] == first.completion_id,
    )
    seconds = 4.0 + 0.3 * len((task.prompt.text + first.text + second.text).split()) * rng.uniform(0.5, 1.5)
    submit(
        store,
        answer(task, annotator_id, preference=verdict, strength=strength),
        lease_id=task.lease_id,
        client_key=content_id("k", "simulated", seed, rater.name, task.task_id),
        seconds=seconds,
        origin="simulated",
    )
