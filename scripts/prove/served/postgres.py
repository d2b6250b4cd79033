"""A private PostgreSQL: a cluster in a folder of its own, on a Unix socket, gone when its owner is gone.

The server runs as the unprivileged user `postgres` where we are root (initdb refuses root), else as ourselves.
Between us and it stands a shell that reads a pipe: when this process ends, however it ends, the pipe closes,
and the shell stops the server and removes the folder.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

import psycopg

USER = "rlhf"
START_S = 30.0
# The cluster is thrown away, so what a power cut would do to it is of no interest; a killed process loses nothing.
UNSAFE = ("fsync=off", "full_page_writes=off", "synchronous_commit=off")
SETTINGS = ("listen_addresses=", "max_connections=200", "shared_buffers=64MB", "autovacuum_naptime=10s")
# Popen's stdin is the pipe; `$@` is the server's command, $0 its folder.
WATCH = """
"$@" </dev/null >"$0/log" 2>&1 &
server=$!
cat >/dev/null
kill -QUIT $server 2>/dev/null; wait $server; rm -rf "$0"
"""


class Missing(RuntimeError):
    """There is no PostgreSQL on this machine, and it cannot be installed."""


class Postgres:
    """A running server. `durable` keeps fsync on: figures of speed and proofs of durability need it."""

    def __init__(self, *, durable: bool = False) -> None:
        programs = find_programs() or install()
        if programs is None:
            raise Missing("no PostgreSQL on this machine, and not root with apt to install it")
        user = "postgres" if os.geteuid() == 0 else None
        self.folder = Path(tempfile.mkdtemp(prefix="rlhf-pg-", dir="/tmp"))  # a socket's path is short
        if user is not None:
            os.chown(self.folder, pwd.getpwnam(user).pw_uid, -1)
        options = ["-A", "trust", "-U", USER, "-E", "UTF8", "--no-locale", "--no-sync"]
        command = [str(programs / "initdb"), "-D", f"{self.folder}/data", *options]
        done = subprocess.run(command, user=user, cwd=self.folder, capture_output=True, text=True)
        if done.returncode != 0:
            shutil.rmtree(self.folder)
            raise Missing(f"initdb failed: {done.stderr.strip()}")
        settings = SETTINGS if durable else (*SETTINGS, *UNSAFE)
        server = [str(programs / "postgres"), "-D", f"{self.folder}/data", "-k", str(self.folder)]
        for setting in settings:
            server += ["-c", setting]
        self._watcher = subprocess.Popen(
            ["/bin/sh", "-c", WATCH, str(self.folder), *server],
            stdin=subprocess.PIPE,
            user=user,
            cwd=self.folder,
            start_new_session=True,  # Ctrl+C is for us, not for it
        )
        self._await()

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://{USER}@/{database}?host={self.folder}"

    def execute(self, statement: str) -> None:
        """One statement outside a transaction, as the administrator."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(statement.encode())

    def create(self, database: str, template: str = "template0") -> str:
        """The URL of a new database, a copy of `template`."""
        self.execute(f'CREATE DATABASE "{database}" TEMPLATE "{template}"')
        return self.url(database)

    def drop(self, database: str) -> None:
        self.execute(f'DROP DATABASE "{database}" WITH (FORCE)')

    def stop(self) -> None:
        assert self._watcher.stdin is not None
        self._watcher.stdin.close()
        self._watcher.wait(30)

    def __enter__(self) -> Postgres:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _await(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                return self.execute("SELECT 1")
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline:
                    log = (self.folder / "log").read_text(errors="replace")
                    self.stop()
                    raise Missing(f"PostgreSQL did not start: {log[-500:]}") from error
            time.sleep(0.02)


def find_programs() -> Path | None:
    """The folder of initdb and postgres: Debian keeps them out of PATH."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    return versions[-1].parent if versions else None


def install() -> Path | None:
    """Debian's package, where we may install one."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return None
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", "postgresql"]):
        subprocess.run(["apt-get", *command], env=environment, capture_output=True, timeout=600)
    return find_programs()
