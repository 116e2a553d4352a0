"""The process that finds convex hulls: one mesh on its standard input, its hulls on its output.

in   an npz with vertices (V, 3), faces (F, 3) and most, the number of hulls at most
out  an npz with v0, f0, v1, f1, ...: vertices (V, 3) and faces (F, 3) of each hull
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any

import fast_simplification
import numpy as np
from numpy.typing import NDArray

from trellis_runtime.assets.address_space import bound_address_space
from trellis_runtime.assets.mesh import weld

FACES = 20_000
"""Of the mesh that hulls are found for: more change nothing that a voxel shows."""

VOXELS = 50_000
"""Of the grid; with four times as many it took three times as long for hulls no tighter."""

VERTICES = 64
"""Of a hull at most: what physics engines take (PhysX up to 255, but slowly)."""

_BASE_BYTES = 1 << 30
_BYTES_PER_FACE = 2000


def main() -> None:
    """Answer one request, within a bound on memory."""
    import vhacdx

    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not pass for an answer
    with np.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False) as given:
        vertices, faces, most = given["vertices"], given["faces"], int(given["most"])
    bound_address_space(_BASE_BYTES + _BYTES_PER_FACE * len(faces))
    points, corners = _simplified(vertices, faces)
    found = vhacdx.compute_vhacd(
        points.astype(np.float64),
        _with_counts(corners),
        maxConvexHulls=most,
        resolution=VOXELS,
        maxNumVerticesPerCH=VERTICES,
        asyncACD=False,  # one thread: the same hulls each time
    )
    arrays: dict[str, Any] = {}
    for number, (hull, triangles) in enumerate(found):
        arrays |= {f"v{number}": hull, f"f{number}": np.asarray(triangles).reshape(-1, 3)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    out.write(buffer.getvalue())
    out.flush()


def _simplified(
    vertices: NDArray[np.float32], faces: NDArray[np.uint32]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the welded mesh, with `FACES` faces at most."""
    points, corners = weld(vertices, faces)
    if len(corners) <= FACES:
        return points, corners
    fewer, triangles = fast_simplification.simplify(
        points, corners.astype(np.int32), target_count=FACES
    )
    return np.asarray(fewer, np.float32), np.asarray(triangles, np.int64)


def _with_counts(faces: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Return faces as the library reads them, whatever it says: 3 and three corners, each."""
    counts = np.full((len(faces), 1), 3, np.int64)
    return np.hstack([counts, faces]).ravel().astype(np.uint32)
