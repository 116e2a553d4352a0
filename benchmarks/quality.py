"""How good a baked asset is: texture coordinates, texture against voxels, shape against shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trellis_runtime.assets.topology import component_count
from trellis_runtime.engines.trellis2.baking.bake import Decoded, Sampler
from trellis_runtime.engines.trellis2.baking.nearest import Surface
from trellis_runtime.engines.trellis2.baking.unwrap import covered_texels

_POINTS = 200_000


@dataclass(frozen=True, slots=True)
class Baked:
    """A textured mesh in upstream's axes: arrays (V, 3), (F, 3), (V, 2) with v down, (S, S, 3)."""

    vertices: NDArray[np.float32]
    faces: NDArray[np.int64]
    uvs: NDArray[np.float32]
    base_color: NDArray[np.uint8]


def report(baked: Baked, sampler: Sampler) -> dict[str, float]:
    """Return figures of one asset.

    charts; utilization, the covered share of the texture; overlap, the share of covered texels
    with two faces; stretch, Sander's L2 (1 is none), area weighted; psnr_db, the texture's base
    colour at random points of the surface against the voxels there.
    """
    vertices = torch.from_numpy(baked.vertices).cuda()
    faces = torch.from_numpy(baked.faces).cuda()
    uvs = torch.from_numpy(baked.uvs).cuda()
    used, overlap = _coverage(uvs, faces)
    return {
        "charts": component_count(baked.faces),  # vertices are separate in texture space
        "utilization": round(used, 4),
        "overlap": round(overlap, 6),
        "stretch": round(_stretch(vertices, faces, uvs), 3),
        "psnr_db": round(_psnr(baked, vertices, faces, uvs, sampler), 2),
    }


def chamfer(a: Baked, b: Baked) -> float:
    """Return the mean distance from points of each surface to the other one, both ways."""
    there, back = _distances(a, b), _distances(b, a)
    return float(there.mean() + back.mean()) / 2


def _distances(source: Baked, target: Baked) -> Tensor:
    vertices, faces = (torch.from_numpy(x).cuda() for x in (source.vertices, source.faces))
    face, weights = _random_points(vertices, faces)
    points = (vertices[faces[face]] * weights[..., None]).sum(1)
    other = Surface(
        torch.from_numpy(target.vertices).cuda(), torch.from_numpy(target.faces).cuda().int()
    )
    return other.unsigned_distance(points)[0]


def from_upstream(made: Any) -> Baked:
    """Read what upstream's `to_glb` returns."""
    material = made.visual.material
    x, y, z = np.asarray(made.vertices, np.float32).T
    uvs = np.asarray(made.visual.uv, np.float32).copy()
    uvs[:, 1] = 1 - uvs[:, 1]
    color = np.asarray(material.baseColorTexture)[..., :3]
    return Baked(np.stack([x, -z, y], 1), np.asarray(made.faces, np.int64), uvs, color)


def from_asset(asset: Any) -> Baked:
    """Read an asset of ours, back into upstream's axes."""
    x, y, z = asset.vertices.T
    uvs = asset.uvs.copy()
    uvs[:, 1] = 1 - uvs[:, 1]
    vertices = np.ascontiguousarray(np.stack([x, -z, y], 1))
    return Baked(vertices, asset.faces.astype(np.int64), uvs, asset.base_color)


def voxel_sampler(decoded: Decoded) -> Sampler:
    """Return what looks up voxels' colours near a surface point."""
    return Sampler(decoded, Surface(decoded.vertices.cuda(), decoded.faces.cuda()))


def _coverage(uvs: Tensor, faces: Tensor, size: int = 4096) -> tuple[float, float]:
    hits = torch.zeros(size * size, dtype=torch.int32, device=uvs.device)
    for part in torch.split(faces, 131_072):
        _, x, y = covered_texels(uvs[part] * size)
        at = y.clamp(max=size - 1) * size + x.clamp(max=size - 1)
        hits.index_add_(0, at, torch.ones_like(at, dtype=torch.int32))
    covered = int((hits > 0).sum())
    return covered / size**2, int((hits > 1).sum()) / max(1, covered)


def _stretch(vertices: Tensor, faces: Tensor, uvs: Tensor) -> float:
    """Return Sander et al.'s L2 stretch (SIGGRAPH 2001) over the whole mesh, normalised by area."""
    p, t = vertices[faces].double(), uvs[faces].double()
    e1, e2 = t[:, 1] - t[:, 0], t[:, 2] - t[:, 0]
    twice = e1[:, 0] * e2[:, 1] - e1[:, 1] * e2[:, 0]
    area = torch.linalg.cross(p[:, 1] - p[:, 0], p[:, 2] - p[:, 0]).norm(dim=1) / 2
    good = (twice.abs() > 1e-14) & (area > 1e-14)
    p, e1, e2, twice, area = p[good], e1[good], e2[good], twice[good], area[good]
    d1, d2 = p[:, 1] - p[:, 0], p[:, 2] - p[:, 0]
    along_u = (d1 * e2[:, 1:] - d2 * e1[:, 1:]) / twice[:, None]
    along_v = (d2 * e1[:, :1] - d1 * e2[:, :1]) / twice[:, None]
    square = ((along_u**2).sum(1) + (along_v**2).sum(1)) / 2
    mean = (square * area).sum() / area.sum()
    return float((mean * (twice.abs() / 2).sum() / area.sum()).sqrt())


def _psnr(baked: Baked, vertices: Tensor, faces: Tensor, uvs: Tensor, sampler: Sampler) -> float:
    face, weights = _random_points(vertices, faces)
    points = (vertices[faces[face]] * weights[..., None]).sum(1)
    at = (uvs[faces[face]] * weights[..., None]).sum(1)
    image = torch.from_numpy(baked.base_color.copy()).cuda().float().permute(2, 0, 1)[None] / 255
    seen = torch.nn.functional.grid_sample(
        image, (at * 2 - 1)[None, None].float(), align_corners=False, padding_mode="border"
    )[0, :, 0].T
    wanted = sampler(points)[:, :3].clamp(0, 1)
    error = ((seen - wanted) ** 2).mean()
    return float(-10 * torch.log10(error.clamp(min=1e-12)))


def _random_points(vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
    corners = vertices[faces]
    area = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(
        dim=1
    )
    generator = torch.Generator(vertices.device).manual_seed(0)
    along = torch.rand(_POINTS, generator=generator, device=vertices.device).double()
    face = torch.searchsorted(area.double().cumsum(0) / area.double().sum(), along)
    u, v = torch.rand((2, _POINTS), generator=generator, device=vertices.device)
    flip = u + v > 1
    u, v = torch.where(flip, 1 - u, u), torch.where(flip, 1 - v, v)
    return face.clamp(max=len(faces) - 1), torch.stack([1 - u - v, u, v], 1)
