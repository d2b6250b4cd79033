"""`rlhf app` as people start it, in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from rlhf.core.errors import StoreError

REPOSITORY = Path(__file__).resolve().parents[3]
STOP_S = 30.0


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Server:
    """A running server over `db_url`."""

    def __init__(self, db_url: str, *, port: int = 0, options: tuple[str, ...] = ()) -> None:
        command = [sys.executable, "-m", "rlhf.cli", "app", "--port", str(port), "--db", db_url, *options]
        path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
        )
        self.lines: list[str] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.strip())
            if line.startswith("open http"):
                self.url = line.split()[1].rstrip("/")
                return
        raise StoreError(f"the server ended early with {self.process.wait()}: {self.lines}")

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code. One that does not end is killed, and -9 is returned."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.process.returncode
