"""Reads what others may have written, or a disk damaged: of bounded size and depth, and nothing but data."""

import errno
import json
from pathlib import Path
from typing import Any

MOST_BYTES = 4 * 1024**2
"""Of a file of settings or results; the largest so far have some kilobytes."""
MOST_LEVELS = 64
"""Of tables and lists in one another."""


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """A whole file.

    Raises:
        OSError: it cannot be read, or is larger than `most` bytes.
    """
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes")
    return content


def read_json(path: Path) -> Any:
    """What a file of JSON says.

    Raises:
        OSError: as `read_bytes`.
        ValueError: as `parse_json`.
    """
    return parse_json(read_bytes(path).decode())


def parse_json(text: str) -> Any:
    """What a text of JSON says.

    Raises:
        ValueError: it is no JSON, or too deep.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """
    Raises:
        ValueError: tables and lists lie in one another more than `MOST_LEVELS` deep.
    """
    level = [value]
    for _ in range(MOST_LEVELS + 1):
        if not level:
            return
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if level:
        raise ValueError(f"it is nested more than {MOST_LEVELS} levels deep")
