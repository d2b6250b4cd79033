"""A rater's browser without the browser: one kept-alive connection, the calls of the desk's page, no more.

Written over asyncio's streams: hundreds of raters share one process, which must cost less than the server.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

PROJECT = "load"
TIMEOUT_S = 60.0


class Refused(Exception):
    """The server answered, and the answer was no."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"{status} {body[:200]!r}")
        self.status = status


class Lost(Exception):
    """The connection ended before the answer came."""


@dataclass
class Timings:
    """Seconds per kind of call, from the first byte sent to the last byte read."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def quantile(self, kind: str, share: float) -> float:
        ordered = sorted(self.seconds[kind])
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


class Browser:
    """One rater's connection to the server at `url`. Calls are made one after the other."""

    def __init__(self, url: str, timings: Timings | None = None, cookie: str = "") -> None:
        parts = urlsplit(url)
        self.host, self.port, self.origin = parts.hostname or "", parts.port or 80, url
        self.timings, self.cookie = timings, cookie
        self._pair: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._turn = asyncio.Lock()

    async def get(self, path: str) -> Any:
        return await self._call("GET", path, None)

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        return await self._call("POST", path, json.dumps(body).encode())

    async def _call(self, method: str, path: str, body: bytes | None) -> Any:
        started = time.perf_counter()
        status, reply = await self._exchange(method, f"/api/v1/desk{path}", body)
        if status != 200:
            raise Refused(status, reply)
        if self.timings is not None:
            self.timings.seconds[path or "/"].append(time.perf_counter() - started)
        return json.loads(reply)

    async def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        lines = [f"{method} {path} HTTP/1.1", f"host: {self.host}:{self.port}", f"cookie: {self.cookie}"]
        if body is not None:
            lines += [
                f"origin: {self.origin}",
                "content-type: application/json",
                f"content-length: {len(body)}",
            ]
        request = "\r\n".join([*lines, "", ""]).encode() + (body or b"")
        async with self._turn:
            if self._pair is not None and self._pair[0].at_eof():
                self.close()  # the server closed an idle connection, which a browser does not tell its page
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    reader, writer = self._pair or await asyncio.open_connection(self.host, self.port)
                    self._pair = (reader, writer)
                    writer.write(request)
                    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:])}
                    reply = await reader.readexactly(int(headers.get("content-length", 0)))
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                self.close()
                raise Lost(str(error)) from error
            if headers.get("connection") == "close":
                self.close()
            return int(head[0].split()[1]), reply

    def close(self) -> None:
        if self._pair is not None:
            self._pair[1].close()
            self._pair = None


class Page:
    """The desk's page of one rater: it has a task on screen and the next one in hand, as the page's script does."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.task: dict[str, Any] | None = None
        self.ready: dict[str, Any] | None = None
        self.lease_s = 900.0

    async def open(self) -> None:
        """What the page asks when it loads."""
        self.lease_s = (await self.browser.get(""))["lease_s"]
        self.task = await self._next([])
        await self.prefetch()

    async def prefetch(self) -> None:
        if self.task is not None:
            self.ready = await self._next([self.task["lease"]])

    async def draft(self, choice: str, reason: str) -> None:
        assert self.task is not None
        strength = None if choice == "tie" else 2
        body = {"lease": self.task["lease"], "choice": choice, "strength": strength, "reason": reason}
        await self.browser.post("/draft", body)

    async def heartbeat(self) -> None:
        leases = [task["lease"] for task in (self.task, self.ready) if task is not None]
        if leases:
            await self.browser.post("/heartbeat", {"leases": leases})

    def answer_body(self, choice: str, reason: str, seconds: float) -> dict[str, Any]:
        """The answer to the task on screen, with the key that all its retries carry."""
        assert self.task is not None
        return {
            "lease": self.task["lease"],
            "key": secrets.token_hex(16),
            "choice": choice,
            "strength": None if choice == "tie" else 2,
            "reason": reason,
            "seconds": seconds,
        }

    async def advance(self) -> None:
        """After an answer: the task in hand comes on screen, and the one after it is fetched."""
        self.task, self.ready = self.ready, None
        if self.task is None:
            self.task = await self._next([])
        await self.prefetch()

    async def _next(self, holding: list[str]) -> dict[str, Any] | None:
        reply = await self.browser.post("/next", {"project": PROJECT, "holding": holding})
        return reply["task"]
