"""A surface cut into charts, and what is summed or bounded chart by chart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from trellis_runtime.engines.trellis2.baking import uv_kernels
from trellis_runtime.engines.trellis2.baking.connectivity import sum_by
from trellis_runtime.engines.trellis2.baking.launch import launch


@dataclass(frozen=True, slots=True)
class ChartSet:
    """A mesh cut into charts.

    `vertices` (V, 3) float32 are a vertex once for each chart that it is in; `faces` (F, 3) int64
    index them; `chart` (F,) int64 is each face's chart, ascending; `owner` (V,) int64 is
    each vertex's; `source` (V,) int64 is each vertex's index before the cut, and `face` (F,) int64
    each face's.
    """

    vertices: Tensor
    faces: Tensor
    chart: Tensor
    owner: Tensor
    source: Tensor
    face: Tensor
    count: int


def cut_into_charts(vertices: Tensor, faces: Tensor, chart: Tensor, count: int) -> ChartSet:
    """Return the charts that `chart` (F,) int64 in 0..count-1 numbers.

    vertices (V, 3), faces (F, 3). Faces keep their order within a chart, and their corners'.
    """
    chart, order = chart.sort(stable=True)
    keys = (chart[:, None] * len(vertices) + faces[order]).reshape(-1)
    found, local = keys.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    source = found % len(vertices)
    owner = found // len(vertices)
    return ChartSet(vertices[source], local.reshape(-1, 3), chart, owner, source, order, count)


def cross(a: Tensor, b: Tensor) -> Tensor:
    """Return the cross products (...) of vectors (..., 2)."""
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def signed_areas(flat: Tensor, faces: Tensor) -> Tensor:
    """Return areas (F,) of faces over coordinates (V, 2), positive where they turn left."""
    a, b, c = flat[faces].unbind(1)
    return cross(b - a, c - a) / 2


def exact_sum_by(owner: Tensor, values: Tensor, count: int) -> Tensor:
    """Return the sums (count, ...) float64 of values (N, ...) by owner (N,), the same on each run.

    They are added as integers, which have no order: of the largest value, 2^-62 N is kept.
    """
    if len(values) == 0:
        return values.new_zeros((count, *values.shape[1:]), dtype=torch.float64)
    bits = 61 - math.ceil(math.log2(len(values) + 1))
    unit = values.abs().amax().double().clamp(min=1e-280) / 2.0**bits
    return sum_by(owner, (values.double() / unit).round().long(), count).double() * unit


def extents(points: Tensor, owner: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the least and greatest coordinates (count, D) of each owner's points (N, D).

    Both are zero for an owner without points. It is quick where an owner's points come together.
    """
    axes = torch.eye(points.shape[1], dtype=points.dtype, device=points.device)
    return extents_along(axes, points, owner, count)


def extents_along(ways: Tensor, points: Tensor, owner: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return how far (count, W) each owner's points (N, D) lie along `ways` (W, D): least, most.

    Both are zero for an owner without points.
    """
    low = points.new_full((count, len(ways)), torch.inf)
    high = torch.full_like(low, -torch.inf)
    runs = -(-len(points) // uv_kernels.RUN), len(ways)
    launch(uv_kernels.bound, runs, [points.contiguous(), owner.int(), ways, low, high])
    none = low > high
    return low.masked_fill_(none, 0), high.masked_fill_(none, 0)
