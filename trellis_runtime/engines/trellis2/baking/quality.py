"""How good a baked asset is, measured against what was decoded.

    random points of the asset -> nearest decoded points: distances
                               -> texture (bilinear) against voxels: PSNR, dark points
    random points of the decoded surface -> nearest points of the asset: what is missed
    faces, welded by position  -> edges, shells, thickness
    charts                     -> density, stretch; texels -> overlap, utilisation

Points are spread by area, the same ones each time. Stretch is Sander, Snyder, Gortler and Hoppe's
L2 norm (Texture Mapping Progressive Meshes, SIGGRAPH 2001). The mean thickness of a closed shell is
2 V / A, that of a slab.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trellis_runtime.contract.quality import QualityReport
from trellis_runtime.engines.trellis2.baking.components import connected_components
from trellis_runtime.engines.trellis2.baking.connectivity import (
    edge_keys,
    exact_sum_by,
    face_areas,
    half_edges,
    numbered,
)
from trellis_runtime.engines.trellis2.baking.lookup import VoxelAttributeLookup
from trellis_runtime.engines.trellis2.baking.nearest import Surface
from trellis_runtime.engines.trellis2.baking.raster import Raster, rasterize

POINTS = 200_000
_WELD_SHARE = 1e-6
_CHART_FACES = 20
_THIN_VOXELS = 1.5
_BLACK, _NOT_BLACK = 4 / 255, 16 / 255
_NEAR_VOXELS = 3.0
_SUM_BITS = 36  # of the largest of at most 2^26 numbers that are added up
_FLAT = 1e-14  # areas below this, of a unit cube, have no direction


@dataclass(frozen=True, slots=True)
class Baked:
    """An asset to be measured, in the decoded surface's axes, all on one device.

    vertices (V, 3) float32; faces (F, 3); uvs (V, 2), u to the right and v down, and base_color
    (S, S, 3 or 4) uint8, or None for both. raster: of the same, where it is there already.
    """

    vertices: Tensor
    faces: Tensor
    uvs: Tensor | None = None
    base_color: Tensor | None = None
    raster: Raster | None = None
    alpha_mode: str = "OPAQUE"


def measure_quality(
    baked: Baked, lookup: VoxelAttributeLookup, faces_asked: int, points: int = POINTS
) -> QualityReport:
    """Return the report on `baked`; `lookup` knows the decoded surface and its voxels.

    points: how many random points the means are taken over.
    """
    faces = baked.faces.long()
    face, weights = random_points(baked.vertices, faces, points)
    at = _mixed(baked.vertices, faces, face, weights)
    away = (lookup.on_surface(at) - at).norm(dim=1) * lookup.resolution
    area = float(face_areas(baked.vertices, faces).sum())
    decoded = float(face_areas(lookup.surface.vertices, lookup.surface.faces.long()).sum())
    shape = _topology(baked.vertices, faces, lookup.resolution) | {
        "area_ratio": _rounded(area / max(decoded, 1e-30)),
        "distance_voxels": _rounded(float(away.mean())),
        "distance_p99_voxels": _rounded(float(away.kthvalue(max(1, points * 99 // 100))[0])),
        "missed_voxels": _rounded(_missed(baked, lookup, points)),
    }
    texture = {}
    if baked.uvs is not None and baked.base_color is not None:
        texture = _layout(baked, baked.uvs, faces, len(baked.base_color)) | _colors(
            baked.base_color, _mixed(baked.uvs, faces, face, weights), lookup(at)[:, :3]
        )
    return QualityReport.model_validate(
        {
            "faces_asked": faces_asked,
            "faces": len(faces),
            "alpha_mode": baked.alpha_mode,
            **shape,
            **texture,
        }
    )


def random_points(vertices: Tensor, faces: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return faces (N,) and weights (N, 3) of points spread by area, always the same."""
    area = face_areas(vertices, faces)
    whole = area * (2.0**_SUM_BITS / float(area.amax().clamp(min=1e-30)))
    ends = whole.round().long().cumsum(0)  # of integers: on a GPU other sums are never twice alike
    generator = torch.Generator().manual_seed(0)
    along = (torch.arange(count) + torch.rand(count, generator=generator).double()) / count
    wanted = (along.to(ends.device) * ends[-1]).long()
    face = torch.searchsorted(ends, wanted, right=True).clamp(max=len(faces) - 1)
    u, v = torch.rand((2, count), generator=generator)
    flip = u + v > 1
    u, v = torch.where(flip, 1 - u, u), torch.where(flip, 1 - v, v)
    weights = torch.stack([1 - u - v, u, v], 1)
    return face, weights.to(vertices.device)


def _mixed(values: Tensor, faces: Tensor, face: Tensor, weights: Tensor) -> Tensor:
    return (values[faces[face]] * weights[..., None]).sum(1)


def _missed(baked: Baked, lookup: VoxelAttributeLookup, points: int) -> float:
    decoded = lookup.surface
    faces = decoded.faces.long()
    at = _mixed(decoded.vertices, faces, *random_points(decoded.vertices, faces, points))
    asset = Surface(baked.vertices.float(), baked.faces.int())
    there = asset.project(at, _NEAR_VOXELS / lookup.resolution)
    return float((there - at).norm(dim=1).mean()) * lookup.resolution


