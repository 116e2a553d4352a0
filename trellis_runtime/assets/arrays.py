"""Arrays to bytes and back: NumPy's .npz, stored, read without ever running what is in it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

_KINDS = "fiub"  # floats, integers, booleans: nothing that could hold an object
_SUFFIX = ".npy"


def pack(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return the arrays as an .npz without compression; the same arrays are the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name, array in arrays.items():
            member = io.BytesIO()
            npy.write_array(member, np.asarray(array, order="C"), (1, 0), allow_pickle=False)
            file.writestr(zipfile.ZipInfo(name + _SUFFIX), member.getvalue())
    return buffer.getvalue()


def unpack(data: bytes) -> dict[str, NDArray[Any]]:
    """Return the arrays of an .npz as `pack` writes it; raises `ValueError` for any other.

    No array takes more memory than `data` has bytes: nothing is inflated, and a header that claims
    another size than the member has is refused before anything is made of it.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            members = file.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError("a member is compressed")
            if sum(member.file_size for member in members) > len(data):
                raise ValueError("the members are larger than the file")
            return {m.filename.removesuffix(_SUFFIX): _array(file.read(m)) for m in members}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError) as err:
        raise ValueError(f"it is no .npz ({type(err).__name__})") from None


def _array(member: bytes) -> NDArray[Any]:
    buffer = io.BytesIO(member)
    if npy.read_magic(buffer) != (1, 0):
        raise ValueError("an array is of another version")
    shape, by_columns, kind = _header(buffer)
    if by_columns or kind.kind not in _KINDS or kind.hasobject:
        raise ValueError("an array is not of plain numbers")
    count, start = int(np.prod(shape, dtype=object)), buffer.tell()
    if min(shape, default=0) < 0 or count * kind.itemsize != len(member) - start:
        raise ValueError("an array has not as many bytes as it claims")
    return np.frombuffer(member, kind, offset=start).reshape(shape).copy()


def _header(buffer: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return an array's shape, whether it is written by columns, and its type."""
    try:
        shape, by_columns, kind = npy.read_array_header_1_0(buffer)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, TokenError):
        # NumPy reads it as Python's literals, and Python's reader has its own words for the rest.
        raise ValueError("an array's header cannot be read") from None
    return tuple(int(side) for side in shape), by_columns, kind
