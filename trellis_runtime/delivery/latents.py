"""Where latents are kept for a later job, and for how long.

    PREFIX/latents/ID/latents.npz     in a bucket: a lifecycle rule on PREFIX/latents/ removes them
                      latents.json    written last: where it stands, the arrays do
    OUTPUT/latents/ID/...             on this machine, where there is no bucket; bounded, and swept

Their time ends with what latents.json says, with the object's `Expires`, or with the date that the
bucket's lifecycle gives it (`x-amz-expiration`), whichever comes first.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from trellis_runtime.contract.files import variant_name
from trellis_runtime.contract.latents import ARRAYS, FACTS
from trellis_runtime.contract.request import MOST_VARIANTS
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.delivery.s3 import S3Store
from trellis_runtime.delivery.storage import LocalStore, folder_of
from trellis_runtime.errors import StorageFailed
from trellis_runtime.settings import DeliverySettings

FOLDER = "latents"
LARGEST_BYTES = 256_000_000
"""Of latents.npz: an engine leaves a tenth of it at most."""

_MOST_FACTS = 1_000_000
_LIFECYCLE_DATE = re.compile(r'expiry-date="([^"]+)"')


@dataclass(frozen=True, slots=True)
class Found:
    """A file of kept latents, and when its place lets go of it; None: it does not say."""

    data: bytes
    expires: datetime | None = None


class LatentsStore(Protocol):
    """The place of one job's latents."""

    place: Literal["bucket", "folder"]

    def put(self, facts: bytes, arrays: bytes, expires: datetime, scope: JobScope) -> None:
        """Keep both until `expires`; raises `StorageFailed`."""

    def facts(self, scope: JobScope) -> Found | None:
        """Return latents.json, None where there is none."""

    def arrays(self, scope: JobScope) -> Found | None:
        """Return latents.npz, None where there is none."""

    def discard(self, scope: JobScope) -> None:
        """Remove what was put: the job failed."""


class BucketLatents:
    """In a bucket, beside the folders of results."""

    place: Literal["bucket", "folder"] = "bucket"

    def __init__(self, results: S3Store, kept_id: str) -> None:
        """`results` is any folder of the bucket."""
        self._store = results.apart(f"{FOLDER}/{folder_of(kept_id)}")

    def put(self, facts: bytes, arrays: bytes, expires: datetime, scope: JobScope) -> None:
        self._store.expires = expires
        self._store.put(ARRAYS.name, arrays, ARRAYS.content_type, scope)
        self._store.put(FACTS.name, facts, FACTS.content_type, scope)

    def facts(self, scope: JobScope) -> Found | None:
        return self._read(FACTS.name, _MOST_FACTS, scope)

    def arrays(self, scope: JobScope) -> Found | None:
        return self._read(ARRAYS.name, LARGEST_BYTES, scope)

    def discard(self, scope: JobScope) -> None:
        self._store.discard(scope)

    def _read(self, name: str, most: int, scope: JobScope) -> Found | None:
        found = self._store.fetch(name, most, scope)
        return found and Found(found[0], min(_dates(found[1]), default=None))


class LocalLatents:
    """In this machine's output folder, within the operator's bound on disk."""

    place: Literal["bucket", "folder"] = "folder"

    def __init__(self, settings: DeliverySettings, kept_id: str, shares: int = 1) -> None:
        """`shares` is how many variants of one job are kept: none may take another's place."""
        self._settings = settings
        self._shares = shares
        self._root = settings.output_dir / FOLDER
        self._folder = self._root / folder_of(kept_id)
        self._store = LocalStore(self._root, kept_id)

    def put(self, facts: bytes, arrays: bytes, expires: datetime, scope: JobScope) -> None:
        size = len(arrays) + len(facts)
        if size * self._shares > self._settings.keep_disk_bytes:
            each = f", for {self._shares} variants" if self._shares > 1 else ""
            raise StorageFailed(
                f"the latents have {size} bytes; this worker keeps "
                f"{self._settings.keep_disk_bytes} on its disk (TRELLIS2_KEEP_DISK_GB){each}",
                field="keep",
                retryable=False,
            )
        sweep_latents(self._settings, size)
        self._store.put(ARRAYS.name, arrays, ARRAYS.content_type, scope)
        self._store.put(FACTS.name, facts, FACTS.content_type, scope)

    def facts(self, scope: JobScope) -> Found | None:
        return self._read(FACTS.name, _MOST_FACTS)

    def arrays(self, scope: JobScope) -> Found | None:
        return self._read(ARRAYS.name, LARGEST_BYTES)

    def discard(self, scope: JobScope) -> None:
        self._store.discard(scope)

    def _read(self, name: str, most: int) -> Found | None:
        with suppress(OSError), (self._folder / name).open("rb") as file:
            return Found(file.read(most))
        return None


def sweep_latents(settings: DeliverySettings, wanted: int = 0) -> int:
    """Remove what is over its time on this machine, and the oldest until `wanted` more bytes fit.

    Returns how many jobs' latents went.
    """
    root = settings.output_dir / FOLDER
    room = settings.keep_disk_bytes - wanted
    now, lying, swept = datetime.now(UTC), 0, 0
    for folder, written in sorted(_folders(root), key=lambda found: found[1], reverse=True):
        size = _bytes_in(folder)
        if lying + size > room or now >= _local_end(folder, written, settings):
            shutil.rmtree(folder, ignore_errors=True)
            swept += 1
        else:
            lying += size
    return swept


def forget_latents(root: Path, job_id: str) -> None:
    """Remove what is kept of a job and its variants on this machine."""
    whole = folder_of(job_id)
    variants = (folder_of(f"{whole}-{variant_name(n)}") for n in range(MOST_VARIANTS))
    for name in (whole, *variants):
        shutil.rmtree(root / FOLDER / name, ignore_errors=True)


def _folders(root: Path) -> Iterator[tuple[Path, datetime]]:
    with suppress(OSError):
        for folder in root.iterdir():
            with suppress(OSError):  # another job's sweep may take it meanwhile
                if folder.is_dir() and not folder.name.startswith("."):
                    yield folder, datetime.fromtimestamp(folder.stat().st_mtime, UTC)


def _bytes_in(folder: Path) -> int:
    """Return how many bytes lie in a folder, as far as its files can be looked at."""
    size = 0
    with suppress(OSError):
        for file in folder.iterdir():
            with suppress(OSError):
                size += file.stat().st_size
    return size


def _local_end(folder: Path, written: datetime, settings: DeliverySettings) -> datetime:
    """Return when a folder's time is over; of one that says nothing, as if it were new then."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        told = json.loads((folder / FACTS.name).read_bytes())["expires_at"]
        if (ends := datetime.fromisoformat(told)).tzinfo is not None:
            return ends
    return written + timedelta(hours=settings.keep_hours)


def _dates(found: dict[str, Any]) -> Iterator[datetime]:
    lifecycle = _LIFECYCLE_DATE.search(str(found.get("Expiration", "")))
    for text in (lifecycle and lifecycle[1], found.get("ExpiresString")):
        with suppress(ValueError, TypeError):
            date = parsedate_to_datetime(str(text))
            yield date if date.tzinfo else date.replace(tzinfo=UTC)
