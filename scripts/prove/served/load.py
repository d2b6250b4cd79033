"""Many raters at once, each at a person's pace, over the calls that the desk's page makes.

A rater answers once every `raters / rate` seconds on a schedule of their own that does not wait for slow replies:
a server that falls behind gets no rest from it. Two of three answers are clicks: one draft 0.6 s after the choice.
One of three comes with a written reason: a draft at each pause in typing.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time

from feedback_app.store.engine import Store
from served.client import Browser, Page, Refused, Timings
from served.figures import Verdicts
from served.server import Server
from served.world import faults, log_in_all, make_people, make_tasks

SPARE = 1.5
OVERLAP = 2
CHOICES = ("a", "b", "a", "b", "tie")
REASON = [
    "The",
    "second",
    "half",
    "is",
    "more",
    "to",
    "the",
    "point,",
    "and",
    "it",
    "names",
    "the",
    "deadline.",
]


class Rater:
    """One person at the desk until the time is up."""

    def __init__(self, page: Page, cycle_s: float, seed: int) -> None:
        self.page, self.cycle_s, self.random = page, cycle_s, random.Random(seed)
        self.acknowledged: dict[str, str] = {}
        self.errors: list[str] = []
        self.late_s = 0.0

    async def rate_until(self, end: float) -> None:
        due = time.monotonic() + self.random.uniform(0, self.cycle_s)
        beat = asyncio.create_task(self._beats())
        try:
            while due < end and self.page.task is not None:
                await self._one(due)
                due += self.cycle_s * self.random.uniform(0.7, 1.3)
        except Exception as error:  # a refusal or a lost connection is what is counted here
            self.errors.append(f"{type(error).__name__}: {error}")
        finally:
            beat.cancel()

    async def _one(self, due: float) -> None:
        """Choose (and write), and answer at the moment `due`."""
        choice, reason = self.random.choice(CHOICES), ""
        pauses = self.random.randint(2, 4) if self.random.random() < 1 / 3 else 0
        left = due - time.monotonic()
        if left > 1.3:  # a quicker answer comes before the draft's timer
            await asyncio.sleep(left * 0.3)
            for _ in range(pauses):
                reason += " ".join(REASON) + " "
                await self.page.draft(choice, reason)
                await asyncio.sleep(max(0.6, (due - time.monotonic()) / (pauses + 1)))
            if not pauses:
                await self.page.draft(choice, reason)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        self.late_s = max(self.late_s, time.monotonic() - due)
        body = self.page.answer_body(choice, reason.strip(), round(self.cycle_s, 1))
        reply = await self.page.browser.post("/answer", body)
        if not reply["saved"] or reply["repeated"]:
            raise Refused(200, str(reply).encode())
        self.acknowledged[body["key"]] = body["lease"]
        await self.page.advance()

    async def _beats(self) -> None:
        period = self.page.lease_s / 3
        await asyncio.sleep(self.random.uniform(0, period))
        while True:
            await self.page.heartbeat()
            await asyncio.sleep(period)


async def measure(
    url: str, verdicts: Verdicts, database: str, num_raters: int, rate: float, seconds: float
) -> None:
    """Fill a store, serve it, load it, and look at every answer afterwards."""
    print(
        f"load on {database}: {num_raters} raters, {rate:g} answers a second for {seconds:.0f} s", flush=True
    )
    with Store.open(url) as store:
        make_tasks(store, int(SPARE * (rate * seconds + 2 * num_raters) / OVERLAP), overlap=OVERLAP)
        cookies = log_in_all(store, make_people(store, num_raters))
    server, timings = Server(url), Timings()
    try:
        pages = [Page(Browser(server.url, timings, cookie)) for cookie in cookies]
        for page in pages:
            await page.open()
        timings.seconds.clear()
        raters = [Rater(page, num_raters / rate, seed) for seed, page in enumerate(pages)]
        gc.collect()
        gc.freeze()  # the client's own pauses are not the server's
        started = time.monotonic()
        await asyncio.gather(*(rater.rate_until(started + seconds) for rater in raters))
        took = time.monotonic() - started
    finally:
        code = server.stop()
    with Store.open(url) as store:
        acknowledged = {key: lease for rater in raters for key, lease in rater.acknowledged.items()}
        found = faults(store, acknowledged)
    _judge(verdicts, database, timings, raters, took, rate)
    verdicts.at_most(f"{database}: faults in the store", len(found), 0)
    for fault in found:
        verdicts.note(fault)
    verdicts.at_most(
        f"{database}: server's exit after SIGTERM other than 143", int(code not in (143, -15)), 0
    )


def _judge(
    verdicts: Verdicts, database: str, timings: Timings, raters: list[Rater], took: float, rate: float
) -> None:
    num_answers = sum(len(rater.acknowledged) for rater in raters)
    num_calls = sum(map(len, timings.seconds.values()))
    late = max(rater.late_s for rater in raters)
    verdicts.note(
        f"{num_answers} answers, {num_answers / took:.1f}/s, {num_calls / took:.1f} calls/s; latest start {late:.2f} s"
    )
    for kind, values in sorted(timings.seconds.items()):
        figures = " / ".join(f"{1000 * timings.quantile(kind, share):.0f}" for share in (0.5, 0.95, 0.99, 1))
        verdicts.note(f"{kind} ({len(values)}): p50 / p95 / p99 / max {figures} ms")
    for kind in ("/answer", "/next"):
        verdicts.at_most(f"{database}: p95 of {kind}", 1000 * timings.quantile(kind, 0.95), 150, "ms")
        verdicts.at_most(f"{database}: p99 of {kind}", 1000 * timings.quantile(kind, 0.99), 500, "ms")
    errors = [error for rater in raters for error in rater.errors]
    verdicts.at_most(f"{database}: calls that failed", len(errors), 0)
    for error in errors[:3]:
        verdicts.note(error)
    verdicts.at_most(
        f"{database}: answers a second below those asked", rate - num_answers / took, 0.05 * rate
    )
