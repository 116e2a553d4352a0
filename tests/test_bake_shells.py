"""Shells: closed, manifold and outwards whatever the triangles; where the surface is; no insides."""

from __future__ import annotations

from typing import Any

import manifold3d
import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from benchmarks.shapes import make_shape
from trellis_runtime.engines.trellis2.baking.apart import move_apart
from trellis_runtime.engines.trellis2.baking.nearest import Surface
from trellis_runtime.engines.trellis2.baking.shells import (
    Shells,
    close_surface,
    orient_double_sided,
    repair_shells,
)
from trellis_runtime.errors import MeshRejected

VOXEL = 1 / 64
Soup = tuple[Tensor, Tensor]


def soup(points: Any, faces: Any) -> Soup:
    return torch.tensor(np.asarray(points), dtype=torch.float32), torch.tensor(
        np.array(faces)
    ).int()


def flipped(mesh: Soup, seed: int = 0) -> Soup:
    """The same triangles, half of them turned over."""
    turned = torch.from_numpy(np.random.default_rng(seed).random(len(mesh[1])) < 0.5)[:, None]
    return mesh[0], torch.where(turned, mesh[1][:, [0, 2, 1]], mesh[1])


def ball(radius: float = 0.4, subdivisions: int = 4) -> Soup:
    made = trimesh.creation.icosphere(subdivisions, radius=radius)
    return flipped(soup(made.vertices, made.faces))


def together(*meshes: Soup) -> Soup:
    starts = np.cumsum([0, *(len(points) for points, _ in meshes)])
    faces = [f + int(start) for (_, f), start in zip(meshes, starts, strict=False)]
    return torch.cat([points for points, _ in meshes]), torch.cat(faces)


def fine_box(size: tuple[float, float, float]) -> Any:
    box = trimesh.creation.box(size)
    for _ in range(3):
        box = box.subdivide()
    return box


def moebius(steps: int = 40) -> Soup:
    turn = np.linspace(0, 2 * np.pi, steps, endpoint=False)
    rows = []
    for across in (-0.08, 0.0, 0.08):
        radius = 0.3 + across * np.cos(turn / 2)
        height = across * np.sin(turn / 2)
        rows.append(np.stack([radius * np.cos(turn), radius * np.sin(turn), height], 1))
    faces: list[tuple[int, int, int]] = []
    for i in range(steps):
        for row in range(2):
            a, b = row * steps + i, (row + 1) * steps + i
            last = i == steps - 1
            c, d = ((2 - row) * steps, (1 - row) * steps) if last else (a + 1, b + 1)
            faces += [(a, c, b), (b, c, d)]
    return soup(np.concatenate(rows), faces)


def area(points: Tensor, faces: Tensor) -> float:
    a, b, c = points[faces.long()].double().unbind(1)
    return float(torch.linalg.cross(b - a, c - a).norm(dim=1).sum() / 2)


def closed(shells: Shells) -> Any:
    """The shells as trimesh has them, once everything that was promised of any has been checked."""
    points, faces = shells.vertices.numpy(), shells.faces.numpy()
    assert shells.vertices.dtype == torch.float32
    assert shells.faces.dtype == torch.int32
    assert np.isfinite(points).all()
    judged = manifold3d.Manifold(manifold3d.Mesh(points, faces.astype(np.uint32)))
    assert judged.status() == manifold3d.Error.NoError
    for weld in (None, 0.0, 0.5):
        assert_manifold(faces if weld is None else welded(points, weld)[faces])
    return trimesh.Trimesh(points, faces, process=False)


def welded(points: NDArray[np.float32], shift: float) -> NDArray[np.int64]:
    places = np.floor(points.astype(np.float64) / 1e-6 + shift).astype(np.int64)
    return np.unique(places, axis=0, return_inverse=True)[1].reshape(-1)


def assert_manifold(faces: NDArray[Any]) -> None:
    """Each edge has two faces that run against each other; each vertex's faces make one fan."""
    assert (faces != np.roll(faces, 1, axis=1)).all()
    here, then, last = (np.roll(faces, -k, axis=1).reshape(-1).astype(np.int64) for k in range(3))
    number = int(faces.max()) + 1  # an edge is one number: rows are slow to sort
    edges = here * number + then
    assert len(np.unique(edges)) == len(edges)
    _, uses = np.unique(
        np.minimum(here, then) * number + np.maximum(here, then), return_counts=True
    )
    assert (uses == 2).all()
    # Around a vertex, each corner's last edge is another's first: all of them make one ring.
    order = np.argsort(edges)
    beside = order[np.searchsorted(edges[order], here * number + last)]
    turns = csr_array((np.ones(len(edges)), (np.arange(len(edges)), beside)))
    assert connected_components(turns)[0] == len(np.unique(here))


