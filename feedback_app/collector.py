"""Python's garbage collector while a file of rows goes by.

Rows hold no cycles, but the collector walks everything alive again and again while thousands of them are made:
a quarter of an import's time.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

OBJECTS_BETWEEN = 50_000


@contextmanager
def fewer_collections() -> Iterator[None]:
    """Collect rarely, and leave alone what is there already. For commands, whose process does nothing else."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(OBJECTS_BETWEEN, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
