"""Remeshing over blocks of cells: CuMesh's narrow-band dual contouring in a fraction of its memory.

The steps and constants are those of `cumesh.remeshing.remesh_narrow_band_dc` at cf1a2f0 without
projecting back, which holds every cell's twelve neighbours at once (3.5 GB at 1536) and a hash map
of corners. Here corners are asked of the surface block by block, and cells are found by binary
search in sorted keys. Vertices and triangles are the same, in the same order: decimation settles
ties by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trellis_runtime.engines.trellis2.grid import cell_keys, find

BLOCK_CELLS = 262_144

_COARSEST = 32
_REACH = 0.87  # of a cell's side, about half its diagonal: upstream's own margin
_CORNERS = tuple((i >> 2 & 1, i >> 1 & 1, i & 1) for i in range(8))
_CHILDREN = tuple((i & 1, i >> 1 & 1, i >> 2 & 1) for i in range(8))  # in upstream's order
# The four cells around the last edge of a cell, along x, y and z, in the order of upstream's quads.
_AROUND = (
    ((0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0)),
    ((0, 0, 0), (1, 0, 0), (1, 0, 1), (0, 0, 1)),
    ((0, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0, 0)),
)
# Two ways to cut a quad into two triangles, for a crossing inwards and outwards.
_SPLITS = (((0, 1, 2, 0, 2, 3), (0, 2, 1, 0, 3, 2)), ((0, 1, 3, 3, 1, 2), (0, 3, 1, 3, 2, 1)))


@dataclass(frozen=True, slots=True)
class _Grid:
    """Cells of `side` to an edge of a cube of `scale`, about the origin; `offset` is the band."""

    surface: Any
    side: int
    scale: float
    offset: float

    def distance(self, points: Tensor, side: int) -> Tensor:
        """Return the distance to the offset surface at points (..., 3) in cells of `side`."""
        places = (points / side - 0.5) * self.scale
        distances: Tensor = self.surface.unsigned_distance(places.reshape(-1, 3))[0]
        return distances.reshape(points.shape[:-1]) - self.offset


def remesh(
    surface: Any, side: int, band: float, device: str, block: int = BLOCK_CELLS
) -> tuple[Tensor, Tensor]:
    """Return vertices (V, 3) float32 and faces (F, 3) int32 at `band` cells from `surface`.

    `side` is the grid's cells to an edge, `surface` answers `unsigned_distance`; `block` cells are
    worked on at once. The result does not depend on `block`.
    """
    scale = (side + 3 * band) / side
    grid = _Grid(surface, side, scale, band * scale / side)
    cells = _narrow_band(grid, block, device)
    duals, crossings = _dual_contour(grid, cells, block)
    quads, outwards = _quads(grid, cells, crossings, block)
    used = torch.zeros(len(cells), dtype=torch.bool, device=cells.device)
    used[quads.reshape(-1).long()] = True
    number = torch.cumsum(used, 0, dtype=torch.int32) - 1
    vertices = (duals[used] / side - 0.5) * scale
    del duals, cells, crossings
    parts = [
        _triangles(vertices, number[some.long()], out)
        for some, out in zip(quads.split(block), outwards.split(block), strict=True)  # type: ignore[no-untyped-call]
    ]
    return vertices, torch.cat(parts) if parts else quads.new_zeros((0, 3))


def _narrow_band(grid: _Grid, block: int, device: str) -> Tensor:
    """Return the finest cells (N, 3) int32 that the offset surface may pass, families together."""
    side = grid.side
    while side > _COARSEST and side % 2 == 0:
        side //= 2
    axis = torch.arange(side, dtype=torch.int32, device=device)
    cells = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
    cells = _near(grid, cells, side)
    offsets = torch.tensor(_CHILDREN, dtype=torch.int32, device=device)
    while side < grid.side:
        side *= 2
        kept = []
        for parents in torch.split(cells, max(1, block // 8)):
            children = (parents[:, None] * 2 + offsets).reshape(-1, 3)
            kept.append(_near(grid, children, side))
        cells = torch.cat(kept) if kept else cells
    return cells


def _near(grid: _Grid, cells: Tensor, side: int) -> Tensor:
    distances = grid.distance(cells.float() + 0.5, side).abs()
    return cells[distances < _REACH * grid.scale / side]


def _dual_contour(grid: _Grid, cells: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Return each cell's dual vertex (N, 3) in cells, and (N, 3) int8 how its last edges cross.

    A dual vertex is the mean of where the twelve edges cross the surface, the cell's middle where
    none does; 1 is a crossing outwards, -1 inwards.
    """
    duals = torch.empty((len(cells), 3), device=cells.device)
    crossings = torch.empty((len(cells), 3), dtype=torch.int8, device=cells.device)
    corners = torch.tensor(_CORNERS, device=cells.device)
    for start in range(0, len(cells), block):
        part = slice(start, start + block)
        values = grid.distance((cells[part, None] + corners).float(), grid.side)
        duals[part], crossings[part] = _cells_duals(cells[part].float(), values)
    return duals, crossings


def _cells_duals(cells: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """As `_dual_contour`, for cells (B, 3) with values (B, 8) at their corners."""
    total, count = torch.zeros_like(cells), cells.new_zeros(len(cells))
    last = torch.zeros((len(cells), 3), dtype=torch.int8, device=cells.device)
    for axis in range(3):
        step = 4 >> axis  # from an edge's first corner to its second
        for first in (c for c in range(8) if not c & step):
            a, b = values[:, first], values[:, first + step]
            crosses = (a < 0) != (b < 0)
            at = torch.where(crosses, -a / (b - a), 0.0)
            point = cells + cells.new_tensor(_CORNERS[first])
            point[:, axis] += at
            total += torch.where(crosses[:, None], point, 0.0)
            count += crosses
            if first + step == 7:
                last[:, axis] = torch.where(crosses, torch.where(a < 0, 1, -1), 0).to(torch.int8)
    return torch.where((count > 0)[:, None], total / count.clamp(min=1)[:, None], cells + 0.5), last


def _quads(grid: _Grid, cells: Tensor, crossings: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Return quads (Q, 4) int32 of cells around each crossed edge, and (Q,) bool: outwards."""
    quads, outwards = [], []
    keys, order = cell_keys(cells, grid.side).sort()
    around = torch.tensor(_AROUND, dtype=torch.int32, device=cells.device)
    for start in range(0, len(cells), block):
        part = crossings[start : start + block]
        row, axis = torch.nonzero(part, as_tuple=True)
        at, exist = find(keys, cells[start + row, None] + around[axis], grid.side)
        whole = exist.all(dim=1)
        quads.append(order[at[whole]].int())
        outwards.append(part[row, axis][whole] == 1)
    return torch.cat(quads), torch.cat(outwards)


def _triangles(vertices: Tensor, quads: Tensor, outwards: Tensor) -> Tensor:
    """Cut quads (Q, 4) along the diagonal that bends less; returns faces (2 Q, 3) int32."""
    cuts, bends = [], []
    for inward, outward in _SPLITS:
        cut = torch.where(outwards[:, None], quads[:, outward], quads[:, inward])
        a, b, c, d = (vertices[cut[:, i].long()] for i in range(4))
        first = torch.linalg.cross(b - a, c - a)
        second = torch.linalg.cross(c - b, d - b)
        cuts.append(cut)
        bends.append((first * second).sum(dim=1).abs())
    return torch.where((bends[0] > bends[1])[:, None], cuts[0], cuts[1]).reshape(-1, 3)
