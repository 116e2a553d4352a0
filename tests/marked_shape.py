"""A box that cannot be mistaken: off centre on every axis, other colours and materials on each side.

In upstream's coordinates: z up, a cube from -0.5 to 0.5. As a flexible dual grid (Shen et al. 2023,
"Flexible Isosurface Extraction"): the cells that the surface passes through, a dual vertex in each,
and which of a cell's three far edges the surface crosses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LOW = (-0.0311, -0.0187, -0.0524)
HIGH = (0.0412, 0.0331, 0.0418)


@dataclass(frozen=True)
class Side:
    """One side of the box: where it looks, and what it is made of (values 0..1)."""

    axis: int
    sign: int
    color: tuple[float, float, float]
    metallic: float
    roughness: float


SIDES = (
    Side(0, -1, (0.9, 0.1, 0.2), 0.1, 0.9),
    Side(0, 1, (0.1, 0.8, 0.3), 0.9, 0.2),
    Side(1, -1, (0.2, 0.3, 0.9), 0.3, 0.5),
    Side(1, 1, (0.8, 0.8, 0.1), 0.6, 0.3),
    Side(2, -1, (0.7, 0.2, 0.8), 0.0, 0.7),
    Side(2, 1, (0.2, 0.7, 0.7), 0.8, 0.1),
)


def span(resolution: int) -> tuple[Tensor, Tensor]:
    """Return the first and the last cell (3,) that the surface touches, by axis."""
    low, high = torch.tensor(LOW), torch.tensor(HIGH)
    return ((low + 0.5) * resolution).floor().long(), ((high + 0.5) * resolution).floor().long()


def surface_cells(resolution: int) -> Tensor:
    """Return the cells (N, 3) int64 that the surface passes through."""
    first, last = span(resolution)
    axes = [torch.arange(int(a), int(b) + 1) for a, b in zip(first, last, strict=True)]
    cells = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    return cells[((cells == first) | (cells == last)).any(dim=1)]


def touched(cells: Tensor, side: int, resolution: int) -> Tensor:
    """Return (N,) bool: which cells of a grid of `side` have surface cells of `resolution` below.

    A coarse cell has some unless it lies outside the box's span or wholly inside its shell.
    """
    scale = resolution // side
    first, last = span(resolution)
    low, high = cells.long() * scale, cells.long() * scale + scale - 1
    overlaps = ((high >= first) & (low <= last)).all(dim=1)
    inside = ((low > first) & (high < last)).all(dim=1)
    return overlaps & ~inside


def dual_grid(cells: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """Return dual vertices (N, 3) in 0..1 of their cells, and crossed far edges (N, 3) bool."""
    cells = cells.long()
    low = (torch.tensor(LOW) + 0.5) * resolution
    high = (torch.tensor(HIGH) + 0.5) * resolution
    vertices = torch.full(cells.shape, 0.5)
    for plane in (low, high):
        vertices = torch.where(plane.floor() == cells, (plane - cells).float(), vertices)
    crossings = torch.zeros(cells.shape, dtype=torch.bool)
    for axis in range(3):
        start = cells + 1
        start[:, axis] = cells[:, axis]
        end = cells + 1
        inside = [((corner >= low) & (corner <= high)).all(dim=1) for corner in (start, end)]
        crossings[:, axis] = inside[0] != inside[1]
    return vertices, crossings


def attributes(cells: Tensor) -> Tensor:
    """Return (N, 6) of all surface cells at any one resolution: colour, metal, roughness, alpha."""
    first, last = cells.min(dim=0).values, cells.max(dim=0).values
    found = torch.ones((len(cells), 6))
    for side in SIDES:
        bound = (last if side.sign > 0 else first)[side.axis]
        on = cells[:, side.axis] == bound
        found[on, :5] = torch.tensor([*side.color, side.metallic, side.roughness])
    return found
