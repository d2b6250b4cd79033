"""Chance that can be asked twice: draws that depend on who asks and how far they are, and on nothing else.

A person's position in a project is the number of tasks they have answered, skipped or hold. A retry and a
second tab ask from the same position and get the same draw, so nobody can reload until the gold item is gone.
"""

from __future__ import annotations

import hashlib
from typing import Any


def digest(*parts: Any) -> str:
    """64 hex digits that look random and depend only on the parts."""
    return hashlib.sha256("|".join(map(str, parts)).encode("utf-8", "surrogatepass")).hexdigest()


def draw(*parts: Any) -> float:
    """A number in [0, 1) that looks random and depends only on the parts."""
    return int(digest(*parts)[:13], 16) / 16**13
