"""What the compressions of a GLB's geometry share: how fine it stays, and whether it came back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trellis_runtime.errors import FileRejected

POSITION_BITS, NORMAL_BITS, _LEAST_UV_BITS = 14, 10, 12
"""Of the mesh's longest side, of a normal's components, of a texture's side."""


def uv_bits(texture_size: int) -> int:
    """Return how many bits a texture coordinate needs for an eighth of a texel (pixels a side)."""
    return max(_LEAST_UV_BITS, 3 + math.ceil(math.log2(max(texture_size, 1))))


def stated_primitives(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a good file's document says of each primitive, of one mesh after another."""
    return [primitive for mesh in document["meshes"] for primitive in mesh["primitives"]]


def require_box(ours: NDArray[Any], theirs: NDArray[Any]) -> None:
    """Raise `FileRejected` unless points (N, 3) came back from compression in the same box."""
    step = float(np.ptp(ours, axis=0).max()) / 2**POSITION_BITS
    for edge in (np.min, np.max):
        if np.abs(edge(ours, axis=0) - edge(theirs, axis=0)).max() > 2 * step:
            raise FileRejected("the mesh came back from compression with another box")
