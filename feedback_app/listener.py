"""What a server of ours listens on, and the settings that all of them share."""

from __future__ import annotations

import socket
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from feedback_app.slow_clients import PatientProtocol
from rlhf.core.errors import BusyError


def server_settings(app: ASGIApp, *, stop_s: int, **more: Any) -> uvicorn.Config:
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
        **more,
    )


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
