"""Data sets of the hub, or of a directory as `datasets` reads them, row by row. Imported only when one is named."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datasets import IterableDatasetDict, load_dataset

from rlhf.core.errors import DataError
from rlhf.core.files import BadRow, SourceRow, check_text
from rlhf.core.validation import one_line


def hub_rows(name: str, split: str) -> Iterator[SourceRow]:
    """(number, b"", row) of one split, streamed. name: a hub id or a local directory of data files.

    Raises DataError when there is no such data set or split.
    """
    try:
        found = load_dataset(name, streaming=True)
    except Exception as error:  # the library raises errors of a dozen packages, all about what was asked for
        raise DataError(f"hub:{name}: cannot be loaded ({one_line(str(error))[:200]})") from error
    if not isinstance(found, IterableDatasetDict) or split not in found:
        known = ", ".join(map(str, found)) if isinstance(found, IterableDatasetDict) else "none"
        raise DataError(f"hub:{name}: has no split '{split}'; found: {known}")
    number = 0
    try:
        for row in found[split]:
            number += 1
            yield number, repr(row)[:4096].encode("utf-8", "replace"), _checked(row)
    except DataError:
        raise
    except Exception as error:  # as above; what was read so far is kept
        raise DataError(
            f"hub:{name}: cannot be read after row {number} ({one_line(str(error))[:200]})"
        ) from error


def _checked(row: dict[str, Any]) -> dict[str, Any] | BadRow:
    data = {key: value for key, value in row.items() if value is not None}
    try:
        check_text(data)
    except BadRow as error:
        return error
    return data
