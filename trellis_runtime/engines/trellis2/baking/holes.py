"""Small holes closed by a fan of triangles around their middle.

What a decoder leaves open by a voxel or two would join a body's inside with its outside. New faces
turn the way that their neighbours do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trellis_runtime.engines.trellis2.baking.components import connected_components
from trellis_runtime.engines.trellis2.baking.connectivity import (
    BLOCK,
    boundary_and_nonmanifold_edges,
    exact_sum_by,
    half_edge_vertices,
    numbered,
)


def fill_holes(
    vertices: Tensor, faces: Tensor, max_perimeter: float, block: int = BLOCK
) -> tuple[Tensor, Tensor]:
    """Return vertices (V', 3) and faces (F', 3) with holes closed that are less far around.

    A hole is a closed run of edges that one face alone has. Runs part at a vertex where more than
    two of them meet, or where an edge has over two faces.
    """
    lone, crowded = boundary_and_nonmanifold_edges(faces, len(vertices), block)
    if len(lone) == 0:
        return vertices, faces
    edges = half_edge_vertices(faces, lone)
    start, end = edges.unbind(1)
    run, closed = boundary_loops(start.long(), end.long(), crowded, len(vertices))
    points = vertices[edges.long()]
    lengths = (points[:, 0] - points[:, 1]).norm(dim=1)
    around = exact_sum_by(run, lengths[:, None], len(closed))[:, 0]
    number = torch.bincount(run, minlength=len(closed))[:, None]
    middle = (exact_sum_by(run, points.mean(1), len(closed)) / number).to(vertices.dtype)
    chosen = closed & (around < max_perimeter)
    added = len(vertices) + chosen.cumsum(0) - 1
    inside = chosen[run]
    fans = torch.stack([end, start, added[run].to(faces.dtype)], 1)[inside]
    return torch.cat([vertices, middle[chosen]]), torch.cat([faces, fans])


def boundary_loops(
    start: Tensor, end: Tensor, crowded: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Return each lone edge's run (B,) and whether each run is closed (runs,) bool."""
    met = torch.bincount(torch.cat([start, end]), minlength=count)
    simple = met <= 2
    simple[crowded] = False
    corner = torch.cat([start, end])
    edge = torch.arange(len(start), device=start.device).repeat(2)
    order = corner.argsort(stable=True)
    corner, edge = corner[order], edge[order]
    linked = (corner[1:] == corner[:-1]) & simple[corner[1:]]
    run, runs = numbered(connected_components(edge[:-1][linked], edge[1:][linked], len(start)))
    # Closed when at both ends of each edge another of its run begins or ends.
    places = corner * runs + run[edge]
    places, uses = places.unique(return_counts=True)  # type: ignore[no-untyped-call]
    closed = torch.ones(runs, dtype=torch.bool, device=start.device)
    closed[places[uses < 2] % runs] = False
    return run, closed
