"""Flat charts relaxed until their faces keep their shapes: as rigid as possible.

Energy: the sum over faces f and their edges e of  w_e |flat_e - R_f rest_e|^2,  with `rest_e` the
edge in the face's own plane, R_f a rotation, w_e the cotangent of the angle across, kept within
0.05..5 so that it is never negative (Liu, Zhang, Xu, Gotsman and Gortler, A Local/Global Approach
to Mesh Parameterization, SGP 2008). Two steps take turns:

    local : R_f = the turn by  atan2(sum w rest x flat, sum w rest . flat)
    global: a Laplacian system for all charts at once, by conjugate gradients from where they are

    vertex -> its corners (those of faces around it), sorted: each vertex sums its own, in order,
    so the same device always gives the same bits.

A step is three kernels and two sums over the same tensors each time, so its launches are recorded
once: over a few thousand vertices the host's work would else be all that takes time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trellis_runtime.engines.trellis2.baking import relaxation_kernels as kernels
from trellis_runtime.engines.trellis2.baking.chart_set import ChartSet
from trellis_runtime.engines.trellis2.baking.launch import launch, recorded

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
    diagonal: Tensor  # (V,)


def relax(flat: Tensor, charts: ChartSet) -> Tensor:
    """Return coordinates (V, 2) float32 with less stretch than `flat` (V, 2); faces may fold."""
    if len(flat) == 0:
        return flat
    flat = flat.clone()
    run = _round(_system(charts), flat)
    for _ in range(_ROUNDS):
        run()
    return flat


def _system(charts: ChartSet) -> _System:
    rest = rest_edges(charts)
    weights = _weights(rest)
    corners = charts.faces.reshape(-1)
    order = corners.argsort(stable=True)
    uses = torch.bincount(corners, minlength=len(charts.vertices))
    begins = torch.cat([uses.new_zeros(1), uses.cumsum(0)])
    rest, weights = rest.reshape(-1, 2), weights.reshape(-1)
    begins, order = begins.int(), order.int()
    diagonal = weights.new_empty(len(uses))
    launch(kernels.diagonal, len(uses), [weights, begins, order, diagonal])
    return _System(corners.int(), rest, weights, begins, order, diagonal)


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


def _round(system: _System, flat: Tensor) -> Callable[[], None]:
    """Return what moves flat (V, 2) on: faces are turned, then some steps of conjugate gradients.

    They are preconditioned by the diagonal.
    """
    residual, search, image = (torch.empty_like(flat) for _ in range(3))
    powers, other = (flat.new_empty(len(flat)) for _ in range(2))
    spokes, numbers = torch.empty_like(system.rest), flat.new_zeros(4)
    graph = [system.faces, system.weights, system.begins, system.corners]
    diagonal = system.diagonal

    turn_faces = recorded(
        kernels.turn_faces,
        len(system.faces) // 3,
        [system.faces, system.rest, system.weights, flat, spokes],
    )

    def at_vertices(kernel: object, *given: object) -> Callable[[], None]:
        return recorded(kernel, len(flat), given)

    begin = at_vertices(
        kernels.begin, *graph, diagonal, spokes, flat, residual, search, powers, other
    )
    look = at_vertices(kernels.look, *graph, search, image, other)
    step = at_vertices(
        kernels.step, diagonal, search, image, numbers, _ROUNDING, flat, residual, powers
    )
    turn = at_vertices(kernels.turn, diagonal, residual, numbers, search)

    def summed(values: Tensor, place: int) -> None:
        torch.sum(values, 0, out=numbers[place])

    def run() -> None:
        turn_faces()
        begin()
        summed(powers, kernels.POWER)
        summed(other, kernels.ROUNDING)
        for _ in range(_STEPS):
            look()
            summed(other, kernels.ALONG)
            step()
            summed(powers, kernels.NEXT_POWER)
            turn()
            numbers[kernels.POWER] = numbers[kernels.NEXT_POWER]

    return run
