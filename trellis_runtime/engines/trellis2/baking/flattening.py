"""Laying charts flat: a projection, relaxed until faces keep their shapes, checked, cut if need be.

    charts -> projection along the mean normal            (no face folds: segmentation saw to it)
           -> relaxed as rigidly as possible              (`relaxation`), kept where nothing folds
           -> scaled to the surface's own area
           -> turned so that the smallest box around it stands upright
           -> drawn: what covers a texel twice, relaxed and projected, is cut in half, and again

Shapes: flat coordinates are (V, 2) float32 in the unit of the mesh, a vertex once per chart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from trellis_runtime.engines.trellis2.baking.chart_set import (
    ChartSet,
    cross,
    cut_into_charts,
    exact_sum_by,
    extents,
    extents_along,
    signed_areas,
)
from trellis_runtime.engines.trellis2.baking.components import connected_components
from trellis_runtime.engines.trellis2.baking.connectivity import (
    face_normals,
    numbered,
)
from trellis_runtime.engines.trellis2.baking.overlaps import find_overlaps
from trellis_runtime.engines.trellis2.baking.relaxation import relax, rest_edges
from trellis_runtime.engines.trellis2.baking.segmentation import adjacent_half_edges

_HALVINGS = 12  # after which each face that is left is a chart
_LONGEST = 1.2  # of the side of a texture without a gap: beyond it one chart decides the density
_SAMPLES = 2  # along a texel's side: an overlap narrower than a texel may meet a centre elsewhere
_STRETCH = 1.1  # the most that a chart's faces may have in the mean; 1 is none
_ANGLES = 36  # of boxes that are tried, in a quarter turn
_GROWTH = 6.0  # the most that a chart is scaled up to its surface's area


@dataclass(frozen=True, slots=True)
class Resolution:
    """What is seen of a surface in its texture; lengths are in the unit of the mesh."""

    texels_per_unit: float
    side: float  # the texture's
    negligible: float  # area of faces that may lie upside down: no texel is theirs


def lay_flat(
    vertices: Tensor, faces: Tensor, chart: Tensor, count: int, resolution: Resolution
) -> tuple[ChartSet, Tensor, int]:
    """Return the charts, their flat coordinates (V, 2), and how many had to be cut further.

    vertices (V, 3) float32, faces (F, 3) int64, chart (F,) int64 in 0..count-1. No chart covers a
    texel twice, no face is upside down, and none is longer than the texture.
    """
    label, corners = chart.clone(), vertices.new_zeros((len(faces), 3, 2))
    left = torch.arange(len(faces), device=faces.device)
    used = cut = 0
    for halving in range(_HALVINGS + 2):
        part, number = numbered(label[left])
        charts = cut_into_charts(vertices, faces[left], part, number)
        flat, refused = _flattened(charts, resolution)
        at = left[charts.face]
        label[at] = charts.chart + used
        corners[at] = flat[charts.faces]
        used += number
        cut += int(refused.sum()) if halving == 0 else 0
        if halving > _HALVINGS or not bool(refused.any()):
            break
        bad = refused[charts.chart]
        left = at[bad]
        label[left] = _halves(charts, bad, each=halving == _HALVINGS)
    label, count = numbered(label)
    charts = cut_into_charts(vertices, faces, label, count)
    flat = corners.new_zeros((len(charts.vertices), 2))
    flat[charts.faces] = corners[charts.face]
    return charts, flat, cut


def _flattened(charts: ChartSet, resolution: Resolution) -> tuple[Tensor, Tensor]:
    """Return coordinates (V, 2), and (charts,) bool: where they cannot be used."""
    projected = _scaled(project(charts, mean_axes(charts)), charts)
    relaxed = _scaled(relax(projected, charts), charts)
    better = mean_stretch(relaxed, charts) < mean_stretch(projected, charts)
    flat = upright(torch.where(better[charts.owner, None], relaxed, projected), charts)
    unusable = _unusable(flat, charts, resolution)
    if bool(unusable.any()):
        flat = torch.where(unusable[charts.owner, None], upright(projected, charts), flat)
        unusable = _unusable(flat, charts, resolution)
    _, size = extents(flat, charts.owner, charts.count)
    unusable |= (size.amax(1) > _LONGEST * resolution.side) | (
        mean_stretch(flat, charts) > _STRETCH
    )
    single = torch.bincount(charts.chart, minlength=charts.count) == 1
    return flat, unusable & ~single


def _unusable(flat: Tensor, charts: ChartSet, resolution: Resolution) -> Tensor:
    """Return, (charts,) bool, where a face lies upside down or a texel is covered twice."""
    folded = _folded(flat, charts, resolution.negligible) | _wound(flat, charts)
    flat = torch.where(folded[charts.owner, None], 0.0, flat)
    return folded | find_overlaps(flat, charts, _SAMPLES * resolution.texels_per_unit)


def _folded(flat: Tensor, charts: ChartSet, negligible: float) -> Tensor:
    """Return, (charts,) bool, where a face lies upside down, or squeezed to a twentieth."""
    surface = face_normals(charts.vertices, charts.faces).norm(dim=1) / 2
    right = signed_areas(flat, charts.faces) > 0.05 * surface  # not so where it is not a number
    folded = torch.zeros(charts.count, dtype=torch.bool, device=flat.device)
    folded[charts.chart[~right & (surface > negligible)]] = True
    folded[charts.owner[~flat.isfinite().all(1)]] = True
    return folded


def mean_axes(charts: ChartSet) -> Tensor:
    """Return each chart's mean normal (charts, 3), weighted by area; up where it has none."""
    sums = exact_sum_by(charts.chart, face_normals(charts.vertices, charts.faces), charts.count)
    none = sums.norm(dim=1) < 1e-30
    sums[none] = sums.new_tensor([0.0, 0.0, 1.0])
    return torch.nn.functional.normalize(sums, dim=1).float()


