"""Both sides of every face, linked around each edge: a closed, oriented surface of any triangles.

    face f                    sides 2 f (its front: seen counter-clockwise) and 2 f + 1 (its back)
    an edge, looked along     \\ | /     its faces sorted by angle; the side that faces the next
                               -+-      one is linked with that one's side that faces back
    an edge of one face       its own two sides are linked: the surface turns around the rim

Whatever the triangles are (unoriented, doubled up, crossing at edges), each side has one neighbour
at each of its edges, so that the sides make closed surfaces with an outside: the air that they
face. Corner k of a side is that of its face as it was given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trellis_runtime.engines.trellis2.baking.components import component_labels
from trellis_runtime.engines.trellis2.baking.connectivity import (
    BLOCK,
    Pairs,
    sorted_edges,
    vertex_blocks,
)


@dataclass(frozen=True, slots=True)
class Links:
    """What is linked around edges: 3 F links, as many as there are half-edges.

    faces (F, 3) int32. ways, following (3 F,) int32: a half-edge h and the next one around its
    edge, of which a side each is linked. Each is 2 h, or 2 h + 1 where it runs towards the edge's
    lower vertex: links are read many times, and faces are not asked again. plain (3 F,) bool:
    whether just two faces share the edge. block: how many links are looked at at a time.
    """

    faces: Tensor
    ways: Tensor
    following: Tensor
    plain: Tensor
    block: int

    def parts(self) -> Iterator[slice]:
        """Yield all links, some at a time."""
        for start in range(0, len(self.ways), self.block):
            yield slice(start, start + self.block)

    def sides(self, part: slice) -> tuple[Tensor, Tensor]:
        """Return the sides (N,) int32 and (N,) that are linked."""
        one, other = self.ways[part], self.following[part]
        # Looked along the edge from its lower end, a face that runs with it shows its front to
        # the faces at greater angles, one that runs against it its back.
        return 2 * (one // 6) + (one & 1), 2 * (other // 6) + 1 - (other & 1)

    def corners(self, part: slice) -> tuple[Tensor, Tensor]:
        """Return which corners (N, 2) int32 of their faces the sides of `sides` have at the edge's
        lower, and which at its higher vertex.
        """
        ways = self._both(part)
        near, down = ways // 2 % 3, (ways & 1) == 1
        far = (near + 1) % 3
        return torch.where(down, far, near), torch.where(down, near, far)

    def edges(self, part: slice) -> Tensor:
        """Return which edge (N, 2) int32 of their faces the sides of `sides` are linked at."""
        return self._both(part) // 2 % 3

    def _both(self, part: slice) -> Tensor:
        return torch.stack([self.ways[part], self.following[part]], 1)


def clean_faces(faces: Tensor, count: int, block: int = BLOCK) -> Tensor:
    """Return faces (F', 3) int32 without those that use a vertex twice, or that came before."""
    return faces[are_clean(faces, count, block)].int()


def are_clean(faces: Tensor, count: int, block: int = BLOCK) -> Tensor:
    """Return which faces (F,) bool use no vertex twice and did not come before."""
    a, b, c = faces.unbind(1)
    least = torch.where((a != b) & (b != c) & (c != a), faces.amin(1), count)
    clean = torch.zeros(len(faces), dtype=torch.bool, device=faces.device)
    for which in vertex_blocks(least, count, block):
        ordered = faces[which].long().sort(1).values
        order = (ordered[:, 1] * count + ordered[:, 2]).argsort(stable=True)
        order = order[ordered[order, 0].argsort(stable=True)]
        ordered = ordered[order]
        first = torch.ones(len(order), dtype=torch.bool, device=faces.device)
        first[1:] = (ordered[1:] != ordered[:-1]).any(1)
        clean[which[order[first]]] = True
    return clean


def link_sides(vertices: Tensor, faces: Tensor, block: int = BLOCK) -> Links:
    """Return the links between the sides of clean faces (F, 3)."""
    faces = faces.int()
    ways = torch.empty(3 * len(faces), dtype=torch.int32, device=faces.device)
    following, plain, done = torch.empty_like(ways), torch.empty_like(ways, dtype=torch.bool), 0
    for some, keys in sorted_edges(faces, len(vertices), block):
        part = slice(done, done + len(some))
        ways[part], following[part], plain[part] = _around_edges(vertices, faces, some, keys)
        done += len(some)
    return Links(faces, ways, following, plain, block)


def _around_edges(
    vertices: Tensor, faces: Tensor, order: Tensor, keys: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return half-edges (N,), edge by edge and by angle, the next one of each, both as `Links` has
    them, and which are on edges of two faces, bool. order, keys: as `sorted_edges` gives them.
    """
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
    face, k = order // 3, order % 3
    ways = 2 * order + (faces[face, k] >= faces[face, (k + 1) % 3])
    return ways, ways[following], (uses == 2)[edge]


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


def side_components(links: Links, kept: Tensor | None = None, *, plain: bool = False) -> Tensor:
    """Return the part (2 F,) of each side: its least side, by the links there are.

    kept (2 F,) bool: links between such sides alone. plain: links at edges of two faces alone.
    """

    def pairs() -> Pairs:
        for part in links.parts():
            first, second = links.sides(part)
            if kept is not None or plain:
                chosen = links.plain[part] if kept is None else kept[first] & kept[second]
                first, second = first[chosen], second[chosen]
            yield first, second

    count = 2 * len(links.faces)
    return component_labels(pairs, count, links.faces.device)


def kept_places(kept: Tensor) -> Tensor:
    """Return, (2 F,) int32, how many kept sides (2 F,) bool come before each."""
    return kept.cumsum(0, dtype=torch.int32).sub_(1)


def corner_copies(links: Links, kept: Tensor, place: Tensor) -> Tensor:
    """Return labels (3 K,) of the K kept sides' corners: those around which kept sides turn.

    kept (2 F,) bool; place: their `kept_places`. Corner k of the side at place p is 3 p + k.
    """

    def pairs() -> Pairs:
        for part in links.parts():
            sides = torch.stack(links.sides(part), 1)
            inner = kept[sides].all(1)
            base = 3 * place[sides[inner]]
            for corner in links.corners(part):
                first, second = (base + corner[inner]).unbind(1)
                yield first, second

    return component_labels(pairs, 3 * int(kept.sum()), kept.device)


def turned_over(sides: Tensor, corners: Tensor) -> Tensor:
    """Return (K, 3) what corners (K, 3) have, in the sides' own directions: a back is turned over.

    sides (K,): their numbers.
    """
    return torch.where((sides % 2 == 1)[:, None], corners[:, [0, 2, 1]], corners)


def joined_half_edges(links: Links, kept: Tensor, place: Tensor) -> Tensor:
    """Return which half-edges (P, 2) int32 of the kept sides' faces face each other.

    Those faces run as `turned_over` has them.
    """
    found = [kept.new_empty((0, 2), dtype=torch.int32)]
    for part in links.parts():
        sides = torch.stack(links.sides(part), 1)
        inner = kept[sides].all(1)
        sides = sides[inner]
        along = links.edges(part)[inner]
        # Turned over, corners 0, 1, 2 become 0, 2, 1: the edge from k is then half-edge 2 - k.
        found.append(place[sides] * 3 + torch.where(sides % 2 == 0, along, 2 - along))
    return torch.cat(found)
