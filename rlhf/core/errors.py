"""Errors a person can act on.

Every error the project raises on purpose is one of these. Each is also the standard-library error that a
caller of a plain Python API would expect, so `except ValueError` works without knowing us. The message is
one line that says what was found, where (file, line, key), and what was expected; `rlhf.cli` prints it and
ends with `exit_code`.
"""

from __future__ import annotations

EXIT_USAGE = 2
EXIT_GUARD = 3


class RlhfError(Exception):
    """Base of all errors raised on purpose. `exit_code` is what the command line ends with.

    quiet: another process of the same run prints the line. alone: raised in the midst of an exchange with the
    other processes, so that they cannot be told and end when they find this one gone.
    """

    exit_code = EXIT_USAGE
    quiet = False
    alone = False


class ConfigError(RlhfError, ValueError):
    """A setting, a key or a command-line option is unknown, missing, or has a value that cannot work."""


class DataError(RlhfError, ValueError):
    """A file or a record that people brought cannot be used as it is."""


class ModelError(RlhfError, ValueError):
    """A model directory is missing, incomplete, or of a kind that a stage cannot use."""


class CheckpointError(RlhfError, RuntimeError):
    """Saved weights or training state are damaged, incomplete, or do not fit what they are loaded into."""


class StoreError(RlhfError, RuntimeError):
    """The feedback store refuses an operation (unknown task, wrong role, schema from the future, ...)."""


class BusyError(RlhfError, RuntimeError):
    """Another process holds the run directory, the store or the port that was asked for."""


class GuardStop(RlhfError, RuntimeError):
    """A guard ended a run on purpose: NaN or Inf in training, or a gate that was not passed."""

    exit_code = EXIT_GUARD


class PeerError(RlhfError, RuntimeError):
    """Another process of the same run failed, and this one ends with it."""

    exit_code = 1


class Stopped(RlhfError, RuntimeError):
    """A signal ended a run; a resumable checkpoint has been saved. `exit_code` is 128 + the signal."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
