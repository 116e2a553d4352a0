"""How the triangles of a mesh hang together: half-edges, blocks of them, sums part by part.

Half-edge 3 i + k goes from corner k of face i to the next corner. Everything here is sorts, gathers
and scatters in torch, so it runs alike on a CPU and a GPU, and gives the same answer on both.

What is large is done in blocks: `block` says how many at a time, and changes nothing but memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def half_edges(faces: Tensor) -> Tensor:
    """Return the half-edges (3 F, 2) of faces (F, 3), each in its face's direction."""
    return faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)


def half_edge_vertices(faces: Tensor, which: Tensor) -> Tensor:
    """Return the vertices (E, 2) of the half-edges `which` (E,), in their faces' direction."""
    face, side = which // 3, which % 3
    return torch.stack([faces[face, side], faces[face, (side + 1) % 3]], dim=1)


def edge_keys(faces: Tensor, vertices: int) -> Tensor:
    """Return one number (3 F,) int64 for each half-edge: equal where two lie on the same edge.

    faces (F, 3) index `vertices` vertices; the number is lower end * vertices + higher end.
    """
    edges = half_edges(faces)
    return edges.amin(1).long() * vertices + edges.amax(1)


BLOCK = 1 << 22
"""Half-edges that are sorted or linked at a time; about 100 bytes each."""


def vertex_blocks(least: Tensor, vertices: int, block: int) -> Iterator[Tensor]:
    """Yield the numbers (N,) int64, ascending, of those whose vertex in `least` (L,) is in a range.

    Ranges follow each other from vertex 0 to `vertices` - 1; what is there or beyond is in none. No
    range has more than `block`, unless a single vertex has.
    """
    if len(least) <= block:
        yield (least < vertices).nonzero()[:, 0]
        return
    ends = torch.bincount(least, minlength=vertices)[:vertices].cumsum(0)
    begin, done = 0, 0
    while begin < vertices:
        end = int(torch.searchsorted(ends, done + block, right=True))
        end = max(end, begin + 1)
        yield ((least >= begin) & (least < end)).nonzero()[:, 0]
        begin, done = end, int(ends[end - 1])


