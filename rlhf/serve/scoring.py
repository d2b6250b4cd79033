"""A share of the answers is scored by a reward model in the background, so that /monitor can show its distribution."""

from __future__ import annotations

import contextlib
import math
import queue
import random
import sys
import threading
import traceback
from collections.abc import Callable

from reward.foreign import ForeignScorer
from reward.score import RewardScorer
from rlhf.core.errors import DataError
from rlhf.core.records import Prompt
from rlhf.serve.answering import Reply, messages_of

MAX_WAITING = 64
MAX_TOKENS = 4096


class Scoring:
    """on_score: called with (model, route, score), in the thread that scores. Answers beyond what it keeps up with
    are left out, and so are those that do not fit the reward model's context."""

    def __init__(
        self,
        scorer: RewardScorer | ForeignScorer,
        share: float,
        on_score: Callable[[str, str, float], None],
        *,
        seed: int | None = None,
    ) -> None:
        self._scorer, self._share, self._on_score = scorer, share, on_score
        self._random = random.Random(seed)
        self._waiting: queue.Queue[tuple[str, str, Prompt, str] | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name="scoring", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the answer that is being scored."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._waiting.get_nowait()
        self._waiting.put(None)
        self._thread.join()

    def offer(self, reply: Reply) -> None:
        """Perhaps score the first choice of an answer."""
        if self._random.random() >= self._share:
            return
        messages = messages_of(reply.body)
        if not messages or not messages[-1].content.strip() or not reply.texts[0]:
            return
        prompt = Prompt.model_validate({"messages": [m.model_dump() for m in messages]})
        try:
            self._waiting.put_nowait(
                (reply.choice.served.model_id, reply.choice.route, prompt, reply.texts[0])
            )
        except queue.Full:
            return  # a share is enough: what counts is that serving does not wait

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            model, route, prompt, text = item
            try:
                score = float(self._scorer.score_texts([prompt], [text], max_tokens=MAX_TOKENS)[0])
                if not math.isfinite(score):
                    raise ArithmeticError(f"the score of an answer of {model} is {score}")
            except DataError:
                continue  # too long for the reward model's context
            except Exception:
                traceback.print_exc(file=sys.stderr)
                continue
            self._on_score(model, route, score)
