"""Open sheets: cut off as one layer of faces, and given two sides once that layer is decimated.

    kept sides ─► faces of which both are kept, patch by patch ─► one layer     [decimation]
    layer ─► both sides of its faces, a vertex for each fan ─► moved apart, a strip along the rim

                                  ___________
    one layer  ___________       |___________|  the same triangles above and below

Decimated each for itself, two sides that lie closer than decimation's error pass through each
other. Made from one layer they cannot: whatever became of it, they are at either side of it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from trellis_runtime.engines.trellis2.baking.assembly import (
    Copies,
    Mesh,
    assembled,
    copied,
    roots,
)
from trellis_runtime.engines.trellis2.baking.components import component_labels
from trellis_runtime.engines.trellis2.baking.connectivity import (
    BLOCK,
    Pairs,
    exact_sum_in_blocks,
    face_normals,
    half_edge_vertices,
    marked,
    numbered,
    sorted_edges,
    taken,
)
from trellis_runtime.engines.trellis2.baking.sides import Links, clean_faces, link_sides

_MOST_STRIPS = 0.3  # of a patch's faces once decimated: more, and its faces are missed elsewhere
_STEEPEST = 2.0  # times as far as its faces should be does a vertex on a fold move


def sheet_faces(links: Links, kept: Tensor, count: int, left: float) -> Tensor:
    """Return which faces (F,) bool are of sheets that can be cut off.

    kept (2 F,) bool: sides; `count` vertices; left: the share of faces that decimation will leave.
    Patches of faces of which both sides are kept hang together over edges of two such. One is cut
    off where all that its sides are linked with is kept: what it was joined to then closes behind
    it. Where a surface with one side goes over into it, as at the mouth of a leak, both stay
    together. So does a patch whose rim is long for its few faces: a strip along it would take them.
    """
    both = kept[0::2] & kept[1::2]
    chosen = both.nonzero()[:, 0]
    if len(chosen) == 0:
        return both
    joined = _pairs(links.faces[chosen], count, links.block)

    def pairs() -> Pairs:
        for part in torch.split(joined, links.block):
            yield part[:, 0] // 3, part[:, 1] // 3

    labels = component_labels(pairs, len(chosen), kept.device)
    patch, patches = numbered(labels, links.block)
    held = marked(patch[_held(links, kept)[chosen]], patches, links.block)
    inner = torch.zeros(patches, dtype=torch.int64, device=kept.device)
    for part in torch.split(joined, links.block):
        inner += torch.bincount(patch[part[:, 0].long() // 3], minlength=patches)
    faces = torch.bincount(patch, minlength=patches)
    # Of a surface of which a share stays, the root of that share stays of a line on it.
    worth = 3 * faces - 2 * inner <= _MOST_STRIPS * left**0.5 * faces
    both[chosen] = taken(~held & worth, patch, links.block)
    return both


def _held(links: Links, kept: Tensor) -> Tensor:
    """Return which faces (F,) bool have a kept side that is linked with one that is not."""
    held = torch.zeros(len(links.faces), dtype=torch.bool, device=kept.device)
    for part in links.parts():
        one, other = links.sides(part)
        held[one[kept[one] & ~kept[other]] // 2] = True
        held[other[kept[other] & ~kept[one]] // 2] = True
    return held


def _pairs(faces: Tensor, count: int, block: int, among: Tensor | None = None) -> Tensor:
    """Return the half-edges (P, 2) int32 of edges that have just two.

    among (E,): of these half-edges alone; what is returned are then places in it.
    """
    found = [torch.empty((0, 2), dtype=torch.int32, device=faces.device)]
    for some, keys in sorted_edges(faces, count, block, among):
        _, uses = torch.unique_consecutive(keys, return_counts=True)
        first = (uses.cumsum(0) - uses)[uses == 2]
        found.append(torch.stack([some[first], some[first + 1]], 1).int())
    return torch.cat(found)


def layer_of(vertices: Tensor, faces: Tensor, block: int = BLOCK) -> Mesh:
    """Return faces (F, 3) as a mesh of their own: a vertex for each fan of their corners.

    Fans turn over edges of two; where three or more meet, the layer is cut.
    """
    joined, at = _pairs(faces, len(vertices), block), faces.reshape(-1)

    def corners() -> Pairs:
        for part in torch.split(joined, block):
            start, end = part.long(), _next(part.long())
            alike = at[start[:, 0]] == at[start[:, 1]]
            yield start[:, 0], torch.where(alike, start[:, 1], end[:, 1])
            yield end[:, 0], torch.where(alike, end[:, 1], start[:, 1])

    labels = component_labels(corners, 3 * len(faces), faces.device)
    points = taken(vertices, at[roots(labels)], block)
    return points.float(), numbered(labels, block)[0].reshape(-1, 3).int()


def _next(half_edge: Tensor) -> Tensor:
    """Return the half-edges, or corners, that come next in their faces."""
    return half_edge // 3 * 3 + (half_edge + 1) % 3


def together(one: Mesh, other: Mesh) -> Mesh:
    """Return two meshes as one, the first one's vertices and faces first."""
    faces = torch.cat([one[1].int(), other[1].int() + len(one[0])])
    return torch.cat([one[0].float(), other[0].float()]), faces


