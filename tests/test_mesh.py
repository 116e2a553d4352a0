"""Mesh checks, against trimesh as the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import trimesh

from trellis_runtime.assets.mesh import inspect_mesh, require_mesh
from trellis_runtime.contract.engine import Asset
from trellis_runtime.errors import MeshRejected


def asset(vertices: Any, faces: Any) -> Asset:
    vertices = np.asarray(vertices, np.float32)
    return Asset(vertices, np.asarray(faces, np.uint32), np.zeros_like(vertices))


def box() -> trimesh.Trimesh:
    return trimesh.creation.box(extents=(0.6, 0.5, 0.4))


def test_a_closed_mesh_has_no_boundary_even_with_split_vertices() -> None:
    soup = box()
    soup.unmerge_vertices()
    report = inspect_mesh(asset(soup.vertices, soup.faces))
    assert report.vertices == 36
    assert (report.boundary_edges, report.nonmanifold_edges, report.components) == (0, 0, 1)
    assert report.bounds == [[-0.3, -0.25, -0.2], [0.3, 0.25, 0.2]]
    assert report.warnings == []


def test_a_hole_a_fin_and_a_second_body_are_counted() -> None:
    mesh = box()
    holed = inspect_mesh(asset(mesh.vertices, mesh.faces[1:]))
    assert holed.boundary_edges == 3
    fin = np.vstack([mesh.vertices, [[0.5, 0.5, 0.5]]])
    faces = np.vstack([mesh.faces, [[mesh.faces[0][0], mesh.faces[0][1], 8]]])
    assert inspect_mesh(asset(fin, faces)).nonmanifold_edges == 1
    two = trimesh.util.concatenate([box(), box().apply_translation([0.9, 0, 0])])
    assert inspect_mesh(asset(two.vertices, two.faces)).components == 2


def test_faces_without_area_are_counted_and_warned_of() -> None:
    mesh = box()
    faces = np.vstack([mesh.faces, [[0, 0, 1]]])
    report = inspect_mesh(asset(mesh.vertices, faces))
    assert report.degenerate_faces == 1
    assert any("no area" in w for w in report.warnings)


def test_a_thin_mesh_is_warned_of() -> None:
    flat = trimesh.creation.box(extents=(0.9, 0.9, 0.005))
    assert any("thin along z" in w for w in inspect_mesh(asset(flat.vertices, flat.faces)).warnings)


def test_too_many_faces_per_vertex_are_warned_of() -> None:
    mesh = box()
    crowded = np.tile(mesh.faces, (8, 1))
    warnings = inspect_mesh(asset(mesh.vertices, crowded)).warnings
    assert any("faces per vertex" in w for w in warnings)


@pytest.mark.parametrize(
    ("vertices", "faces", "words"),
    [
        (np.zeros((0, 3)), np.zeros((0, 3)), "0 vertices"),
        (np.eye(3), np.zeros((0, 3)), "0 faces"),
        ([[0, 0, np.nan], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]], "not finite"),
        ([[0, 0, 9], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]], "coordinate is 9; the limit is 2"),
        (np.eye(3), [[0, 1, 3]], "index is 3; the mesh has 3 vertices"),
        (np.eye(3), [[0, 1, 1], [0, 0, 0], [0, 1, 2]], "67% of the faces"),
    ],
)
def test_a_mesh_that_cannot_be_delivered_is_rejected(vertices: Any, faces: Any, words: str) -> None:
    with pytest.raises(MeshRejected, match=words):
        require_mesh(asset(vertices, faces))
        inspect_mesh(asset(vertices, faces))
