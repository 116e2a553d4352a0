"""From a height field over a silhouette to a closed manifold surface, decimated and unwrapped."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import fast_simplification
import numpy as np
from numpy.typing import NDArray

from trellis_runtime.assets.topology import half_edges
from trellis_runtime.engines.embedded.inflation import Mask

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

_RIM_SHARE = 0.25  # half thickness at the outline, in cells: keeps front and back apart
_SMOOTHING_PASSES = 4
_FURTHEST_MOVE_CELLS = 0.7
_LAMBDA, _MU = 0.5, -0.53
_TARGET_SHARES = (1.0, 0.985, 0.97, 0.955, 0.94)


@dataclass(frozen=True, slots=True)
class Surface:
    """A closed triangle mesh: `vertices` (V, 3), `faces` (F, 3), counter-clockwise from outside.

    x points right, y up and z to the viewer; the crop spans -0.5..0.5.
    """

    vertices: Floats
    faces: Ints


def extract(mask: Mask, front: Floats, back: Floats, distance: Floats | None) -> Surface:
    """Close the heights `front` and `back` (at corners, >= 0) over `mask`'s cells to one surface.

    With `distance` (`inflation.outline_distance`) the outline's steps are moved onto it.

    Two sheets of quads and a wall along the outline. The wall's height is positive and no two
    cells touch at a corner alone (`inflation.grid_mask`), so each edge has exactly two faces.
    """
    cells = mask.shape[0]
    rim = _RIM_SHARE / cells
    index, used = _corner_index(mask)
    count = int(used.sum())
    xy = _corner_positions(used, cells)
    edges = _outline_edges(mask, index)
    if distance is not None:
        xy = _taubin(_onto_outline(xy, np.unique(edges), distance), edges)
    vertices = np.empty((2 * count, 3), np.float32)
    vertices[:count, :2] = vertices[count:, :2] = xy
    vertices[:count, 2] = front[used] + rim
    vertices[count:, 2] = -(back[used] + rim)
    quads = _quads(mask, index)
    walls = np.stack([edges[:, 0], edges[:, 1], edges[:, 1] + count, edges[:, 0] + count], axis=1)
    quads = np.concatenate([quads, quads[:, ::-1] + count, walls])
    return Surface(vertices, np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]))


_SIMPLIFYING = threading.Lock()
"""The library keeps its mesh in globals of C++: two calls at once give one of them's mesh to
both."""


def decimate(surface: Surface, target: int) -> Surface | None:
    """Reduce to at most `target` faces by quadric error (Garland and Heckbert, 1997).

    The library may fold two sheets together at an edge; a few nearby targets are tried, and None
    is returned when none of them leaves the surface closed.
    """
    if len(surface.faces) <= target:
        return surface
    for share in _TARGET_SHARES:
        with _SIMPLIFYING:
            vertices, faces = fast_simplification.simplify(
                surface.vertices,
                surface.faces.astype(np.int32),
                target_count=int(target * share),
                agg=5.0,
            )
        smaller = Surface(np.asarray(vertices, np.float32), np.asarray(faces, np.int64))
        if len(faces) <= target and is_closed(smaller):
            return smaller
    return None


def is_closed(surface: Surface) -> bool:
    """Whether each edge has exactly two faces, which run along it in opposite directions."""
    edges = half_edges(surface.faces)
    forward = np.sort((edges[:, 0] << 32) | edges[:, 1])
    backward = np.sort((edges[:, 1] << 32) | edges[:, 0])
    return bool((np.diff(forward) > 0).all() and np.array_equal(forward, backward))


def vertex_normals(surface: Surface) -> Floats:
    """Return unit normals at the vertices, weighted by face area; +z where a vertex has none."""
    corners = surface.vertices[surface.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    total = np.zeros_like(surface.vertices, dtype=np.float64)
    for axis in range(3):
        for corner in range(3):
            total[:, axis] += np.bincount(
                surface.faces[:, corner], normals[:, axis], minlength=len(total)
            )
    lengths = np.linalg.norm(total, axis=1, keepdims=True)
    unit = np.where(lengths > 1e-20, total / np.maximum(lengths, 1e-20), [0.0, 0.0, 1.0])
    return unit.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Charts:
    """A planar front and a planar back chart, beside each other or one above the other.

    `scale` and `offsets` map the crop's x, y in -0.5..0.5 to texture coordinates: a chart is
    (centre of its place) + scale * (x - cx, cy - y).
    """

    scale: float
    centre_xy: tuple[float, float]
    places: tuple[tuple[float, float], tuple[float, float]]
    stacked: bool

    def uv(self, xy: Floats, is_back: NDArray[np.bool_]) -> Floats:
        """Return texture coordinates, glTF's origin, of points on the front or the back."""
        places = np.asarray(self.places, np.float32)[is_back.astype(np.int64)]
        offset = (xy - np.asarray(self.centre_xy, np.float32)) * [self.scale, -self.scale]
        return (places + offset).astype(np.float32)