def test_a_sphere_comes_back_as_it_is_turned_outwards() -> None:
    given_ball = ball()
    made = closed(close_surface(*given_ball, VOXEL))
    assert made.euler_number == 2
    assert len(made.faces) == len(given_ball[1])
    exact = trimesh.creation.icosphere(4, radius=0.4)
    assert made.volume == pytest.approx(exact.volume, rel=1e-6)
    assert made.area == pytest.approx(exact.area, rel=1e-6)


def test_which_way_the_given_faces_turn_makes_no_difference() -> None:
    box = fine_box((0.6, 0.4, 0.3))
    one = close_surface(*flipped(soup(box.vertices, box.faces), 1), VOXEL)
    other = close_surface(*flipped(soup(box.vertices, box.faces), 2), VOXEL)
    assert closed(one).volume == pytest.approx(0.072, rel=1e-6)
    assert area(one.vertices, one.faces) == area(other.vertices, other.faces)
    assert sorted(map(tuple, one.vertices.tolist())) == sorted(map(tuple, other.vertices.tolist()))


@pytest.mark.parametrize("pricks", [1, 12])
def test_a_pricked_sphere_does_not_get_an_inside(pricks: int) -> None:
    points, faces = ball()
    chosen = np.random.default_rng(1).permutation(len(faces))[:pricks]
    left = np.setdiff1d(np.arange(len(faces)), chosen)
    shells = close_surface(points, faces[left], VOXEL)
    made = closed(shells)
    assert shells.report.capped_loops == pricks
    assert shells.report.hidden_faces == len(left)
    assert made.euler_number == 2
    assert made.area == pytest.approx(trimesh.creation.icosphere(4, radius=0.4).area, rel=0.01)
    assert made.volume == pytest.approx(4 / 3 * np.pi * 0.4**3, rel=0.01)


def test_what_a_closed_shell_hides_is_gone() -> None:
    shells = close_surface(*together(ball(0.4), ball(0.2)), VOXEL)
    assert shells.report.shells == 1
    assert shells.report.enclosed_faces == len(ball(0.2)[1])
    assert closed(shells).volume == pytest.approx(4 / 3 * np.pi * 0.4**3, rel=0.01)


def test_a_pricked_shell_hides_too() -> None:
    points, faces = ball(0.4)
    shells = close_surface(*together((points, faces[3:]), ball(0.2)), VOXEL)
    assert closed(shells).volume == pytest.approx(4 / 3 * np.pi * 0.4**3, rel=0.01)


def test_what_shows_through_a_window_stays() -> None:
    points, faces = ball(0.4)
    middles = points[faces.long()].mean(1)
    window = middles[:, 2] > 0.32  # a fifth of the height
    shells = close_surface(*together((points, faces[~window]), ball(0.15)), VOXEL)
    assert shells.report.shells == 2
    made = closed(shells)
    walls = area(points, faces[~window])
    assert made.area == pytest.approx(2 * walls + area(*ball(0.15)), rel=0.01)


def test_a_bottle_keeps_its_inside() -> None:
    """A neck eight voxels wide shows less of the sky than a dozen pricks do."""
    turn = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    height = np.linspace(-0.4, 0.4, 61)
    radius = np.clip(0.22 - (height - 0.1) * 0.95, 0.0625, 0.22)
    round_ = np.stack([np.cos(turn), np.sin(turn)], 1)
    walls = radius[:, None, None] * round_[None]
    points = np.concatenate([walls, np.broadcast_to(height[:, None, None], (61, 64, 1))], 2)
    at = np.arange(61 * 64).reshape(61, 64)
    a, b = at[:-1], np.roll(at, -1, 1)[:-1]
    c, d = at[1:], np.roll(at, -1, 1)[1:]
    bottom = np.stack([np.roll(at[0], -1), at[0], np.full(64, 61 * 64)], 1)
    sides = np.concatenate([np.stack([a, b, c], 2), np.stack([b, d, c], 2)]).reshape(-1, 3)
    middle = [[0, 0, -0.4]]
    bottle = soup(np.concatenate([points.reshape(-1, 3), middle]), np.concatenate([sides, bottom]))
    shells = close_surface(*flipped(bottle), VOXEL)
    assert closed(shells).area == pytest.approx(2 * area(*bottle), rel=0.01)
    assert shells.report.hidden_faces == 0


def test_the_hollow_of_a_thick_wall_is_gone_and_its_outside_stays() -> None:
    shells = close_surface(*together(ball(0.4), ball(0.36)), VOXEL)
    made = closed(shells)
    assert shells.report.shells == 1
    assert made.bounds[1] == pytest.approx([0.4] * 3, rel=0.01)


