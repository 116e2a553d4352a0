"""Which edges of a triangle mesh one face has alone, and which more than two share."""

from __future__ import annotations

import torch
from torch import Tensor


def ends(faces: Tensor, which: Tensor) -> Tensor:
    """Return the vertices (E, 2) of half edges `which` (E,), in their faces' direction.

    Half edge 3 i + k goes from corner k of face i to the next.
    """
    face, side = which // 3, which % 3
    return torch.stack([faces[face, side], faces[face, (side + 1) % 3]], dim=1)


def lone_and_crowded(faces: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return which half edges (B,) no other face shares, and vertices (N,) of edges with over two.

    faces (F, 3) index `count` vertices.
    """
    edges = faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    keys = edges.amin(1).long() * count + edges.amax(1)
    del edges
    keys, order = keys.sort()
    edge, uses = torch.unique_consecutive(keys, return_counts=True)
    lone = order[(uses.cumsum(0) - uses)[uses == 1]]
    crowded = edge[uses > 2]
    return lone, torch.cat([crowded // count, crowded % count])
