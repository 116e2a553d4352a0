"""A picture's file without what is not needed to show it right: metadata never decides.

Decoders read metadata before pixels, and refuse a good picture for a damaged or a large text. So
the file is handed to them without it. A walk over the file's own blocks, in constant memory beside
the copy; nothing is decompressed but a colour profile.

PNG    kept: IHDR PLTE tRNS IDAT IEND acTL fcTL fdAT eXIf, and every unknown critical chunk
       read here: iCCP, 16 MB unpacked at most; dropped when damaged or larger
       skipped: tEXt zTXt iTXt tIME pHYs bKGD hIST sPLT sBIT gAMA cHRM sRGB and all other ancillary
       chunks; eXIf too where its checksum is wrong
JPEG   kept: JFIF (APP0), Exif (APP1), ICC_PROFILE (APP2), Adobe (APP14), all that is no APPn or COM
       skipped: XMP, MPF, FPXR, Photoshop (APP13), all other APPn, comments
WebP, AVIF, HEIF: metadata lies in boxes that their decoders read only when asked; nothing to do.

Orientation is then read from Exif where that can be read (`images.py`), and is 1 where it cannot.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8\xff"

_PNG_KEPT = {b"tRNS", b"acTL", b"fcTL", b"fdAT", b"eXIf"}
_MAX_PROFILE_BYTES = 16_000_000
_APP0, _APP1, _APP2, _APP14, _APP15, _COM, _SOS = 0xE0, 0xE1, 0xE2, 0xEE, 0xEF, 0xFE, 0xDA
_ADOBE_BYTES = 12
_JPEG_KEPT = {_APP0: b"", _APP1: b"Exif\0", _APP2: b"ICC_PROFILE\0", _APP14: b"Adobe"}


@dataclass(frozen=True, slots=True)
class Essentials:
    """What is left of a file, and the colour profile that was taken out of it, if any."""

    data: bytes
    profile: bytes | None = None


def essentials(encoded: bytes) -> Essentials:
    """Return the file without skippable metadata; one that cannot be walked, as it is."""
    if encoded.startswith(PNG_SIGNATURE):
        return _png(encoded)
    if encoded.startswith(JPEG_SIGNATURE):
        return Essentials(_jpeg(encoded))
    return Essentials(encoded)


def _png(encoded: bytes) -> Essentials:
    kept, profile = [PNG_SIGNATURE], None
    at = len(PNG_SIGNATURE)
    while at + 12 <= len(encoded):
        (length,) = struct.unpack_from(">I", encoded, at)
        kind, end = encoded[at + 4 : at + 8], at + 12 + length
        if end > len(encoded):
            break
        critical = not kind[0] & 0x20
        if kind == b"iCCP" and profile is None:
            profile = _profile(encoded[at + 8 : end - 4])
        elif critical or (kind in _PNG_KEPT and _is_usable(kind, encoded, at, end)):
            kept.append(encoded[at:end])
        at = end
        if kind == b"IEND":
            return Essentials(b"".join(kept), profile)
    return Essentials(b"".join([*kept, encoded[at:]]), profile)  # cut short: the decoder says so


def _is_usable(kind: bytes, encoded: bytes, at: int, end: int) -> bool:
    """Whether an ancillary chunk is worth keeping: a damaged eXIf is not."""
    if kind != b"eXIf":
        return True
    stated = struct.unpack_from(">I", encoded, end - 4)[0]
    return zlib.crc32(encoded[at + 4 : end - 4]) == int(stated)


def _profile(body: bytes) -> bytes | None:
    """Return the profile in an iCCP chunk's body: a name, a zero, a method of 0, a zlib stream."""
    _, found, packed = body.partition(b"\0")
    if not found or packed[:1] != b"\0":
        return None
    unpacker = zlib.decompressobj()
    try:
        profile = unpacker.decompress(packed[1:], _MAX_PROFILE_BYTES)
    except zlib.error:
        return None
    return profile if unpacker.eof else None


def _jpeg(encoded: bytes) -> bytes:
    kept, at = [encoded[:2]], 2
    while at + 4 <= len(encoded) and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if marker == 0xFF:  # padding before a marker
            at += 1
            continue
        (length,) = struct.unpack_from(">H", encoded, at + 2)
        end = at + 2 + length
        if marker == _SOS or length < 2 or end > len(encoded):
            break
        if _jpeg_keeps(marker, encoded[at + 4 : min(at + 18, end)]):
            kept.append(encoded[at:end])
        at = end
    return b"".join([*kept, encoded[at:]])


def _jpeg_keeps(marker: int, head: bytes) -> bool:
    if marker == _COM or _APP0 <= marker <= _APP15:
        start = _JPEG_KEPT.get(marker)
        if marker == _APP14 and len(head) < _ADOBE_BYTES:
            return False
        return start is not None and head.startswith(start)
    return True
