"""Voxels' attributes, against a search through all of them in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from benchmarks.shapes import make_shape
from trellis_runtime.engines.trellis2.baking.lookup import VoxelAttributeLookup
from trellis_runtime.engines.trellis2.baking.nearest import Surface
from trellis_runtime.engines.trellis2.baking.raster import Raster, rasterize
from trellis_runtime.engines.trellis2.baking.texels import as_bytes, bake_texels, split_maps
from trellis_runtime.engines.trellis2.baking.voxels import VoxelGrid


def renormalised(cells: np.ndarray, values: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Trilinear means over the cells that exist; the nearest cell's values where none does."""
    out = []
    for point in points.astype(np.float64):
        offset = np.abs(cells + 0.5 - point)
        weight = np.clip(1 - offset, 0, 1).prod(1)
        if weight.sum() > 1e-6:
            out.append((weight[:, None] * values).sum(0) / weight.sum())
        else:
            out.append(values[(offset**2).sum(1).argmin()])
    return np.array(out)


@pytest.mark.parametrize("side", [9, 32, 61])
def test_samples_are_trilinear_means_over_the_voxels_that_exist(side: int) -> None:
    rng = np.random.default_rng(side)
    cells = np.unique(rng.integers(0, side, (side * 12, 3)), axis=0)
    values = rng.random((len(cells), 6)).astype(np.float32)
    near = cells[rng.integers(0, len(cells), 300)] + rng.uniform(-0.6, 1.6, (300, 3))
    points = np.concatenate([near, rng.uniform(-3, side + 3, (300, 3))]).astype(np.float32)
    order = rng.permutation(len(cells))
    grid = VoxelGrid(torch.from_numpy(cells[order]), torch.from_numpy(values[order]), side)
    found = grid.sample(torch.from_numpy(points)).numpy()
    wanted = renormalised(cells, values, points)
    tie = [np.sort(((cells + 0.5 - p) ** 2).sum(1))[:2] for p in points]
    clear = np.array([b - a > 1e-3 for a, b in tie])
    assert clear.mean() > 0.9
    assert np.abs(found - wanted)[clear].max() < 2e-5


def test_a_point_far_from_all_voxels_takes_the_nearest_and_is_never_black() -> None:
    cells = torch.tensor([[3, 4, 5], [90, 90, 90]])
    grid = VoxelGrid(cells, torch.tensor([[0.7, 0.8], [0.2, 0.1]]), 100)
    points = torch.tensor([[5.1, 4.5, 5.5], [30.0, 30.0, 30.0], [-500.0, 0, 0], [99.0, 99.0, 60.0]])
    wanted = torch.tensor([[0.7, 0.8], [0.7, 0.8], [0.7, 0.8], [0.2, 0.1]])
    assert torch.equal(grid.sample(points), wanted)


def test_the_last_sliver_of_weight_does_not_darken() -> None:
    grid = VoxelGrid(torch.tensor([[2, 2, 2]]), torch.tensor([[0.9, 0.9]]), 8)
    for gap in (1e-2, 1e-4, 1e-6):
        corner = torch.full((1, 3), 3.5 - gap)  # each weight is `gap`, the product its cube
        assert torch.allclose(grid.sample(corner), torch.tensor([[0.9, 0.9]]), atol=1e-4)


def test_of_a_voxel_given_twice_the_first_counts() -> None:
    cells = torch.tensor([[1, 1, 1], [1, 1, 1], [2, 1, 1]])
    grid = VoxelGrid(cells, torch.tensor([[0.1], [0.9], [0.5]]), 4)
    assert grid.sample(torch.tensor([[1.5, 1.5, 1.5]])).item() == pytest.approx(0.1)


def test_no_value_is_made_up_anywhere_near_a_real_surface() -> None:
    shape = make_shape("plant", 48)
    surface = Surface(torch.from_numpy(shape.vertices), torch.from_numpy(shape.faces))
    bright = torch.rand(len(shape.coords), 6) * 0.25 + 0.5
    lookup = VoxelAttributeLookup(surface, torch.from_numpy(shape.coords), bright, 48)
    points = torch.rand(4000, 3) - 0.5
    values = lookup(points)
    assert float(values.min()) >= 0.5 - 1e-5
    assert float(values.max()) <= 0.75 + 1e-5
    assert torch.equal(values, lookup(points, budget=1))  # blocks change nothing


def test_nearest_points_are_the_same_whatever_is_taken_for_near() -> None:
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.4)
    surface = Surface(torch.tensor(ball.vertices).float(), torch.tensor(ball.faces).int())
    points = torch.rand(600, 3) - 0.5
    exact = surface.project(points, 10.0)
    assert torch.equal(surface.project(points, 1e-3), exact)
    for point, found in zip(points[:40].double().numpy(), exact.numpy(), strict=False):
        each = trimesh.triangles.closest_point(ball.triangles, np.tile(point, (len(ball.faces), 1)))
        away = np.linalg.norm(each - point, axis=1).min()
        assert np.linalg.norm(found - point) == pytest.approx(away, abs=1e-6)


def test_a_tree_in_slabs_finds_the_same_points() -> None:
    shape = make_shape("plant", 48)
    vertices, faces = torch.from_numpy(shape.vertices), torch.from_numpy(shape.faces)
    points = torch.rand(3000, 3, generator=torch.Generator().manual_seed(4)) * 1.4 - 0.7
    whole = Surface(vertices, faces).project(points, 3 / 48)
    for budget in (len(faces) * 60, len(faces) * 9):  # four slabs, some twenty
        slabs = Surface(vertices, faces)
        found = slabs.project(points, 3 / 48, budget)
        away, wanted = (found - points).norm(dim=1), (whole - points).norm(dim=1)
        assert torch.allclose(away, wanted, atol=1e-6)
        assert slabs._bvh is None  # none was kept
    assert torch.equal(Surface(vertices, faces).project(points, 3 / 48, 1 << 30), whole)


