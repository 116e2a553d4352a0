"""Which face shows in a texel, and where, against exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trellis_runtime.engines.trellis2.baking.raster import NONE, Raster, rasterize

SIDE = 16
Point = tuple[Fraction, Fraction]
halves = st.integers(0, 2 * SIDE).map(lambda n: Fraction(n, 2))
points = st.tuples(halves, halves)


def drawn(*triangles: tuple[Point, Point, Point], side: int = SIDE) -> Raster:
    corners = [[float(v) for v in point] for triangle in triangles for point in triangle]
    uvs = torch.tensor(corners, dtype=torch.float64) / side
    vertices = torch.cat([uvs, torch.zeros(len(uvs), 1)], 1).float()
    return rasterize(vertices, torch.arange(len(uvs)).reshape(-1, 3), uvs, side)


def turn(a: Point, b: Point, c: Point) -> Fraction:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def centre(row: int, column: int) -> Point:
    return column + Fraction(1, 2), row + Fraction(1, 2)


def inside(p: Point, triangle: tuple[Point, Point, Point]) -> bool:
    a, b, c = triangle
    sides = [turn(a, b, p), turn(b, c, p), turn(c, a, p)]
    return all(s > 0 for s in sides) or all(s < 0 for s in sides)


@given(points, points, points, points)
@settings(max_examples=150, deadline=None)
def test_a_centre_on_a_shared_edge_belongs_to_exactly_one_face(
    a: Point, b: Point, c: Point, d: Point
) -> None:
    if turn(a, b, c) * turn(a, b, d) >= 0:
        return  # not on both sides of the edge
    first, second = (a, b, c), (b, a, d)
    one, two, both = drawn(first), drawn(second), drawn(first, second)
    assert both.overlap == 0
    assert torch.equal(both.covered, one.covered ^ two.covered)
    for row in range(SIDE):
        for column in range(SIDE):
            p = centre(row, column)
            if inside(p, first):
                assert both.owners[row, column] == 0
            elif inside(p, second):
                assert both.owners[row, column] == 1
            elif (
                turn(a, b, p) == 0
                and 0
                < (p[0] - a[0]) * (b[0] - a[0]) + (p[1] - a[1]) * (b[1] - a[1])
                < (b[0] - a[0]) ** 2 + (b[1] - a[1]) ** 2
            ):
                assert both.covered[row, column]


def test_a_fan_around_a_centre_covers_each_texel_once_and_is_as_large_as_its_area() -> None:
    middle = centre(7, 7)
    ring = [(1, 1), (7, 1), (14, 1), (14, 8), (14, 14), (8, 14), (1, 14), (1, 7)]
    corners = [(Fraction(x), Fraction(y)) for x, y in ring]
    fan = [(middle, corners[i], corners[i - 1]) for i in range(8)]
    raster = drawn(*fan)
    assert raster.overlap == 0
    assert int(raster.covered.sum()) == 13 * 13
    assert raster.texel_size == pytest.approx(1 / SIDE)


def test_what_two_faces_cover_is_counted_and_the_first_shows() -> None:
    triangle = ((Fraction(2), Fraction(2)), (Fraction(12), Fraction(2)), (Fraction(2), Fraction(9)))
    raster = drawn(triangle, triangle[::-1])
    assert raster.overlap == int(raster.covered.sum()) == int(drawn(triangle).covered.sum())
    assert raster.overlap > 0
    assert raster.owners.max() == 0


def test_texels_near_a_face_show_the_nearest_one_and_others_none() -> None:
    rng = np.random.default_rng(5)
    side = 24
    corners = rng.uniform(3, 21, (12, 1, 2)) + rng.uniform(-2, 2, (12, 3, 2))
    raster = drawn(*[tuple(map(tuple, t)) for t in corners], side=side)
    for row in range(side):
        for column in range(side):
            p = np.array([column, row]) + 0.5
            owner = int(raster.owners[row, column])
            away = np.array([distance(p, t) for t in corners])
            reached = np.array([box_meets(p, t) for t in corners])
            if owner >= 0:
                assert away[owner] < 1e-4
            elif owner == NONE:
                assert not reached.any()
            else:
                least = away[reached].min()
                assert away[-2 - owner] == pytest.approx(least, abs=1e-3)
                assert least > 0


def distance(p: np.ndarray, triangle: np.ndarray) -> float:
    a, b, c = triangle
    sides = [
        np.cross(np.append(v - u, 0), np.append(p - u, 0))[2] for u, v in ((a, b), (b, c), (c, a))
    ]
    if min(sides) > 0 or max(sides) < 0:
        return 0.0
    nearest = []
    for u, v in ((a, b), (b, c), (c, a)):
        share = np.clip((p - u) @ (v - u) / ((v - u) @ (v - u)), 0, 1)
        nearest.append(np.linalg.norm(u + share * (v - u) - p))
    return float(min(nearest))


def box_meets(p: np.ndarray, triangle: np.ndarray, reach: float = 1 - 2e-5) -> bool:
    """Whether the square of this reach around p and a triangle share a point (separating axes)."""
    axes = [np.array([1.0, 0]), np.array([0, 1.0])]
    axes += [
        np.array([v[1] - u[1], u[0] - v[0]])
        for u, v in zip(triangle, np.roll(triangle, 1, 0), strict=True)
    ]
    for axis in axes:
        along = triangle @ axis
        half = reach * np.abs(axis).sum()
        if along.min() > p @ axis + half or along.max() < p @ axis - half:
            return False
    return True


def test_points_lie_where_the_faces_plane_has_them_beside_it_too() -> None:
    corners = torch.tensor([[3.3, 2.1], [20.2, 5.7], [9.4, 21.8], [24.0, 23.5]]) / 32
    faces = torch.tensor([[0, 1, 2], [3, 2, 1]])
    vertices = torch.stack([corners[:, 0], corners[:, 1], corners[:, 0] - 2 * corners[:, 1]], 1)
    raster = rasterize(vertices, faces, corners, 32)
    texels = torch.cat(list(raster.blocks(1 << 20)))
    assert torch.equal(texels, raster.shown.reshape(-1).nonzero()[:, 0])
    x, y = (texels % 32 + 0.5) / 32, (texels // 32 + 0.5) / 32
    assert torch.allclose(raster.points(texels), torch.stack([x, y, x - 2 * y], 1), atol=2e-6)
    moved = raster.points(texels, (0.25, -0.25))
    assert torch.allclose(moved[:, 0], x + 0.25 / 32, atol=2e-6)
    assert torch.allclose(moved[:, 1], y - 0.25 / 32, atol=2e-6)


def test_a_sliver_does_not_lead_far_away() -> None:
    corners = torch.tensor([[4.0, 4.0], [12.0, 4.0], [8.0, 4.0001]], dtype=torch.float64) / 16
    wide = torch.tensor([[2.0, 9.0], [14.0, 9.0], [8.0, 15.0]], dtype=torch.float64) / 16
    uvs = torch.cat([corners, wide])
    vertices = torch.cat([uvs, torch.zeros(6, 1)], 1).float()
    vertices[2, 2] = 0.3  # its plane rises 0.3 within a ten thousandth of a texel
    raster = rasterize(vertices, torch.tensor([[0, 1, 2], [3, 4, 5]]), uvs, 16)
    texels = (raster.face_of.reshape(-1) == 0).nonzero()[:, 0]
    assert len(texels) > 8
    assert float(raster.points(texels)[:, 2].abs().max()) < 0.3 + 2 * raster.texel_size * 2**0.5


def test_the_budget_changes_nothing_and_bounds_a_block() -> None:
    torch.manual_seed(2)
    uvs = torch.rand(900, 2)
    uvs = (uvs.reshape(300, 3, 2) * 0.1 + torch.rand(300, 1, 2) * 0.9).reshape(-1, 2)
    vertices, faces = torch.rand(900, 3), torch.arange(900).reshape(-1, 3)
    whole, tight = rasterize(vertices, faces, uvs, 64), rasterize(vertices, faces, uvs, 64, 4096)
    assert torch.equal(whole.owners, tight.owners)
    assert whole.overlap == tight.overlap > 0
    blocks = list(tight.blocks(64 * 64 * 4))
    assert max(map(len, blocks)) <= 64 * 4
    assert torch.equal(torch.cat(blocks), torch.cat(list(whole.blocks(1 << 30))))


def test_faces_without_area_and_outside_the_texture_show_nowhere() -> None:
    nothing = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.1, 0.1], [0.9, 0.9], [0.5, 0.5]])
    outside = torch.tensor([[-0.9, -0.9], [-0.5, -0.9], [-0.9, -0.5]])
    uvs = torch.cat([nothing, outside])
    raster = rasterize(torch.rand(9, 3), torch.arange(9).reshape(-1, 3), uvs, 32)
    assert not raster.shown.any()
    assert list(raster.blocks(1 << 20)) == []