def both_sides(points: Tensor, faces: Tensor, far: float, block: int = BLOCK) -> Mesh:
    """Return the closed mesh of both sides of a layer (V, 3), (F, 3), `far` from it each.

    Two strips' faces stand on each of its boundary edges. Faces may turn as they like.
    """
    faces = clean_faces(faces, len(points), block)
    links = link_sides(points, faces, block)
    inner = links.ways != links.following
    rim = links.ways[~inner].long() // 2
    links = replace(
        links, ways=links.ways[inner], following=links.following[inner], plain=links.plain[inner]
    )
    kept = torch.ones(2 * len(faces), dtype=torch.bool, device=faces.device)
    made = assembled(_with_strips(copied(points, links, kept), rim, block), block)
    return made.points + (_ways(made.points, made.faces, block) * far).float(), made.faces


def _with_strips(copies: Copies, rim: Tensor, block: int) -> Copies:
    """Return both sides of a layer with strips between the copies of its boundary edges.

    rim (R,) int64: the layer's half-edges that no other face shares.
    """
    face, along = rim // 3, rim % 3
    front, back = 6 * face + along, 6 * face + 5 - along  # a back is turned over
    start, end = half_edge_vertices(copies.faces, front).unbind(1)
    below_end, below_start = half_edge_vertices(copies.faces, back).unbind(1)
    upper = torch.stack([end, start, below_start], 1)
    lower = torch.stack([end, below_start, below_end], 1)
    faces = torch.cat([copies.faces, upper, lower])
    one = 3 * (len(copies.faces) + torch.arange(len(rim), device=rim.device))
    other = one + 3 * len(rim)
    pairs = [(front, one), (one + 2, other), (back, other + 1)]
    joined = [copies.joined, *(torch.stack(pair, 1).int() for pair in pairs)]
    upright = torch.cat([one + 1, other + 2])
    # Where a boundary branches, more or fewer than two lie there; those stay open and are capped.
    meeting = _pairs(faces, len(copies.points), block, upright)
    joined.append(upright[meeting.long()].int())
    return replace(copies, faces=faces, joined=torch.cat(joined))


def _ways(points: Tensor, faces: Tensor, block: int) -> Tensor:
    """Return where (V, 3) float64 each vertex goes so that its faces move by one, by and large.

    Along the mean normal n of faces with normals m and areas w, by sum(w) / |sum(w m)|: on a fold,
    that is farther than one.
    """

    def corners() -> Pairs:
        for part in torch.split(faces, max(1, block // 3)):
            normals = face_normals(points, part, torch.float64)
            values = torch.cat([normals, normals.norm(dim=1, keepdim=True)], 1)
            for corner in range(3):
                yield part[:, corner], values

    sums = exact_sum_in_blocks(corners, len(points))
    length = sums[:, :3].norm(dim=1, keepdim=True).clamp(min=1e-30)
    return sums[:, :3] / length * (sums[:, 3:] / length).clamp(max=_STEEPEST)
