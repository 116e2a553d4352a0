"""The tangent frames of a surface's vertices, as MikkTSpace has them.

    face    T = d p / d u, unit                      corner  T, and the face's angle, both laid into
    corner  summed by angle over a vertex's faces  ─►        the plane across the vertex's normal
    vertex  T unit, w: +1 or -1, and the bitangent is w (N x T)

Source: Mikkelsen, Simulation of Wrinkled Surfaces Revisited (2008), and his mikktspace.c, whose
sums these are. It also splits a vertex that faces on both sides of a mirrored seam share; charts
here share no vertex, and no face of a chart is mirrored, so there is nothing to split. A test holds
the result against mikktspace.c's own.

glTF's v runs downwards and its bitangent upwards in the picture, along -d p / d v. So w is -1 where
faces turn left in (u, v) as they do seen from outside: in every chart of this bake.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trellis_runtime.engines.trellis2.baking.connectivity import exact_sum_by

_BLOCK = 1 << 18  # faces at a time


def vertex_tangents(vertices: Tensor, faces: Tensor, normals: Tensor, uvs: Tensor) -> Tensor:
    """Return tangents (V, 4) float32: a unit vector across the normal, and the bitangent's sign.

    vertices, normals (V, 3), unit, and uvs (V, 2) as glTF has them; faces (F, 3). Where the texture
    coordinates give no direction, any one across the normal is taken.
    """
    sums = torch.zeros((len(vertices), 4), dtype=torch.float64, device=vertices.device)
    for part in torch.split(faces.long(), _BLOCK):
        owners, values = _corner_tangents(vertices, part, normals, uvs)
        sums += exact_sum_by(owners, values, len(vertices))
    along = torch.where(
        sums[:, :3].norm(dim=1, keepdim=True) > 1e-9, sums[:, :3], _across(normals.double())
    )
    unit = torch.nn.functional.normalize(along, dim=1)
    sign = torch.where(sums[:, 3:] > 0, -1.0, 1.0)
    return torch.cat([unit, sign], 1).float()


def _corner_tangents(
    vertices: Tensor, faces: Tensor, normals: Tensor, uvs: Tensor
) -> tuple[Tensor, Tensor]:
    """Return vertices (3 F,) and what each corner adds there (3 F, 4): T by angle, the turn."""
    points, maps = vertices.double()[faces], uvs.double()[faces]
    turn = _twice_the_area(maps)
    one, two = points[:, 1] - points[:, 0], points[:, 2] - points[:, 0]
    down_one, down_two = maps[:, 1, 1] - maps[:, 0, 1], maps[:, 2, 1] - maps[:, 0, 1]
    tangent = (one * down_two[:, None] - two * down_one[:, None]) * turn.sign()[:, None]
    values = []
    for corner in range(3):
        normal = normals.double()[faces[:, corner]]
        here = points[:, corner]
        ahead = _laid(points[:, (corner + 1) % 3] - here, normal)
        back = _laid(points[:, (corner + 2) % 3] - here, normal)
        angle = (ahead * back).sum(1).clamp(-1, 1).arccos()
        weighed = _laid(tangent, normal) * (angle * (turn != 0))[:, None]
        values.append(torch.cat([weighed, turn[:, None]], 1))
    return faces.T.reshape(-1), torch.cat(values)


def _twice_the_area(maps: Tensor) -> Tensor:
    """Return twice the signed areas (F,) of faces (F, 3, 2) in the texture."""
    one, two = maps[:, 1] - maps[:, 0], maps[:, 2] - maps[:, 0]
    return one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0]


def _laid(vectors: Tensor, normals: Tensor) -> Tensor:
    """Return vectors (N, 3) laid into the planes across the normals, unit, or zero."""
    flat = vectors - normals * (vectors * normals).sum(1, keepdim=True)
    return torch.nn.functional.normalize(flat, dim=1, eps=1e-30)


def _across(normals: Tensor) -> Tensor:
    """Return a vector (V, 3) across each normal: of the axis that it leans to least."""
    axis = torch.nn.functional.one_hot(normals.abs().argmin(1), 3).to(normals)
    return torch.linalg.cross(axis, normals)
