"""How the triangles of a mesh hang together: half-edges, connected parts, sums part by part.

Half-edge 3 i + k goes from corner k of face i to the next corner. Everything here is sorts, gathers
and scatters in torch, so it runs alike on a CPU and a GPU, and gives the same answer on both.
"""

from __future__ import annotations

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


def boundary_and_nonmanifold_edges(faces: Tensor, vertices: int) -> tuple[Tensor, Tensor]:
    """Return the half-edges (B,) that no other face shares, and the non-manifold edges' vertices.

    The second is (N,): both ends of each edge that more than two faces share.
    """
    keys, order = edge_keys(faces, vertices).sort()
    edge, uses = torch.unique_consecutive(keys, return_counts=True)
    boundary = order[(uses.cumsum(0) - uses)[uses == 1]]
    crowded = edge[uses > 2]
    return boundary, torch.cat([crowded // vertices, crowded % vertices])


def connected_components(first: Tensor, second: Tensor, count: int) -> Tensor:
    """Return labels (count,) int64: the least member of each thing's connected part.

    `first` and `second` (L,) are the ends of links between `count` things. FastSV: Zhang, Azad and
    Hu, FastSV: A Distributed-Memory Connected Component Algorithm with Fast Convergence (2020); the
    number of rounds grows with the logarithm of a part's diameter.
    """
    parent = torch.arange(count, device=first.device)
    first, second = first.long(), second.long()
    grand = parent.clone()
    while True:
        near, far = grand[first], grand[second]
        hooked = parent.clone()
        hooked.scatter_reduce_(0, parent[first], far, "amin")
        hooked.scatter_reduce_(0, parent[second], near, "amin")
        hooked.scatter_reduce_(0, first, far, "amin")
        hooked.scatter_reduce_(0, second, near, "amin")
        parent = torch.minimum(hooked, grand)
        following = parent[parent]
        if torch.equal(following, grand):
            return grand
        grand = following


def numbered(labels: Tensor) -> tuple[Tensor, int]:
    """Return labels (N,) renumbered 0, 1, ... in ascending order, and how many there are."""
    found, compact = labels.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    return compact, len(found)


def sum_by(owner: Tensor, values: Tensor, count: int) -> Tensor:
    """Return the sums (count, ...) of values (N, ...) by owner (N,).

    On a GPU, floating-point sums depend on the order in which threads add: where the same bits are
    promised, sum integers, or sums of sorted segments.
    """
    return values.new_zeros((count, *values.shape[1:])).index_add_(0, owner, values)


def face_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Return faces' normals (F, 3), each twice its face's area long."""
    a, b, c = vertices[faces.long()].unbind(1)
    return torch.linalg.cross(b - a, c - a)
