"""Open sheets: one layer until it is decimated, then two sides that never cross."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.shapes import make_shape
from tests.test_bake_shells import (
    VOXEL,
    Soup,
    area,
    ball,
    closed,
    fine_box,
    flipped,
    moebius,
    soup,
    together,
)
from trellis_runtime.engines.trellis2.baking.connectivity import boundary_and_nonmanifold_edges
from trellis_runtime.engines.trellis2.baking.decimation import decimate
from trellis_runtime.engines.trellis2.baking.quality import random_points
from trellis_runtime.engines.trellis2.baking.sheets import layer_of, sheet_faces
from trellis_runtime.engines.trellis2.baking.shells import (
    Shells,
    close_solids,
    close_surface,
    repair_shells,
)
from trellis_runtime.engines.trellis2.baking.sides import link_sides

APART = 0.02 * VOXEL  # that a side lies from its layer


def wavy(side: float = 0.8, steps: int = 60) -> Soup:
    """A square of 2 `steps` squared triangles that turn anyhow, in waves of 0.03."""
    at = np.linspace(-side / 2, side / 2, steps + 1)
    x, y = np.meshgrid(at, at, indexing="ij")
    points = np.stack([x, y, 0.03 * np.sin(14 * x) * np.cos(11 * y)], -1).reshape(-1, 3)
    n = np.arange((steps + 1) ** 2).reshape(steps + 1, steps + 1)
    a, b, c, d = n[:-1, :-1], n[1:, :-1], n[1:, 1:], n[:-1, 1:]
    faces = np.stack([np.stack([a, b, c], -1), np.stack([a, c, d], -1)]).reshape(-1, 3)
    return flipped(soup(points, faces))


def baked(mesh: Soup, target: int, thickness: float = 0.0) -> Shells:
    """What the bake makes of a surface: closed, decimated, mended."""
    some = close_solids(*mesh, VOXEL, target=target, min_thickness=thickness)
    few = decimate(some.vertices, some.faces, target, layer=some.layer)
    return repair_shells(few.vertices, few.faces, VOXEL, layer=few.layer, min_thickness=thickness)


def on(points: Tensor, faces: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Points (N, 3) spread over a surface, and its normals there."""
    face, weights = random_points(points, faces.long(), count)
    corners = points[faces.long()[face]].double()
    a, b, c = corners.unbind(1)
    across = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=1)
    return (corners * weights[..., None]).sum(1), across


def winding(at: Tensor, points: Tensor, faces: Tensor) -> Tensor:
    """How often the surface winds around each point (N,): van Oosterom and Strackee's angles."""
    corners, found = points[faces.long()].double(), []
    for some in torch.split(at, 50):
        a, b, c = (corners[None, :, k] - some[:, None] for k in range(3))
        x, y, z = a.norm(dim=2), b.norm(dim=2), c.norm(dim=2)
        up = (a * torch.linalg.cross(b, c)).sum(2)
        down = x * y * z + (a * b).sum(2) * z + (b * c).sum(2) * x + (c * a).sum(2) * y
        found.append(torch.atan2(up, down).sum(1) / (2 * np.pi))
    return torch.cat(found)


def inside_out(made: Shells) -> float:
    """The share of the surface before which its own other side lies: there they have crossed."""
    at, across = on(made.vertices, made.faces, 1000)
    before = winding(at + across * (APART / 20), made.vertices, made.faces)
    return float((before < -0.5).double().mean())


@pytest.mark.parametrize("target", [400, 250])
def test_a_wavy_sheet_of_few_faces_does_not_pass_through_itself(target: int) -> None:
    sheet = wavy()
    made = baked(sheet, target)
    assert closed(made).body_count == 1
    assert inside_out(made) == 0
    assert target - 3 <= len(made.faces) <= target
    assert area(made.vertices, made.faces) == pytest.approx(2 * area(*sheet), rel=0.01)
    both = closed(close_surface(*sheet, VOXEL))  # each side for itself, as it was once done
    apart = decimate(torch.tensor(both.vertices).float(), torch.tensor(both.faces).int(), target)
    assert inside_out(repair_shells(apart.vertices, apart.faces, VOXEL)) > 0.05


