"""Both sides of every face, linked around each edge: a closed, oriented surface of any triangles.

    face f                    sides 2 f (its front: seen counter-clockwise) and 2 f + 1 (its back)
    an edge, looked along     \\ | /     its faces sorted by angle; the side that faces the next
                               -+-      one is linked with that one's side that faces back
    an edge of one face       its own two sides are linked: the surface turns around the rim

Whatever the triangles are (unoriented, doubled up, crossing at edges), each side has one neighbour
at each of its edges, so that the sides make closed surfaces with an outside: the air that they
face. Corner k of side s has the number 3 s + k, k being the corner in the face as it was given.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trellis_runtime.engines.trellis2.baking.connectivity import connected_components, edge_keys


@dataclass(frozen=True, slots=True)
class Links:
    """What is linked around edges: 3 F links, as many as there are half-edges.

    first, second (3 F,) int32: sides. low and high (3 F, 2) int32: corners of the two sides at the
    edge's lower and at its higher vertex. edges (3 F, 2) int32: the half-edges of the two faces.
    plain (3 F,) bool: whether just two faces share the edge.
    """

    first: Tensor
    second: Tensor
    low: Tensor
    high: Tensor
    edges: Tensor
    plain: Tensor


def clean_faces(faces: Tensor, count: int) -> Tensor:
    """Return faces (F', 3) int64 without those that use a vertex twice, or that came before."""
    return faces[clean_face_numbers(faces, count)].long()


def clean_face_numbers(faces: Tensor, count: int) -> Tensor:
    """Return which faces (F',) int64, ascending, use no vertex twice and did not come before."""
    a, b, c = faces.unbind(1)
    number = ((a != b) & (b != c) & (c != a)).nonzero()[:, 0]
    ordered = faces[number].long().sort(1).values
    order = (ordered[:, 1] * count + ordered[:, 2]).argsort(stable=True)
    order = order[ordered[order, 0].argsort(stable=True)]
    ordered = ordered[order]
    first = torch.ones(len(order), dtype=torch.bool, device=faces.device)
    first[1:] = (ordered[1:] != ordered[:-1]).any(1)
    return number[order[first].sort().values]


def link_sides(vertices: Tensor, faces: Tensor) -> Links:
    """Return the links between the sides of clean faces (F, 3) int64."""
    start, end = faces.reshape(-1), faces.roll(-1, 1).reshape(-1)
    order, following, plain = _around_edges(vertices, faces)
    ascending = start < end
    # Looked along the edge from its lower end, a face that runs with it shows its front to the
    # faces at greater angles, one that runs against it its back.
    ahead = (~ascending).long()
    first = 2 * (order // 3) + ahead[order]
    second = 2 * (following // 3) + 1 - ahead[following]
    corner = torch.arange(3, device=faces.device).repeat(len(faces))
    low = torch.where(ascending, corner, (corner + 1) % 3)
    high = torch.where(ascending, (corner + 1) % 3, corner)

    def at(ends: Tensor) -> Tensor:
        return torch.stack([first * 3 + ends[order], second * 3 + ends[following]], 1).int()

    ways = torch.stack([order, following], 1).int()
    return Links(first.int(), second.int(), at(low), at(high), ways, plain)


def _around_edges(vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the half-edges (3 F,), edge by edge and by angle, the next one of each, and which
    are on edges of two faces, bool.
    """
    keys, order = edge_keys(faces, len(vertices)).sort(stable=True)
    _, edge, uses = torch.unique_consecutive(keys, return_inverse=True, return_counts=True)
    crowded = (uses > 2)[edge].nonzero()[:, 0]
    if len(crowded):
        angle = _angles(vertices, faces, order[crowded])
        by_angle = angle.argsort(stable=True)
        by_edge = edge[crowded][by_angle].argsort(stable=True)
        order[crowded] = order[crowded][by_angle[by_edge]]
    last = uses.cumsum(0) - 1
    following = torch.arange(1, len(order) + 1, device=order.device)
    following[last] = last - uses + 1
    return order, order[following], (uses == 2)[edge]


def _angles(vertices: Tensor, faces: Tensor, which: Tensor) -> Tensor:
    """Return the angle (N,) of each half-edge's face around its edge, seen along the edge."""
    face, k = which // 3, which % 3
    a, b, tip = (vertices[faces[face, (k + i) % 3]].double() for i in range(3))
    turned = (faces[face, k] > faces[face, (k + 1) % 3])[:, None]
    low, high = torch.where(turned, b, a), torch.where(turned, a, b)
    along = torch.nn.functional.normalize(high - low, dim=1)
    axis = along.abs().argmin(1, keepdim=True)
    least = torch.zeros_like(along).scatter_(1, axis, 1.0)
    u = torch.nn.functional.normalize(torch.linalg.cross(along, least), dim=1)
    v = torch.linalg.cross(along, u)
    out = tip - low
    return torch.atan2((out * v).sum(1), (out * u).sum(1))


def side_components(links: Links, faces: int, keep: Tensor | None = None) -> Tensor:
    """Return the part (2 F,) int64 of each side, by the links of `keep` (3 F,) bool, or by all."""
    first, second = links.first, links.second
    if keep is not None:
        first, second = first[keep], second[keep]
    return connected_components(first, second, 2 * faces)


def corner_copies(links: Links, faces: int, kept: Tensor) -> Tensor:
    """Return labels (6 F,) of corners that are one vertex: those around which kept sides turn.

    kept (2 F,) bool: which sides stay.
    """
    inner = kept[links.first] & kept[links.second]
    pairs = torch.cat([links.low[inner], links.high[inner]])
    return connected_components(pairs[:, 0], pairs[:, 1], 6 * faces)


def side_faces(labels: Tensor) -> Tensor:
    """Return the sides as faces (2 F, 3) over `labels` (6 F,): a back is turned over."""
    sides = labels.reshape(-1, 2, 3)
    return torch.stack([sides[:, 0], sides[:, 1][:, [0, 2, 1]]], 1).reshape(-1, 3)


def joined_half_edges(links: Links, kept: Tensor) -> Tensor:
    """Return which half-edges (P, 2) of the kept sides' faces face each other, as `side_faces`."""
    place = kept.cumsum(0) - 1
    inner = kept[links.first] & kept[links.second]
    sides = torch.stack([links.first, links.second], 1)[inner]
    along = links.edges[inner] % 3
    # Turned over, corners 0, 1, 2 become 0, 2, 1: the edge from k is then half-edge 2 - k.
    return place[sides] * 3 + torch.where(sides % 2 == 0, along, 2 - along)
