"""A job's folder on this machine: what is kept beside its result, found again, and deleted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from trellis_runtime.contract.answer import parse_answer
from trellis_runtime.contract.files import (
    ANSWER,
    THUMBNAIL,
    ResultFile,
    file_called,
    in_variant,
    variant_name,
)
from trellis_runtime.contract.request import MOST_VARIANTS
from trellis_runtime.contract.stages import Stage
from trellis_runtime.server.job import Job

REQUEST_NAME = "request.json"
PICTURE_TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp",
                 "avif": "image/avif"}  # fmt: skip
"""Pictures that a browser shows, by the suffix under which they are kept."""


def picture_type(data: bytes) -> str | None:
    """Return a picture's content type by its first bytes, None where a browser shows it not."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return "image/avif" if data[4:12] in (b"ftypavif", b"ftypavis") else None


def remember(folder: Path, job: Job) -> None:
    """Write what was asked, and the picture, into the folder of a job that left files here."""
    if not folder.is_dir():
        return
    asked = {"created": job.created, "request": job.request, "endpoint": job.endpoint}
    (folder / REQUEST_NAME).write_text(json.dumps(asked))
    if job.picture is not None:
        data, kind = job.picture
        suffix = next(end for end, name in PICTURE_TYPES.items() if name == kind)
        (folder / f"input.{suffix}").write_bytes(data)


def remembered(folder: Path) -> Job | None:
    """Return the job whose answer is in `folder`, None where there is none."""
    try:
        answer = parse_answer((folder / ANSWER.name).read_bytes())
        created = (folder / ANSWER.name).stat().st_mtime
    except (OSError, ValueError):
        return None
    asked = _asked(folder)
    return Job(
        folder.name,
        asked.get("request", {}),
        asked.get("created", created),
        "done",
        Stage.STORE,
        1.0,
        answer,
        endpoint=asked.get("endpoint"),
    )


def _asked(folder: Path) -> dict[str, Any]:
    """Return what `remember` wrote; nothing of it where any of it is not as it was written."""
    try:
        asked = json.loads((folder / REQUEST_NAME).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    kinds = {"request": dict, "created": int | float, "endpoint": str | None}
    whole = isinstance(asked, dict) and all(isinstance(asked.get(k), t) for k, t in kinds.items())
    return asked if whole else {}


def input_of(folder: Path) -> tuple[bytes, str] | None:
    """Return the picture that a job was given, and its type."""
    for suffix, kind in PICTURE_TYPES.items():
        with suppress(OSError):
            return (folder / f"input.{suffix}").read_bytes(), kind
    return None


def has_input(folder: Path) -> bool:
    """Whether the folder holds the picture that a job was given."""
    return any((folder / f"input.{suffix}").is_file() for suffix in PICTURE_TYPES)


def thumbnail_of(folder: Path) -> Path | None:
    """Return the small picture of a job's model, of variants the first one's."""
    variants = (in_variant(variant_name(n), THUMBNAIL.name) for n in range(MOST_VARIANTS))
    found = (folder / name for name in (THUMBNAIL.name, *variants))
    return next((path for path in found if path.is_file()), None)


def files_of(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield `name`, `bytes` and `content_type` of each file of a result."""
    for path, file in _results(folder):
        with suppress(OSError):
            size = path.stat().st_size
            yield {"name": path.name, "bytes": size, "content_type": file.content_type}


def delete(folder: Path) -> None:
    """Remove a job's files; any other that lies in its folder stays."""
    beside = [folder / REQUEST_NAME, *(folder / f"input.{suffix}" for suffix in PICTURE_TYPES)]
    for path in beside + [path for path, _ in _results(folder)]:
        path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _results(folder: Path) -> list[tuple[Path, ResultFile]]:
    """Return the files of a result that are in `folder`: the answer, its model, its finishes."""
    with suppress(OSError):
        paths = sorted(folder.iterdir())
        return [(path, file) for path in paths if (file := file_called(path.name))]
    return []
