"""The shapes that a rehearsal decodes: what memory and time are claimed for, and for which.

smooth   a sphere inside a tilted torus: two closed, smooth surfaces
nested   three spheres inside one another, and four thin plates through all of them: several layers
         in every direction, so twice the cells
plant    2,600 bent leaves on 24 stems: open sheets, each with a hole's boundary of its own

All lie in a cube from -0.5 to 0.5, and are the same each time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mesh = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Vertices (V, 3) and triangles (F, 3)."""

_LEAVES, _STEMS = 2600, 24
_ALONG, _ACROSS = 7, 4  # vertices of a leaf's grid


def mesh_of(name: str) -> Mesh:
    """Return the triangles of the shape called `name`, one of `SHAPES`."""
    return SHAPES[name]()


def _smooth() -> Mesh:
    import trimesh

    ball = trimesh.creation.icosphere(subdivisions=5, radius=0.25)
    ring = trimesh.creation.torus(0.4, 0.06, major_sections=200, minor_sections=64)
    ring.apply_transform(trimesh.transformations.rotation_matrix(0.6, [1, 0.3, 0]))
    return _joined([ball, ring])


def _nested() -> Mesh:
    import trimesh

    parts = [trimesh.creation.icosphere(subdivisions=6, radius=r) for r in (0.45, 0.31, 0.17)]
    for turn in range(4):
        plate = trimesh.creation.box((0.62, 0.62, 0.006))
        angle, axis = 0.4 + 0.7 * turn, [np.cos(1.9 * turn), np.sin(1.9 * turn), 0.35]
        plate.apply_transform(trimesh.transformations.rotation_matrix(angle, axis))
        plate.apply_translation([0, 0, 0.09 * turn - 0.13])
        parts.append(plate)
    return _joined(parts)


def _plant() -> Mesh:
    import trimesh

    rng = np.random.default_rng(7)
    stems = []
    for way in _directions(_STEMS, rng):
        ends = np.array([[0, 0, 0], way * 0.42])
        stems.append(trimesh.creation.cylinder(radius=0.005, segment=ends, sections=12))
    vertices, faces = _joined(stems)
    leaves, leaf_faces = _leaves(rng)
    both = np.concatenate([vertices, leaves.reshape(-1, 3)])
    each = leaf_faces[None] + np.arange(_LEAVES)[:, None, None] * (_ALONG * _ACROSS)
    return both, np.concatenate([faces, len(vertices) + each.reshape(-1, 3)])


def _leaves(rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return leaves (L, V, 3), each a bent sheet turned its own way, and the faces of one."""
    u, v = np.meshgrid(np.linspace(-1, 1, _ALONG), np.linspace(-1, 1, _ACROSS), indexing="ij")
    taper = 1 - 0.75 * u**2
    size = rng.uniform(0.6, 1.0, (_LEAVES, 1, 1))
    flat = np.stack([0.036 * u, 0.011 * v * taper, -0.009 * u**2], -1).reshape(1, -1, 3) * size
    turns, _ = np.linalg.qr(rng.normal(size=(_LEAVES, 3, 3)))
    at = _directions(_LEAVES, rng) * rng.uniform(0.1, 0.44, (_LEAVES, 1))
    placed = np.einsum("lij,lvj->lvi", turns, flat) + at[:, None]
    corner = (np.arange(_ALONG - 1)[:, None] * _ACROSS + np.arange(_ACROSS - 1)).reshape(-1, 1)
    halves = np.array([[0, _ACROSS, _ACROSS + 1], [0, _ACROSS + 1, 1]])
    return placed.astype(np.float32), (corner[:, None] + halves).reshape(-1, 3)


def _directions(count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    ways = rng.normal(size=(count, 3))
    return np.asarray(ways / np.linalg.norm(ways, axis=1, keepdims=True))


def _joined(parts: list[Any]) -> Mesh:
    import trimesh

    whole: Any = trimesh.util.concatenate(parts)
    return whole.vertices.astype(np.float32), whole.faces.astype(np.int64)


SHAPES: dict[str, Callable[[], Mesh]] = {"smooth": _smooth, "nested": _nested, "plant": _plant}
"""Each shape's triangles, by its name."""
