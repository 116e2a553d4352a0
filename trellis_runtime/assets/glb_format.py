"""What a GLB's header says, for the writer and the reader alike."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

MAGIC, JSON_CHUNK, BIN_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942
MIN_BYTES = 1024
"""A file smaller than this holds no model."""

CONTENT_HASH = "content_sha256"
"""The name in `asset.extras` of the SHA-256 of the BIN chunk, where a file states it."""


def pack_glb(document: dict[str, Any], blob: bytes | bytearray) -> bytes:
    """Return a GLB of a JSON document and what goes into its BIN chunk.

    Where `asset.extras` has `CONTENT_HASH`, its value becomes the chunk's.
    """
    blob = bytes(blob) + b"\0" * (-len(blob) % 4)
    extras = document.get("asset", {}).get("extras", {})
    if CONTENT_HASH in extras:
        told = extras | {CONTENT_HASH: hashlib.sha256(blob).hexdigest()}
        document = document | {"asset": document["asset"] | {"extras": told}}
    text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    total = 12 + 8 + len(text) + 8 + len(blob)
    return b"".join(
        [
            struct.pack("<III", MAGIC, 2, total),
            struct.pack("<II", len(text), JSON_CHUNK),
            text,
            struct.pack("<II", len(blob), BIN_CHUNK),
            blob,
        ]
    )