def _topology(vertices: Tensor, faces: Tensor, resolution: int) -> dict[str, float | int]:
    """Return boundary and non-manifold edges, shells and thin ones, after welding."""
    welded, count = _welded(vertices, faces)
    real = (welded != welded.roll(1, 1)).all(1)
    edges, uses = edge_keys(welded[real], count).unique(return_counts=True)  # type: ignore[no-untyped-call]
    ends = half_edges(welded[real])
    part, shells = numbered(connected_components(ends[:, 0], ends[:, 1], count)[welded[real][:, 0]])
    on_boundary = torch.zeros(count, dtype=torch.bool, device=faces.device)
    on_boundary[edges[uses == 1] // count] = True
    is_open = torch.zeros(shells, dtype=torch.bool, device=faces.device)
    is_open[part[on_boundary[welded[real]].any(1)]] = True
    thickness = _thickness(vertices, faces[real], part, shells)
    return {
        "boundary_edges": int((uses == 1).sum()),
        "nonmanifold_edges": int((uses > 2).sum()),
        "shells": shells,
        "thin_parts": int(((thickness < _THIN_VOXELS / resolution) & ~is_open).sum()),
    }


def _welded(vertices: Tensor, faces: Tensor) -> tuple[Tensor, int]:
    """Return faces (F, 3) over vertices that are one where they are within a millionth."""
    low = vertices.amin(0).double()
    cell = (vertices.amax(0).double() - low).amax().clamp(min=1e-12) * _WELD_SHARE
    keys = ((vertices.double() - low) / cell).round().long()
    packed = (keys[:, 0] << 42) | (keys[:, 1] << 21) | keys[:, 2]
    found, welded = packed.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    return welded[faces], len(found)


def _thickness(vertices: Tensor, faces: Tensor, part: Tensor, parts: int) -> Tensor:
    """Return 2 V / A (P,) of the part (F,) that each face belongs to."""
    a, b, c = vertices[faces].double().unbind(1)
    volume = (a * torch.linalg.cross(b, c)).sum(1) / 6
    area = torch.linalg.cross(b - a, c - a).norm(dim=1) / 2
    sums = exact_sum_by(part, torch.stack([volume, area], 1), parts)
    return 2 * sums[:, 0].abs() / sums[:, 1].clamp(min=1e-30)


def _layout(baked: Baked, uvs: Tensor, faces: Tensor, size: int) -> dict[str, float | int]:
    """Return figures of the texture coordinates."""
    raster = baked.raster
    if raster is None or raster.size != size:
        raster = rasterize(baked.vertices, faces, uvs, size)
    covered = int(raster.covered.sum())
    ends = half_edges(faces)
    labels = connected_components(ends[:, 0], ends[:, 1], len(baked.vertices))
    chart, charts = numbered(labels[faces[:, 0]])
    low, middle, high = _density(baked.vertices, faces, uvs, chart, charts)
    return {
        "charts": charts,
        "density_min": _rounded(low / middle if middle else 1.0),
        "density_median": _rounded(middle * size),
        "density_max": _rounded(high / middle if middle else 1.0),
        "overlap": raster.overlap / max(1, covered),
        "utilization": _rounded(covered / size**2),
        "stretch": _rounded(_stretch(baked.vertices, faces, uvs)),
    }


def _density(
    vertices: Tensor, faces: Tensor, uvs: Tensor, chart: Tensor, charts: int
) -> tuple[float, float, float]:
    """Return least, median and largest ratio of lengths in the texture to those in space."""
    flat = torch.cat([uvs, torch.zeros_like(uvs[:, :1])], 1)
    pair = torch.stack(
        [face_areas(flat, faces), face_areas(vertices, faces), torch.ones_like(chart).double()], 1
    )
    sums = exact_sum_by(chart, pair, charts)
    large = sums[(sums[:, 2] > _CHART_FACES + 0.5) & (sums[:, 1] > _FLAT)]
    if len(large) == 0:
        large = sums[sums[:, 1] > _FLAT]
    if len(large) == 0:
        return 0.0, 0.0, 0.0
    density = (large[:, 0] / large[:, 1]).sqrt()
    return float(density.min()), float(density.median()), float(density.max())


def _stretch(vertices: Tensor, faces: Tensor, uvs: Tensor) -> float:
    """Return the L2 stretch over the whole mesh, normalised by both areas."""
    p, t = vertices[faces].double(), uvs[faces].double()
    e1, e2 = t[:, 1] - t[:, 0], t[:, 2] - t[:, 0]
    twice = e1[:, 0] * e2[:, 1] - e1[:, 1] * e2[:, 0]
    d1, d2 = p[:, 1] - p[:, 0], p[:, 2] - p[:, 0]
    area = torch.linalg.cross(d1, d2).norm(dim=1) / 2
    good = (twice.abs() > _FLAT) & (area > _FLAT)
    if not bool(good.any()):
        return 1.0
    d1, d2, e1, e2, twice, area = (x[good] for x in (d1, d2, e1, e2, twice, area))
    along_u = (d1 * e2[:, 1:] - d2 * e1[:, 1:]) / twice[:, None]
    along_v = (d2 * e1[:, :1] - d1 * e2[:, :1]) / twice[:, None]
    square = ((along_u**2).sum(1) + (along_v**2).sum(1)) / 2
    mean = (square * area).sum() / area.sum()
    return float((mean * (twice.abs() / 2).sum() / area.sum()).sqrt())


def _colors(base_color: Tensor, at: Tensor, wanted: Tensor) -> dict[str, float]:
    """Return how far the texture at coordinates (N, 2) is from the colours wanted (N, 3)."""
    image = base_color[..., :3].permute(2, 0, 1)[None].float() / 255
    seen = torch.nn.functional.grid_sample(
        image, (at * 2 - 1)[None, None].float(), align_corners=False, padding_mode="border"
    )[0, :, 0].T
    wanted = wanted.clamp(0, 1)
    error = ((seen - wanted).double() ** 2).mean()
    dark = (seen.amax(1) < _BLACK) & (wanted.amax(1) > _NOT_BLACK)
    return {
        "psnr_db": _rounded(float(-10 * torch.log10(error.clamp(min=1e-12)))),
        "dark_texels": float(dark.double().mean()),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
