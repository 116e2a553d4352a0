"""How transparent an asset is, decided from the area of its texels; and its faces apart."""

from __future__ import annotations

import pytest
import torch

from trellis_runtime.engines.trellis2.baking.alpha import (
    find_transparency,
    translucent_faces,
    vertex_transparency,
)
from trellis_runtime.engines.trellis2.baking.raster import Raster, rasterize

SIDE = 200


def strips() -> Raster:
    """Ten upright strips of two faces each over the whole texture, 20 texels wide."""
    x = torch.arange(11) / 10
    uvs = torch.cat([torch.stack([x, torch.zeros(11)], 1), torch.stack([x, torch.ones(11)], 1)])
    i = torch.arange(10)
    faces = torch.cat([torch.stack([i, i + 1, i + 11], 1), torch.stack([i + 1, i + 12, i + 11], 1)])
    return rasterize(torch.cat([uvs, torch.zeros(22, 1)], 1), faces, uvs, SIDE)


def texels(*columns: tuple[int, int, float]) -> torch.Tensor:
    """Opaque texels but for columns from, to, alpha."""
    made = torch.full((SIDE, SIDE, 6), 255, dtype=torch.uint8)
    for start, end, alpha in columns:
        made[:, start:end, 5] = round(alpha * 255)
    return made


@pytest.mark.parametrize(
    ("columns", "mode", "opaque", "between"),
    [
        ([], "OPAQUE", 1.0, 0.0),
        ([(0, 200, 0.96)], "OPAQUE", 1.0, 0.0),
        ([(0, 1, 0.0)], "MASK", 0.995, 0.0),
        ([(0, 60, 0.02)], "MASK", 0.7, 0.0),
        ([(0, 60, 0.02), (60, 63, 0.5)], "MASK", 0.685, 0.015),
        ([(0, 4, 0.5)], "BLEND", 0.98, 0.02),
        ([(0, 200, 0.93)], "MASK", 0.0, 0.0),
        ([(0, 100, 0.4)], "BLEND", 0.5, 0.5),
    ],
)
def test_the_mode_follows_from_areas(
    columns: list[tuple[int, int, float]], mode: str, opaque: float, between: float
) -> None:
    found = find_transparency(texels(*columns), strips())
    assert found.mode == mode
    assert found.opaque_share == pytest.approx(opaque)
    assert found.between_share == pytest.approx(between)
    assert (found.translucent is None) == (mode != "BLEND")


def test_one_texel_in_a_thousand_does_not_make_an_asset_transparent() -> None:
    few = texels()
    few[0, :39, 5] = 0
    assert find_transparency(few, strips()).mode == "OPAQUE"
    few[0, :41, 5] = 0
    assert find_transparency(few, strips()).mode == "MASK"


def test_the_caller_can_decide() -> None:
    glass = texels((0, 100, 0.4))
    for choice, mode in (("opaque", "OPAQUE"), ("mask", "MASK"), ("blend", "BLEND")):
        assert find_transparency(glass, strips(), choice).mode == mode
        assert vertex_transparency(torch.rand(50), choice) == mode


def test_faces_are_blended_where_they_are_less_than_opaque_anywhere() -> None:
    found = find_transparency(texels((45, 75, 0.5)), strips())
    assert found.translucent is not None
    strip = found.translucent.reshape(2, 10)  # columns 45..75 lie in strips 2 and 3
    assert strip.tolist() == [[n in (2, 3) for n in range(10)]] * 2


def test_a_face_too_small_to_show_a_texel_reads_those_around_it() -> None:
    uvs = torch.tensor([[0.1, 0.1], [0.9, 0.1], [0.1, 0.9]])
    speck = torch.tensor([[0.3, 0.3], [0.3005, 0.3], [0.3, 0.3005]])
    both = torch.cat([uvs, speck])
    raster = rasterize(torch.rand(6, 3), torch.arange(6).reshape(-1, 3), both, SIDE)
    assert not (raster.owners == 1).any()
    alpha = torch.full((SIDE, SIDE), 255, dtype=torch.uint8)
    assert translucent_faces(alpha, raster).tolist() == [False, False]
    alpha[59:62, 59:62] = 90
    assert translucent_faces(alpha, raster).tolist() == [True, True]


def test_vertices_count_alike() -> None:
    assert vertex_transparency(torch.ones(2000)) == "OPAQUE"
    assert vertex_transparency(torch.cat([torch.ones(90), torch.zeros(10)])) == "MASK"
    assert vertex_transparency(torch.linspace(0, 1, 100)) == "BLEND"
