"""Which sides of a surface can be seen from outside: leaks told from sheets.

A hole that was not filled joins the outside of a body with its inside, so that neither can be told
by volume; nor can they where walls touch and the order of faces around an edge is wrong. Cut apart
at the rims of holes and at crowded edges, each part of sides is asked how much of the sky it sees:
rays start at its faces, in random directions of its half-space, and count if nothing stops them.
The inside of a vase sees some; the inside of a body with a crack sees almost none, and is dropped.
"""

# No `from __future__ import annotations` here: Warp reads the kernel's annotations as types.

import torch
import warp
from torch import Tensor

from trellis_runtime.engines.trellis2.baking.connectivity import exact_sum_by, numbered
from trellis_runtime.engines.trellis2.baking.nearest import Surface, launch
from trellis_runtime.engines.trellis2.baking.sides import Links, side_components

_RAYS = 32  # from each sampled side
_SAMPLES = 512  # sides of a part, at most
_LEAST_SHARE = 1e-3  # of all area: smaller parts are left as they are
_SKY = 0.008  # of the rays: what sees less than that is inside
_FAR = 4.0  # beyond a mesh in -0.5..0.5


@warp.kernel(enable_backward=False)
def _escaping(
    mesh: warp.uint64,
    origins: warp.array(dtype=warp.vec3),  # type: ignore[valid-type]
    directions: warp.array(dtype=warp.vec3),  # type: ignore[valid-type]
    rays: warp.int32,
    free: warp.array(dtype=warp.int32),  # type: ignore[valid-type]
) -> None:
    i = warp.tid()
    hit = warp.mesh_query_ray(mesh, origins[i // rays], directions[i], warp.float32(_FAR))
    free[i] = warp.where(hit.result, 0, 1)


def hidden_sides(
    vertices: Tensor, faces: Tensor, links: Links, kept: Tensor, area: Tensor, lift: float
) -> Tensor:
    """Return which kept sides (2 F,) bool are insides that nobody sees.

    area (F,) float64: of the faces. lift: how far from its face a ray starts. Nothing is asked
    where hardly any face has kept both its sides.
    """
    none = torch.zeros_like(kept)
    both = kept[0::2] & kept[1::2]
    if float((area * both).sum()) < _LEAST_SHARE * float(area.sum()):
        return none
    part, count = numbered(side_components(links, len(faces), links.plain))
    asked = kept & both.repeat_interleave(2)
    of_part = exact_sum_by(part[asked], area.repeat_interleave(2)[asked][:, None], count)[:, 0]
    large = of_part > _LEAST_SHARE * float(area.sum())
    sampled = _sampled(part, asked & large[part], count)
    if len(sampled) == 0:
        return none
    free = _sky(vertices, faces, sampled, lift)
    seen = exact_sum_by(part[sampled], free[:, None], count)[:, 0]
    number = torch.bincount(part[sampled], minlength=count).clamp(min=1)
    dark = large & (seen / number < _SKY)
    hidden = kept & dark[part] & both.repeat_interleave(2)
    # Where both sides of a face are dark, neither is the outside: they stay.
    lost = hidden[0::2] & hidden[1::2]
    return hidden & ~lost.repeat_interleave(2)


def _sampled(part: Tensor, asked: Tensor, count: int) -> Tensor:
    """Return sides (N,) int64, at most about `_SAMPLES` of each part, evenly by number."""
    sides = asked.nonzero()[:, 0]
    size = torch.bincount(part[sides], minlength=count)
    step = (size // _SAMPLES).clamp(min=1)
    order = part[sides].argsort(stable=True)
    sides = sides[order]
    within = torch.arange(len(sides), device=sides.device) - (size.cumsum(0) - size)[part[sides]]
    return sides[within % step[part[sides]] == 0]


def _sky(vertices: Tensor, faces: Tensor, sides: Tensor, lift: float) -> Tensor:
    """Return the share (N,) float64 of rays from each side that nothing stops."""
    a, b, c = (vertices[faces[sides // 2, i]].float() for i in range(3))
    normal = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=1)
    normal = torch.where((sides % 2 == 1)[:, None], -normal, normal)
    origins = ((a + b + c) / 3 + normal * lift).contiguous()
    generator = torch.Generator().manual_seed(0)  # on the CPU: the same rays on any device
    directions = torch.randn((len(sides), _RAYS, 3), generator=generator).to(normal.device)
    directions = torch.nn.functional.normalize(directions, dim=2)
    facing = (directions * normal[:, None]).sum(2, keepdim=True)
    directions = (directions * torch.where(facing < 0, -1.0, 1.0)).reshape(-1, 3).contiguous()
    free = torch.empty(len(directions), dtype=torch.int32, device=normal.device)
    surface = Surface(vertices.float(), faces.int())
    given = [warp.from_torch(t, dtype=warp.vec3) for t in (origins, directions)]
    launch(_escaping, len(free), [surface.bvh_id(), *given, _RAYS, warp.from_torch(free)], free)
    return free.reshape(-1, _RAYS).double().mean(1)
