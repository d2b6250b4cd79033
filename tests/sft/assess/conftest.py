"""Held-out demonstrations in a few words; no model in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rlhf.core.records import Message
from sft.assess.rows import Item


@pytest.fixture
def item() -> Callable[..., Item]:
    """item("prompt", "completion", line=1, ...) -> a held-out demonstration"""

    def make(asked: str, *references: str, line: int = 1, **changes: Any) -> Item:
        values: dict[str, Any] = {
            "line": line,
            "group_id": asked,
            "prompt": (Message(role="user", content=asked),),
            "references": references,
            "context": None,
            "source": "",
        }
        return Item(**values | changes)

    return make
