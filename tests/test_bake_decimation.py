"""Decimation: exact budgets, kept topology, small error, the same bytes each time."""

from __future__ import annotations

from typing import Any

import fast_simplification
import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trellis_runtime.engines.trellis2.baking.decimation import Decimated, decimate
from trellis_runtime.engines.trellis2.baking.nearest import Surface
from trellis_runtime.engines.trellis2.baking.quality import random_points


def tensors(mesh: Any) -> tuple[Tensor, Tensor]:
    return torch.tensor(mesh.vertices, dtype=torch.float32), torch.tensor(mesh.faces).int()


def as_mesh(done: Decimated) -> Any:
    return trimesh.Trimesh(done.vertices.numpy(), done.faces.numpy(), process=False)


def bumpy(subdivisions: int, noise: float = 4e-4) -> Any:
    ball = trimesh.creation.icosphere(subdivisions)
    x, y, z = ball.vertices.T
    radius = 0.3 + 0.05 * np.sin(4 * x) * np.cos(5 * y) + 0.04 * np.sin(6 * z)
    ball.vertices *= radius[:, None]
    ball.vertices += np.random.default_rng(0).normal(size=ball.vertices.shape) * noise
    return ball


def off(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    """Mean distance from points of `a` to `b`."""
    face, weights = random_points(a[0], a[1].long(), 20_000)
    points = (a[0][a[1].long()[face]] * weights[..., None]).sum(1)
    return float(Surface(*b).unsigned_distance(points)[0].mean())


@pytest.mark.parametrize("target", [1000, 1234, 20_000])
def test_a_sphere_ends_at_the_budget_on_the_sphere(target: int) -> None:
    done = decimate(*tensors(trimesh.creation.icosphere(5, radius=0.4)), target)
    assert len(done.faces) in (target, target - 1)
    mesh = as_mesh(done)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.euler_number == 2
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.4**3, rel=0.01)
    assert np.abs(np.linalg.norm(mesh.vertices, axis=1) - 0.4).max() < 0.004


def test_a_cube_ends_as_twelve_faces_with_its_corners() -> None:
    cube = trimesh.creation.box((0.8, 0.6, 0.4))
    for _ in range(4):
        cube = cube.subdivide()
    done = decimate(*tensors(cube), 12)
    assert len(done.faces) == 12
    corners = np.abs(done.vertices.numpy())
    np.testing.assert_allclose(corners, np.tile([0.4, 0.3, 0.2], (8, 1)), atol=1e-5)
    assert as_mesh(done).volume == pytest.approx(0.8 * 0.6 * 0.4, rel=1e-4)


def test_a_torus_keeps_its_hole() -> None:
    ring = trimesh.creation.torus(0.3, 0.1, major_sections=96, minor_sections=48)
    mesh = as_mesh(decimate(*tensors(ring), 400))
    assert len(mesh.faces) == 400
    assert mesh.euler_number == 0
    assert mesh.is_watertight


def test_the_error_is_no_more_than_the_usual_librarys() -> None:
    ball = tensors(bumpy(6))
    ours = decimate(*ball, 8000)
    theirs = fast_simplification.simplify(ball[0].numpy(), ball[1].numpy(), target_count=8000)
    other = torch.tensor(theirs[0]).float(), torch.tensor(theirs[1]).int()
    mine = ours.vertices, ours.faces
    assert off(mine, ball) < 1.1 * off(other, ball)
    assert off(ball, mine) < 1.1 * off(ball, other)


def test_a_rim_stays_where_it_is() -> None:
    side = torch.linspace(0, 1, 41)
    x, y = torch.meshgrid(side, side, indexing="ij")
    vertices = torch.stack([x, y, 0.02 * torch.sin(9 * x)], -1).reshape(-1, 3)
    at = torch.arange(41 * 41).reshape(41, 41)
    a, b, c, d = at[:-1, :-1], at[1:, :-1], at[1:, 1:], at[:-1, 1:]
    faces = torch.stack([torch.stack([a, b, c], -1), torch.stack([a, c, d], -1)]).reshape(-1, 3)
    done = decimate(vertices, faces, 100)
    assert len(done.faces) <= 100
    mesh = as_mesh(done)
    assert mesh.euler_number == 1
    np.testing.assert_allclose(mesh.bounds[:, :2], [[0, 0], [1, 1]], atol=1e-3)
    assert np.ptp(mesh.vertices[:, 0]) * np.ptp(mesh.vertices[:, 1]) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("target", [2000, 200])