def plan_charts(surface: Surface, texture_size: int) -> Charts:
    """Lay out the two charts so that the longer side of the object fills the texture."""
    low = surface.vertices[:, :2].min(axis=0)
    high = surface.vertices[:, :2].max(axis=0)
    width, height = (float(v) for v in np.maximum(high - low, 1e-6))
    stacked = width > height
    gutter = 1.0 - 8.0 / max(texture_size, 64)
    room = (1.0, 0.5) if stacked else (0.5, 1.0)
    scale = gutter * min(room[0] / width, room[1] / height)
    places = ((0.5, 0.25), (0.5, 0.75)) if stacked else ((0.25, 0.5), (0.75, 0.5))
    centre = (low + high) / 2
    return Charts(scale, (float(centre[0]), float(centre[1])), places, stacked)


def split_sides(surface: Surface) -> tuple[Surface, NDArray[np.bool_]]:
    """Give each side its own vertices along the border, so that each vertex has one UV.

    Returns the surface and, per vertex, whether it belongs to the back. A face is on the back
    when it looks away from the viewer.
    """
    corners = surface.vertices[surface.faces]
    facing = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])[:, 2]
    face_back = facing < 0
    keys = surface.faces * 2 + face_back[:, None]
    unique, faces = np.unique(keys, return_inverse=True)
    split = Surface(surface.vertices[unique // 2], faces.reshape(-1, 3))
    return split, (unique % 2).astype(bool)


def _corner_index(mask: Mask) -> tuple[Ints, Mask]:
    padded = np.pad(mask, 1)
    used = padded[:-1, :-1] | padded[:-1, 1:] | padded[1:, :-1] | padded[1:, 1:]
    index = np.full(used.shape, -1, np.int64)
    index[used] = np.arange(int(used.sum()))
    return index, used


def _corner_positions(used: Mask, cells: int) -> Floats:
    rows, cols = np.nonzero(used)
    return np.stack([cols / cells - 0.5, 0.5 - rows / cells], axis=1).astype(np.float32)


def _quads(mask: Mask, index: Ints) -> Ints:
    """Two triangles' worth of corners per cell, counter-clockwise seen from +z."""
    rows, cols = np.nonzero(mask)
    return np.stack(
        [
            index[rows, cols],
            index[rows + 1, cols],
            index[rows + 1, cols + 1],
            index[rows, cols + 1],
        ],
        axis=1,
    )


def _outline_edges(mask: Mask, index: Ints) -> Ints:
    """Directed edges of the outline (E, 2), against the front sheet's own direction."""
    padded = np.pad(mask, 1)
    pieces = []
    # neighbour's offset, then the shared edge's corners in the front quad's order
    for step, first, second in (
        ((0, -1), (0, 0), (1, 0)),
        ((1, 0), (1, 0), (1, 1)),
        ((0, 1), (1, 1), (0, 1)),
        ((-1, 0), (0, 1), (0, 0)),
    ):
        beside = padded[1 + step[0] : mask.shape[0] + 1 + step[0],
                        1 + step[1] : mask.shape[1] + 1 + step[1]]  # fmt: skip
        rows, cols = np.nonzero(mask & ~beside)
        start = index[rows + first[0], cols + first[1]]
        end = index[rows + second[0], cols + second[1]]
        pieces.append(np.stack([end, start], axis=1))
    return np.concatenate(pieces)


def _onto_outline(xy: Floats, rim: Ints, distance: Floats) -> Floats:
    """Move the rim's corners along the distance's gradient to where it is nought."""
    cells = distance.shape[0] - 1
    rows, cols = np.round((0.5 - xy[rim, 1]) * cells), np.round((xy[rim, 0] + 0.5) * cells)
    at = rows.astype(np.int64), cols.astype(np.int64)
    down, right = (np.asarray(gradient)[at] for gradient in np.gradient(distance))
    length = np.maximum(np.hypot(down, right), 0.3)
    step = np.clip(distance[at] / length, -_FURTHEST_MOVE_CELLS, _FURTHEST_MOVE_CELLS)
    moved = xy.copy()
    moved[rim, 0] -= step * right / length / cells
    moved[rim, 1] += step * down / length / cells
    return moved


def _taubin(xy: Floats, edges: Ints) -> Floats:
    """Smooth the outline without shrinking it (Taubin, SIGGRAPH 1995).

    Each corner of the outline has one edge in and one out, so its two neighbours are known.
    """
    following = np.empty(len(xy), np.int64)
    before = np.empty(len(xy), np.int64)
    following[edges[:, 0]] = edges[:, 1]
    before[edges[:, 1]] = edges[:, 0]
    rim = edges[:, 0]
    smoothed = xy.astype(np.float64)
    for step in range(2 * _SMOOTHING_PASSES):
        weight = _LAMBDA if step % 2 == 0 else _MU
        middle = (smoothed[following[rim]] + smoothed[before[rim]]) / 2
        smoothed[rim] += weight * (middle - smoothed[rim])
    return smoothed.astype(np.float32)
