"""UV unwrapping: charts laid flat on the GPU in one batch, packed once.

Upstream finds charts on the GPU in a tenth of a second and then has xatlas find and parameterise
tens of thousands of them again on the CPU. A chart whose normals lie in a cone is laid flat by a
projection along the cone's axis (xatlas tries the same first, and calls it Ortho): here all charts
at once. Where a projection folds or covers a texel twice, that chart alone is cut by the six
directions its faces look in, then in half, and in half again; what still overlaps goes to xatlas.
`packing` finds them their places.

Long because the ways in which a chart can fold are told apart in one place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trellis_runtime.assets.topology import connected, half_edges
from trellis_runtime.engines.trellis2.baking.charts import (
    Charts,
    chart_of_vertex,
    cross,
    extents,
    face_normals,
    runs,
    signed_areas,
    sum_by,
)
from trellis_runtime.engines.trellis2.baking.packing import pack

_STEEPEST = math.cos(math.radians(80))
"""A face steeper than this to its chart's axis would be squeezed to a sixth of its width."""

_CHECK_TEXELS = 2048**2
_BLOCK_FACES = 131_072
_HALVINGS = 4
_INSIDE = 1e-3  # of a face's area: two faces that share an edge may both touch its texels


@dataclass(frozen=True, slots=True)
class Layout:
    """Charts with texture coordinates (V, 2) in 0..1, and how they came about."""

    charts: Charts
    uvs: Tensor
    split: int  # charts that one projection could not lay flat
    redone: int  # charts that xatlas had to lay flat
    utilization: float  # share of the texture that charts cover


def cut(mesh: Any, half_angle: float) -> Charts:
    """Cut a CuMesh into charts whose normals lie in cones of `half_angle` radians."""
    mesh.remove_degenerate_faces()
    mesh.compute_charts(half_angle, 0, 1, 1)
    vertices, _ = mesh.read()
    count, _, source, faces, _, starts = mesh.read_atlas_charts()
    sizes = (starts[1:] - starts[:-1]).long()
    chart = torch.repeat_interleave(torch.arange(count, device=faces.device), sizes)
    return Charts(vertices[source.long()], faces.long(), chart, source.long(), count)


def unwrap(charts: Charts) -> Layout:
    """Return texture coordinates for `charts`; those that xatlas had to redo are cut further."""
    flat, refused = _lay_flat(charts, axes := mean_axes(charts))
    split = int(refused.sum())
    for cut_further in (cut_by_direction, *[cut_in_half] * _HALVINGS):
        if not bool(refused.any()):
            break
        charts, axes = cut_further(charts, axes, refused)
        flat, refused = _lay_flat(charts, axes)
    redone = int(refused.sum())
    if redone:
        charts, flat = _redo(charts, flat, refused)
    uvs, utilization = pack(flat, charts)
    return Layout(charts, uvs, split, redone, utilization)


def _lay_flat(charts: Charts, axes: Tensor) -> tuple[Tensor, Tensor]:
    """Return coordinates (V, 2), and (charts,) bool: where they cannot be used."""
    flat, folded = project(charts, axes)
    return flat, folded | covers_twice(flat, charts)


def cut_by_direction(charts: Charts, axes: Tensor, which: Tensor) -> tuple[Charts, Tensor]:
    """Cut the charts `which` (charts,) bool into connected parts that look along x, y or z.

    All normals of a part are within 55 degrees of its axis. The other charts, and their axes
    (charts, 3), stay. Returns the charts and their axes.
    """
    chosen = which[charts.chart]
    normals = face_normals(charts)[chosen]
    axis = normals.abs().argmax(1)
    side = normals.gather(1, axis[:, None])[:, 0] > 0
    made, kept, _ = _recut(charts, which, charts.chart[chosen] * 6 + axis * 2 + side)
    means = mean_axes(made)[kept:]
    along = torch.zeros_like(means)
    at = means.abs().argmax(1, keepdim=True)
    along.scatter_(1, at, means.gather(1, at).sign())
    return made, torch.cat([axes[~which], along])


def cut_in_half(charts: Charts, axes: Tensor, which: Tensor) -> tuple[Charts, Tensor]:
    """Cut the charts `which` across the middle of their longest side; axes are kept.

    Layers that lie over one another along an axis, a spiral's turns say, come apart so.
    """
    chosen = which[charts.chart]
    chart = charts.chart[chosen]
    centres = charts.vertices[charts.faces[chosen]].mean(1)
    low, high = extents(centres, chart, charts.count)
    longest = (high - low)[chart].argmax(1, keepdim=True)
    beyond = centres.gather(1, longest) > ((low + high) / 2)[chart].gather(1, longest)
    made, _, parents = _recut(charts, which, chart * 2 + beyond[:, 0])
    return made, torch.cat([axes[~which], axes[parents]])


