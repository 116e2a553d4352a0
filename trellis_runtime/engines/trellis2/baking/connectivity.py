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


_LINKS = 1 << 23  # taken at a time, so that their labels do not add up


def connected_components(first: Tensor, second: Tensor, count: int) -> Tensor:
    """Return labels (count,) int64: the least member of each thing's connected part.

    `first` and `second` (L,) are the ends of links between `count` things. FastSV: Zhang, Azad and
    Hu, FastSV: A Distributed-Memory Connected Component Algorithm with Fast Convergence (2020); the
    number of rounds grows with the logarithm of a part's diameter.
    """
    kind = torch.int32 if count < 2**31 else torch.int64
    parent = torch.arange(count, device=first.device, dtype=kind)
    grand = parent.clone()
    while True:
        hooked = parent.clone()
        for start in range(0, len(first), _LINKS):
            _hook(hooked, parent, grand, first[start:][:_LINKS], second[start:][:_LINKS])
        parent = torch.minimum(hooked, grand)
        following = parent[parent]
        if torch.equal(following, grand):
            return grand.long()
        grand = following


def _hook(hooked: Tensor, parent: Tensor, grand: Tensor, first: Tensor, second: Tensor) -> None:
    """Lower what links `first`, `second` (L,) lead to, in `hooked`, to their ends' grandparents."""
    near, far = grand[first], grand[second]
    for at, value in ((parent[first], far), (parent[second], near), (first, far), (second, near)):
        hooked.scatter_reduce_(0, at.long(), value, "amin")


def numbered(labels: Tensor) -> tuple[Tensor, int]:
    """Return labels (N,) renumbered 0, 1, ... in ascending order, and how many there are."""
    found, compact = labels.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    return compact, len(found)


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
    values = values.double()
    if len(values) == 0:
        return values.new_zeros((count, values.shape[1]))
    scale = 2.0**_BITS / values.abs().amax(0).clamp(min=1e-30)
    sums = torch.zeros((count, values.shape[1]), dtype=torch.int64, device=values.device)
    return sums.index_add_(0, owner, (values * scale).round().long()).double() / scale


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Return unit normals (V, 3) float32, the faces' weighted by area; zero where there is none."""
    normals = face_normals(vertices.double(), faces)
    if len(normals) == 0:
        return torch.zeros_like(vertices, dtype=torch.float32)
    scale = 2.0**_BITS / normals.abs().amax(0).clamp(min=1e-30)
    whole = (normals * scale).round().long()
    sums = torch.zeros((len(vertices), 3), dtype=torch.int64, device=vertices.device)
    for corner in range(3):  # as `exact_sum_by`, without three copies of the normals
        sums.index_add_(0, faces[:, corner], whole)
    return torch.nn.functional.normalize(sums.double() / scale, dim=1).float()


def face_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Return faces' normals (F, 3), each twice its face's area long."""
    a, b, c = vertices[faces.long()].unbind(1)
    return torch.linalg.cross(b - a, c - a)
