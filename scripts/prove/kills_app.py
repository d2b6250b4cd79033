"""Is every answer kept, once, when the rating desk's server is killed in the midst of its work?

    python scripts/prove/kills_app.py [--kills 50] [--databases sqlite,postgresql] [--raters 24] [--seed 0]

The server is killed with SIGKILL over and over while raters answer as fast as it lets them. Half of the kills come
at a random moment; the other half fall between the commit of an answer and its reply, where the answer is stored
and nobody knows. After each kill a new server starts on the same port and store, and every rater sends again what
was not acknowledged, with the same key, as the desk's page does. At the end every acknowledged answer must be
there exactly once, no other answer may be there, no task may be over its quota, and the counters of places must
equal the answers and leases. Ends with 1 otherwise. About 6 seconds a kill on two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import tempfile
import time
from typing import Any

from served.client import Browser, Lost, Page, Refused
from served.killable import Mortal
from served.postgres import Postgres
from served.server import free_port
from served.world import faults, log_in_all, make_people, make_tasks

from feedback_app.store.engine import Store

TASKS_PER_KILL = 150
OVERLAP = 2
RANDOM_MOMENT_S = (0.1, 1.5)
ANSWERS_BEFORE_KILL = (1, 40)
DEADLINE_S = 180.0
PAUSE_S = 0.2
RETRY_S = 0.3


class Rater:
    """Answers one task after the other and sends again what was not acknowledged."""

    def __init__(self, page: Page, seed: int) -> None:
        self.page, self.random = page, random.Random(seed)
        self.acknowledged: dict[str, str] = {}
        self.num_resent = self.num_already_stored = 0

    async def rate(self, stop: asyncio.Event) -> None:
        await self._insist(self.page.open)
        while not stop.is_set() and self.page.task is not None:
            body = self.page.answer_body(self.random.choice(("a", "b", "tie")), "", 1.0)
            reply = await self._insist(lambda body=body: self.page.browser.post("/answer", body))
            self.acknowledged[body["key"]] = body["lease"]
            self.num_already_stored += bool(reply["repeated"])
            await self._insist(self.page.advance)
            await asyncio.sleep(self.random.uniform(0, PAUSE_S))

    async def _insist(self, call: Any) -> Any:
        """Until the server has answered; a refusal is a fault of this proof."""
        end = time.monotonic() + DEADLINE_S
        while True:
            try:
                return await call()
            except (Lost, Refused) as error:
                if isinstance(error, Refused) and error.status < 500:
                    raise
                if time.monotonic() > end:
                    raise
                self.num_resent += 1
                await asyncio.sleep(RETRY_S)


async def prove(db_url: str, kills: int, num_raters: int, seed: int) -> list[str]:
    """Kill, restart, and what was found wrong at the end."""
    choose, port = random.Random(seed), free_port()
    with Store.open(db_url) as store:
        make_tasks(store, TASKS_PER_KILL * kills, overlap=OVERLAP)
        cookies = log_in_all(store, make_people(store, num_raters))
    url = f"http://localhost:{port}"
    raters = [Rater(Page(Browser(url, cookie=cookie)), seed + i) for i, cookie in enumerate(cookies)]
    stop = asyncio.Event()
    work = asyncio.gather(*(rater.rate(stop) for rater in raters))
    after_commit = 0
    for number in range(kills):
        die_at = choose.randint(*ANSWERS_BEFORE_KILL) if number % 2 == 0 else 0
        server = await asyncio.to_thread(Mortal, db_url, port, die_at)
        if die_at:
            await asyncio.to_thread(server.process.join, DEADLINE_S)
            after_commit += 1
        else:
            await asyncio.sleep(choose.uniform(*RANDOM_MOMENT_S))
            server.kill()
        if server.process.exitcode != -signal.SIGKILL or work.done():
            server.kill()
            fault = work.exception() if work.done() else f"the server ended with {server.process.exitcode}"
            return [f"kill {number} failed: {fault!r}"]
    server = await asyncio.to_thread(Mortal, db_url, port)
    await asyncio.sleep(1)
    stop.set()
    try:
        await work
        ended_early = (
            [] if all(rater.page.task for rater in raters) else ["the tasks ran out before the kills"]
        )
    except (Lost, Refused) as error:
        ended_early = [f"a rater was left behind: {error}"]
    await asyncio.to_thread(server.stop)
    acknowledged = {key: lease for rater in raters for key, lease in rater.acknowledged.items()}
    print(f"  {kills} kills, {after_commit} of them between commit and reply; {len(acknowledged)} answers")
    num_stored = sum(rater.num_already_stored for rater in raters)
    print(
        f"  {sum(rater.num_resent for rater in raters)} calls sent again; {num_stored} answers were there already"
    )
    if num_stored < after_commit:
        ended_early.append(
            f"{after_commit} kills after a commit, but only {num_stored} retries found their answer"
        )
    with Store.open(db_url) as store:
        return ended_early + faults(store, acknowledged)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--databases", default="sqlite,postgresql", help="comma-separated")
    parser.add_argument("--raters", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    failed = False
    for database in options.databases.split(","):
        started = time.monotonic()
        print(f"{database}:", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            if database == "postgresql":
                with Postgres(durable=True) as server:
                    url = server.create("kills")
                    found = asyncio.run(prove(url, options.kills, options.raters, options.seed))
            else:
                url = f"sqlite:///{folder}/kills.db"
                found = asyncio.run(prove(url, options.kills, options.raters, options.seed))
        for fault in found:
            print(f"  FAILED: {fault}")
        print(f"  {len(found)} faults, {time.monotonic() - started:.0f} s", flush=True)
        failed |= bool(found)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
