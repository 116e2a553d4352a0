"""Cutting a surface into charts: neighbouring regions are merged, many pairs at a time.

    every face is a region
      -> cost of each pair of neighbours
      -> pairs that are each other's cheapest neighbour      (a matching: all merge at once)
      -> of these, pairs whose every face looks along their common axis merge; the rest never will
      -> again, until no pair is left
    then once more with a wider cone, where one of the two is small

The cost is that of Mumford and Shah's functional on a mesh: the error added per length of boundary
removed (Koepfler, Lopez and Morel, A Multiscale Algorithm for Image Segmentation by Variational
Method, 1994). The error of a region is VSA's L2,1, how far its normals are from one normal: with
`n` the sum of its faces' normals, each as long as its face's area, and A its area, it is
2 (A - |n|) (Cohen-Steiner, Alliez and Desbrun, Variational Shape Approximation, 2004); so a merge
adds 2 (|n1| + |n2| - |n1 + n2|). On a tube the error is least along its length, and so it is cut.

Sums are made pair by pair or of integers and ties are broken by a hash of the edge's number, so one
device always gives the same charts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trellis_runtime.engines.trellis2.baking import segmentation_kernels as kernels
from trellis_runtime.engines.trellis2.baking.connectivity import (
    edge_keys,
    face_normals,
    half_edges,
    numbered,
    sum_by,
)
from trellis_runtime.engines.trellis2.baking.kernel_types import NEVER
from trellis_runtime.engines.trellis2.baking.launch import launch

_WIDEST = math.cos(math.radians(68))
"""Least cosine between a face and its chart's axis: it is seen 0.37 as wide, until relaxed."""

_LEAST_FLATNESS = 0.77
"""Least length of the sum of a chart's normals, of its area: two sides of a box have 0.71, half of
a tube 0.64, a cap of 57 degrees 0.77."""

_WIDEST_SMALL = math.cos(math.radians(78))
_SMALL_TEXELS = 100.0
_BALANCE = 2e-3  # error per area of the smaller region: on a plane the small ones merge first
_LENGTH_UNITS = 2.0**40  # of all edges' length: sums of integers have no order


@dataclass(frozen=True, slots=True)
class _Regions:
    """Regions of faces and which of them are neighbours."""

    label: Tensor  # (F,) int64: each face's region
    normal: Tensor  # (R, 3) float64: the sum of the faces' normals, each as long as its area
    area: Tensor  # (R,) float64
    pair: Tensor  # (E, 2) int64: regions with a common boundary, the lower first
    length: Tensor  # (E,) int64: of that boundary, in 1 / _LENGTH_UNITS of all edges' length
    barred: Tensor  # (E,) bool: these two must not merge


def segment(
    vertices: Tensor, faces: Tensor, texel_area: float, negligible: float
) -> tuple[Tensor, int]:
    """Return each face's chart (F,) int64, numbered 0, 1, ..., and how many charts there are.

    vertices (V, 3) float32, faces (F, 3) int64; `texel_area` is about what a texel will cover, in
    the square of the vertices' unit. A chart hangs together by edges of two faces that turn the
    same way, and its normals lie within 68 degrees of its mean normal (78 where a small chart
    joined); faces of less than the area `negligible` are not asked.
    """
    normals = face_normals(vertices, faces) / 2
    areas = normals.norm(dim=1)
    directions = torch.nn.functional.normalize(normals, dim=1, eps=1e-30)
    directions[areas <= negligible] = 0
    regions = _single_faces(vertices, faces, normals)
    regions = _merged(regions, directions, _WIDEST, math.inf)
    regions = replace(regions, barred=torch.zeros_like(regions.barred))
    regions = _merged(regions, directions, _WIDEST_SMALL, _SMALL_TEXELS * texel_area)
    return numbered(regions.label)


