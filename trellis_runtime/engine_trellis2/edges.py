"""Which edges of a triangle mesh one face has alone, and which more than two share."""

from __future__ import annotations

import torch
from torch import Tensor


def half_edges(faces: Tensor) -> Tensor:
    """Return the edges (3 F, 2) of faces (F, 3), each in its face's direction: edge i is of face
    i // 3."""
    return faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)


def lone_and_crowded(faces: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return which half edges (B,) no other face shares, and vertices (N,) of edges with over two.

    faces (F, 3) index `count` vertices.
    """
    edges = half_edges(faces)
    keys = edges.amin(1).long() * count + edges.amax(1)
    del edges
    keys, order = keys.sort()
    edge, uses = torch.unique_consecutive(keys, return_counts=True)
    lone = order[(uses.cumsum(0) - uses)[uses == 1]]
    crowded = edge[uses > 2]
    return lone, torch.cat([crowded // count, crowded % count])
