"""PNG files of textures, with ISA-L's deflate: a tenth of zlib's time or less, 10 to 20 % larger.

Source: W3C, Portable Network Graphics (third edition): chunks (5), filters (9), zlib streams (10).
Each texture has one filter for all its rows, the one whose sample is the smallest when compressed;
what differs from row to row in a texture is less than what trying each row would cost.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOR_TYPES = {1: 0, 3: 2, 4: 6}  # greyscale, RGB, RGBA
_NONE, _SUB, _UP = 0, 1, 2
_LEVEL = 2  # 3 takes as long on smooth textures, three times as long on noise, for 1 % less
_SAMPLES, _SAMPLE_ROWS = 16, 4

Bytes = NDArray[np.uint8]


def encode_png(pixels: Bytes) -> bytes:
    """Return pixels (H, W, C) uint8, C of 1, 3 or 4, as a PNG file; nothing is lost."""
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOR_TYPES[channels], 0, 0, 0)
    rows = np.ascontiguousarray(pixels).reshape(height, width * channels)
    stream = isal_zlib.compress(filtered(rows, channels, best_filter(rows, channels)), _LEVEL)
    chunks = [_chunk(b"IHDR", header), _chunk(b"IDAT", stream), _chunk(b"IEND", b"")]
    return b"".join([_SIGNATURE, *chunks])


def best_filter(rows: Bytes, channels: int) -> int:
    """Return the number of the filter under which a sample of `rows` (H, W * C) is smallest."""
    starts = np.linspace(0, max(0, len(rows) - _SAMPLE_ROWS), _SAMPLES).astype(int)
    bands = [rows[start : start + _SAMPLE_ROWS] for start in sorted(set(starts.tolist()))]

    def size(kind: int) -> int:
        sample = np.concatenate([filtered(band, channels, kind) for band in bands])
        return len(isal_zlib.compress(sample, _LEVEL))

    return min((_NONE, _SUB, _UP), key=size)


def filtered(rows: Bytes, channels: int, kind: int) -> Bytes:
    """Return rows (H, 1 + W * C): the filter's number before each, and the filtered bytes."""
    out = np.empty((len(rows), rows.shape[1] + 1), np.uint8)
    out[:, 0] = kind
    out[:, 1:] = rows
    if kind == _SUB:  # less the same channel of the pixel to the left
        np.subtract(rows[:, channels:], rows[:, :-channels], out=out[:, 1 + channels :])
    elif kind == _UP:  # less the byte above
        np.subtract(rows[1:], rows[:-1], out=out[1:, 1:])
    return out


def _chunk(name: bytes, data: Any) -> bytes:
    check = zlib.crc32(data, zlib.crc32(name))
    return b"".join([struct.pack(">I", len(data)), name, data, struct.pack(">I", check)])
