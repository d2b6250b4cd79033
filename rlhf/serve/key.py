"""The key of an endpoint: from a file, or from the environment. Torch-free."""

from __future__ import annotations

import os
from pathlib import Path

from rlhf.core.errors import ConfigError

KEY_VARIABLE = "RLHF_API_KEY"


def read_key(path: Path | None) -> str | None:
    """The key in a file, or in RLHF_API_KEY; None for no key. Raises ConfigError for what cannot be one."""
    if path is None:
        where, key = KEY_VARIABLE, os.environ.get(KEY_VARIABLE, "").strip()
        if not key:
            return None
    else:
        where = f"--api-key-file {path}"
        try:
            key = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where}: cannot be read") from error
    # A header carries nothing else unharmed.
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"{where}: expected one key, printable ASCII without spaces")
    return key