def test_an_internal_wall_is_gone() -> None:
    box = fine_box((0.6, 0.4, 0.4))
    square = trimesh.Trimesh(
        [[0, -0.2, -0.2], [0, 0.2, -0.2], [0, 0.2, 0.2], [0, -0.2, 0.2]], [[0, 1, 2], [0, 2, 3]]
    )
    for _ in range(3):
        square = square.subdivide()
    walled = trimesh.util.concatenate([box, square])
    walled.merge_vertices()
    assert len(walled.faces) == 896
    shells = close_surface(*flipped(soup(walled.vertices, walled.faces)), VOXEL)
    made = closed(shells)
    assert len(made.faces) == len(box.faces) == 768
    assert made.volume == pytest.approx(0.096, rel=1e-6)
    assert made.area == pytest.approx(2 * (0.24 + 0.24 + 0.16), rel=1e-6)


def test_boxes_that_touch_along_an_edge_are_joined_there() -> None:
    box = fine_box((0.2, 0.2, 0.2))
    beside = box.copy()
    beside.apply_translation((0.2, 0.2, 0))
    both = trimesh.util.concatenate([box, beside])
    both.merge_vertices()
    made = closed(close_surface(*flipped(soup(both.vertices, both.faces)), VOXEL))
    assert made.body_count == 1
    assert made.volume == pytest.approx(0.016, rel=0.02)
    assert made.volume > 0.016  # the neck has a thickness


def test_a_moebius_band_gets_two_sides_of_one_shell() -> None:
    band = moebius()
    shells = close_surface(*band, VOXEL)
    made = closed(shells)
    assert made.body_count == 1
    assert made.euler_number == 0
    assert made.area == pytest.approx(2 * area(*band), rel=1e-3)
    assert shells.report.thin_share == 1


def test_a_single_triangle_is_a_thin_body() -> None:
    shells = close_surface(*soup([[0, 0, 0], [0.3, 0, 0], [0, 0.3, 0]], [[0, 1, 2]]), VOXEL)
    made = closed(shells)
    assert made.area == pytest.approx(0.09, rel=1e-3)
    assert 0 < made.volume < 0.045 * 0.1 * VOXEL
    assert made.euler_number == 2


def test_a_face_given_twice_or_without_an_area_counts_once_or_not_at_all() -> None:
    points, faces = ball(0.4, 3)
    more = torch.cat([faces, faces[:50, [1, 0, 2]], faces[:9, [0, 0, 1]]])
    assert len(close_surface(points, more, VOXEL).faces) == len(faces)


def test_a_sheet_is_thickened_when_asked_and_a_solid_is_not() -> None:
    sheet = fine_box((0.5, 0.5, 0.1))
    flat = sheet.vertices[:, 2] == sheet.vertices[:, 2].max()
    top = sheet.faces[flat[sheet.faces].all(1)]
    solid = fine_box((0.2, 0.2, 0.2))
    solid.apply_translation((0, 0, -0.3))
    given_both = together(soup(sheet.vertices, top), soup(solid.vertices, solid.faces))
    thin = closed(close_surface(*given_both, VOXEL))
    thick = closed(close_surface(*given_both, VOXEL, min_thickness=0.04))
    assert thin.volume == pytest.approx(0.008, rel=0.03)
    assert thick.volume == pytest.approx(0.008 + 0.25 * 0.04, rel=1e-3)  # up to the rim


@pytest.mark.parametrize("seed", range(3))
def test_any_triangles_make_closed_shells(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.uniform(-0.5, 0.5, (140, 3))
    made = closed(close_surface(*soup(points, rng.integers(0, 140, (400, 3))), VOXEL))
    assert made.volume > 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=4, max_size=14),
    st.lists(st.tuples(*[st.integers(0, 13)] * 3), min_size=1, max_size=40),
)
def test_triangles_on_a_coarse_grid_meet_in_every_way(
    grid: list[tuple[int, int, int]], corners: list[tuple[int, int, int]]
) -> None:
    points = np.array(grid) / 4 - 0.4
    faces = np.array(corners) % len(points)
    try:
        shells = close_surface(*soup(points, faces), VOXEL)
    except MeshRejected:  # nothing of it has an area
        assert area(*soup(points, np.unique(np.sort(faces, 1), axis=0))) < 1e-9
        return
    closed(shells)


def test_what_has_no_area_is_rejected() -> None:
    points = torch.zeros((20, 3))
    points[:, 0] = torch.linspace(-0.5, 0.5, 20)
    faces = torch.arange(18).reshape(6, 3).int()
    with pytest.raises(MeshRejected):
        close_surface(points, faces, VOXEL)