def sorted_edges(
    faces: Tensor, vertices: int, block: int = BLOCK, among: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield half-edges (N,) int64 and their edges' keys (N,) int64, sorted by key, then by number.

    All of an edge come together, and the edges in ascending order from block to block: put one
    after another, the blocks are one stable sort. among (E,): of these half-edges alone; what is
    yielded are then places in it.
    """
    if among is None and 3 * len(faces) <= block:
        keys, order = edge_keys(faces, vertices).sort(stable=True)
        yield order, keys
        return
    if among is None:
        least = torch.minimum(faces, faces.roll(-1, 1)).reshape(-1)
    else:
        least = taken(faces.reshape(-1), among, block)
        torch.minimum(least, _nexts(faces, among, block), out=least)
    for which in vertex_blocks(least, vertices, block):
        ends = half_edge_vertices(faces, which if among is None else among[which].long())
        keys = ends.amin(1).long() * vertices + ends.amax(1)
        keys, order = keys.sort(stable=True)
        yield which[order], keys


def _nexts(faces: Tensor, among: Tensor, block: int) -> Tensor:
    """Return the vertices (E,) that the half-edges `among` (E,) go to."""
    parts = [half_edge_vertices(faces, part.long())[:, 1] for part in torch.split(among, block)]
    return torch.cat(parts) if parts else faces.new_empty(0)


def boundary_and_nonmanifold_edges(
    faces: Tensor, vertices: int, block: int = BLOCK
) -> tuple[Tensor, Tensor]:
    """Return the half-edges (B,) that no other face shares, and the non-manifold edges' vertices.

    The second is (N,): both ends of each edge that more than two faces share.
    """
    boundary, crowded = [faces.new_empty(0, dtype=torch.int64)], []
    for order, keys in sorted_edges(faces, vertices, block):
        edge, uses = torch.unique_consecutive(keys, return_counts=True)
        boundary.append(order[(uses.cumsum(0) - uses)[uses == 1]])
        crowded.append(edge[uses > 2])
    edge = torch.cat([boundary[0], *crowded])
    return torch.cat(boundary), torch.cat([edge // vertices, edge % vertices])


def taken(values: Tensor, index: Tensor, block: int = BLOCK) -> Tensor:
    """Return values[index] (N, ...); torch makes 64 bits of an index, here no more than a block."""
    out = values.new_empty((len(index), *values.shape[1:]))
    for start in range(0, len(index), block):
        out[start : start + block] = values[index[start : start + block].long()]
    return out


def marked(index: Tensor, count: int, block: int = BLOCK) -> Tensor:
    """Return (count,) bool: which numbers are in `index`, of any shape."""
    found = torch.zeros(count, dtype=torch.bool, device=index.device)
    for part in torch.split(index.reshape(-1), block):
        found[part.long()] = True
    return found


def without_unused(faces: Tensor, count: int, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """Return faces (F, 3) numbered by the vertices that they use, and which (count,) these are."""
    used = marked(faces, count, block)
    number = used.cumsum(0, dtype=torch.int32).sub_(1)
    return taken(number, faces.reshape(-1), block).reshape(-1, 3), used


Pairs = Iterator[tuple[Tensor, Tensor]]


def numbered(labels: Tensor, block: int = BLOCK) -> tuple[Tensor, int]:
    """Return labels (N,) >= 0 renumbered 0, 1, ... in ascending order, and how many there are.

    Takes memory for the largest label: labels are members' numbers, or something like them.
    """
    if len(labels) == 0:
        return labels, 0
    there = marked(labels, int(labels.max()) + 1, block)
    number = there.cumsum(0, dtype=labels.dtype).sub_(1)
    return taken(number, labels, block), int(number[-1]) + 1


def sum_by(owner: Tensor, values: Tensor, count: int) -> Tensor:
    """Return the sums (count, ...) of values (N, ...) by owner (N,).

    On a GPU, floating-point sums depend on the order in which threads add: where the same bits are
    promised, `exact_sum_by` is used.
    """
    return values.new_zeros((count, *values.shape[1:])).index_add_(0, owner, values)


_BITS = 36  # of the largest number: sums of up to 2^26 of them stay within 62 bits


def exact_sum_by(owner: Tensor, values: Tensor, count: int) -> Tensor:
    """Return the sums (count, C) float64 of values (N, C) by owner (N,), the same on any device.

    Numbers are rounded to 2^-36 of their column's largest, and added up as integers: their sum does
    not depend on the order, which differs from run to run on a GPU.
    """
    if len(values) == 0:
        return values.new_zeros((count, values.shape[1]), dtype=torch.float64)
    return exact_sum_in_blocks(lambda: iter([(owner, values)]), count)


def exact_sum_in_blocks(blocks: Callable[[], Pairs], count: int) -> Tensor:
    """Return `exact_sum_by` of owners (N,) and values (N, C) that come some at a time.

    They are asked for twice: once for the largest, once for the sums, which are those of all at
    once.
    """
    largest = torch.stack([values.double().abs().amax(0) for _, values in blocks()]).amax(0)
    scale = 2.0**_BITS / largest.clamp(min=1e-30)
    sums = torch.zeros((count, len(scale)), dtype=torch.int64, device=scale.device)
    for owner, values in blocks():
        sums.index_add_(0, owner, (values.double() * scale).round().long())
    return sums.double() / scale


def vertex_normals(vertices: Tensor, faces: Tensor, block: int = BLOCK) -> Tensor:
    """Return unit normals (V, 3) float32, the faces' weighted by area; zero where there is none."""
    if len(faces) == 0:
        return torch.zeros_like(vertices, dtype=torch.float32)

    def corners() -> Pairs:
        for part in torch.split(faces, max(1, block // 3)):
            normals = face_normals(vertices, part, torch.float64)
            for corner in range(3):
                yield part[:, corner], normals

    sums = exact_sum_in_blocks(corners, len(vertices))
    return torch.nn.functional.normalize(sums, dim=1).float()


def face_normals(vertices: Tensor, faces: Tensor, kind: torch.dtype | None = None) -> Tensor:
    """Return faces' normals (F, 3), each twice its face's area long; computed in `kind`."""
    a, b, c = vertices[faces.long()].to(kind or vertices.dtype).unbind(1)
    return torch.linalg.cross(b - a, c - a)


def face_areas(vertices: Tensor, faces: Tensor, block: int = BLOCK) -> Tensor:
    """Return areas (F,) float64."""
    parts = [
        face_normals(vertices, part, torch.float64).norm(dim=1) / 2
        for part in torch.split(faces, max(1, block // 3))
    ]
    return torch.cat(parts) if parts else vertices.new_zeros(0, dtype=torch.float64)
