"""Children by fork: what they print goes to a log, what they end with is an exit code."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from rlhf.core.errors import RlhfError


def fork(work: Callable[[], None], log: Path) -> int:
    """The process id of a child that does `work` and ends with its exit code."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        work()
        code = 0
    except RlhfError as error:
        print(f"error: {error}")
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child: int, after_s: float | None, number: int = signal.SIGKILL) -> int:
    """The exit code of a child, minus the signal that ended it. It is sent `number` after so many seconds."""
    started = time.monotonic()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if after_s is not None and time.monotonic() - started >= after_s:
            os.kill(child, number)
            after_s = None
        time.sleep(0.002)
