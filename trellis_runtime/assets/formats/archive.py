"""Zip files that are the same bytes each time."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

_STORED = (".png", ".jpg", ".webp")  # packed already
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can say


def zipped(files: Mapping[str, bytes]) -> bytes:
    """Return a zip of `files`, name to content, in their order."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            packed = zipfile.ZIP_STORED if name.endswith(_STORED) else zipfile.ZIP_DEFLATED
            info = zipfile.ZipInfo(name, _DATE)
            info.external_attr = 0o644 << 16
            archive.writestr(info, data, packed, 6)
    return buffer.getvalue()


_ALIGNED = 64
_LOCAL_HEADER = 30  # bytes, before the name


def aligned_zip(files: Mapping[str, bytes]) -> bytes:
    """Return a zip of `files`, uncompressed, each content at a multiple of 64 bytes, as USDZ wants.

    What is missing to the next multiple is filled with an extra field of the header.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name, _DATE)
            start = buffer.tell() + _LOCAL_HEADER + len(name.encode())
            missing = -(start + 4) % _ALIGNED
            info.extra = b"\x86\x19" + missing.to_bytes(2, "little") + bytes(missing)
            archive.writestr(info, data)
    return buffer.getvalue()