def test_a_speck_goes_and_a_small_part_stays() -> None:
    far = torch.tensor([0.45, 0.45, 0.45])
    for radius, shells in ((0.0005, 1), (0.01, 2)):
        points, faces = ball(radius, 2)
        made = close_surface(*together(ball(0.4), (points + far, faces)), VOXEL)
        assert made.report.shells == shells
        closed(made)


# What the decoder gives: dual grids. Closed at a coarse resolution, whether pricked and shaken or
# not: as large as they were decoded, and nothing twice.
@pytest.mark.parametrize("worn", [False, True])
@pytest.mark.parametrize(
    "name", ["many_parts", "mechanical_part", "gyroid", "closed_smooth", "nested"]
)
def test_a_decoded_solid_keeps_its_area(name: str, worn: bool) -> None:
    wear: dict[str, Any] = {"pricks": 12, "jitter": 0.05} if worn else {}
    shape = make_shape(name, 96, **wear)
    points, faces = torch.from_numpy(shape.vertices), torch.from_numpy(shape.faces)
    made = closed(close_surface(points, faces, 1 / 96))
    assert 0.98 < made.area / area(points, faces) < 1.03
    off = Surface(points, faces).unsigned_distance(torch.tensor(made.triangles_center))[0]
    assert float(off.mean()) < 0.1 / 96


@pytest.mark.parametrize("name", ["perforated_sheet", "open_vase"])
def test_a_decoded_sheet_keeps_both_its_sides(name: str) -> None:
    shape = make_shape(name, 96, pricks=5)
    points, faces = torch.from_numpy(shape.vertices), torch.from_numpy(shape.faces)
    shells = close_surface(points, faces, 1 / 96)
    assert closed(shells).area / area(points, faces) == pytest.approx(2, rel=0.01)
    assert shells.report.hidden_faces == 0


def test_the_same_bytes_each_time() -> None:
    shape = make_shape("plant", 48)
    points, faces = torch.from_numpy(shape.vertices), torch.from_numpy(shape.faces)
    one, other = (close_surface(points, faces, 1 / 48) for _ in range(2))
    assert torch.equal(one.vertices, other.vertices)
    assert torch.equal(one.faces, other.faces)
    closed(one)


def test_repair_leaves_sound_shells_as_they_are() -> None:
    sound = close_surface(*ball(), VOXEL)
    again = repair_shells(sound.vertices, sound.faces, VOXEL)
    assert torch.equal(again.vertices, sound.vertices)
    assert torch.equal(again.faces, sound.faces)


def test_repair_closes_what_opened_and_parts_what_met() -> None:
    sound = close_surface(*together(ball(0.2), ball(0.1, 3)), VOXEL, min_thickness=0)
    assert sound.report.shells == 1  # the smaller is inside
    points, faces = (t.clone() for t in (sound.vertices, sound.faces))
    pulled = faces.clone()
    pulled[pulled == 7] = 1500  # two far vertices become one: pinched, and edges with more faces
    holed = pulled[torch.arange(len(faces)) % 97 != 0]
    made = closed(repair_shells(points, holed, VOXEL))
    assert made.volume > 0.5 * 4 / 3 * np.pi * 0.2**3


def test_repair_parts_sheets_whose_points_have_come_together() -> None:
    sheets = close_surface(*moebius(), VOXEL)
    flat = sheets.vertices.clone()
    low = torch.cdist(flat, flat) < 0.1 * VOXEL
    flat = flat[low.int().argmax(1)]  # copies back at one place, as decimation can leave them
    made = closed(repair_shells(flat, sheets.faces, VOXEL))
    assert len(made.faces) == len(sheets.faces)


def test_double_sided_stays_open_and_turns_alike() -> None:
    cap = trimesh.creation.icosphere(4, radius=0.4)
    upper = cap.faces[cap.triangles_center[:, 2] > 0.1]
    points, faces = flipped(soup(cap.vertices, upper))
    _, turned = orient_double_sided(points, faces)
    made = trimesh.Trimesh(points.numpy(), turned.numpy(), process=False)
    assert not made.is_watertight
    assert made.is_winding_consistent
    assert len(turned) == len(upper)
    assert (np.einsum("ij,ij->i", made.face_normals, made.triangles_center) > 0).all()


def test_points_beside_each_other_across_a_grid_line_are_parted() -> None:
    edge = torch.tensor([[0.5e-6 - 1e-7, 0, 0], [0.5e-6 + 1e-7, 0, 0], [0.3, 0, 0], [0, 0.3, 0.1]])
    faces = torch.tensor([[0, 2, 3], [1, 3, 2]])
    moved = move_apart(edge, faces, 0.02 * VOXEL)
    assert float((moved[0] - moved[1]).abs().max()) > 1e-6
    assert torch.equal(moved[2:], edge[2:])
