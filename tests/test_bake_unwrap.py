"""Unwrapping a surface: charts, flat coordinates, packing. All on the CPU, with known values."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from trellis_runtime.engines.trellis2.baking.atlas_packing import cell_runs, default_padding, pack
from trellis_runtime.engines.trellis2.baking.chart_set import (
    cut_into_charts,
    exact_sum_by,
    extents,
    signed_areas,
)
from trellis_runtime.engines.trellis2.baking.flattening import (
    Resolution,
    lay_flat,
    mean_stretch,
    project,
    tangent_basis,
    upright,
)
from trellis_runtime.engines.trellis2.baking.overlaps import find_overlaps
from trellis_runtime.engines.trellis2.baking.packing_kernel import place
from trellis_runtime.engines.trellis2.baking.relaxation import relax
from trellis_runtime.engines.trellis2.baking.uv_layout import Layout, unwrap, unwrap_bytes


def tensors(mesh: trimesh.Trimesh) -> tuple[Tensor, Tensor]:
    return (
        torch.tensor(np.asarray(mesh.vertices), dtype=torch.float32),
        torch.tensor(np.asarray(mesh.faces), dtype=torch.int64),
    )


def unwrapped(mesh: trimesh.Trimesh, size: int = 1024, padding: int | None = None) -> Layout:
    return unwrap(*tensors(mesh), size, padding=padding)


def subdivided(mesh: trimesh.Trimesh, times: int) -> trimesh.Trimesh:
    for _ in range(times):
        mesh = mesh.subdivide()
    return mesh


def rotated_boxes(subdivisions: int, count: int = 60) -> trimesh.Trimesh:
    rng = np.random.default_rng(7)
    boxes = []
    for _ in range(count):
        box = subdivided(trimesh.creation.box(rng.uniform(0.02, 0.12, 3)), subdivisions)
        box.apply_transform(trimesh.transformations.random_rotation_matrix(rng.random(3)))
        box.apply_translation(rng.uniform(-0.4, 0.4, 3))
        boxes.append(box)
    return trimesh.util.concatenate(boxes)


def tube(
    radius: float, length: float, sides: int, rings: int, bend: float = 0.0
) -> trimesh.Trimesh:
    """An open tube along z, bent like a sine of height `bend`; sides x rings quads of two faces."""
    around = np.arange(sides) * 2 * np.pi / sides
    along = np.linspace(0, length, rings + 1)
    x = radius * np.cos(around)[None] + bend * np.sin(along * 2 * np.pi / length)[:, None]
    y = np.broadcast_to(radius * np.sin(around)[None], x.shape)
    z = np.broadcast_to(along[:, None], x.shape)
    i, j = np.meshgrid(np.arange(rings), np.arange(sides), indexing="ij")
    a, b = i * sides + j, i * sides + (j + 1) % sides
    faces = np.concatenate(
        [np.stack([a, b, b + sides], -1), np.stack([a, b + sides, a + sides], -1)]
    )
    return trimesh.Trimesh(
        np.stack([x, y, z], -1).reshape(-1, 3), faces.reshape(-1, 3), process=False
    )


def surface_areas(layout: Layout) -> Tensor:
    a, b, c = layout.vertices[layout.faces].double().unbind(1)
    return torch.linalg.cross(b - a, c - a).norm(dim=1) / 2


def flat_areas(layout: Layout) -> Tensor:
    return signed_areas(layout.uvs.double(), layout.faces)


def densities(layout: Layout) -> tuple[Tensor, Tensor]:
    """Texels per area of each chart, of the median's, and each chart's number of faces."""
    flat = torch.zeros(layout.count, dtype=torch.float64)
    flat.index_add_(0, layout.chart, flat_areas(layout).abs())
    real = torch.zeros(layout.count, dtype=torch.float64)
    real.index_add_(0, layout.chart, surface_areas(layout))
    density = flat / real
    number = torch.bincount(layout.chart, minlength=layout.count)
    return density / density[number >= min(20, int(number.max()))].median(), number


def drawn(layout: Layout, size: int) -> tuple[Tensor, Tensor]:
    """How many faces hold each texel's centre, (size, size), and which chart's the last one is."""
    corners = layout.uvs.double()[layout.faces] * size
    low = (corners.amin(1) - 0.5).ceil().long()
    reach = ((corners.amax(1) - 0.5).floor().long() - low + 1).clamp(min=0)
    number = reach.prod(1)
    face = torch.repeat_interleave(torch.arange(len(corners)), number)
    within = torch.arange(len(face)) - (number.cumsum(0) - number)[face]
    wide = reach[face, 0].clamp(min=1)
    at = torch.stack([low[face, 0] + within % wide, low[face, 1] + within // wide], 1)
    a, b, c = (corners[face, k] - at - 0.5 for k in range(3))
    weights = torch.stack(
        [p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0] for p, q in ((a, b), (b, c), (c, a))]
    )
    weights = weights / weights.sum(0)
    inside = (weights > 1e-4).all(0)
    texel = at[inside, 1] * size + at[inside, 0]
    count = torch.bincount(texel, minlength=size * size).reshape(size, size)
    chart = torch.full((size * size,), -1)
    chart[texel] = layout.chart[face[inside]]
    return count, chart.reshape(size, size)


def overlap(layout: Layout, size: int) -> float:
    count, _ = drawn(layout, size)
    return float((count > 1).sum() / (count > 0).sum())


def assert_sound(layout: Layout, vertices: Tensor, faces: Tensor, size: int) -> None:
    """What holds for any surface: the same faces, one chart per vertex, in the texture, no fold."""
    assert torch.equal(layout.source[layout.faces], faces[layout.face])
    assert torch.equal(layout.face.sort().values, torch.arange(len(faces)))
    assert torch.equal(layout.vertices, vertices[layout.source])
    assert bool((layout.chart.diff() >= 0).all())
    assert torch.equal(layout.chart.unique(), torch.arange(layout.count))
    pairs = torch.stack(
        [layout.chart.repeat_interleave(3), layout.source[layout.faces].reshape(-1)], 1
    )
    assert len(pairs.unique(dim=0)) == len(layout.vertices)
    assert bool(layout.uvs.isfinite().all())
    assert float(layout.uvs.min()) >= 0
    assert float(layout.uvs.max()) <= 1
    texels = surface_areas(layout) * layout.texels_per_unit**2
    seen = texels > max(1e-3, 0.02 * float(texels.mean()))
    assert bool((flat_areas(layout)[seen] > 0).all())
    density, number = densities(layout)
    assert float(density[number > 20].min() if (number > 20).any() else 1) > 0.95
    assert float(density[number > 20].max() if (number > 20).any() else 1) < 1.05
    assert overlap(layout, size) <= 1e-5
    assert overlap(layout, 777) <= 1e-5


# ------------------------------------------------------------------------------ known values


def test_four_vertices_keep_their_edges() -> None:
    """Three lie on a line: a triangle between them has no area, and packers lose its vertex."""
    flat = torch.tensor(
        [(0.171875, 0.8125), (0.0625, 0.015625), (0.3515625, 0.4609375), (0.640625, 0.90625)]
    )
    vertices = torch.cat([flat, torch.zeros(4, 1)], 1)
    faces = torch.tensor([[1, 2, 0], [2, 3, 0]])
    charts = cut_into_charts(vertices, faces, torch.zeros(2, dtype=torch.int64), 1)
    uvs, sides = pack(flat[charts.source] - flat.amin(0), charts, 1024)
    assert edge_scales(uvs, charts.vertices, charts.faces) == pytest.approx([sides] * 6, rel=1e-5)
    layout = unwrap(vertices, faces, 1024)
    scales = edge_scales(layout.uvs * 1024, layout.vertices, layout.faces)
    assert scales == pytest.approx([layout.texels_per_unit] * 6, rel=1e-5)
    assert_sound(layout, vertices, faces, 1024)


def edge_scales(uvs: Tensor, vertices: Tensor, faces: Tensor) -> list[float]:
    """How long each edge is in the texture, of what it is on the surface."""
    shown, real = ((x[faces.roll(-1, 1)] - x[faces]).norm(dim=2) for x in (uvs, vertices))
    scales: list[float] = (shown / real).reshape(-1).tolist()
    return scales


@pytest.mark.parametrize("subdivisions", [0, 1, 2, 4])
def test_a_cube_has_six_squares_of_one_size(subdivisions: int) -> None:
    mesh = subdivided(trimesh.creation.box((2, 2, 2)), subdivisions)
    layout = unwrapped(mesh)
    assert layout.count == 6
    areas = torch.zeros(6, dtype=torch.float64).index_add_(0, layout.chart, flat_areas(layout))
    side = 2 * layout.texels_per_unit / 1024
    assert areas.tolist() == pytest.approx([side**2] * 6, rel=1e-4)
    assert layout.utilization == pytest.approx(6 * side**2, rel=1e-4)
    assert layout.utilization > 0.62
    low, high = extents(layout.uvs, owner_of(layout), 6)
    assert (high - low).reshape(-1).tolist() == pytest.approx([side] * 12, rel=1e-3)
    assert_sound(layout, *tensors(mesh), 1024)


def owner_of(layout: Layout) -> Tensor:
    owner = torch.zeros(len(layout.vertices), dtype=torch.int64)
    owner[layout.faces.reshape(-1)] = layout.chart.repeat_interleave(3)
    return owner


@pytest.mark.parametrize(
    ("subdivisions", "size"), [(0, 512), (1, 512), (2, 512), (3, 512), (2, 2048)]
)
def test_sixty_rotated_boxes_have_one_density_and_no_overlap(subdivisions: int, size: int) -> None:
    mesh = rotated_boxes(subdivisions)
    layout = unwrapped(mesh, size)
    density, number = densities(layout)
    twice = overlap(layout, size)
    print(
        f"{len(mesh.faces)} faces at {size}: {layout.count} charts, density"
        f" {float(density.min()):.5f} to {float(density.max()):.5f}, overlap"
        f" {twice:.1e}, {layout.utilization:.3f} of the texture"
    )
    assert 350 <= layout.count <= 360  # six a box, but where small ones join another
    assert float(density.min()) == pytest.approx(1, abs=1e-3)
    assert float(density.max()) == pytest.approx(1, abs=1e-3)
    assert bool((number >= 2 * 4**subdivisions).all())
    assert twice == 0
    assert layout.utilization > (0.65 if size == 512 else 0.75)
    assert_sound(layout, *tensors(mesh), size)


def test_a_sphere_takes_few_charts_with_little_stretch() -> None:
    mesh = trimesh.creation.icosphere(subdivisions=5, radius=0.4)
    layout = unwrapped(mesh, 2048)
    assert 4 <= layout.count <= 12
    assert layout.redone == 0
    charts = cut_into_charts(
        *tensors(mesh),
        torch.empty_like(layout.chart).scatter_(0, layout.face, layout.chart),
        layout.count,
    )
    stretch = mean_stretch(layout.uvs * 2048 / layout.texels_per_unit, charts)
    assert float(stretch.max()) < 1.02
    assert layout.utilization > 0.55
    assert flat_areas(layout).sum() * 2048**2 == pytest.approx(
        float(surface_areas(layout).sum()) * layout.texels_per_unit**2, rel=1e-4
    )
    assert_sound(layout, *tensors(mesh), 2048)


@pytest.mark.parametrize("bend", [0.0, 0.15])
def test_a_tube_is_cut_along_its_length(bend: float) -> None:
    mesh = tube(0.1, 1.0, 12, 200, bend)
    layout = unwrapped(mesh, 256)
    assert layout.count <= (6 if bend == 0 else 16)
    around, along = torch.arange(len(mesh.faces)) % 12, mesh.triangles_center[:, 2]
    length = torch.zeros(layout.count, dtype=torch.float64)
    for chart in range(layout.count):
        faces = layout.face[layout.chart == chart]
        length[chart] = float(np.ptp(along[faces.numpy()]))
        assert len(around[faces].unique()) < 12
    weight = torch.bincount(layout.chart) / len(mesh.faces)
    assert float((length * weight).sum()) > (0.9 if bend == 0 else 0.3)
    assert_sound(layout, *tensors(mesh), 256)


def test_a_long_chart_is_cut_so_that_the_texture_is_used() -> None:
    mesh = tube(0.002, 1.0, 8, 400)
    layout = unwrapped(mesh, 1024)
    assert layout.utilization > 0.5


def test_turns_of_a_spiral_do_not_lie_over_one_another() -> None:
    at = np.linspace(0, 2 * np.pi * 2.5, 200)
    rise = np.linspace(0, 0.1, 200)
    inner = np.stack([0.2 * np.cos(at), 0.2 * np.sin(at), rise], 1)
    outer = np.stack([0.4 * np.cos(at), 0.4 * np.sin(at), rise], 1)
    i = np.arange(199)
    faces = np.concatenate([np.stack([i, i + 200, i + 201], 1), np.stack([i, i + 201, i + 1], 1)])
    mesh = trimesh.Trimesh(np.concatenate([inner, outer]), faces, process=False)
    layout = unwrapped(mesh)
    assert 2 <= layout.count <= 8
    assert layout.redone == 1
    assert_sound(layout, *tensors(mesh), 1024)


# ------------------------------------------------------------------------------ padding


@pytest.mark.parametrize(("size", "padding"), [(512, None), (2048, None), (1024, 7)])
def test_charts_lie_at_least_the_padding_apart(size: int, padding: int | None) -> None:
    layout = unwrapped(rotated_boxes(1), size, padding)
    wanted = padding or {512: 2, 2048: 4}[size]
    assert padding or default_padding(size) == wanted
    assert default_padding(4096) == 8
    _, chart = drawn(layout, size)
    numbers = (chart + 1).to(torch.int32).numpy().astype(np.float32)
    around = np.ones((2 * wanted - 1, 2 * wanted - 1), np.uint8)
    highest = cv2.dilate(numbers, around)
    lowest = -cv2.dilate(np.where(numbers > 0, -numbers, -1e6).astype(np.float32), around)
    here = numbers > 0
    assert np.array_equal(highest[here], numbers[here])
    assert np.array_equal(lowest[here], numbers[here])
    wider = np.ones((4 * wanted + 1, 4 * wanted + 1), np.uint8)
    assert (cv2.dilate(numbers, wider)[here] != numbers[here]).any()
    assert float(layout.uvs.min()) * size >= wanted / 2 - 0.01
    assert float(layout.uvs.max()) * size <= size - wanted / 2 + 0.01


def test_padding_gives_way_where_charts_are_many_and_small() -> None:
    rng = np.random.default_rng(1)
    corners = rng.uniform(-1, 1, (30_000, 1, 3)) + rng.uniform(-0.02, 0.02, (30_000, 3, 3))
    vertices = torch.tensor(corners.reshape(-1, 3), dtype=torch.float32)
    faces = torch.arange(90_000).reshape(-1, 3)
    layout = unwrap(vertices, faces, 1024)
    assert layout.count == 30_000
    assert layout.utilization > 0.1
    assert overlap(layout, 4096) <= 1e-5


# ------------------------------------------------------------------------------ hard inputs


def test_one_triangle() -> None:
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    layout = unwrap(vertices, torch.tensor([[0, 1, 2]]), 512)
    assert layout.count == 1
    assert float(flat_areas(layout)[0]) == pytest.approx(layout.texels_per_unit**2 / 2 / 512**2)
    assert layout.utilization > 0.4
    assert_sound(layout, vertices, torch.tensor([[0, 1, 2]]), 512)


def test_faces_of_no_area_lie_in_their_charts_and_change_no_density() -> None:
    vertices, faces = tensors(subdivided(trimesh.creation.box((1, 1, 1)), 2))
    doubled, needle = faces[:5, [0, 1, 1]], faces[5:9, [0, 0, 0]]
    middle = (vertices[faces[20, 0]] + vertices[faces[20, 1]]) / 2
    vertices = torch.cat([vertices, middle[None]])
    a, b = faces[20, :2].tolist()
    collinear = torch.tensor([[a, len(vertices) - 1, b]])
    every = torch.cat([faces, doubled, needle, collinear])
    layout = unwrap(vertices, every, 1024)
    plain = unwrap(vertices, faces, 1024)
    assert layout.texels_per_unit == pytest.approx(plain.texels_per_unit, rel=0.03)
    assert_sound(layout, vertices, every, 1024)


@pytest.mark.parametrize(
    "faces", [[[0, 0, 0]], [[0, 1, 1], [1, 2, 2]], [[0, 1, 3]]], ids=["point", "lines", "collinear"]
)
def test_nothing_but_faces_of_no_area(faces: list[list[int]]) -> None:
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [2, 0, 0]])
    layout = unwrap(vertices, torch.tensor(faces), 512)
    assert bool(layout.uvs.isfinite().all())
    assert float(layout.uvs.min()) >= 0
    assert float(layout.uvs.max()) <= 1


def test_surfaces_that_are_no_manifolds() -> None:
    rng = np.random.default_rng(2)
    vertices = torch.tensor(rng.uniform(-0.5, 0.5, (60, 3)), dtype=torch.float32)
    faces = torch.tensor(np.stack([rng.permutation(60)[:3] for _ in range(800)]))
    layout = unwrap(vertices, faces, 1024)
    assert_sound(layout, vertices, faces, 1024)


def test_noise_all_over_a_sphere() -> None:
    mesh = trimesh.creation.icosphere(subdivisions=4, radius=0.4)
    rng = np.random.default_rng(3)
    mesh.vertices += rng.normal(0, 0.01, mesh.vertices.shape)
    layout = unwrapped(mesh)
    assert layout.count < len(mesh.faces) / 6
    assert_sound(layout, *tensors(mesh), 1024)


def test_a_fan_that_takes_more_than_a_full_turn_is_cut() -> None:
    """A vertex with faces all around and more: what is covered twice is less than a texel wide."""
    side = 41
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) / side
    height = 0.1 * np.sin(grid[:, 0] * 40) * np.sin(grid[:, 1] * 38)
    i = (np.arange(side - 1)[:, None] * side + np.arange(side - 1)).reshape(-1)
    faces = torch.tensor(
        np.concatenate(
            [np.stack([i, i + 1, i + side + 1], 1), np.stack([i, i + side + 1, i + side], 1)]
        )
    )
    vertices = torch.tensor(np.c_[grid, height], dtype=torch.float32)
    layout = unwrap(vertices, faces, 1024)
    corners = layout.uvs.double()[layout.faces]
    after, before = corners.roll(-1, 1) - corners, corners.roll(1, 1) - corners
    cosine = torch.nn.functional.cosine_similarity(after, before, dim=2).clamp(-1, 1)
    turns = torch.zeros(len(layout.vertices), dtype=torch.float64)
    turns.index_add_(0, layout.faces.reshape(-1), cosine.acos().reshape(-1))
    assert float(turns.max()) < 2 * np.pi + 2e-3
    assert_sound(layout, vertices, faces, 1024)


def test_both_sides_of_a_sheet() -> None:
    grid = trimesh.creation.icosphere(subdivisions=3, radius=0.4)
    grid.update_faces(grid.triangles_center[:, 2] > 0.2)
    vertices, faces = tensors(grid)
    both = torch.cat([faces, faces.flip(1)])  # four faces on each inner edge: nothing is joined
    layout = unwrap(vertices, both, 1024)
    assert_sound(layout, vertices, both, 1024)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_the_unit_of_length_changes_nothing(scale: float) -> None:
    mesh = trimesh.creation.icosphere(subdivisions=3, radius=1)
    plain = unwrapped(mesh)
    mesh.apply_scale(scale)
    mesh.apply_translation([scale] * 3)
    layout = unwrapped(mesh)
    assert abs(layout.count - plain.count) <= 2
    assert layout.texels_per_unit * scale == pytest.approx(plain.texels_per_unit, rel=0.05)
    assert_sound(layout, *tensors(mesh), 1024)


def test_the_same_surface_gives_the_same_bytes() -> None:
    mesh = rotated_boxes(2)
    first, second = unwrapped(mesh), unwrapped(mesh)
    for name in ("vertices", "faces", "uvs", "source", "face", "chart"):
        a, b = getattr(first, name), getattr(second, name)
        assert a.numpy().tobytes() == b.numpy().tobytes(), name


def test_what_it_says_of_memory_grows_with_faces_and_texels() -> None:
    assert unwrap_bytes(1_000_000, 1024) > 5 * unwrap_bytes(100_000, 1024)
    assert unwrap_bytes(1000, 4096) > 10 * unwrap_bytes(1000, 1024)


# ------------------------------------------------------------------------------ its parts


def test_a_tangent_basis_is_square_and_right_handed() -> None:
    rng = np.random.default_rng(4)
    axes = torch.nn.functional.normalize(torch.tensor(rng.normal(size=(500, 3))), dim=1)
    axes = torch.cat([axes, torch.tensor([[0.0, 0, 1], [0, 0, -1], [1, 0, 0]])])
    first, second = tangent_basis(axes)
    assert torch.allclose(torch.linalg.cross(first, second), axes, atol=1e-6)
    assert torch.allclose(
        (first * second).sum(1), torch.zeros(len(axes), dtype=axes.dtype), atol=1e-6
    )


def test_half_a_tube_is_unrolled() -> None:
    mesh = tube(0.5, 1.0, 48, 20)
    mesh.update_faces(mesh.triangles_center[:, 0] > 0.5 * np.cos(np.radians(70)))
    vertices, faces = tensors(mesh)
    charts = cut_into_charts(vertices, faces, torch.zeros(len(faces), dtype=torch.int64), 1)
    seen = project(charts, torch.tensor([[1.0, 0, 0]]))
    assert float(mean_stretch(seen, charts)) > 1.1
    flat = relax(seen, charts)
    assert float(mean_stretch(flat, charts)) < 1.001
    turned = upright(flat, charts)
    _, size = extents(turned, charts.owner, 1)
    degrees = 360 / 48 * len(faces) / 2 / 20
    assert size[0].tolist() == pytest.approx([1.0, 0.5 * np.radians(degrees)], rel=0.01)


def test_overlap_is_seen_where_two_faces_cover_a_texel() -> None:
    vertices = torch.tensor(
        [[0.0, 0, 0], [8, 0, 0], [0, 8, 0], [8, 8, 0], [1, 1, 0], [4, 1, 0], [1, 4, 0]]
    )
    faces = torch.tensor([[0, 1, 2], [1, 3, 2], [0, 1, 2], [4, 5, 6]])
    charts = cut_into_charts(vertices, faces, torch.tensor([0, 0, 1, 1]), 2)
    assert find_overlaps(charts.vertices[:, :2], charts, 1.0).tolist() == [False, True]
    assert find_overlaps(charts.vertices[:, :2], charts, 10.0).tolist() == [False, True]


def test_a_strip_that_winds_over_itself_is_cut_until_it_does_not() -> None:
    """All normals look up, so that segmentation sees one chart; the outline crosses itself."""
    at = np.linspace(0, 2 * np.pi * 1.6, 100)
    line = np.stack([np.cos(at), np.sin(at), 0.01 * at], 1)
    vertices = torch.tensor(np.concatenate([line * [0.8, 0.8, 1], line]), dtype=torch.float32)
    i = torch.arange(99)
    faces = torch.cat([torch.stack([i, i + 100, i + 101], 1), torch.stack([i, i + 101, i + 1], 1)])
    resolution = Resolution(200.0, 100.0, 1e-9)
    charts, flat, cut = lay_flat(
        vertices, faces, torch.zeros(198, dtype=torch.int64), 1, resolution
    )
    assert cut == 1
    assert charts.count >= 2
    assert not bool(find_overlaps(flat, charts, 200.0).any())


def test_packing_turns_and_moves_charts_and_nothing_else() -> None:
    mesh = rotated_boxes(0, 10)
    vertices, faces = tensors(mesh)
    label = torch.arange(len(faces)) // 2
    resolution = Resolution(500.0, 10.0, 0.0)
    charts, flat, _ = lay_flat(vertices, faces, label, int(label.max()) + 1, resolution)
    uvs, sides = pack(flat, charts, 1024)
    for k in range(3):
        before = flat[charts.faces[:, k]] - flat[charts.faces[:, k - 1]]
        after = uvs[charts.faces[:, k]] - uvs[charts.faces[:, k - 1]]
        assert torch.allclose(before.norm(dim=1) * sides, after.norm(dim=1), atol=1e-5)
    assert torch.allclose(
        signed_areas(flat, charts.faces) * sides**2, signed_areas(uvs, charts.faces), atol=1e-5
    )


def test_a_charts_runs_are_its_cells_in_each_quarter_turn_and_the_longest_come_first() -> None:
    rng = np.random.default_rng(3)
    masks = [rng.random(rng.integers(1, 30, 2)) < 0.7 for _ in range(20)]
    of = [np.argwhere(mask) for mask in masks]  # row and column
    chart = torch.repeat_interleave(torch.tensor([len(cells) for cells in of]))
    y, x = torch.from_numpy(np.concatenate(of)).unbind(1)
    sizes = torch.tensor([mask.shape[::-1] for mask in masks]).int()
    runs, begins = cell_runs(chart, x, y, sizes)
    for number, mask in enumerate(masks):
        for turn in range(4):
            own = runs[begins[4 * number + turn] : begins[4 * number + turn + 1]]
            assert (np.diff(own[:, 2]) <= 0).all()
            drawn_again = np.zeros_like(np.rot90(mask, -turn), int)
            for row, column, length in own:
                drawn_again[row, column : column + length] += 1
                assert not drawn_again[row, column + length : column + length + 1].any()
            assert np.array_equal(drawn_again, np.rot90(mask, -turn))


@pytest.mark.parametrize("height", [40, 64, 130, 200])
def test_a_high_chart_lies_right_on_the_one_below_it(height: int) -> None:
    """It is tried at every few rows only, and then at those below the first that will do."""
    boxes = [np.argwhere(np.ones((101, 256))), np.argwhere(np.ones((height, 256)))]
    chart = torch.repeat_interleave(torch.tensor([len(cells) for cells in boxes]))
    y, x = torch.from_numpy(np.concatenate(boxes)).unbind(1)
    sizes = torch.tensor([[256, 101], [256, height]]).int()
    runs, begins = cell_runs(chart, x, y, sizes)
    order = np.array([0, 1], np.int32)
    places, used = place(runs, begins, sizes.numpy(), order, 256, 768)
    assert places.tolist() == [[0, 0, 0], [0, 0, 101]]
    assert used == 101 + height


def test_sums_do_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(5)
    values = torch.tensor(rng.normal(size=(10_000, 3)) * 10.0 ** rng.integers(-3, 4, (10_000, 1)))
    owner = torch.tensor(rng.integers(0, 7, 10_000))
    order = torch.tensor(rng.permutation(10_000))
    sums = exact_sum_by(owner, values, 7)
    assert torch.equal(sums, exact_sum_by(owner[order], values[order], 7))
    plain = torch.zeros(7, 3, dtype=torch.float64).index_add_(0, owner, values)
    assert torch.allclose(sums, plain, rtol=1e-9)
