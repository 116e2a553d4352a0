"""A mesh cut into charts, and what is summed or bounded chart by chart."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Charts:
    """A mesh cut into charts.

    `vertices` (V, 3) float32 are a vertex once for each chart that it is in; `faces` (F, 3) int64
    index them; `chart` (F,) int64 is each face's chart, ascending; `source` (V,) int64 is each
    vertex's index before the cut.
    """

    vertices: Tensor
    faces: Tensor
    chart: Tensor
    source: Tensor
    count: int


def face_normals(charts: Charts) -> Tensor:
    """Return faces' normals (F, 3), twice their areas long."""
    a, b, c = charts.vertices[charts.faces].unbind(1)
    return torch.linalg.cross(b - a, c - a)


def cross(a: Tensor, b: Tensor) -> Tensor:
    """Return the cross product (N,) of vectors (N, 2)."""
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def signed_areas(flat: Tensor, faces: Tensor) -> Tensor:
    """Return areas (F,) of faces over coordinates (V, 2), positive where they turn left."""
    a, b, c = flat[faces].unbind(1)
    return cross(b - a, c - a) / 2


def sum_by(owner: Tensor, values: Tensor, count: int) -> Tensor:
    """Return the sums (count, ...) of values (N, ...) by owner (N,)."""
    return values.new_zeros((count, *values.shape[1:])).index_add_(0, owner, values)


def chart_of_vertex(charts: Charts) -> Tensor:
    """Return each vertex's chart (V,)."""
    of_vertex = torch.zeros(len(charts.vertices), dtype=torch.int64, device=charts.faces.device)
    of_vertex[charts.faces.reshape(-1)] = charts.chart.repeat_interleave(3)
    return of_vertex


def runs(chart: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return where each run of equal values begins and ends."""
    cuts = np.flatnonzero(np.diff(chart)) + 1
    return list(pairwise([0, *cuts.tolist(), len(chart)]))


def extents(points: Tensor, owner: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the least and greatest coordinates (count, D) of each owner's points (N, D).

    Both are zero for an owner without points.
    """
    at = owner[:, None].expand_as(points)
    blank = points.new_zeros((count, points.shape[1]))
    low = blank.scatter_reduce(0, at, points, "amin", include_self=False)
    return low, blank.scatter_reduce(0, at, points, "amax", include_self=False)
