"""Parts that need an extra: each is one module, imported only when it is asked for."""

from __future__ import annotations

import importlib
from typing import Any

from rlhf.core.errors import ConfigError


def extra_module(name: str, option: str, extra: str) -> Any:
    """The module, or a ConfigError that names the option that asked for it and the line that gets what it needs."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{option} needs {error.name}; install it with: pip install 'rlhf-loop[{extra}]'"
        ) from error