def _single_faces(vertices: Tensor, faces: Tensor, normals: Tensor) -> _Regions:
    """Return one region per face, neighbours where two faces that turn the same way meet."""
    first, second = adjacent_half_edges(faces, len(vertices))
    edges = half_edges(faces)[first]
    length = (vertices[edges[:, 0]] - vertices[edges[:, 1]]).double().norm(dim=1)
    units = (length / length.sum().clamp(min=1e-300) * _LENGTH_UNITS).long()
    count = len(faces)
    label = torch.arange(count, device=faces.device)
    regions = _Regions(
        label,
        normals.double(),
        normals.double().norm(dim=1),
        torch.stack([first // 3, second // 3], 1),
        units,
        torch.zeros_like(first, dtype=torch.bool),
    )
    return _relabelled(regions, label, count)


def adjacent_half_edges(faces: Tensor, vertices: int) -> tuple[Tensor, Tensor]:
    """Return the half-edges (E,) and (E,) that lie on one edge of exactly two faces, opposed."""
    keys, order = edge_keys(faces, vertices).sort(stable=True)
    _, uses = torch.unique_consecutive(keys, return_counts=True)
    begins = (uses.cumsum(0) - uses)[uses == 2]
    first, second = order[begins], order[begins + 1]
    starts = half_edges(faces)[:, 0]
    opposed = (starts[first] != starts[second]) & (first // 3 != second // 3)
    return first[opposed], second[opposed]


def _merged(regions: _Regions, directions: Tensor, limit: float, small: float) -> _Regions:
    """Merge until no pair is left that may; `small`: the area that one of a pair must be below."""
    while len(regions.pair):
        chosen = _matched(regions, small)
        if len(chosen) == 0:
            break
        fits = _fits(regions, directions, regions.pair[chosen], limit)
        barred = regions.barred.clone()
        barred[chosen[~fits]] = True
        regions = replace(regions, barred=barred)
        regions = _united(regions, regions.pair[chosen[fits]])
    return regions


def _matched(regions: _Regions, small: float) -> Tensor:
    """Return the pairs (M,), indices, that are the cheapest of both their regions.

    Almost equal costs come in the order of a hash: in that of their numbers, rows of faces would
    merge one after another instead of all at once.
    """
    count = len(regions.pair)
    keys = torch.empty(count, dtype=torch.int64, device=regions.pair.device)
    best = torch.full_like(regions.area, NEVER, dtype=torch.int64)
    given = [regions.pair, regions.normal, regions.area, regions.length, regions.barred]
    launch(kernels.rank_pairs, count, [*given, _BALANCE, small, keys, best])
    chosen = torch.empty(count, dtype=torch.bool, device=keys.device)
    launch(kernels.match_pairs, count, [regions.pair, keys, best, chosen])
    return chosen.nonzero()[:, 0]


def _fits(regions: _Regions, directions: Tensor, pairs: Tensor, limit: float) -> Tensor:
    """Return, (M,), whether all faces of both regions look along the pair's common axis.

    All together, too: else it may be two or three sides of a box, which are better apart.
    """
    common = (regions.normal[pairs[:, 0]] + regions.normal[pairs[:, 1]]).float()
    axes = torch.nn.functional.normalize(common, dim=1, eps=1e-30)
    number = torch.arange(len(pairs), dtype=torch.int32, device=pairs.device)
    pair = torch.full((len(regions.area),), -1, dtype=torch.int32, device=pairs.device)
    pair[pairs] = number[:, None]
    least = torch.ones(len(pairs), device=pairs.device)
    launch(kernels.least_along, len(directions), [directions, regions.label, pair, axes, least])
    flat = common.norm(dim=1) >= _LEAST_FLATNESS * regions.area[pairs].sum(1)
    return flat & (least >= limit)


def _united(regions: _Regions, pairs: Tensor) -> _Regions:
    """Return the regions with the second of each pair (M, 2) joined to the first."""
    into, gone = pairs.unbind(1)
    parent = torch.arange(len(regions.area), device=pairs.device)
    parent[gone] = into
    stays = torch.ones_like(parent, dtype=torch.bool)
    stays[gone] = False
    number = (stays.long().cumsum(0) - 1)[parent]
    normal, area = regions.normal.clone(), regions.area.clone()
    normal[into] += normal[gone]
    area[into] += area[gone]
    joined = replace(regions, normal=normal[stays], area=area[stays])
    return _relabelled(joined, number, len(joined.area))


def _relabelled(regions: _Regions, number: Tensor, count: int) -> _Regions:
    """Return the regions renumbered by `number`, each pair of neighbours once."""
    one, other = number[regions.pair].unbind(1)
    low, high = torch.minimum(one, other), torch.maximum(one, other)
    apart = low != high
    keys, which = (low * count + high)[apart].unique(return_inverse=True)  # type: ignore[no-untyped-call]
    barred = sum_by(which, regions.barred[apart].long(), len(keys)) > 0
    return replace(
        regions,
        label=number[regions.label],
        pair=torch.stack([keys // count, keys % count], 1),
        length=sum_by(which, regions.length[apart], len(keys)),
        barred=barred,
    )