def test_bytes_are_rounded_and_all_maps_come_from_one_pass() -> None:
    assert as_bytes(torch.tensor([-1.0, 0.0, 0.4 / 255, 0.6 / 255, 0.5, 254.6 / 255, 3])).tolist() == [
        0, 0, 0, 1, 128, 255, 255,
    ]  # fmt: skip
    cells = torch.stack(torch.meshgrid(*[torch.arange(8)] * 3, indexing="ij"), -1).reshape(-1, 3)
    values = torch.rand(len(cells), 6, generator=torch.Generator().manual_seed(1))
    corners = torch.tensor([[-0.3, -0.3, 0.0], [0.3, -0.3, 0.1], [0.3, 0.3, 0.2], [-0.3, 0.3, 0.1]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    lookup = VoxelAttributeLookup(Surface(corners, faces.int()), cells, values, 8)
    uvs = torch.tensor([[0.1, 0.1], [0.9, 0.1], [0.9, 0.9], [0.1, 0.9]])
    raster = rasterize(corners, faces, uvs, 64)
    texels = bake_texels(raster, lookup, fit=False)
    assert torch.equal(texels, bake_texels(raster, lookup, budget=4096, fit=False))
    block = raster.covered.reshape(-1).nonzero()[:, 0]
    wanted = renormalised(
        cells.numpy(), values.double().numpy(), ((raster.points(block) + 0.5) * 8).numpy()
    )
    error = texels.reshape(-1, 6)[block].numpy() - wanted * 255
    assert np.abs(error).max() < 0.51
    assert abs(error.mean()) < 0.02  # truncation would make it -0.5
    maps = split_maps(texels, alpha=True)
    assert np.array_equal(maps.base_color, texels[..., [0, 1, 2, 5]].numpy())
    assert np.array_equal(maps.metallic_roughness[..., 1:], texels[..., [4, 3]].numpy())
    assert split_maps(texels, alpha=False).base_color.shape == (64, 64, 3)


def square_of_noise(
    size: int,
) -> tuple[VoxelAttributeLookup, Raster, torch.Tensor, torch.Tensor]:
    """A flat square whose voxels all differ; a random point's texture and wanted values too."""
    generator = torch.Generator().manual_seed(3)
    cells = torch.stack(torch.meshgrid(*[torch.arange(16)] * 3, indexing="ij"), -1).reshape(-1, 3)
    values = torch.rand(len(cells), 6, generator=generator)
    values[:, 5] = 1
    corners = torch.tensor([[-0.4, -0.4, 0.0], [0.4, -0.4, 0.1], [0.4, 0.4, 0.2], [-0.4, 0.4, 0.1]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    lookup = VoxelAttributeLookup(Surface(corners, faces.int()), cells, values, 16)
    uvs = torch.tensor([[0.1, 0.1], [0.9, 0.1], [0.9, 0.9], [0.1, 0.9]])
    at = torch.rand(20_000, 2, generator=generator)
    points = torch.cat([at * 0.8 - 0.4, at.sum(1, keepdim=True) * 0.1], 1)
    return lookup, rasterize(corners, faces, uvs, size), at * 0.8 + 0.1, lookup(points)


def filtered_error(texels: torch.Tensor, at: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    image = texels.permute(2, 0, 1)[None].float() / 255
    seen = torch.nn.functional.grid_sample(image, (at * 2 - 1)[None, None], align_corners=False)
    return (seen[0, :, 0].T - wanted).double()


@pytest.mark.parametrize(("size", "gain_db"), [(32, 1.5), (64, 2.0)])
def test_fitted_texels_are_nearer_where_filtering_reads_between_them(
    size: int, gain_db: float
) -> None:
    lookup, raster, at, wanted = square_of_noise(size)
    plain, fitted = (bake_texels(raster, lookup, fit=fit) for fit in (False, True))
    before, after = (filtered_error(t, at, wanted)[:, :5].square().mean() for t in (plain, fitted))
    assert float(10 * torch.log10(before / after)) > gain_db
    assert torch.equal(plain[..., 5], fitted[..., 5])  # opaque stays opaque
    assert bool((fitted[..., 5] == 255).all())
    for budget in (1, 1 << 15, 1 << 18):
        assert torch.equal(bake_texels(raster, lookup, budget), fitted)


def test_fitting_leaves_what_filtering_shows_rightly_as_it_is() -> None:
    lookup, raster, at, _ = square_of_noise(64)
    cells = torch.stack(torch.meshgrid(*[torch.arange(16)] * 3, indexing="ij"), -1).reshape(-1, 3)
    ramp = torch.cat([(cells + 0.5) / 16, (cells + 0.5) / 32], 1)
    even = VoxelAttributeLookup(lookup.surface, cells, ramp, 16)
    plain, fitted = (bake_texels(raster, even, fit=fit).int() for fit in (False, True))
    inner = slice(10, -10)  # at the square's edge the surface ends, and texels beside it have more
    changed = (plain - fitted)[inner, inner].abs()
    assert int(changed.max()) <= 1  # linear colours need no fitting
    assert float((changed > 0).double().mean()) < 0.01
    points = torch.cat([(at - 0.5), (at - 0.1).sum(1, keepdim=True) / 8], 1)
    errors = [filtered_error(t.to(torch.uint8), at, even(points)).abs() for t in (plain, fitted)]
    middle = ((at > 0.2) & (at < 0.8)).all(1)
    assert float(errors[1][middle].max()) < 0.6 / 255
    assert float(errors[1].square().mean()) <= float(errors[0].square().mean())
