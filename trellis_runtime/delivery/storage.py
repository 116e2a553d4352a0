"""Where results go: one protocol, and the places that need no bucket.

A key holds the job's id, so a job that is run twice overwrites itself; what an earlier run
delivered is never taken back by a later one. A file appears under its
final name whole or not at all: it is written beside, flushed, and renamed.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from trellis_runtime.contract.answer import Artifact
from trellis_runtime.contract.files import in_variant
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.delivery.fetch import upload
from trellis_runtime.delivery.presigned import may_have_signed_type, put_headers
from trellis_runtime.errors import StorageFailed
from trellis_runtime.settings import FetchLimits

_PLAIN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_PARTIAL = ".partial"
SETTLE_S = 20.0
"""Seconds for looking after what was put when a job has failed: its own time may be over."""


class Store(Protocol):
    """A place for one job's files."""

    def put(self, name: str, data: bytes, content_type: str, scope: JobScope) -> Artifact:
        """Deliver `data` as `name`; raises `StorageFailed`, never returns before it is there."""

    def discard(self, scope: JobScope) -> None:
        """Remove what this store put where nothing was: the job failed or was stopped.

        `scope` is not the job's: that one's time may be over.
        """


def folder_of(job_id: str) -> str:
    """Return a job's id as a path segment; an id that is not plain is replaced by its hash."""
    if _PLAIN_ID.fullmatch(job_id):
        return job_id
    return "job-" + hashlib.sha256(job_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def describe(data: bytes, content_type: str) -> dict[str, object]:
    """Return the facts that every artifact states."""
    return {
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "content_type": content_type,
    }


class LocalStore:
    """A folder of this machine: `root/JOB_ID/NAME`."""

    def __init__(self, root: Path, job_id: str) -> None:
        self._root = root.absolute()
        self._folder = self._root / folder_of(job_id)
        self._put: list[tuple[Path, int]] = []
        """Files that were put where none was, and their inodes: another run may replace one."""

    def put(self, name: str, data: bytes, content_type: str, scope: JobScope) -> Artifact:
        final = self._folder / name
        was_there = final.exists()
        # Not by the job's name alone: two runs of one job may write side by side.
        own = f"{os.getpid()}-{secrets.token_hex(4)}-{self._folder.name}-{name}"
        partial = self._root / _PARTIAL / own
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            self._folder.mkdir(parents=True, exist_ok=True)
            inode = _write_flushed(partial, data)
            partial.replace(final)
        except OSError as err:
            partial.unlink(missing_ok=True)
            raise StorageFailed(f"{name} could not be written ({err.strerror})") from err
        if not was_there:
            self._put.append((final, inode))
        return Artifact.model_validate(describe(data, content_type) | {"url": final.as_uri()})

    def discard(self, scope: JobScope) -> None:
        for path, inode in self._put:
            with suppress(OSError):
                if path.stat().st_ino == inode:
                    path.unlink()
        with suppress(OSError):  # something else is in it
            self._folder.rmdir()
        self._put.clear()


class InlineStore:
    """The answer itself, as base64."""

    def put(self, name: str, data: bytes, content_type: str, scope: JobScope) -> Artifact:
        text = base64.b64encode(data).decode()
        return Artifact.model_validate(describe(data, content_type) | {"base64": text})

    def discard(self, scope: JobScope) -> None:
        """Nothing was put anywhere."""


class VariantStore:
    """A place for one variant's files, beside the others': `VARIANT-NAME`."""

    def __init__(self, whole: Store, variant: str) -> None:
        """`whole` is this variant's alone, so that its files can be taken back alone."""
        self.whole = whole
        self._variant = variant

    def put(self, name: str, data: bytes, content_type: str, scope: JobScope) -> Artifact:
        return self.whole.put(in_variant(self._variant, name), data, content_type, scope)

    def discard(self, scope: JobScope) -> None:
        self.whole.discard(scope)


class UploadStore:
    """The presigned URL that the caller gave, for the model; smaller files go inline."""

    def __init__(
        self, url: str, model_name: str, limits: FetchLimits, headers: Mapping[str, str]
    ) -> None:
        """`headers` are what the caller wants sent with the model."""
        self._url = url
        self._headers = headers
        self._model_name = model_name
        self._limits = limits
        self._inline = InlineStore()

    def put(self, name: str, data: bytes, content_type: str, scope: JobScope) -> Artifact:
        if name != self._model_name:
            return self._inline.put(name, data, content_type, scope)
        headers = put_headers(self._url, content_type, self._headers)
        try:
            upload(self._url, data, headers, self._limits, scope)
        except StorageFailed as err:
            if err.answered != 403 or not may_have_signed_type(self._url, headers):
                raise
            headers["Content-Type"] = content_type
            upload(self._url, data, headers, self._limits, scope)
        shown = self._url.split("?", 1)[0].split("#", 1)[0]  # the signature stays the caller's
        return Artifact.model_validate(describe(data, content_type) | {"url": shown})

    def discard(self, scope: JobScope) -> None:
        """A presigned PUT cannot be undone."""


def sweep_partial(root: Path) -> int:
    """Remove what crashed processes left unfinished; returns how many files that were."""
    swept = 0
    for path in (root.absolute() / _PARTIAL).glob("*-*"):
        pid = path.name.split("-", 1)[0]
        if pid.isdigit() and (int(pid) == os.getpid() or not _is_running(int(pid))):
            path.unlink(missing_ok=True)
            swept += 1
    return swept


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk that holds `folder`, or will once it is made."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def _write_flushed(path: Path, data: bytes) -> int:
    """Write a file through to the disk; returns its inode."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_ino


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
