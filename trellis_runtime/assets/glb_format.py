"""What a GLB's header says, for the writer and the reader alike."""

from __future__ import annotations

MAGIC, JSON_CHUNK, BIN_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942
MIN_BYTES = 1024
"""A file smaller than this holds no model."""