def test_a_thin_sheet_with_two_sides_does_not_fall_through_itself(target: int) -> None:
    sheet = trimesh.creation.box((0.9, 0.7, 0.0002))
    for _ in range(5):
        sheet = sheet.subdivide()
    mesh = as_mesh(decimate(*tensors(sheet), target))
    assert len(mesh.faces) == target  # past the rim's strips, a thousand times as long as wide
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(0.9 * 0.7 * 0.0002, rel=0.02)


def test_faces_without_area_go_and_spoil_nothing() -> None:
    vertices, faces = tensors(bumpy(4))
    broken = torch.cat([faces, torch.tensor([[3, 3, 9], [5, 5, 5]]).int()])
    assert torch.equal(decimate(vertices, broken, 500).faces, decimate(vertices, faces, 500).faces)


def test_a_budget_that_is_met_changes_nothing() -> None:
    vertices, faces = tensors(bumpy(3))
    done = decimate(vertices, faces, len(faces))
    assert torch.equal(done.faces, faces)
    assert torch.equal(done.vertices, vertices)


def test_edges_that_cannot_go_do_not_hide_the_one_that_can() -> None:
    """Each two of the 7-vertex torus' vertices are neighbours, so that none of its edges may go.

    A low vertex on one of its faces may, but its edges cost the most and are asked last.
    """
    i = torch.arange(7)
    ring = torch.cat([torch.stack([i, i + 1, i + 3], 1), torch.stack([i, i + 3, i + 2], 1)]) % 7
    angle = i * (2 * torch.pi / 7)
    flat = torch.stack([angle.cos(), angle.sin(), torch.zeros(7)], 1)
    tip = flat[[0, 1, 3]].mean(0, keepdim=True) + torch.tensor([[0, 0, 0.05]])
    cone = torch.tensor([[0, 1, 7], [1, 3, 7], [3, 0, 7]])
    done = decimate(torch.cat([flat, tip]), torch.cat([ring[1:], cone]).int(), 4)
    assert len(done.faces) == 14
    assert as_mesh(done).euler_number == 0


def test_a_tetrahedron_is_as_low_as_it_goes() -> None:
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    faces = torch.tensor([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]]).int()
    assert torch.equal(decimate(vertices, faces, 1).faces, faces)
    assert len(decimate(*tensors(bumpy(2)), 1).faces) == 4


def test_the_same_mesh_gives_the_same_bytes() -> None:
    ball = tensors(bumpy(5))
    first, second = (decimate(*ball, 3000) for _ in range(2))
    assert torch.equal(first.vertices, second.vertices)
    assert torch.equal(first.faces, second.faces)


def test_inputs_are_left_as_they_were() -> None:
    vertices, faces = tensors(bumpy(4))
    kept = vertices.clone(), faces.clone()
    decimate(vertices, faces, 300)
    assert torch.equal(vertices, kept[0])
    assert torch.equal(faces, kept[1])


def test_progress_goes_down_to_the_budget() -> None:
    told: list[int] = []
    decimate(*tensors(bumpy(5)), 2000, progress=told.append)
    assert told == sorted(told, reverse=True)
    assert told[-1] == 2000


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 200), st.sampled_from([0.0, 1e-3, 0.05]))
def test_any_closed_mesh_stays_closed(seed: int, target: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    parts = [trimesh.creation.icosphere(2, radius=r) for r in rng.uniform(0.02, 0.2, 3)]
    parts.append(trimesh.creation.torus(0.2, 0.05, major_sections=12, minor_sections=8))
    for part in parts:
        part.vertices = part.vertices * rng.uniform(0.2, 2, 3) + rng.uniform(-0.3, 0.3, 3)
        part.vertices += rng.normal(size=part.vertices.shape) * noise
    mesh = trimesh.util.concatenate(parts)
    done = as_mesh(decimate(*tensors(mesh), target))
    assert done.is_watertight
    assert done.is_winding_consistent
    assert done.euler_number == mesh.euler_number == 6
    if noise < 0.05:  # a crumpled ball cannot go without folding
        assert len(done.faces) <= max(target, 3 * 4 + 40)
