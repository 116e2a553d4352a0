"""Dual grids to meshes, and the marked shape as a dual grid."""

import torch

from tests import marked_shape
from tests.upstream_record import note


def flexible_dual_grid_to_mesh(
    coords,
    dual_vertices,
    intersected_flag,
    split_weight,
    aabb,
    voxel_size=None,
    grid_size=None,
    train=False,
):
    """Return vertices and faces: a quad for each crossed edge, around the four cells that share it.

    Which way a quad looks depends on its edge's axis alone, as upstream's: not on what is inside.
    """
    note("mesh", grid_size=grid_size, aabb=aabb, cells=len(coords))
    low, high = torch.tensor(aabb[0]), torch.tensor(aabb[1])
    vertices = (coords + dual_vertices) / grid_size * (high - low) + low
    row = {tuple(cell): number for number, cell in enumerate(coords.tolist())}
    quads = []
    for axis in range(3):
        second, third = (axis + 2) % 3, (axis + 1) % 3
        for cell in coords[intersected_flag[:, axis]].tolist():
            around = []
            for a, b in ((0, 0), (1, 0), (1, 1), (0, 1)):
                at = list(cell)
                at[second] += a
                at[third] += b
                around.append(row.get(tuple(at)))
            if None not in around:
                quads.append(around)
    quads = torch.tensor(quads, dtype=torch.long).reshape(-1, 4)
    weights = split_weight[quads][..., 0]
    first = (weights[:, 0] * weights[:, 2] > weights[:, 1] * weights[:, 3])[:, None]
    faces = torch.where(first, quads[:, [0, 1, 2, 0, 2, 3]], quads[:, [0, 1, 3, 3, 1, 2]])
    return vertices, faces.reshape(-1, 3).int()


def mesh_to_flexible_dual_grid(
    vertices,
    faces,
    voxel_size=None,
    grid_size=None,
    aabb=None,
    face_weight=1.0,
    boundary_weight=1.0,
    regularization_weight=0.1,
    timing=False,
):
    """Return the marked shape's grid, whatever mesh it is asked for: cells, vertices, crossings."""
    note("voxelize", grid_size=grid_size, vertices=len(vertices), faces=len(faces))
    cells = marked_shape.surface_cells(grid_size)
    dual, crossings = marked_shape.dual_grid(cells, grid_size)
    return cells.int(), (cells + dual) / grid_size, crossings