def _recut(charts: Charts, which: Tensor, label: Tensor) -> tuple[Charts, int, Tensor]:
    """Cut the charts `which` into connected parts of one label (a label for each of their faces).

    Returns the charts, those that stay first, how many stay, and each part's chart before.
    """
    chosen = which[charts.chart]
    parts = _connected(charts.faces[chosen].cpu().numpy(), label.cpu().numpy())
    part = torch.from_numpy(parts).to(charts.chart.device)
    chart = charts.chart.clone()
    chart[chosen] = charts.count + part
    parents = charts.chart.new_zeros(int(part.max()) + 1)
    parents[part] = charts.chart[chosen]
    return _with_charts(charts, chart), int((~which).sum()), parents


def _connected(faces: NDArray[np.int64], label: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the parts of faces (F, 3) that share an edge and a label (F,)."""
    edges = np.sort(half_edges(faces), axis=1)
    of_face = np.repeat(np.arange(len(faces)), 3)
    order = np.lexsort((label[of_face], edges[:, 1], edges[:, 0]))
    edges, of_face = edges[order], of_face[order]
    same = (edges[1:] == edges[:-1]).all(1) & (label[of_face[1:]] == label[of_face[:-1]])
    return connected(of_face[:-1][same], of_face[1:][same], len(faces))[1]


def _with_charts(charts: Charts, chart: Tensor) -> Charts:
    """Return the same faces in other charts; `chart` (F,) may have gaps and any order."""
    _, chart = chart.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    chart, order = chart.sort(stable=True)
    faces = charts.faces[order]
    key = chart[:, None] * len(charts.vertices) + faces
    keys, local = key.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    old = keys % len(charts.vertices)
    return Charts(charts.vertices[old], local, chart, charts.source[old], int(chart[-1]) + 1)


def mean_axes(charts: Charts) -> Tensor:
    """Return each chart's mean normal (charts, 3), weighted by area."""
    sums = sum_by(charts.chart, face_normals(charts), charts.count)
    return torch.nn.functional.normalize(sums, dim=1)


def project(charts: Charts, axes: Tensor) -> tuple[Tensor, Tensor]:
    """Lay each chart flat along its axis (charts, 3), with its surface area kept.

    Returns coordinates (V, 2) in the mesh's units, and (charts,) bool: where a face came out
    folded over or all but edge-on.
    """
    normals = face_normals(charts)
    tangents, bitangents = _basis(axes)
    of_vertex = chart_of_vertex(charts)
    flat = torch.stack(
        [
            (charts.vertices * tangents[of_vertex]).sum(1),
            (charts.vertices * bitangents[of_vertex]).sum(1),
        ],
        dim=1,
    )
    areas = normals.norm(dim=1)
    along = (normals * axes[charts.chart]).sum(1)
    steep = along < _STEEPEST * areas
    folded = torch.zeros(charts.count, dtype=torch.bool, device=flat.device)
    folded[charts.chart[steep & (areas > 0)]] = True
    whole = sum_by(charts.chart, areas, charts.count)
    shown = sum_by(charts.chart, along, charts.count)
    growth = (whole / shown.clamp(min=1e-12)).clamp(1.0, 10.0).sqrt()
    return flat * growth[of_vertex, None], folded


def covers_twice(flat: Tensor, charts: Charts) -> Tensor:
    """Return, (charts,) bool, which charts cover a texel with two faces.

    Texels are those of a texture of 2048 x 2048 that the charts would fill.
    """
    area = signed_areas(flat, charts.faces).abs().sum()
    texels = flat * (_CHECK_TEXELS / area.clamp(min=1e-12)).sqrt()
    low, high = extents(texels, chart_of_vertex(charts), charts.count)
    origin = low.floor()
    width, height = ((high - origin).floor().long() + 1).unbind(1)
    starts = torch.cumsum(width * height, 0) - width * height
    hits = torch.zeros(int((width * height).sum()), dtype=torch.int32, device=flat.device)
    owner = torch.repeat_interleave(torch.arange(charts.count, device=flat.device), width * height)
    for begin in range(0, len(charts.faces), _BLOCK_FACES):
        part = slice(begin, begin + _BLOCK_FACES)
        chart = charts.chart[part]
        corners = texels[charts.faces[part]] - origin[chart][:, None]
        face, x, y = covered_texels(corners)
        at = starts[chart[face]] + y * width[chart[face]] + x
        hits.index_add_(0, at, torch.ones_like(at, dtype=torch.int32))
    twice = torch.zeros(charts.count, dtype=torch.bool, device=flat.device)
    twice[owner[hits > 1]] = True
    return twice


def _redo(charts: Charts, flat: Tensor, refused: Tensor) -> tuple[Charts, Tensor]:
    """Have xatlas cut and lay flat the refused charts; the others stay as they are."""
    import xatlas

    atlas = xatlas.Atlas()
    bad = refused[charts.chart]
    parts = []
    faces, chart = charts.faces[bad].cpu().numpy(), charts.chart[bad].cpu().numpy()
    positions = charts.vertices.cpu().numpy()
    for begin, end in runs(chart):
        vertices, local = np.unique(faces[begin:end], return_inverse=True)
        atlas.add_mesh(positions[vertices], local.reshape(-1, 3).astype(np.uint32))
        parts.append(vertices)
    atlas.generate()
    made = [_keep(charts, flat, ~bad)]
    for number, vertices in enumerate(parts):
        made.extend(_read(atlas, number, vertices, charts))
    return _joined(made)


_Piece = tuple[Charts, Tensor]  # charts, and coordinates (V, 2) of their vertices


def _keep(charts: Charts, flat: Tensor, faces: Tensor) -> _Piece:
    used, local = charts.faces[faces].unique(return_inverse=True)  # type: ignore[no-untyped-call]
    kept, chart = charts.chart[faces].unique(return_inverse=True)  # type: ignore[no-untyped-call]
    return Charts(charts.vertices[used], local, chart, charts.source[used], len(kept)), flat[used]


def _read(atlas: Any, number: int, vertices: NDArray[np.int64], charts: Charts) -> list[_Piece]:
    """Return one mesh of `atlas` as a piece, its coordinates scaled to the surface's own area."""
    source, faces, uvs = atlas.get_mesh(number)
    if len(faces) == 0:
        return []
    device = charts.vertices.device
    of_vertex = np.asarray(atlas.get_mesh_vertex_assignment(number)[1]).astype(np.int64)
    numbers, chart = np.unique(of_vertex[faces[:, 0]], return_inverse=True)
    order = np.argsort(chart, kind="stable")
    at = torch.from_numpy(vertices[source.astype(np.int64)]).to(device)
    local = torch.from_numpy(faces.astype(np.int64)[order]).to(device)
    flat = torch.from_numpy(uvs * [atlas.width, atlas.height]).float().to(device)
    owner = torch.from_numpy(chart[order]).to(device)
    piece = Charts(charts.vertices[at], local, owner, charts.source[at], len(numbers))
    wanted = sum_by(piece.chart, face_normals(piece).norm(dim=1) / 2, piece.count)
    have = sum_by(piece.chart, signed_areas(flat, local).abs(), piece.count)
    scale = (wanted / have.clamp(min=1e-12)).sqrt()
    return [(piece, flat * scale[chart_of_vertex(piece), None])]


def _joined(pieces: list[_Piece]) -> tuple[Charts, Tensor]:
    faces, chart = [], []
    before = count = 0
    for piece, _ in pieces:
        faces.append(piece.faces + before)
        chart.append(piece.chart + count)
        before += len(piece.vertices)
        count += piece.count
    vertices = torch.cat([piece.vertices for piece, _ in pieces])
    source = torch.cat([piece.source for piece, _ in pieces])
    charts = Charts(vertices, torch.cat(faces), torch.cat(chart), source, count)
    return charts, torch.cat([flat for _, flat in pieces])


def _basis(axes: Tensor) -> tuple[Tensor, Tensor]:
    """Return two unit vectors (N, 3) square to each axis and to each other.

    Duff et al., Building an Orthonormal Basis, Revisited (JCGT 2017).
    """
    x, y, z = axes.unbind(1)
    sign = torch.where(z >= 0, 1.0, -1.0)
    a = -1.0 / (sign + z)
    b = x * y * a
    first = torch.stack([1.0 + sign * x * x * a, sign * b, -sign * x], dim=1)
    return first, torch.stack([b, sign + y * y * a, -y], dim=1)


def covered_texels(corners: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return which texel centres lie inside faces (F, 3, 2): face, x and y, each (N,) int64."""
    low = (corners.amin(1) - 0.5).ceil().long().clamp(min=0)
    size = ((corners.amax(1) - 0.5).floor().long() - low + 1).clamp(min=0)
    number = size[:, 0] * size[:, 1]
    face = torch.repeat_interleave(torch.arange(len(corners), device=corners.device), number)
    within = torch.arange(len(face), device=face.device) - (number.cumsum(0) - number)[face]
    x = low[face, 0] + within % size[face, 0].clamp(min=1)
    y = low[face, 1] + within // size[face, 0].clamp(min=1)
    point = torch.stack([x, y], dim=1) + 0.5
    a, b, c = corners[face].unbind(1)
    whole = cross(b - a, c - a)
    sides = torch.stack([cross(b - a, point - a), cross(c - b, point - b), cross(a - c, point - c)])
    inside = (sides * whole.sign() > _INSIDE * whole.abs()).all(0)
    return face[inside], x[inside], y[inside]