@pytest.mark.parametrize("thickness", [0.01, 0.03])
def test_a_sheet_is_as_thick_as_asked_up_to_its_rim(thickness: float) -> None:
    made = baked(wavy(), 400, thickness)
    mesh = closed(made)
    at, across = on(made.vertices, made.faces, 800)
    level = across[:, 2].abs() > 0.3  # the strips along the rim stand upright
    start = (at - across * 1e-6)[level].numpy()
    hits, rays, _ = mesh.ray.intersects_location(start, -across[level].numpy())
    away = np.full(len(start), np.inf)
    np.minimum.at(away, rays, np.linalg.norm(hits - start[rays], axis=1))
    away = away[np.isfinite(away)]
    assert len(away) > 0.97 * len(start)  # but for rays that leave through the rim
    assert np.median(away) == pytest.approx(thickness, rel=0.03)
    assert np.quantile(away, 0.01) > 0.8 * thickness
    assert np.quantile(away, 0.99) < 1.2 * thickness
    assert inside_out(made) == 0


def test_a_sheet_and_a_sphere_share_one_budget() -> None:
    far = torch.tensor([0.0, 0.0, 0.3])
    sphere, sheet = ball(0.15), wavy()
    both = together((sphere[0] + far, sphere[1]), sheet)
    some = close_solids(*both, VOXEL)
    assert some.layer is not None
    assert some.report.shells == 2
    assert int(some.layer[some.faces[:, 0].long()].sum()) == len(sheet[1])
    made = baked(both, 1500)
    assert len(made.faces) in (1499, 1500)  # the sphere's collapses take two
    assert made.report.shells == 2
    assert inside_out(made) == 0
    parts = sorted(closed(made).split(), key=lambda part: part.bounds[1, 2])
    assert parts[1].volume == pytest.approx(4 / 3 * np.pi * 0.15**3, rel=0.02)
    assert parts[0].area == pytest.approx(2 * area(*sheet), rel=0.01)


def crossed(height: float) -> Soup:
    """A level square on which another stands upright: an edge of three faces along the middle."""
    flat = trimesh.creation.box((0.6, 0.6, 0.6))
    for _ in range(4):
        flat = flat.subdivide()
    points = flat.vertices
    level = flat.faces[(points[flat.faces][:, :, 2] < -0.299).all(1)]
    upright = flat.faces[(points[flat.faces][:, :, 0] > 0.299).all(1)]
    moved = points.copy()
    moved[:, 0] -= 0.3
    moved[:, 2] *= height
    moved[:, 2] += 0.3 * height - 0.3
    both = trimesh.util.concatenate(
        trimesh.Trimesh(points, level, process=False),
        trimesh.Trimesh(moved, upright, process=False),
    )
    both.merge_vertices()
    return flipped(soup(both.vertices, both.faces))


@pytest.mark.parametrize("target", [2000, 300])
def test_sheets_that_meet_along_an_edge_of_three_faces_are_closed(target: int) -> None:
    sheets = crossed(0.5)
    _, crowded = boundary_and_nonmanifold_edges(sheets[1], len(sheets[0]))
    assert len(crowded) == 2 * 16  # both ends of each edge
    made = baked(sheets, target)
    mesh = closed(made)
    assert target - 3 <= len(made.faces) <= target
    assert mesh.area == pytest.approx(2 * area(*sheets), rel=0.01)
    assert inside_out(made) < 0.005  # at the seam the upright one stands in the level one


def test_a_leaf_on_a_box_is_cut_off_and_the_box_closes_behind_it() -> None:
    box = fine_box((0.4, 0.4, 0.4))
    leaf = trimesh.Trimesh(
        [[0.2, -0.2, 0.2], [0.2, 0.2, 0.2], [0.2, 0.2, 0.45], [0.2, -0.2, 0.45]],
        [[0, 1, 2], [0, 2, 3]],
    )
    for _ in range(3):
        leaf = leaf.subdivide()
    both = trimesh.util.concatenate([box, leaf])
    both.merge_vertices()
    mesh = flipped(soup(both.vertices, both.faces))
    some = close_solids(*mesh, VOXEL)
    assert some.layer is not None
    assert int(some.layer[some.faces[:, 0].long()].sum()) == len(leaf.faces)
    assert some.report.thin_share == pytest.approx(0.1 / (0.1 + 6 * 0.16), rel=1e-4)
    made = closed(baked(mesh, 60))
    assert len(made.faces) in range(57, 61)
    assert made.volume == pytest.approx(0.064, rel=0.01)
    assert made.area == pytest.approx(6 * 0.16 + 2 * 0.1, rel=0.01)


