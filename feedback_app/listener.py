"""What a server of ours listens on, and the settings that all of them share."""

from __future__ import annotations

import resource
import socket

import uvicorn
from starlette.types import ASGIApp

from feedback_app.slow_clients import PatientProtocol
from rlhf.core.errors import BusyError

# Longer than the pauses of a person who reads, and than what proxies keep their side open for.
KEEP_ALIVE_S = 75
# Over it a new request is answered with 503; a browser opens up to 6 connections.
MAX_CONNECTIONS = 4000


def server_settings(app: ASGIApp, *, stop_s: int) -> uvicorn.Config:
    """For `uvicorn.Server`. stop_s: how long requests in flight may take after a signal."""
    return uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=stop_s,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        limit_concurrency=MAX_CONNECTIONS,
    )


def allow_connections() -> None:
    """As many open files as connections need, where the system lets us: its usual limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + 256
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises BusyError when somebody else listens there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named; with it a reply waits up to 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise BusyError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another --port"
        ) from error
    return listener
