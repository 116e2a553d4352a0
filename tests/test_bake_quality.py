"""The quality report has the right numbers for assets of which they are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import trimesh

from trellis_runtime.contract.quality import (
    QUALITY_CHECKS,
    QualityReport,
    failed_checks,
    require_quality,
    retry_seed,
)
from trellis_runtime.contract.request import parse_request
from trellis_runtime.engines.trellis2.baking.lookup import VoxelAttributeLookup
from trellis_runtime.engines.trellis2.baking.nearest import Surface
from trellis_runtime.engines.trellis2.baking.quality import Baked, measure_quality, random_points
from trellis_runtime.errors import InvalidInput, MeshRejected

SIDE = 64
RADIUS = 0.4


def voxels_around(surface: Surface) -> tuple[torch.Tensor, torch.Tensor]:
    """Every voxel of the grid, red grows with x, green with y, the rest is 0.6."""
    axis = torch.arange(SIDE)
    cells = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    share = (cells + 0.5) / SIDE
    rest = torch.full((len(cells), 4), 0.6)
    return cells, torch.cat([share[:, :2], rest], 1)


def lookup_of(mesh: trimesh.Trimesh) -> VoxelAttributeLookup:
    surface = Surface(torch.tensor(mesh.vertices).float(), torch.tensor(mesh.faces).int())
    return VoxelAttributeLookup(surface, *voxels_around(surface), SIDE)


def measured(mesh: trimesh.Trimesh, decoded: trimesh.Trimesh, **asked: int) -> QualityReport:
    baked = Baked(torch.tensor(mesh.vertices).float(), torch.tensor(mesh.faces))
    return measure_quality(
        baked, lookup_of(decoded), **({"faces_asked": 10**6, "points": 20_000} | asked)
    )


def ball(radius: float = RADIUS, subdivisions: int = 5) -> trimesh.Trimesh:
    return trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)


def test_a_ball_two_voxels_off_has_its_area_and_distance() -> None:
    report = measured(ball(RADIUS + 2 / SIDE), ball())
    assert report.area_ratio == pytest.approx((1 + 2 / SIDE / RADIUS) ** 2, rel=1e-3)
    assert report.distance_voxels == pytest.approx(2, rel=5e-3)
    assert report.distance_p99_voxels == pytest.approx(2, rel=5e-3)
    assert report.missed_voxels == pytest.approx(2, rel=5e-3)
    assert (report.boundary_edges, report.nonmanifold_edges, report.shells) == (0, 0, 1)
    assert (report.thin_parts, report.psnr_db, report.charts) == (0, None, None)
    assert set(report.warnings()) == {"area", "distance"}
    assert "1.16 times" in report.warnings()["area"]


def test_the_same_surface_is_without_fault() -> None:
    report = measured(ball(), ball())
    assert report.area_ratio == pytest.approx(1)
    assert report.distance_voxels < 1e-3
    assert report.warnings() == {}


def test_what_the_asset_leaves_out_is_missed() -> None:
    both = trimesh.util.concatenate([ball(0.1), ball(0.1).apply_translation([0.3, 0, 0])])
    report = measured(ball(0.1), both)
    assert report.area_ratio == pytest.approx(0.5, rel=1e-3)
    assert report.distance_voxels < 1e-3
    # half of the decoded points lie on a ball 0.3 away: their mean distance to the middle is
    # d + r^2 / (3 d), less the radius
    wanted = (0.3 + 0.1**2 / 0.9 - 0.1) * SIDE / 2
    assert report.missed_voxels == pytest.approx(wanted, rel=0.01)
    assert set(report.warnings()) == {"area"}


def test_topology_is_counted_after_welding() -> None:
    box = trimesh.creation.box([0.5, 0.5, 0.5])
    apart = trimesh.Trimesh(*split(box), process=False)  # each face with corners of its own
    report = measured(apart, box)
    assert (report.boundary_edges, report.nonmanifold_edges, report.shells) == (0, 0, 1)
    opened = trimesh.Trimesh(apart.vertices, apart.faces[1:], process=False)
    assert measured(opened, box).boundary_edges == 3
    fin = np.array([apart.vertices[0], apart.vertices[1], [0.9, 0.9, 0.9]])
    finned = trimesh.util.concatenate([apart, trimesh.Trimesh(fin, [[0, 1, 2]], process=False)])
    report = measured(finned, box)
    assert (report.boundary_edges, report.nonmanifold_edges) == (2, 1)
    assert {"open", "nonmanifold"} <= set(report.warnings())


def split(mesh: trimesh.Trimesh) -> tuple[np.ndarray, np.ndarray]:
    return mesh.triangles.reshape(-1, 3), np.arange(3 * len(mesh.faces)).reshape(-1, 3)


@pytest.mark.parametrize(("voxels", "thin"), [(1.0, 1), (2.0, 0)])
def test_thin_parts_are_those_whose_mean_thickness_is_under_one_and_a_half_voxels(
    voxels: float, thin: int
) -> None:
    slab = trimesh.creation.box([0.9, 0.9, voxels / SIDE])
    assert measured(slab, slab).thin_parts == thin


def textured(
    squares: list[tuple[float, float]], size: int = 256, scale: float = 0.4
) -> tuple[Baked, trimesh.Trimesh]:
    """A flat square from -0.4 to 0.4 of 32 x 32 x 2 faces, as charts at `squares`, 0.4 wide."""
    line = torch.linspace(0, 1, 33)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(-1, 2)
    i = torch.arange(33 * 33).reshape(33, 33)
    a, b, c, d = (part.reshape(-1) for part in (i[:-1, :-1], i[:-1, 1:], i[1:, 1:], i[1:, :-1]))
    quad = torch.cat([torch.stack([a, b, c], 1), torch.stack([a, c, d], 1)])
    flat = torch.cat([grid * 0.8 - 0.4, torch.zeros(len(grid), 1)], 1)
    spots = [flat + torch.tensor([0.0, 0.0, 0.05 * n]) for n in range(len(squares))]
    uvs = [grid * scale + torch.tensor(square) for square in squares]
    faces = torch.cat([quad + n * len(grid) for n in range(len(squares))])
    x = (torch.arange(size) + 0.5) / size
    image = torch.zeros((size, size, 3))
    u, v = (x - squares[0][0]) / scale, (x - squares[0][1]) / scale
    image[..., 0] = (u[None, :] * 0.8 + 0.1).clamp(0, 1)  # red grows with x, from 0.1 to 0.9
    image[..., 1] = (v[:, None] * 0.8 + 0.1).clamp(0, 1)
    image[..., 2] = 0.6
    vertices = torch.cat(spots)
    baked = Baked(vertices, faces, torch.cat(uvs), (image * 255).round().to(torch.uint8))
    return baked, trimesh.Trimesh(vertices.numpy(), faces.numpy(), process=False)


def test_a_texture_that_is_right_is_only_rounded() -> None:
    baked, mesh = textured([(0.1, 0.1)])
    report = measure_quality(baked, lookup_of(mesh), 2048, 50_000)
    # bytes are rounded: an error of at most 1/2 step, about 1/12 of one squared, less where
    # filtering averages four of them
    assert report.psnr_db is not None
    assert 55 < report.psnr_db < 64
    assert report.charts == 1
    assert report.overlap == 0
    assert report.utilization == pytest.approx(0.16, rel=0.02)
    assert report.stretch == pytest.approx(1, abs=1e-5)
    assert report.density_median == pytest.approx(0.4 * 256 / 0.8, rel=1e-4)
    assert (report.density_min, report.density_max) == pytest.approx((1, 1))
    assert report.dark_texels == 0
    assert report.warnings() == {"open": "128 edges have one face: not closed"}


def test_a_texture_ten_steps_too_bright_is_so_many_decibels_off() -> None:
    baked, mesh = textured([(0.1, 0.1)])
    assert baked.base_color is not None
    brighter = Baked(baked.vertices, baked.faces, baked.uvs, baked.base_color + 10)
    report = measure_quality(brighter, lookup_of(mesh), 2048, 50_000)
    assert report.psnr_db == pytest.approx(-20 * math.log10(10 / 255), abs=0.1)
    assert "texture" in report.warnings()


def test_black_where_the_voxels_are_not_is_dark() -> None:
    baked, mesh = textured([(0.1, 0.1)])
    assert baked.base_color is not None
    image = baked.base_color.clone()
    image[:, : round(0.2 * 256)] = 0  # a quarter of the chart
    black = Baked(baked.vertices, baked.faces, baked.uvs, image)
    report = measure_quality(black, lookup_of(mesh), 2048, 50_000)
    assert report.dark_texels == pytest.approx(0.25, abs=0.01)
    assert "dark" in report.warnings()


def test_charts_on_top_of_one_another_overlap() -> None:
    apart = measure_quality(*arguments(textured([(0.05, 0.1), (0.55, 0.1)])))
    over = measure_quality(*arguments(textured([(0.05, 0.1), (0.25, 0.1)])))
    assert (apart.overlap, apart.charts) == (0, 2)
    assert over.overlap == pytest.approx(0.2 / 0.6, abs=0.01)
    assert over.utilization == pytest.approx(0.24, abs=0.005)
    assert "overlap" in over.warnings()


def arguments(made: tuple[Baked, trimesh.Trimesh]) -> tuple[Baked, VoxelAttributeLookup, int, int]:
    return made[0], lookup_of(made[1]), 10**5, 20_000


def test_density_and_stretch_are_those_of_the_charts() -> None:
    baked, mesh = textured([(0.05, 0.1), (0.55, 0.1), (0.05, 0.55)])
    assert baked.uvs is not None
    uvs = baked.uvs.clone()
    uvs[-33 * 33 :, 0] = 0.05 + (uvs[-33 * 33 :, 0] - 0.05) / 4  # a chart at a quarter of its width
    squeezed = Baked(baked.vertices, baked.faces, uvs, baked.base_color)
    report = measure_quality(squeezed, lookup_of(mesh), 10**5, 20_000)
    assert (report.density_min, report.density_max) == pytest.approx((0.5, 1), rel=1e-4)
    # per face (a^2 + b^2) / 2 of lengths in space over those in the texture, 2 and 8 to 2 and 2
    mean = (2 * (2**2 + 2**2) / 2 + (8**2 + 2**2) / 2) / 3
    share = 0.16 * (1 + 1 + 0.25) / (3 * 0.64)
    assert report.stretch == pytest.approx(math.sqrt(mean * share), rel=1e-3)
    assert {"density", "stretch"} <= set(report.warnings())


def test_points_are_spread_by_area_and_always_the_same() -> None:
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 9], [3, 0, 9], [0, 1, 9]])
    faces = torch.tensor([[0, 1, 2], [3, 4, 5]])
    face, weights = random_points(vertices, faces, 40_000)
    assert float((face == 1).double().mean()) == pytest.approx(0.75, abs=1e-3)
    assert torch.allclose(weights.mean(0), torch.full((3,), 1 / 3), atol=0.01)
    assert float(weights.min()) >= 0
    again = random_points(vertices, faces, 40_000)
    assert torch.equal(again[0], face)
    assert torch.equal(again[1], weights)


def good(**changes: object) -> QualityReport:
    fields = {
        "area_ratio": 1.0, "distance_voxels": 0.1, "distance_p99_voxels": 0.5,
        "missed_voxels": 0.1, "boundary_edges": 0, "nonmanifold_edges": 0, "shells": 1,
        "thin_parts": 0, "faces_asked": 1000, "faces": 1000, "alpha_mode": "OPAQUE", "charts": 9,
        "density_min": 0.99, "density_median": 900.0, "density_max": 1.01, "overlap": 0.0,
        "utilization": 0.6, "stretch": 1.01, "psnr_db": 50.0, "dark_texels": 0.0,
    }  # fmt: skip
    return QualityReport.model_validate(fields | changes)


BAD = {
    "area": {"area_ratio": 2.0},
    "distance": {"distance_p99_voxels": 2.5},
    "open": {"boundary_edges": 3},
    "nonmanifold": {"nonmanifold_edges": 1},
    "shells": {"shells": 1001},
    "thin": {"thin_parts": 1},
    "density": {"density_max": 7.2},
    "overlap": {"overlap": 9e-3},
    "stretch": {"stretch": 1.23},
    "texture": {"psnr_db": 27.3},
    "dark": {"dark_texels": 0.01},
    "faces": {"faces": 1001},
}


@pytest.mark.parametrize("name", QUALITY_CHECKS)
def test_each_check_can_fail_alone_and_be_insisted_on(name: str) -> None:
    report = good(**BAD[name])
    assert list(report.warnings()) == [name]
    others = tuple(other for other in QUALITY_CHECKS if other != name)
    require_quality(report, others)
    with pytest.raises(MeshRejected, match=f"^{name}: "):
        require_quality(report, (name,))


def test_a_good_report_passes_all_and_failures_come_in_order() -> None:
    require_quality(good(), QUALITY_CHECKS)
    bad = good(**BAD["dark"], **BAD["area"])
    assert failed_checks(bad, ("dark", "overlap", "area")) == ["area", "dark"]
    assert [retry_seed(2**31 - 2, n) for n in (1, 2, 3)] == [2**31 - 1, 0, 1]


def test_a_request_names_known_checks_and_a_few_retries() -> None:
    asked = parse_request(
        {"image_url": "https://a.b/c", "strict": ["open", "dark"], "retry_seeds": 2}
    )
    assert (asked.strict, asked.retry_seeds, asked.alpha_mode) == (("open", "dark"), 2, "auto")
    for wrong in (
        {"strict": ["pretty"]},
        {"strict": "open"},
        {"retry_seeds": 4},
        {"alpha_mode": "MASK"},
    ):
        with pytest.raises(InvalidInput, match=next(iter(wrong))):
            parse_request({"image_url": "https://a.b/c", **wrong})
