"""How far two surfaces are apart, without knowing which is right."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from trellis_runtime.engines.trellis2.baking.nearest import Surface
from trellis_runtime.engines.trellis2.baking.quality import POINTS, random_points


class Mesh(Protocol):
    """vertices (V, 3) float32 and faces (F, 3), on one device."""

    @property
    def vertices(self) -> Tensor: ...

    @property
    def faces(self) -> Tensor: ...


def chamfer(a: Mesh, b: Mesh, points: int = POINTS) -> float:
    """Return the mean distance from `points` of each surface to the other one, both ways."""
    return float(_distances(a, b, points).mean() + _distances(b, a, points).mean()) / 2


def _distances(source: Mesh, target: Mesh, points: int) -> Tensor:
    faces = source.faces.long()
    face, weights = random_points(source.vertices, faces, points)
    at = (source.vertices[faces[face]] * weights[..., None]).sum(1)
    (away,) = Surface(target.vertices, target.faces.int()).unsigned_distance(at)
    return away
