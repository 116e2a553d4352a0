"""The GPU engine's geometry and texture work, on the CPU: unwrapping, voxels, gutters, nearest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import trimesh
import warp

from trellis_runtime.engines.trellis2.baking.gutters import fill_gutters
from trellis_runtime.engines.trellis2.baking.holes import fill_holes
from trellis_runtime.engines.trellis2.baking.nearest import Beside, Surface, Tree
from trellis_runtime.engines.trellis2.baking.remesh import remesh
from trellis_runtime.engines.trellis2.baking.voxels import VoxelGrid


def test_voxels_are_sampled_trilinearly_and_absent_ones_do_not_count() -> None:
    side = 12
    axis = torch.arange(side)
    cells = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    shuffled = cells[torch.randperm(len(cells))]
    points = torch.rand(200, 3) * (side - 2) + 1
    grid = VoxelGrid(shuffled, shuffled + 0.5, side)
    assert torch.allclose(grid.sample(points), points, atol=1e-5)  # linear in, linear out
    alone = VoxelGrid(torch.tensor([[3, 4, 5]]), torch.tensor([[7.0, 8.0]]), side)
    near_and_far = torch.tensor([[3.9, 4.1, 5.5], [9.0, 9.0, 9.0]])
    assert torch.allclose(
        alone.sample(near_and_far), torch.tensor([[7.0, 8.0], [7.0, 8.0]])
    )  # never black


def test_gutters_take_a_nearest_texel_and_covered_texels_stay() -> None:
    torch.manual_seed(1)
    covered = torch.rand(150, 90) < 0.004
    texels = torch.randint(0, 255, (150, 90, 6), dtype=torch.uint8)
    own = torch.arange(150 * 90).reshape(150, 90, 1)
    filled = fill_gutters(own, covered)[..., 0]
    assert bool(covered.reshape(-1)[filled].all())
    y, x = torch.meshgrid(torch.arange(150), torch.arange(90), indexing="ij")
    distance = ((filled // 90 - y) ** 2 + (filled % 90 - x) ** 2).double().sqrt().numpy()
    exact = cv2.distanceTransform(
        (~covered).numpy().astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
    )
    assert ((distance - exact) > 1e-3).mean() < 1e-3  # jump flooding's known rare misses
    assert (distance - exact).max() < 2
    assert torch.equal(fill_gutters(texels, covered)[covered], texels[covered])
    assert fill_gutters(texels, torch.zeros_like(covered)) is texels


def test_the_nearest_point_is_the_nearest() -> None:
    ball = trimesh.creation.icosphere(subdivisions=5, radius=0.4)
    vertices = torch.tensor(ball.vertices, dtype=torch.float32)
    faces = torch.tensor(ball.faces, dtype=torch.int32)
    points = torch.rand(500, 3) - 0.5
    surface = Surface(vertices, faces)
    (distances,) = surface.unsigned_distance(points)
    face, weights = surface.nearest(points)
    assert torch.allclose(distances, (points.norm(dim=1) - 0.4).abs(), atol=1e-3)
    nearest = (vertices[faces[face.long()].long()] * weights[..., None]).sum(1)
    assert torch.allclose((nearest - points).norm(dim=1), distances, atol=1e-6)
    surface.release_bvh()  # its tree's memory is given back, and it can still be asked
    assert torch.equal(surface.unsigned_distance(points)[0], distances)


@pytest.mark.parametrize("band", [1, 2])
def test_remeshing_in_blocks_gives_two_closed_shells_at_the_bands_distance(band: int) -> None:
    ball = trimesh.creation.icosphere(subdivisions=5, radius=0.3)
    surface = Surface(
        torch.tensor(ball.vertices, dtype=torch.float32),
        torch.tensor(ball.faces, dtype=torch.int32),
    )
    side = 64
    vertices, faces = remesh(surface, side, band, "cpu")
    shells = trimesh.Trimesh(vertices.numpy(), faces.numpy(), process=False)
    assert shells.is_watertight
    assert shells.is_winding_consistent
    assert shells.body_count == 2
    assert shells.volume > 0
    cell = (side + 3 * band) / side / side
    (distances,) = surface.unsigned_distance(vertices)
    assert float((distances - band * cell).abs().max()) < 0.25 * cell
    radii = np.sort([np.linalg.norm(s.vertices, axis=1).mean() for s in shells.split()])
    assert radii == pytest.approx([0.3 - band * cell, 0.3 + band * cell], abs=0.1 * cell)


def test_the_size_of_a_block_changes_nothing() -> None:
    ring = trimesh.creation.torus(0.3, 0.1)
    surface = Surface(
        torch.tensor(ring.vertices, dtype=torch.float32),
        torch.tensor(ring.faces, dtype=torch.int32),
    )
    whole, blocks = (remesh(surface, 48, 1, "cpu", block) for block in (10**6, 501))
    assert torch.equal(whole[0], blocks[0])
    assert torch.equal(whole[1], blocks[1])


def pricked(*centres: int) -> trimesh.Trimesh:
    """Return a ball without the faces around some of its vertices."""
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.4)
    ball.update_faces(~np.isin(ball.faces, centres).any(axis=1))
    return ball


def filled(mesh: trimesh.Trimesh, max_perimeter: float) -> trimesh.Trimesh:
    vertices = torch.tensor(np.asarray(mesh.vertices), dtype=torch.float32)
    faces = torch.tensor(np.asarray(mesh.faces), dtype=torch.int32)
    made = fill_holes(vertices, faces, max_perimeter)
    return trimesh.Trimesh(made[0].numpy(), made[1].numpy(), process=False)


def test_small_holes_are_closed_and_large_ones_stay() -> None:
    whole = trimesh.creation.icosphere(subdivisions=4, radius=0.4)
    mesh = pricked(700, 1500)
    assert not mesh.is_watertight
    closed = filled(mesh, 1.0)
    assert closed.is_watertight
    assert closed.is_winding_consistent
    assert len(closed.faces) == len(whole.faces)  # a fan has as many faces as a vertex had
    assert closed.volume == pytest.approx(whole.volume, rel=1e-4)
    same = filled(mesh, 0.01)
    assert np.array_equal(same.faces, mesh.faces)
    perfect = filled(whole, 1.0)
    assert np.array_equal(perfect.faces, whole.faces)


def test_a_hole_that_touches_another_or_is_open_is_left_alone() -> None:
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.4)
    rings = {v: set(ball.vertex_neighbors[v]) for v in range(700, len(ball.vertices))}
    apart = [
        w
        for w in rings
        if len(rings[700] & rings[w]) == 1 and w not in rings[700] and rings[w] & rings[700]
    ]
    touching = pricked(700, apart[0])  # the two share one vertex, where four lone edges meet
    assert len(filled(touching, 1.0).faces) > len(touching.faces)
    fin = trimesh.Trimesh([[0, 0, 0], [0.1, 0, 0], [0, 0.1, 0]], [[0, 1, 2]], process=False)
    assert len(filled(fin, 1.0).faces) == 4
    crowded = trimesh.Trimesh(
        [[0, 0, 0], [0.1, 0, 0], [0, 0.1, 0], [0, -0.1, 0], [0, 0, 0.1]],
        [[0, 1, 2], [1, 0, 3], [0, 1, 4]],
        process=False,
    )
    assert len(filled(crowded, 1.0).faces) == 3


class Ordered(Beside):
    """Tells what a tree asks of its stream, and whether its points are still there then."""

    def __init__(self, points: Any, told: list[str]) -> None:
        self.points, self.told = points, told

    def settle(self) -> None:
        self.told.append("settled" if self.points.ptr is not None else "settled too late")

    @contextmanager
    def building(self) -> Iterator[None]:
        self.told.append("begins")
        yield
        self.told.append("built")


def test_a_tree_on_a_stream_of_its_own_waits_for_it_before_warp_frees_anything() -> None:
    warp.init()
    points = warp.array(np.eye(3, dtype=np.float32), dtype=warp.vec3, device="cpu")
    corners = warp.array(np.arange(3, dtype=np.int32), device="cpu")
    told: list[str] = []
    tree = Tree(points, corners, "sah", Ordered(points, told))
    assert told == ["begins", "built"]
    del tree
    assert told == ["begins", "built", "settled"]