def project(charts: ChartSet, axes: Tensor) -> Tensor:
    """Return coordinates (V, 2) of each chart seen along its axis (charts, 3)."""
    tangents, bitangents = tangent_basis(axes)
    x = (charts.vertices * tangents[charts.owner]).sum(1)
    y = (charts.vertices * bitangents[charts.owner]).sum(1)
    return torch.stack([x, y], 1)


def tangent_basis(axes: Tensor) -> tuple[Tensor, Tensor]:
    """Return two unit vectors (N, 3) square to each axis and to each other.

    Duff et al., Building an Orthonormal Basis, Revisited (JCGT 2017).
    """
    x, y, z = axes.unbind(1)
    sign = torch.where(z >= 0, 1.0, -1.0)
    a = -1.0 / (sign + z)
    b = x * y * a
    first = torch.stack([1.0 + sign * x * x * a, sign * b, -sign * x], dim=1)
    return first, torch.stack([b, sign + y * y * a, -y], dim=1)


def _scaled(flat: Tensor, charts: ChartSet) -> Tensor:
    """Return the coordinates with each chart's area that of its surface, around its middle."""
    surface = face_normals(charts.vertices, charts.faces).norm(dim=1) / 2
    wanted = exact_sum_by(charts.chart, surface, charts.count)
    shown = exact_sum_by(charts.chart, signed_areas(flat, charts.faces).abs(), charts.count)
    growth = (wanted / shown.clamp(min=1e-300)).sqrt().clamp(1 / _GROWTH, _GROWTH)
    growth[(wanted == 0) | (shown == 0)] = 1
    low, high = extents(flat, charts.owner, charts.count)
    return (flat - ((low + high) / 2)[charts.owner]) * growth.float()[charts.owner, None]


def _wound(flat: Tensor, charts: ChartSet) -> Tensor:
    """Return, (charts,) bool, where the faces around a vertex take more than a full turn."""
    corners = flat[charts.faces].nan_to_num()
    after, before = corners.roll(-1, 1) - corners, corners.roll(1, 1) - corners
    angles = torch.atan2(cross(after, before), (after * before).sum(2)).abs().double()
    turns = exact_sum_by(charts.faces.reshape(-1), angles.reshape(-1), len(flat))
    wound = torch.zeros(charts.count, dtype=torch.bool, device=flat.device)
    wound[charts.owner[turns > 2 * math.pi + 1e-3]] = True
    return wound


