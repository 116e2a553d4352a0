"""The body of an HTTP answer, never more of it in memory than was asked for.

HTTP libraries unpack what a server sends packed, a thousand times its size on the wire and more
when it is packed twice. Here the wire's bytes are read in small pieces and unpacked with a bound.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Protocol

from urllib3 import BaseHTTPResponse

_CHUNK_BYTES = 64 * 1024
_GZIP, _ZLIB, _RAW = 31, 15, -15  # zlib's window bits, which also say what frames the stream


class EncodingRefused(OSError):
    """The body is packed in a way that was not asked for."""


class _Unpacker(Protocol):
    def pieces(self, packed: bytes, room: int) -> Iterator[bytes]:
        """Yield what `packed` unpacks to, at most `room` bytes a piece."""


class _Plain:
    def pieces(self, packed: bytes, room: int) -> Iterator[bytes]:
        yield packed


class _Zlib:
    """gzip (of several members, too) or deflate (which many send without its frame)."""

    def __init__(self, window_bits: int) -> None:
        self._bits = window_bits
        self._stream = zlib.decompressobj(window_bits)
        self._fresh = True

    def pieces(self, packed: bytes, room: int) -> Iterator[bytes]:
        while packed:
            try:
                yield self._stream.decompress(packed, room)
            except zlib.error as err:
                if not (self._fresh and self._bits == _ZLIB):
                    raise EncodingRefused("the body cannot be unpacked") from err
                self._bits = _RAW
                self._stream = zlib.decompressobj(_RAW)
                continue
            finally:
                self._fresh = False
            packed = self._stream.unconsumed_tail
            if self._stream.eof:
                packed = self._stream.unused_data
                self._stream = zlib.decompressobj(self._bits)


def _unpacker(encoding: str) -> _Unpacker:
    named = encoding.strip().lower()
    if named in ("", "identity"):
        return _Plain()
    if named in ("gzip", "x-gzip"):
        return _Zlib(_GZIP)
    if named == "deflate":
        return _Zlib(_ZLIB)
    raise EncodingRefused(f"the body is packed as {named[:40]!r}, which was not asked for")


def read_at_most(response: BaseHTTPResponse, limit: int) -> tuple[bytes, bool]:
    """Return the unpacked body's first `limit` bytes, and whether there is more of it.

    Holds no more than `limit` and 128 KiB. Raises `EncodingRefused`, or what the network raises.
    """
    unpacker = _unpacker(response.headers.get("Content-Encoding", ""))
    body = bytearray()
    while packed := response.read(_CHUNK_BYTES, decode_content=False):
        for piece in unpacker.pieces(packed, _CHUNK_BYTES):
            body += piece
            if len(body) > limit:
                return bytes(body[:limit]), True
    return bytes(body), False
