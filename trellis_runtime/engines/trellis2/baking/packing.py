"""Packing flat charts into one texture, by their outlines.

xatlas finds each chart's place; what it needs of a chart is which texels it covers, and its outline
tells that with a sixth of the triangles (earcut fills it). Where a chart lands is read off its
outline, and all its vertices follow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trellis_runtime.assets.topology import connected
from trellis_runtime.engines.trellis2.baking.charts import (
    Charts,
    chart_of_vertex,
    runs,
    signed_areas,
    sum_by,
)
from trellis_runtime.engines.trellis2.baking.connectivity import (
    boundary_and_nonmanifold_edges,
    half_edge_vertices,
)

_GROUPS = 16  # xatlas reads each group in a thread of its own
_SAME_AREA = 1e-3  # of a chart's area: an outline that tells more or less was read wrongly

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def pack(flat: Tensor, charts: Charts) -> tuple[Tensor, float]:
    """Pack charts into one texture; returns coordinates (V, 2) in 0..1 and the covered share.

    flat (V, 2) are the charts' coordinates in the mesh's units, no face folded over.
    """
    import xatlas

    area = float(signed_areas(flat, charts.faces).abs().sum())
    # In texels, of which all charts fill 1024 x 1024: xatlas drops faces under 1e-7 square units.
    texels = flat.double() * (1024 / math.sqrt(max(area, 1e-12)))
    faces, chart = outline_faces(texels, charts)
    atlas = xatlas.Atlas()
    groups = list(_groups(faces, chart, charts.count))
    places = texels.cpu().numpy().astype(np.float32)
    for vertices, local, materials in groups:
        atlas.add_uv_mesh(places[vertices], local, materials)
    options = xatlas.PackOptions()
    options.bilinear = True
    options.rotate_charts = False  # no quarter turns: half the work, and 1 to 2 % more are covered
    options.texels_per_unit = 1.0
    atlas.generate(pack_options=options)
    read = [atlas.get_mesh(number) for number in range(len(groups))]
    seen = [group[0][mesh[0]] for group, mesh in zip(groups, read, strict=True)]
    placed = np.concatenate([mesh[2] for mesh in read])
    uvs = _follow(texels, charts, np.concatenate(seen).astype(np.int64), placed.astype(np.float64))
    return uvs.to(flat.dtype), float(atlas.utilization)


def _follow(texels: Tensor, charts: Charts, seen: Ints, placed: Floats) -> Tensor:
    """Return coordinates (V, 2): each chart's affine map, as some of its vertices tell it.

    xatlas turns, scales and shifts each chart; the map is fitted to the vertices `seen` that it has
    `placed` (N, 2), exactly but for rounding. Charts that it left out come to lie at 0.
    """
    owner = chart_of_vertex(charts)
    at = torch.from_numpy(seen).to(texels.device)
    target = torch.from_numpy(placed).to(texels.device)
    of_seen = owner[at]
    number = sum_by(of_seen, torch.ones_like(target[:, :1]), charts.count).clamp(min=1)
    source_mean = sum_by(of_seen, texels[at], charts.count) / number
    target_mean = sum_by(of_seen, target, charts.count) / number
    source = texels[at] - source_mean[of_seen]
    target = target - target_mean[of_seen]
    square = sum_by(of_seen, source[:, :, None] * source[:, None, :], charts.count)
    mixed = sum_by(of_seen, source[:, :, None] * target[:, None, :], charts.count)
    linear = torch.linalg.pinv(square, hermitian=True, rtol=1e-12) @ mixed
    moved = (texels - source_mean[owner])[:, None] @ linear[owner]
    return (moved[:, 0] + target_mean[owner]).clamp(0, 1)


def outline_faces(flat: Tensor, charts: Charts) -> tuple[Ints, Ints]:
    """Return faces (F, 3) that cover the same area with vertices of outlines alone, and charts.

    A chart whose outline does not tell its area keeps its own faces.
    """
    import mapbox_earcut

    edges, of_edge = _boundary(charts)
    points = flat.cpu().numpy()
    filled, owners = [np.empty((0, 3), np.int64)], [np.empty(0, np.int64)]
    for number, rings in _rings(edges, of_edge, points):
        ids = np.concatenate(rings)
        limits = np.cumsum([len(ring) for ring in rings]).astype(np.uint32)
        corners = mapbox_earcut.triangulate_float64(points[ids], limits).astype(np.int64)
        filled.append(ids[corners.reshape(-1, 3)])
        owners.append(np.full(len(filled[-1]), number))
    outlined, owner = np.concatenate(filled), np.concatenate(owners)
    good = _same_area(flat, charts, outlined, owner)
    chart = charts.chart.cpu().numpy()
    parts = outlined[good[owner]], charts.faces.cpu().numpy()[~good[chart]]
    of_part = np.concatenate([owner[good[owner]], chart[~good[chart]]])
    order = np.argsort(of_part, kind="stable")
    return np.concatenate(parts)[order], of_part[order]


def _same_area(flat: Tensor, charts: Charts, outlined: Ints, owner: Ints) -> NDArray[np.bool_]:
    """Return, (charts,), whether the faces `outlined` of each chart cover what its own do."""
    faces, of_face = (torch.from_numpy(x).to(flat.device) for x in (outlined, owner))
    wanted = sum_by(charts.chart, signed_areas(flat, charts.faces).abs(), charts.count)
    covered = sum_by(of_face, signed_areas(flat, faces).abs(), charts.count)
    return ((covered - wanted).abs() <= _SAME_AREA * wanted).cpu().numpy()


def _boundary(charts: Charts) -> tuple[Ints, Ints]:
    """Return the edges (E, 2) that one face alone has, in that face's direction, and charts."""
    lone, _ = boundary_and_nonmanifold_edges(charts.faces, len(charts.vertices))
    return half_edge_vertices(charts.faces, lone).cpu().numpy(), charts.chart[
        lone // 3
    ].cpu().numpy()


