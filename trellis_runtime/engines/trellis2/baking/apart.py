"""Points that meet move apart, so that welding them by position does not join what was parted.

points ─► four shifted grids: which share a cell ─► each of those a step along its normal ─► again
"""

from __future__ import annotations

import torch
from torch import Tensor

from trellis_runtime.engines.trellis2.baking.connectivity import (
    BLOCK,
    Pairs,
    exact_sum_in_blocks,
    half_edges,
    vertex_normals,
)
from trellis_runtime.errors import MeshRejected

_WELD = 1e-6  # of the mesh's size, or of 1 where it is smaller: what counts as one place
_ROUNDS = 8


def move_apart(points: Tensor, faces: Tensor, step: float, block: int = BLOCK) -> Tensor:
    """Return points (V, 3) no two of which a welding at a millionth would join, whatever its grid.

    Those that meet move on along their normals, and a little towards their neighbours' middle;
    from the fifth round on each its own way, by its number. Raises `MeshRejected` where that does
    not do.
    """
    cell = min(_WELD * max(float((points.amax(0) - points.amin(0)).amax()), 1.0), step / 2)
    for number in range(_ROUNDS):
        met = _meeting(points, cell)
        if len(met) == 0:
            return points
        way = _ways_out(points, faces, met, block) if number < _ROUNDS // 2 else _any_ways(met)
        rank = _rank(points[met], cell)[:, None] + 1
        points = points.index_add(0, met, (way * (step * (number + 1) * rank / 2)).float())
    raise MeshRejected("parts of the surface lie within a millionth of one another in great number")


def _ways_out(points: Tensor, faces: Tensor, met: Tensor, block: int) -> Tensor:
    inwards = (_neighbours_middle(points, faces, block) - points)[met]
    normals = vertex_normals(points, faces, block)[met]
    return normals + 0.5 * torch.nn.functional.normalize(inwards, dim=1)


def _any_ways(met: Tensor) -> Tensor:
    """Return ways (N, 3) that differ from number to number, evenly spread on the sphere."""
    share = (met.double() * 0.6180339887498949) % 1.0  # the golden ratio's: no two alike
    turn, height = 2.399963229728653 * met.double(), 2 * share - 1
    flat = (1 - height**2).clamp(min=0).sqrt()
    return torch.stack([flat * turn.cos(), flat * turn.sin(), height], 1)


def _places(points: Tensor, cell: float, shift: float = 0.0) -> Tensor:
    """Return a number (V,) int64 for each cube of side `cell`, the grid shifted by `shift`."""
    at = (points.double() / cell + (shift + 0.5)).floor().long()
    at -= at.amin(0)
    return (at[:, 0] << 42) | (at[:, 1] << 21) | at[:, 2]


def _meeting(points: Tensor, near: float) -> Tensor:
    """Return the points (N,) int64 that have another within `near` on every axis.

    Of four grids with cells of four times that, shifted along the diagonal, each axis can cut two
    such points apart in one only: in at least one grid they share a cell (Chan, Approximate Nearest
    Neighbor Queries Revisited, 1998). A few that are farther apart are among them.
    """
    met = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    for number in range(4):
        _, at, uses = _places(points, 4 * near, number / 4).unique(  # type: ignore[no-untyped-call]
            return_inverse=True, return_counts=True
        )
        met |= uses[at] > 1
    return met.nonzero()[:, 0]


def _rank(points: Tensor, cell: float) -> Tensor:
    """Return how many points (V,) with a lower number are at the same place."""
    places, order = _places(points, cell).sort(stable=True)
    _, at, uses = torch.unique_consecutive(places, return_inverse=True, return_counts=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - (uses.cumsum(0) - uses)[at]
    return rank


def _neighbours_middle(points: Tensor, faces: Tensor, block: int) -> Tensor:
    def edges() -> Pairs:
        for part in torch.split(faces, max(1, block // 3)):
            ends = half_edges(part.long())
            yield ends[:, 0], points[ends[:, 1]].double()

    sums = exact_sum_in_blocks(edges, len(points))
    number = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    for part in torch.split(faces, block):
        number += torch.bincount(part.reshape(-1), minlength=len(points))
    return (sums / number.clamp(min=1)[:, None]).to(points.dtype)
