"""Fields to triangles on a grid of cells, as the decoder's flexible dual grid gives them.

    signed fields and masks  ->  crossed lattice edges  ->  one vertex a cell, one quad an edge
         (`Part`)                  (`_crossings`)             (`dual_grid`)

A part is the zero set of a field that grows at most as fast as distance does, cut by a mask where
it is an open sheet. Blocks of cells whose centre is farther from zero than their half diagonal hold
no surface, so that only a band around it is ever evaluated. A lattice edge whose ends differ in
sign is crossed. Every cell with a crossed edge gets one vertex that minimises
`sum (n . (x - p))^2 + 0.1 |x - mean p|^2` over its crossings p with normals n (Ju et al., Dual
Contouring of Hermite Data, SIGGRAPH 2002), every crossed edge a quad of the four cells around it,
split along the diagonal that bends less. As in the decoder's own mesh, crossings have no direction,
so faces are not oriented (here they are turned at random), an edge crossed twice counts once,
surfaces that meet in a cell share its vertex, and vertices that no quad uses stay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Field = Callable[[Floats, Ints], Floats]
Mask = Callable[[Floats, Ints], Bools]

_BLOCKS = (64, 16, 4)  # cells a side of blocks, from coarse to fine
_CHUNK = 4_000_000
_REGULARISATION = 0.1
# The four cells around an edge along x, y and z, in a circle
_AROUND = np.array(
    [
        [[0, 0, 0], [0, 0, 1], [0, 1, 1], [0, 1, 0]],
        [[0, 0, 0], [1, 0, 0], [1, 0, 1], [0, 0, 1]],
        [[0, 0, 0], [0, 1, 0], [1, 1, 0], [1, 0, 0]],
    ]
)


@dataclass(frozen=True, slots=True)
class Part:
    """Surfaces of one kind: the zero sets of `field(points, which)`, one in each of `boxes`.

    field: (N, 3) points and (N,) indices of boxes to (N,); no steeper than distance. boxes
    (P, 2, 3): lowest and highest corner. keep: which points of the zero set there are, (N,).
    """

    field: Field
    boxes: Floats
    keep: Mask | None = None


@dataclass(frozen=True, slots=True)
class _Crossings:
    """Crossed lattice edges: axis (N,), lower end (N, 3), where (N, 3) in cells, normal (N, 3)."""

    axis: Ints
    start: Ints
    point: Doubles
    normal: Doubles


def dual_grid(parts: list[Part], side: int) -> tuple[Ints, Doubles, Ints]:
    """Return cells (L, 3), their vertices (L, 3) in cells, and quads (Q, 4) of them."""
    found = [_crossings(part, side) for part in parts]
    axis, start, point, normal = (
        np.concatenate([getattr(one, key) for one in found])
        for key in ("axis", "start", "point", "normal")
    )
    around = start[:, None] + _AROUND[axis] - np.where(np.eye(3, dtype=int)[axis], 0, 1)[:, None]
    good = ((around >= 0) & (around < side)).all((1, 2))
    axis, start, point, normal, around = (
        array[good] for array in (axis, start, point, normal, around)
    )
    keys, at = np.unique(_keys(around, side), return_inverse=True)
    cells = np.stack([keys // (side * side), keys // side % side, keys % side], 1)
    vertices = _fitted(cells, at.reshape(-1, 4), point, normal)
    _, first = np.unique(_keys(start, side + 1) * 3 + axis, return_index=True)
    return cells, vertices, at.reshape(-1, 4)[first]


def _keys(cells: Ints, side: int) -> Ints:
    return (cells[..., 0] * side + cells[..., 1]) * side + cells[..., 2]


def _crossings(part: Part, side: int) -> _Crossings:
    blocks, which = _blocks_of(part, side)
    found = [
        _block_crossings(part, side, blocks[at : at + step], which[at : at + step])
        for step in (_CHUNK // (_BLOCKS[-1] + 1) ** 3,)
        for at in range(0, len(blocks), step)
    ]
    return _Crossings(
        *(
            np.concatenate([getattr(one, key) for one in found])
            for key in ("axis", "start", "point", "normal")
        )
    )


def _blocks_of(part: Part, side: int) -> tuple[Ints, Ints]:
    """Return lowest corners (B, 3) of the smallest blocks that may hold surface, and whose."""
    size = _BLOCKS[0]
    low = np.floor((part.boxes[:, 0] + 0.5) * side).astype(np.int64)
    high = np.ceil((part.boxes[:, 1] + 0.5) * side).astype(np.int64)
    wide = -(-(high - low) // size)
    blocks, which = _offsets(low, wide, size)
    blocks, which = _near(part, side, blocks, which, size)
    for smaller in _BLOCKS[1:]:
        count = np.full((len(blocks), 3), size // smaller)
        inner, parent = _offsets(blocks, count, smaller)
        size = smaller
        blocks, which = _near(part, side, inner, which[parent], size)
    return blocks, which


def _offsets(low: Ints, count: Ints, size: int) -> tuple[Ints, Ints]:
    """Return corners of `count` (N, 3) blocks from `low` (N, 3) on, and the row of each."""
    total = count.prod(1)
    row = np.repeat(np.arange(len(low)), total)
    index = np.arange(total.sum()) - np.repeat(np.cumsum(total) - total, total)
    _, ny, nz = count[row].T
    steps = np.stack([index // (ny * nz), index // nz % ny, index % nz], 1)
    return low[row] + steps * size, row


def _near(part: Part, side: int, blocks: Ints, which: Ints, size: int) -> tuple[Ints, Ints]:
    reach = np.sqrt(3) * (size / 2 + 0.5) / side
    near = [np.zeros(0, bool)]
    for at in range(0, len(blocks), _CHUNK):
        some, whose = blocks[at : at + _CHUNK], which[at : at + _CHUNK]
        centres = ((some + size / 2) / side - 0.5).astype(np.float32)
        low, high = part.boxes[whose, 0] - size / side / 2, part.boxes[whose, 1] + size / side / 2
        inside = ((centres >= low) & (centres <= high)).all(1)
        inside[inside] = np.abs(part.field(centres[inside], whose[inside])) <= reach
        near.append(inside)
    kept = np.concatenate(near)
    return blocks[kept], which[kept]


def _block_crossings(part: Part, side: int, blocks: Ints, which: Ints) -> _Crossings:
    size = _BLOCKS[-1]
    ticks = np.stack(np.meshgrid(*[np.arange(size + 1)] * 3, indexing="ij"), -1)
    lattice = blocks[:, None, None, None] + ticks
    owner = np.broadcast_to(which[:, None, None, None], lattice.shape[:-1])
    points = (lattice.reshape(-1, 3) / side - 0.5).astype(np.float32)
    values = part.field(points, owner.reshape(-1)).reshape(owner.shape)
    own = (slice(None), *[slice(0, size)] * 3)
    found: list[tuple[Any, ...]] = []
    for axis in range(3):
        beyond = list(own)
        beyond[axis + 1] = slice(1, size + 1)
        first, second = values[own], values[tuple(beyond)]
        crossed = (first < 0) != (second < 0)
        start = lattice[own][crossed]
        share = first[crossed] / (first[crossed] - second[crossed])
        at = start.astype(np.float64)
        at[:, axis] += share
        found.append((np.full(len(start), axis), start, at, owner[own][crossed]))
    axes, starts, at, whose = (np.concatenate(column) for column in zip(*found, strict=True))
    return _kept(part, side, axes, starts, at, whose)


def _kept(part: Part, side: int, axes: Ints, starts: Ints, at: Doubles, whose: Ints) -> _Crossings:
    points = (at / side - 0.5).astype(np.float32)
    if part.keep is not None:
        kept = part.keep(points, whose)
        axes, starts, whose = axes[kept], starts[kept], whose[kept]
        at, points = at[kept], points[kept]
    step = np.float32(0.05 / side)
    slopes = [
        part.field(points + step * unit, whose) - part.field(points - step * unit, whose)
        for unit in np.eye(3, dtype=np.float32)
    ]
    normals = np.stack(slopes, 1).astype(np.float64)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    return _Crossings(axes, starts, at, normals)


def _fitted(cells: Ints, at: Ints, point: Doubles, normal: Doubles) -> Doubles:
    """Return the vertex (L, 3) of each cell; `at` (N, 4): the cells that each crossing touches."""
    index = at.reshape(-1)
    number = np.bincount(index, minlength=len(cells))

    def summed(values: Doubles) -> Doubles:
        return np.bincount(index, np.repeat(values, 4), minlength=len(cells)).astype(np.float64)

    mean = np.stack([summed(point[:, i]) for i in range(3)], 1) / number[:, None]
    matrix = np.empty((len(cells), 3, 3))
    for i in range(3):
        for j in range(i, 3):
            matrix[:, i, j] = matrix[:, j, i] = summed(normal[:, i] * normal[:, j])
    offset = (normal * point).sum(1)
    right = np.stack([summed(normal[:, i] * offset) for i in range(3)], 1)
    right -= (matrix @ mean[:, :, None])[:, :, 0]
    matrix += _REGULARISATION * np.eye(3)
    moved = mean + np.linalg.solve(matrix, right[:, :, None])[:, :, 0]
    return np.clip(moved, cells, cells + 1)


def pricked(quads: Ints, vertices: Doubles, count: int, rng: np.random.Generator) -> Ints:
    """Return `quads` without those within a cell and a half of `count` of them."""
    from scipy.spatial import cKDTree

    middles = vertices[quads].mean(1)
    chosen = middles[rng.choice(len(quads), count, replace=False)]
    gone = np.concatenate(cKDTree(middles).query_ball_point(chosen, 1.5)).astype(np.int64)
    return np.delete(quads, gone, axis=0)


def triangles(vertices: Doubles, quads: Ints, rng: np.random.Generator) -> NDArray[np.int32]:
    """Return quads as triangles (2 Q, 3), cut where they bend less, each turned at random."""
    first, second = quads[:, [[0, 1, 2], [0, 2, 3]]], quads[:, [[0, 1, 3], [3, 1, 2]]]
    bends = _agreement(vertices, first) < _agreement(vertices, second)
    faces = np.where(bends[:, None, None], second, first).reshape(-1, 3)
    turned = rng.random(len(faces)) < 0.5
    faces[turned] = faces[turned][:, ::-1]
    return faces.astype(np.int32)


def _agreement(vertices: Doubles, pairs: Ints) -> Doubles:
    """Return the cosine (Q,) between the two triangles of each of `pairs` (Q, 2, 3)."""
    a, b, c = (vertices[pairs[:, :, i]] for i in range(3))
    normals = np.cross(b - a, c - a)
    lengths = np.linalg.norm(normals, axis=2).prod(1)
    return np.asarray(np.abs((normals[:, 0] * normals[:, 1]).sum(1)) / np.maximum(lengths, 1e-20))
