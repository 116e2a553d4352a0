"""Flat charts relaxed until their faces keep their shapes: as rigid as possible.

Energy: the sum over faces f and their edges e of  w_e |flat_e - R_f rest_e|^2,  with `rest_e` the
edge in the face's own plane, R_f a rotation, w_e the cotangent of the angle across, kept within
0.05..5 so that it is never negative (Liu, Zhang, Xu, Gotsman and Gortler, A Local/Global Approach
to Mesh Parameterization, SGP 2008). Two steps take turns:

    local : R_f = the turn by  atan2(sum w rest x flat, sum w rest . flat)
    global: a Laplacian system for all charts at once, by conjugate gradients from where they are

    vertex -> its corners (those of faces around it), sorted: each vertex sums its own, in order,
    so the same device always gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trellis_runtime.engines.trellis2.baking.chart_set import ChartSet
from trellis_runtime.engines.trellis2.baking.launch import launch
from trellis_runtime.engines.trellis2.baking.uv_kernels import gather_corners, laplacian

_ROUNDS = 5
_STEPS = 24  # of conjugate gradients in each round
_ROUNDING = 1e-13  # of the squares of coordinates: float32's own
_WEIGHTS = (0.05, 5.0)


@dataclass(frozen=True, slots=True)
class _System:
    """The Laplacian of all charts."""

    faces: Tensor  # (3 F,) int32
    rest: Tensor  # (3 F, 2): edge from corner k to the next, in the face's plane
    weights: Tensor  # (3 F,): of the same edges
    begins: Tensor  # (V + 1,) int32: where a vertex's corners begin in `corners`
    corners: Tensor  # (3 F,) int32
    diagonal: Tensor  # (V, 1)


def relax(flat: Tensor, charts: ChartSet) -> Tensor:
    """Return coordinates (V, 2) float32 with less stretch than `flat` (V, 2); faces may fold."""
    system = _system(charts)
    for _ in range(_ROUNDS):
        flat = _solved(system, flat, _right_side(system, flat))
    return flat


def _system(charts: ChartSet) -> _System:
    rest = rest_edges(charts)
    weights = _weights(rest)
    corners = charts.faces.reshape(-1)
    order = corners.argsort(stable=True).int()
    uses = torch.bincount(corners, minlength=len(charts.vertices))
    begins = torch.cat([uses.new_zeros(1), uses.cumsum(0)]).int()
    system = _System(
        corners.int(), rest.reshape(-1, 2), weights.reshape(-1), begins, order, torch.empty(0)
    )
    around = weights + weights.roll(1, 1)  # of the two edges at each corner
    diagonal = _gathered(system, around.reshape(-1, 1).expand(-1, 2).contiguous())[:, :1]
    return _System(
        system.faces, system.rest, system.weights, begins, order, diagonal.clamp(min=1e-12)
    )


def rest_edges(charts: ChartSet) -> Tensor:
    """Return each face's edges (F, 3, 2) in its own plane, from each corner to the next."""
    a, b, c = charts.vertices[charts.faces].unbind(1)
    along, beside = b - a, c - a
    length = along.norm(dim=1)
    unit = along / length.clamp(min=1e-20)[:, None]
    x = (beside * unit).sum(1)
    y = torch.linalg.cross(unit, beside).norm(dim=1)
    first = torch.stack([length, torch.zeros_like(length)], 1)
    last = torch.stack([-x, -y], 1)
    return torch.stack([first, -(first + last), last], 1)


def _weights(rest: Tensor) -> Tensor:
    """Return each edge's weight (F, 3): the cotangent of the angle across from it."""
    before, after = rest.roll(-1, 1), rest.roll(-2, 1)  # the edges that meet across
    dot = -(before * after).sum(2)
    area = (before[..., 0] * after[..., 1] - before[..., 1] * after[..., 0]).abs()
    return (dot / area.clamp(min=1e-20)).clamp(*_WEIGHTS)


def _right_side(system: _System, flat: Tensor) -> Tensor:
    """Return (V, 2): what the Laplacian of rigidly turned faces would be."""
    faces = system.faces.reshape(-1, 3).long()
    rest, weights = system.rest.reshape(-1, 3, 2), system.weights.reshape(-1, 3)
    edges = flat[faces.roll(-1, 1)] - flat[faces]
    cos = (weights * (rest * edges).sum(2)).sum(1)
    sin = (weights * (rest[..., 0] * edges[..., 1] - rest[..., 1] * edges[..., 0])).sum(1)
    size = (cos * cos + sin * sin).sqrt().clamp(min=1e-30)
    cos, sin = (cos / size)[:, None], (sin / size)[:, None]
    x, y = rest.unbind(2)
    turned = torch.stack([cos * x - sin * y, sin * x + cos * y], 2) * weights[..., None]
    return _gathered(system, (turned.roll(1, 1) - turned).reshape(-1, 2))


def _solved(system: _System, flat: Tensor, right: Tensor) -> Tensor:
    """Return `flat` after some steps of conjugate gradients, preconditioned by the diagonal."""
    residual = right - _laplacian(system, flat)
    ready = residual / system.diagonal
    search, power = ready, (residual * ready).sum()
    rounding = _ROUNDING * (flat * flat * system.diagonal).sum()  # what is less tells nothing
    for _ in range(_STEPS):
        image = _laplacian(system, search)
        step = torch.where(power > rounding, power / (search * image).sum().clamp(min=1e-30), 0.0)
        flat = flat + step * search
        residual = residual - step * image
        ready = residual / system.diagonal
        before, power = power, (residual * ready).sum()
        search = ready + (power / before.clamp(min=1e-30)) * search
    return flat


def _laplacian(system: _System, values: Tensor) -> Tensor:
    """Return (V, 2): at each vertex, the weighted sum of differences to its neighbours."""
    out = torch.empty_like(values)
    launch(
        laplacian,
        len(values),
        [
            system.faces,
            system.weights,
            system.begins,
            system.corners,
            values.reshape(-1),
            out.view(-1),
        ],
    )
    return out


def _gathered(system: _System, values: Tensor) -> Tensor:
    """Return (V, 2): the sums of values (3 F, 2) over each vertex's corners."""
    out = values.new_empty((len(system.begins) - 1, 2))
    launch(
        gather_corners, len(out), [system.begins, system.corners, values.reshape(-1), out.view(-1)]
    )
    return out