def mean_stretch(flat: Tensor, charts: ChartSet) -> Tensor:
    """Return each chart's symmetric Dirichlet energy (charts,), weighted by area; 1 if rigid.

    (s1^2 + s2^2 + s1^-2 + s2^-2) / 4 of a face's singular values, and at most 100: Smith and
    Schaefer, Bijective Parameterization with Free Boundaries, 2015.
    """
    rest = rest_edges(charts).double()
    edges = (flat[charts.faces.roll(-1, 1)] - flat[charts.faces]).double()
    twice = cross(rest[:, 0], rest[:, 1])
    shape = twice > 1e-4 * rest.square().sum((1, 2))  # thinner faces tell nothing
    inverse = torch.where(shape, 1 / twice, 0.0)
    # the map's two columns, along the first edge and square to it
    along = edges[:, 0] * rest[:, 1, 1:] - edges[:, 1] * rest[:, 0, 1:]
    beside = edges[:, 1] * rest[:, 0, :1] - edges[:, 0] * rest[:, 1, :1]
    squares = (along.square() + beside.square()).sum(1) * inverse.square()
    area = cross(along, beside) * inverse.square()
    energy = (squares + squares / area.square().clamp(min=1e-12)).clamp(max=400) / 4
    weight = torch.where(shape, twice, 0.0)
    energy = torch.where(shape, energy, 0.0)
    sums = exact_sum_by(charts.chart, torch.stack([weight * energy, weight], 1), charts.count)
    return sums[:, 0] / sums[:, 1].clamp(min=1e-300)


def upright(flat: Tensor, charts: ChartSet) -> Tensor:
    """Return the coordinates turned, chart by chart, so that the smallest box stands upright.

    Its longer side is along y and its lower corner at the origin.
    """
    turn, wide = _best_turns(flat, charts)
    flat = _turned(flat, torch.where(wide, turn + math.pi / 2, turn), charts)
    return flat - extents(flat, charts.owner, charts.count)[0][charts.owner]


def _best_turns(flat: Tensor, charts: ChartSet) -> tuple[Tensor, Tensor]:
    """Return the angle (charts,) by which each chart's box is smallest, and whether it then lies.

    A box turned by a quarter is as large: the first quarter is looked at, and of boxes that differ
    by less than a ten-thousandth the least turned is taken.
    """
    angles = torch.arange(2 * _ANGLES, device=flat.device) * (math.pi / 2 / _ANGLES)
    ways = torch.stack([angles.cos(), -angles.sin()], 1).to(flat.dtype)
    low, high = extents_along(ways, flat, charts.owner, charts.count)
    # What is x after the first _ANGLES turns is -y after a quarter more.
    size = high - low
    across, along = size[:, :_ANGLES], size[:, _ANGLES:]
    area = across * along
    best = (area <= area.amin(1, keepdim=True) * 1.0001).int().argmax(1)
    chosen = best[:, None]
    wide = across.gather(1, chosen) > along.gather(1, chosen)
    return angles[best], wide[:, 0]


def _turned(flat: Tensor, angle: Tensor, charts: ChartSet) -> Tensor:
    """Return the coordinates with each chart turned by its angle (charts,), in radians."""
    cos, sin = angle.cos()[charts.owner], angle.sin()[charts.owner]
    x, y = flat.unbind(1)
    return torch.stack([cos * x - sin * y, sin * x + cos * y], 1)


def _halves(charts: ChartSet, which: Tensor, each: bool) -> Tensor:
    """Return labels for the faces `which` (F,) bool: each one's connected part of half its chart.

    A chart is cut across the middle of its longest side; where `each`, into single faces.
    """
    faces, chart = charts.faces[which], charts.chart[which]
    count = len(faces)
    if each:
        return torch.arange(count, device=faces.device)
    centres = charts.vertices[faces].mean(1)
    low, high = extents(centres, chart, charts.count)
    longest = (high - low)[chart].argmax(1, keepdim=True)
    beyond = centres.gather(1, longest) > ((low + high) / 2)[chart].gather(1, longest)
    first, second = (side // 3 for side in adjacent_half_edges(faces, len(charts.vertices)))
    same = beyond[first, 0] == beyond[second, 0]
    return connected_components(first[same], second[same], count)
