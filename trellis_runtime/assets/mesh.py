"""Is this mesh worth delivering? Nothing is repaired here, least of all in silence."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trellis_runtime.assets.topology import Ints, component_count, half_edges
from trellis_runtime.contract.answer import MeshReport
from trellis_runtime.contract.engine import Asset
from trellis_runtime.errors import MeshRejected

BOUND = 2.0
"""No coordinate of a normalised asset is larger; engines aim at -0.5..0.5."""

WELD_SHARE = 1e-6
"""Vertices closer than this share of the mesh's size count as one."""

_FACES_PER_VERTEX = 10
_DEGENERATE_SHARE = 0.01
_MANY_COMPONENTS = 1000
_THIN_SHARE = 0.02
_REJECTED_DEGENERATE_SHARE = 0.5


def inspect_mesh(asset: Asset) -> MeshReport:
    """Return facts about a mesh that `require_mesh` let pass.

    Raises `MeshRejected` where most faces have no area.

    Topology is counted after welding by position: UV seams double vertices and would look like
    boundaries.
    """
    flat = _degenerate(asset)
    if flat.mean() > _REJECTED_DEGENERATE_SHARE:
        raise MeshRejected(f"{flat.mean():.0%} of the faces have no area")
    welded = _weld(asset.vertices, asset.faces)
    counts = _edge_counts(welded)
    extents = np.ptp(asset.vertices, axis=0)
    degenerate = int(flat.sum())
    components = component_count(welded)
    low, high = asset.vertices.min(axis=0), asset.vertices.max(axis=0)
    return MeshReport(
        vertices=len(asset.vertices),
        faces=len(asset.faces),
        components=components,
        boundary_edges=int((counts == 1).sum()),
        nonmanifold_edges=int((counts > 2).sum()),
        degenerate_faces=degenerate,
        bounds=[[round(float(v), 6) for v in corner] for corner in (low, high)],
        warnings=_warnings(asset, degenerate, components, extents),
    )


def require_mesh(asset: Asset) -> None:
    """Raise `MeshRejected` unless the mesh is present, finite, in bounds and well indexed."""
    vertices, faces = asset.vertices, asset.faces
    if len(vertices) == 0 or len(faces) == 0:
        raise MeshRejected(f"the mesh has {len(vertices)} vertices and {len(faces)} faces")
    if not np.isfinite(vertices).all():
        raise MeshRejected(f"{int((~np.isfinite(vertices)).sum())} coordinates are not finite")
    largest = float(np.abs(vertices).max())
    if largest > BOUND:
        raise MeshRejected(f"a coordinate is {largest:.3g}; the limit is {BOUND}")
    if int(faces.max()) >= len(vertices) or int(faces.min()) < 0:
        raise MeshRejected(f"an index is {int(faces.max())}; the mesh has {len(vertices)} vertices")


def _warnings(
    asset: Asset, degenerate: int, components: int, extents: NDArray[np.float32]
) -> list[str]:
    found = []
    ratio = len(asset.faces) / len(asset.vertices)
    if ratio > _FACES_PER_VERTEX:
        found.append(f"{ratio:.1f} faces per vertex (usual: about 2)")
    if degenerate > _DEGENERATE_SHARE * len(asset.faces):
        found.append(f"{degenerate} faces have no area")
    if components > _MANY_COMPONENTS:
        found.append(f"{components} separate components")
    if extents.min() < _THIN_SHARE * extents.max():
        axis = "xyz"[int(extents.argmin())]
        found.append(f"thin along {axis}: {extents.min() / max(extents.max(), 1e-12):.1%}")
    return found


def _degenerate(asset: Asset) -> NDArray[np.bool_]:
    corners = asset.vertices[asset.faces].astype(np.float64)
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return np.asarray(np.einsum("ij,ij->i", cross, cross) < 1e-24)


def weld(
    vertices: NDArray[np.float32], faces: NDArray[np.uint32]
) -> tuple[NDArray[np.float32], Ints]:
    """Return vertices (V', 3) and faces (F', 3) with vertices closer than `WELD_SHARE` made one.

    Faces that collapse are left out; vertices that no face uses, too.
    """
    first, welded = _welded(vertices, faces)
    used, compact = np.unique(welded, return_inverse=True)
    return vertices[first[used]], compact.reshape(-1, 3).astype(np.int64)


def _weld(vertices: NDArray[np.float32], faces: NDArray[np.uint32]) -> Ints:
    """Return faces over welded vertices, those that collapse left out."""
    return _welded(vertices, faces)[1]


def _welded(vertices: NDArray[np.float32], faces: NDArray[np.uint32]) -> tuple[Ints, Ints]:
    """Return a vertex of each welded one, and the faces over welded vertices."""
    low = vertices.min(axis=0).astype(np.float64)
    cell = max(float(np.ptp(vertices, axis=0).max()) * WELD_SHARE, 1e-12)
    keys = np.round((vertices.astype(np.float64) - low) / cell).astype(np.int64)
    packed = (keys[:, 0] << 42) | (keys[:, 1] << 21) | keys[:, 2]
    _, first, welded = np.unique(packed, return_index=True, return_inverse=True)
    triangles = welded[faces.astype(np.int64)]
    a, b, c = triangles.T
    return first, np.asarray(triangles[(a != b) & (b != c) & (c != a)])


def _edge_counts(faces: Ints) -> Ints:
    """Return how many faces share each edge."""
    edges = np.sort(half_edges(faces), axis=1)
    _, counts = np.unique((edges[:, 0] << 32) | edges[:, 1], return_counts=True)
    return np.asarray(counts)
