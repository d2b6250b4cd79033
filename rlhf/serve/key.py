"""The key of an endpoint: from a file, or from the environment. Torch-free."""

from __future__ import annotations

import os
from pathlib import Path

from rlhf.core.errors import ConfigError

KEY_VARIABLE = "RLHF_API_KEY"


def read_key(path: Path | None) -> str | None:
    """The key in a file, or in RLHF_API_KEY; None for no key. Raises ConfigError for a file without one."""
    if path is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file {path}: cannot be read") from error
    if not key or not key.isprintable() or " " in key:
        raise ConfigError(f"--api-key-file {path}: expected one key, printable and without spaces")
    return key
