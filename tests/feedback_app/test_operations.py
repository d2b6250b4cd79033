"""Running it: starting, stopping, several servers over one store, copies and what becomes of them."""

from __future__ import annotations

import socket
import threading

import pytest
from sqlalchemy import text

from feedback_app import app as app_module
from feedback_app.store import engine
from rlhf.core.errors import BusyError


def test_small_replies_do_not_wait_for_an_acknowledgement():
    """asyncio sets TCP_NODELAY on a connection only when its socket names the protocol."""
    with app_module._listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_a_port_that_is_taken_is_one_clear_line():
    with (
        app_module._listen("127.0.0.1", 0) as listener,
        pytest.raises(BusyError, match="choose another --port"),
    ):
        app_module._listen("127.0.0.1", listener.getsockname()[1])


def test_writers_of_one_process_take_turns(store, monkeypatch):
    """Without a turn they poll SQLite's lock, with pauses of up to 100 ms: a fifth of a second at p95 under load."""
    monkeypatch.setattr(engine, "BUSY_TIMEOUT_S", 0.05)
    order, first_is_in, second_may_end = [], threading.Event(), threading.Event()

    def first() -> None:
        with store.write() as connection:
            connection.execute(text("UPDATE annotators SET name = name"))
            first_is_in.set()
            second_may_end.wait(5)
        order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    assert first_is_in.wait(5)
    with pytest.raises(BusyError, match="busy with other answers"), store.write():
        order.append("second")
    with store.read() as connection:  # readers never wait
        connection.execute(text("SELECT count(*) FROM annotators")).scalar_one()
    second_may_end.set()
    thread.join(5)
    assert order == ["first"]