def _rings(edges: Ints, chart: Ints, points: Floats) -> Iterator[tuple[int, list[Ints]]]:
    """Yield each chart with its boundary's rings of vertices, the widest first: holes follow.

    A chart that does not close (its faces disagree on a direction) is left out.
    """
    number = len(points)
    uneven = np.bincount(edges[:, 0], minlength=number) != np.bincount(
        edges[:, 1], minlength=number
    )
    closed = ~np.isin(chart, chart[uneven[edges].any(1)])
    edges, chart = edges[closed], chart[closed]
    if len(edges) == 0:
        return
    ring, place = _walk(edges)
    order = np.lexsort((place, ring, chart))
    vertices, ring, chart = edges[order, 0], ring[order], chart[order]
    starts = np.flatnonzero(np.r_[True, ring[1:] != ring[:-1]])
    stops = np.r_[starts[1:], len(ring)]
    following = points[edges[order, 1]]
    turned = points[vertices, 0] * following[:, 1] - points[vertices, 1] * following[:, 0]
    width = np.abs(np.add.reduceat(turned, starts))
    widest = np.lexsort((-width, chart[starts]))
    starts, stops = starts[widest], stops[widest]
    for begin, end in runs(chart[starts]):
        rings = zip(starts[begin:end].tolist(), stops[begin:end].tolist(), strict=True)
        yield int(chart[starts[begin]]), [vertices[a:b] for a, b in rings]


def _walk(edges: Ints) -> tuple[Ints, Ints]:
    """Return each edge's ring and its place there; as many edges leave a vertex as reach it."""
    following = np.empty(len(edges), np.int64)
    following[np.argsort(edges[:, 1], kind="stable")] = np.argsort(edges[:, 0], kind="stable")
    here = np.arange(len(edges))
    _, ring = connected(here, following, len(edges))
    _, first = np.unique(ring, return_index=True)
    before = np.empty_like(following)
    before[following] = here
    before[first] = first
    place = (before != here).astype(np.int64)
    while (before != first[ring]).any():  # each round doubles how far back an edge has looked
        place += place[before]
        before = before[before]
    return ring, place


def _groups(
    faces: Ints, chart: Ints, count: int
) -> Iterator[tuple[Ints, NDArray[np.uint32], NDArray[np.uint32]]]:
    """Yield runs of whole charts as (vertices, faces into them, charts)."""
    limits = np.searchsorted(chart, np.linspace(0, count, _GROUPS + 1).astype(np.int64))
    for begin, end in pairwise(limits):
        if end > begin:
            vertices, local = np.unique(faces[begin:end], return_inverse=True)
            materials = chart[begin:end, None].astype(np.uint32)
            yield vertices, local.reshape(-1, 3).astype(np.uint32), materials