def test_where_one_side_goes_over_into_two_nothing_is_cut() -> None:
    points, faces = wavy(steps=12)
    links = link_sides(points, faces)
    kept = torch.ones(2 * len(faces), dtype=torch.bool)
    assert bool(sheet_faces(links, kept, len(points), 1.0).all())
    kept[1::2] = points[faces.long()].mean(1)[:, 0] < 0  # behind the other half nobody looks
    assert not bool(sheet_faces(links, kept, len(points), 1.0).any())


def test_a_moebius_band_is_decimated_as_one_layer() -> None:
    points, faces = moebius(120)
    fine = trimesh.Trimesh(points.numpy(), faces.numpy(), process=False)
    for _ in range(3):
        fine = fine.subdivide()
    band = soup(fine.vertices, fine.faces)
    made = baked(band, 8000)
    mesh = closed(made)
    assert 7997 <= len(made.faces) <= 8000
    assert (mesh.body_count, mesh.euler_number) == (1, 0)
    assert mesh.area == pytest.approx(2 * area(*band), rel=0.02)


def test_a_small_leaf_with_a_long_rim_keeps_its_faces_for_itself() -> None:
    """Of 50 faces a strip along 30 edges would take more than half."""
    leaf = wavy(0.2, 5)
    assert close_solids(*leaf, VOXEL, target=40).layer is None
    assert close_solids(*wavy(0.2, 40), VOXEL, target=1600).layer is not None


def test_a_layer_is_a_vertex_for_each_fan() -> None:
    """Two squares that share a corner: it comes apart, and all else stays."""
    one, other = wavy(0.4, 4), wavy(0.4, 4)
    points, faces = together(one, (other[0] + torch.tensor([0.4, 0.4, 0.0]), other[1]))
    welded = torch.where(faces == 25, torch.tensor(24), faces.long()).int()
    cut, made = layer_of(points, welded)
    assert len(cut) == 50
    assert torch.equal(cut[made.long()], points[welded.long()])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 11)] * 3), min_size=1, max_size=40))
def test_any_layer_gets_two_closed_sides(corners: list[tuple[int, int, int]]) -> None:
    rng = np.random.default_rng(0)
    points, faces = soup(rng.uniform(-0.4, 0.4, (12, 3)), corners)
    faces = faces[(faces != faces.roll(1, 1)).all(1)]
    if len(faces) == 0:
        return
    for layer in ((points, faces), layer_of(points, faces)):
        every = torch.ones(len(layer[0]), dtype=torch.bool)
        closed(repair_shells(*layer, VOXEL, layer=every))


@pytest.mark.parametrize("name", ["closed_smooth", "nested", "mechanical_part"])
def test_closed_shapes_know_nothing_of_layers(name: str) -> None:
    shape = make_shape(name, 48, pricks=4, jitter=0.02)
    mesh = torch.from_numpy(shape.vertices), torch.from_numpy(shape.faces)
    some = close_solids(*mesh, 1 / 48)
    assert some.layer is None
    whole = close_surface(*mesh, 1 / 48)
    assert torch.equal(some.vertices, whole.vertices)
    assert torch.equal(some.faces, whole.faces)
    none = torch.zeros(len(some.vertices), dtype=torch.bool)
    one, other = (decimate(whole.vertices, whole.faces, 900, layer=say) for say in (None, none))
    assert torch.equal(one.vertices, other.vertices)
    assert torch.equal(one.faces, other.faces)


def test_what_is_counted_on_the_way_down_is_what_comes_of_it() -> None:
    told: list[int] = []
    some = close_solids(*wavy(), VOXEL)
    few = decimate(some.vertices, some.faces, 500, layer=some.layer, progress=told.append)
    made = repair_shells(few.vertices, few.faces, VOXEL, layer=few.layer)
    assert told[-1] == len(made.faces)
    assert told == sorted(told, reverse=True)


def test_a_decoded_vase_of_few_faces_does_not_pass_through_itself() -> None:
    shape = make_shape("open_vase", 48, pricks=2, jitter=0.02)
    mesh = torch.from_numpy(shape.vertices), torch.from_numpy(shape.faces)
    made = baked(mesh, 1500)
    assert inside_out(made) == 0
    assert 1497 <= len(made.faces) <= 1500
    assert area(made.vertices, made.faces) == pytest.approx(2 * area(*mesh), rel=0.01)
