"""What lies behind a translucent shell can be seen, so it stays; behind an opaque one it is gone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

from trellis_runtime.contract.request import AlphaChoice
from trellis_runtime.engines.trellis2.baking.alpha import clear_alpha
from trellis_runtime.engines.trellis2.baking.bake import BakeOptions, bake_surface
from trellis_runtime.engines.trellis2.baking.decoded import Decoded
from trellis_runtime.engines.trellis2.baking.see_through import clear_faces
from trellis_runtime.engines.trellis2.baking.shells import close_surface

SIDE = 48
OUTER, INNER = 0.4, 0.2
OPTIONS = BakeOptions(decimation_target=10_000, texture_size=256)


def glass_ball(alpha: float, pricks: int = 0, inner_alpha: float = 1.0) -> Decoded:
    """A red ball in a blue one of `alpha`, with voxels around both surfaces."""
    outer = trimesh.creation.icosphere(4, OUTER)
    inner = trimesh.creation.icosphere(3, INNER)
    outer.update_faces(
        np.arange(len(outer.faces)) % (len(outer.faces) // (pricks or 1)) >= bool(pricks)
    )
    both = trimesh.util.concatenate([outer, inner])
    axis = np.arange(SIDE)
    coords = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    radius = np.linalg.norm((coords + 0.5) / SIDE - 0.5, axis=1)
    near = np.minimum(abs(radius - OUTER), abs(radius - INNER)) < 2 / SIDE
    coords, inside = coords[near], (radius < (OUTER + INNER) / 2)[near]
    values = np.where(inside[:, None], [1, 0, 0, 0, 0.5, inner_alpha], [0, 0, 1, 0, 0.5, alpha])
    return Decoded(
        torch.tensor(both.vertices, dtype=torch.float32),
        torch.tensor(both.faces.copy(), dtype=torch.int32),
        torch.tensor(coords, dtype=torch.int32),
        torch.tensor(values, dtype=torch.float32),
        SIDE,
    )


def baked_areas(decoded: Decoded, choice: AlphaChoice = "auto") -> tuple[float, float, str]:
    """Area of the asset's faces near the inner and the outer ball, of the balls'; and its mode."""
    asset = bake_surface(decoded, replace(OPTIONS, alpha_mode=choice), "cpu")
    mesh = trimesh.Trimesh(asset.vertices, asset.faces, process=False)
    inside = np.linalg.norm(mesh.triangles_center, axis=1) < (OUTER + INNER) / 2
    areas = [mesh.area_faces[part].sum() for part in (inside, ~inside)]
    balls = [4 * np.pi * r**2 for r in (INNER, OUTER)]
    return areas[0] / balls[0], areas[1] / balls[1], asset.alpha_mode


@pytest.mark.parametrize("pricks", [0, 6])
@pytest.mark.parametrize("inner_alpha", [1.0, 0.4])
def test_a_body_in_a_glass_one_stays(pricks: int, inner_alpha: float) -> None:
    inner, outer, mode = baked_areas(glass_ball(0.3, pricks, inner_alpha))
    assert mode == "BLEND"
    assert inner == pytest.approx(1, abs=0.03)
    assert outer == pytest.approx(1, abs=0.03)  # the glass has got no inside by it


@pytest.mark.parametrize("pricks", [0, 6])
def test_a_body_in_an_opaque_one_is_gone(pricks: int) -> None:
    inner, outer, mode = baked_areas(glass_ball(1.0, pricks))
    assert (inner, mode) == (0, "OPAQUE")
    assert outer == pytest.approx(1, abs=0.03)


def test_who_asks_for_an_opaque_asset_gets_what_an_opaque_one_shows() -> None:
    assert baked_areas(glass_ball(0.3), "opaque")[0] == 0


def test_what_is_cut_away_hides_nothing() -> None:
    inner, _, mode = baked_areas(glass_ball(0.02))
    assert mode == "MASK"
    assert inner == pytest.approx(1, abs=0.03)


def test_an_opaque_wall_with_a_glass_window_shows_what_is_inside() -> None:
    decoded = glass_ball(1.0)
    window = (decoded.coords[:, 2] > 0.8 * SIDE) & (decoded.attributes[:, 2] > 0.5)
    decoded.attributes[window, 5] = 0.3
    inner, outer, mode = baked_areas(decoded)
    assert mode == "BLEND"
    assert inner == pytest.approx(1, abs=0.03)
    assert outer == pytest.approx(1, abs=0.03)


def test_the_body_in_the_glass_has_its_own_colour_and_is_not_blended() -> None:
    asset = bake_surface(glass_ball(0.3), OPTIONS, "cpu")
    assert asset.translucent is not None
    assert asset.uvs is not None
    assert asset.base_color is not None
    middles = asset.vertices[asset.faces].mean(1)
    inside = np.linalg.norm(middles, axis=1) < (OUTER + INNER) / 2
    assert not asset.translucent[inside].any()
    assert asset.translucent[~inside].all()
    at = (asset.uvs[asset.faces].mean(1) * 256).astype(int).clip(0, 255)
    seen = asset.base_color[at[:, 1], at[:, 0]]
    assert (seen[inside] == [255, 0, 0, 255]).all()
    assert (abs(seen[~inside].astype(int) - [0, 0, 255, 0.3 * 255]) <= 1).all()


def test_faces_are_clear_by_the_voxels_alpha_and_the_mode_of_the_whole() -> None:
    decoded = glass_ball(0.3)
    clear = clear_faces(decoded.vertices, decoded.faces, decoded)
    assert clear is not None
    outer = decoded.vertices[decoded.faces.long()].mean(1).norm(dim=1) > 0.3
    assert torch.equal(clear, outer)
    assert clear_faces(decoded.vertices, decoded.faces, decoded, "opaque") is None
    assert clear_faces(decoded.vertices, decoded.faces, decoded, "mask").equal(outer)  # type: ignore[union-attr]
    opaque = glass_ball(1.0)
    assert clear_faces(opaque.vertices, opaque.faces, opaque) is None


def test_less_than_a_thousandth_of_the_area_is_not_glass() -> None:
    area, alpha = torch.ones(10_000), torch.ones(10_000)
    alpha[:9] = 0.5
    assert not clear_alpha(alpha, area).any()
    alpha[:9] = 0.4  # under the cutoff: cut away, once there is enough of it
    area[:9] = 2
    assert clear_alpha(alpha, area).nonzero()[:, 0].tolist() == list(range(9))


# A shell that leaks, as no hole was filled: which sides go is decided by rays, not by volume.


def leaking(holes: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """A ball with some of its 5120 faces missing."""
    made = trimesh.creation.icosphere(4, OUTER)
    chosen = np.random.default_rng(1).permutation(len(made.faces))[:holes]
    left = np.setdiff1d(np.arange(len(made.faces)), chosen)
    return torch.tensor(made.vertices).float(), torch.tensor(made.faces[left]).int()


def test_a_leaking_glass_gets_no_inside() -> None:
    points, faces = leaking()
    clear = torch.ones(len(faces), dtype=torch.bool)
    report = close_surface(points, faces, 1 / 64, clear=clear).report
    assert report.hidden_faces == len(faces)
    assert report.capped_loops == 12


@pytest.mark.parametrize("glass", [0.0, 0.2])
def test_the_inside_of_an_opaque_wall_stays_where_glass_shows_it(glass: float) -> None:
    points, faces = leaking()
    height = points[faces.long()].mean(1)[:, 2]
    clear = height > OUTER * (1 - 2 * glass)
    assert float(clear.double().mean()) == pytest.approx(glass, abs=0.01)
    report = close_surface(points, faces, 1 / 64, clear=clear if glass else None).report
    assert report.hidden_faces == (0 if glass else len(faces))


@pytest.mark.parametrize("glass", [False, True])
@pytest.mark.parametrize("holes", [0, 12])
def test_a_sheet_in_a_glass_stays(holes: int, glass: bool) -> None:
    points, faces = leaking(holes)
    square = trimesh.Trimesh(
        [[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], [[0, 1, 2], [0, 2, 3]]
    )
    for _ in range(4):
        square = square.subdivide()
    square.apply_scale(0.15)
    both = torch.cat([points, torch.tensor(square.vertices).float()])
    every = torch.cat([faces, torch.tensor(square.faces).int() + len(points)])
    clear = torch.arange(len(every)) < len(faces)
    shells = close_surface(both, every, 1 / 64, clear=clear if glass else None)
    made = trimesh.Trimesh(shells.vertices.numpy(), shells.faces.numpy(), process=False)
    inside = np.linalg.norm(made.triangles_center, axis=1) < 0.3
    sheet = 2 * 0.3**2 + 4 * 0.3 * 0.04 / 64  # its sides, and a strip along its rim
    assert made.area_faces[inside].sum() == pytest.approx(sheet if glass else 0, rel=1e-3)
