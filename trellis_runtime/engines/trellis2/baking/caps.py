"""What makes an assembled surface manifold: loops capped, and edges that stand doubled split."""

from __future__ import annotations

import torch
from torch import Tensor

from trellis_runtime.engines.trellis2.baking.components import connected_components
from trellis_runtime.engines.trellis2.baking.connectivity import (
    BLOCK,
    exact_sum_by,
    half_edge_vertices,
    marked,
    numbered,
    sorted_edges,
    taken,
)

_Mesh = tuple[Tensor, Tensor]


def cap_loops(
    points: Tensor, faces: Tensor, joined: Tensor, block: int = BLOCK
) -> tuple[_Mesh, Tensor]:
    """Close each loop of open half-edges by a fan around its middle.

    points (V, 3), faces (F, 3). joined (P, 2): half-edges that face each other; all others are
    open. Every vertex has as many open edges in as out, as the corners of kept sides have it.
    Returns the mesh, the fans last, and `joined` with what was joined here.
    """
    boundary = (~marked(joined, 3 * len(faces), block)).nonzero()[:, 0]
    if len(boundary) == 0:
        return (points, faces), joined
    start, end = half_edge_vertices(faces, boundary).unbind(1)
    loop, count = numbered(connected_components(start, end, len(points), block)[start.long()])
    number = torch.bincount(loop, minlength=count)[:, None]
    middle = exact_sum_by(loop, points[start.long()].double(), count) / number
    fans = torch.stack([end, start, len(points) + loop], 1).to(faces.dtype)
    base = 3 * (len(faces) + torch.arange(len(fans), device=faces.device))
    mesh = torch.cat([points, middle.to(points.dtype)]), torch.cat([faces, fans])
    return mesh, torch.cat([joined, torch.stack([boundary, base], 1).to(joined.dtype)])


def split_pillows(
    points: Tensor, faces: Tensor, joined: Tensor, block: int = BLOCK
) -> tuple[Tensor, Tensor, Tensor]:
    """Put a vertex into the middle of both faces of each pillow, and return `joined` as it is then.

    A pillow is a lone triangle's two sides: two faces of the same three vertices, which are no
    simplicial complex and enclose nothing. joined (P, 2): half-edges that face each other.
    """
    found = _pillows(faces, joined, block)
    if len(found) == 0:
        return points, faces, joined
    a, b, c = faces[found].unbind(1)
    middle = (len(points) + torch.arange(len(found), device=faces.device)).to(faces.dtype)
    faces = faces.clone()
    faces[found] = torch.stack([a, b, middle], 1)
    more = [torch.stack([b, c, middle], 1), torch.stack([c, a, middle], 1)]
    base = 3 * (len(faces) + torch.arange(len(found), device=faces.device))
    place = torch.arange(3 * len(faces), device=faces.device, dtype=joined.dtype)
    place[3 * found + 1] = base.to(place.dtype)
    place[3 * found + 2] = (base + 3 * len(found)).to(place.dtype)
    points = torch.cat([points, points[torch.stack([a, b, c], 1).long()].mean(1)])
    moved = taken(place, joined.reshape(-1), block).reshape(-1, 2)
    return points, torch.cat([faces, *more]), moved


def _pillows(faces: Tensor, joined: Tensor, block: int) -> Tensor:
    """Return the faces (N,) int64 all of whose edges are joined to one and the same, once each."""
    mate = torch.full((3 * len(faces),), -1, dtype=torch.int32, device=faces.device)
    for part in torch.split(joined, block):
        one, other = part.long().unbind(1)
        mate[one], mate[other] = (other // 3).int(), (one // 3).int()
    mate = mate.reshape(-1, 3)
    alike = (mate[:, 0] == mate[:, 1]) & (mate[:, 1] == mate[:, 2])
    return (alike & (mate[:, 0] >= 0)).nonzero()[:, 0]


def split_doubled(points: Tensor, faces: Tensor, joined: Tensor, block: int = BLOCK) -> _Mesh:
    """Split the edges that stand doubled, each pair of faces at a vertex of its own.

    Two vertices can be joined by several edges of one oriented surface: each has one face on
    either side, and only their ends are the same. A vertex in the middle of each tells them apart.
    joined (P, 2): half-edges that face each other.
    """
    doubled = joined[_doubled(faces, joined[:, 0], len(points), block)].long()
    if len(doubled) == 0:
        return points, faces
    middle = points[half_edge_vertices(faces, doubled[:, 0]).long()].mean(1)
    new = torch.full((3 * len(faces),), -1, device=faces.device, dtype=faces.dtype)
    number = (len(points) + torch.arange(len(doubled), device=faces.device)).to(faces.dtype)
    new[doubled[:, 0]], new[doubled[:, 1]] = number, number
    return torch.cat([points, middle]), _subdivided(faces, new.reshape(-1, 3))


def _doubled(faces: Tensor, edges: Tensor, vertices: int, block: int) -> Tensor:
    """Return which of the half-edges `edges` (P,) lie on an edge with another of them, bool."""
    doubled = torch.zeros(len(edges), dtype=torch.bool, device=faces.device)
    for which, keys in sorted_edges(faces, vertices, block, edges):
        same = keys[1:] == keys[:-1]
        doubled[which[1:][same]] = True
        doubled[which[:-1][same]] = True
    return doubled


def _subdivided(faces: Tensor, new: Tensor) -> Tensor:
    """Return faces with the vertices `new` (F, 3) put into their edges, -1 for none."""
    number = (new >= 0).sum(1)
    parts = [faces[number == 0]]
    for turn in range(3):
        face, put = faces.roll(-turn, 1), new.roll(-turn, 1)
        one = (number == 1) & (put[:, 0] >= 0)
        (a, b, c), m = face[one].unbind(1), put[one, 0]
        parts += [torch.stack([a, m, c], 1), torch.stack([m, b, c], 1)]
        two = (number == 2) & (put[:, 0] < 0)
        (a, b, c), (_, m, n) = face[two].unbind(1), put[two].unbind(1)
        parts += [torch.stack(t, 1) for t in ((a, b, m), (a, m, n), (m, c, n))]
    three = number == 3
    (a, b, c), (m, n, o) = faces[three].unbind(1), new[three].unbind(1)
    parts += [torch.stack(t, 1) for t in ((a, m, o), (m, b, n), (n, c, o), (m, n, o))]
    return torch.cat(parts)
