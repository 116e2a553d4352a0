"""The shapes that the bake is judged on are what a decoder gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.shapes import SHAPES, Shape, cached_shape, make_shape


def edge_counts(shape: Shape) -> np.ndarray:
    faces = shape.faces.astype(np.int64)
    edges = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    return np.unique(edges, axis=0, return_counts=True)[1]


@pytest.mark.parametrize("name", SHAPES)
def test_each_shape_has_a_vertex_in_each_voxel_and_bounds_a_solid_if_it_says_so(name: str) -> None:
    shape = make_shape(name, 64)
    assert shape.vertices.dtype == np.float32
    assert shape.attributes.shape == (len(shape.coords), 6)
    assert len(np.unique(shape.coords, axis=0)) == len(shape.coords)
    cells = (shape.vertices.astype(np.float64) + 0.5) * 64
    assert np.all(cells >= shape.coords - 1e-4)
    assert np.all(cells <= shape.coords + 1 + 1e-4)
    assert (edge_counts(shape) == 1).any() == (not shape.closed)
    assert 0 <= shape.attributes.min() <= shape.attributes.max() <= 1


def test_the_vase_has_the_area_of_its_profile_and_its_vertices_lie_on_it() -> None:
    shape = make_shape("open_vase", 128)
    z = np.linspace(-0.42, 0.41, 20_001)
    radius = 0.22 + 0.11 * np.sin(5.5 * z + 0.9) + 0.012 * np.sin(40 * z)
    slope = np.gradient(radius, z)
    wall = np.trapezoid(2 * np.pi * radius * np.sqrt(1 + slope**2), z)
    corners = shape.vertices[shape.faces].astype(np.float64)
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(cross, axis=1).sum() / 2
    assert area == pytest.approx(wall + np.pi * radius[0] ** 2, rel=0.01)


def test_faces_have_no_order_and_pricks_make_holes() -> None:
    plain, pricked = make_shape("closed_smooth", 64), make_shape("closed_smooth", 64, pricks=5)
    directed = plain.faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    assert 0.2 < (np.unique(directed, axis=0, return_counts=True)[1] == 2).mean() < 0.5
    lost = len(plain.faces) - len(pricked.faces)
    assert 0 < lost < 5 * 40
    assert (edge_counts(pricked) == 1).sum() > 5 * 4


def test_a_kept_shape_is_the_one_that_was_made(tmp_path: Path) -> None:
    made = cached_shape(tmp_path, "gyroid", 48, pricks=3, jitter=0.05)
    kept = cached_shape(tmp_path, "gyroid", 48, pricks=3, jitter=0.05)
    for name in ("vertices", "faces", "coords", "attributes", "closed"):
        assert np.array_equal(getattr(made, name), getattr(kept, name))
