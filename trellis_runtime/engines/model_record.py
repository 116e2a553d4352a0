"""A model folder's record of what was fetched into it, and whether its files are still that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

RECORD = "SOURCES.json"
"""Lies in the folder: which commit of which repository each file came from, and its SHA-256."""


def digest(path: Path) -> str:
    """Return a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record: `sources`, each with its `commit`, and `files` with bytes and SHA-256.

    Raises OSError or ValueError where there is none that can be read.
    """
    record: dict[str, Any] = json.loads((folder / RECORD).read_text())
    if not isinstance(record, dict) or not isinstance(record.get("files"), dict):
        raise ValueError("it lists no files")
    return record


def record_problems(folder: Path, tell: Callable[[str], None] = lambda _: None) -> Iterator[str]:
    """Yield what differs from the record, in words; nothing when all is well.

    `tell` hears the name of each file before it is read.
    """
    try:
        record = read_record(folder)
    except (OSError, ValueError) as err:
        yield f"{folder / RECORD} cannot be read ({err})"
        return
    for name, stated in record["files"].items():
        tell(name)
        path = folder / name
        if not path.is_file():
            yield f"{path} is missing"
        elif path.stat().st_size != stated["bytes"]:
            yield f"{path} has {path.stat().st_size} bytes; {stated['bytes']} were fetched"
        elif digest(path) != stated["sha256"]:
            yield f"{path} has changed since it was fetched"
