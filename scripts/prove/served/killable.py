"""`rlhf app` that can end by SIGKILL after the commit of its n-th answer and before the reply.

Equipment of the proofs: the product has no such door. Everything below the outermost layer is the product's own.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import feedback_app.app as served_app
from rlhf.cli import main
from rlhf.core.errors import StoreError

ANSWER = "/api/v1/desk/answer"
START_S = 60.0


class DiesBeforeReply:
    """Outermost middleware: the answer has been stored when its reply passes here."""

    def __init__(self, app: ASGIApp, left: int) -> None:
        self.app, self.left = app, left

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def reply(message: Message) -> None:
            stored = message["type"] == "http.response.start" and message["status"] == 200
            if stored and scope.get("path") == ANSWER:
                self.left -= 1
                if self.left <= 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            await send(message)

        await self.app(scope, receive, reply)


def serve(db_url: str, port: int, die_at: int) -> None:
    """`rlhf app` in this process, which must be one of its own; `die_at` 0: no such end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    if die_at:
        build = served_app.build_app

        def build_mortal(*args: Any, **options: Any) -> FastAPI:
            app = build(*args, **options)
            app.add_middleware(DiesBeforeReply, left=die_at)
            return app

        served_app.build_app = build_mortal
    sys.exit(main(["app", "--port", str(port), "--db", db_url]))


class Mortal:
    """Such a server, forked from a process that has imported everything: it is there in a second, not in five."""

    context = multiprocessing.get_context("forkserver")
    # Not this module: a fork server ignores in silence what is not on its own path, and ours is the script's.
    context.set_forkserver_preload(["feedback_app.app", "rlhf.cli"])

    def __init__(self, db_url: str, port: int, die_at: int = 0) -> None:
        self.url = f"http://localhost:{port}"
        self.process = self.context.Process(target=serve, args=(db_url, port, die_at))
        self.process.start()
        end = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError as error:
                if time.monotonic() > end or not self.process.is_alive():
                    raise StoreError(f"the server did not start: {self.process.exitcode}") from error
            time.sleep(0.05)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def stop(self) -> int | None:
        self.process.terminate()
        self.process.join(START_S)
        return self.process.exitcode
