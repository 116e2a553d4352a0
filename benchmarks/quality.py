"""How good a baked asset is, ours or upstream's, by the same measure: `baking.quality`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from trellis_runtime.contract.engine import Asset
from trellis_runtime.engines.trellis2.baking.chamfer import chamfer
from trellis_runtime.engines.trellis2.baking.lookup import VoxelAttributeLookup
from trellis_runtime.engines.trellis2.baking.nearest import Surface
from trellis_runtime.engines.trellis2.baking.quality import Baked, measure_quality

__all__ = ["chamfer"]  # its home is the package; suites find all measures here

_POINTS = 200_000
_MEASURES = ("charts", "utilization", "overlap", "stretch", "psnr_db")


def best_device() -> str:
    """Return "cuda" where there is a card, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def report(baked: Baked, lookup: VoxelAttributeLookup) -> dict[str, Any]:
    """Return the figures of the texture: see `QualityReport`, whose names they have."""
    return full_report(baked, lookup, len(baked.faces), _MEASURES)


def full_report(
    baked: Baked,
    lookup: VoxelAttributeLookup,
    faces_asked: int,
    names: tuple[str, ...] | None = None,
) -> dict[str, Any]:
    """Return the figures called `names`, by default all, rounded to five digits."""
    measured = measure_quality(baked, lookup, faces_asked, _POINTS).model_dump()
    chosen = measured if names is None else {name: measured[name] for name in names}
    return {
        name: float(f"{value:.5g}") if isinstance(value, float) else value
        for name, value in chosen.items()
    }


def from_upstream(made: Any, device: str | None = None) -> Baked:
    """Read what upstream's `to_glb` returns."""
    material = made.visual.material
    color = np.asarray(material.baseColorTexture)
    uvs = np.array(made.visual.uv, np.float32)
    uvs[:, 1] = 1 - uvs[:, 1]  # trimesh has v from below
    return _baked(made.vertices, made.faces, uvs, color, "OPAQUE", device)


def from_asset(asset: Asset, device: str | None = None) -> Baked:
    """Read an asset of ours, back into upstream's axes."""
    color = asset.base_color
    uvs = None if color is None else asset.uvs
    return _baked(asset.vertices, asset.faces, uvs, color, asset.alpha_mode, device)


def _baked(
    vertices: Any, faces: Any, uvs: Any, color: Any, alpha_mode: str, device: str | None
) -> Baked:
    """Turn glTF's y up into the decoder's z up, and move all to `device`."""
    device = device or best_device()
    x, y, z = np.asarray(vertices, np.float32).T
    places = torch.from_numpy(np.stack([x, -z, y], 1)).to(device)
    corners = torch.from_numpy(np.asarray(faces).astype(np.int64)).to(device)
    if uvs is None:
        return Baked(places, corners, alpha_mode=alpha_mode)
    pixels = torch.from_numpy(np.array(color[..., :3])).to(device)
    return Baked(places, corners, torch.from_numpy(uvs).to(device), pixels, alpha_mode=alpha_mode)


def voxel_sampler(decoded: Any, device: str | None = None) -> VoxelAttributeLookup:
    """Return what looks up voxels' colours near a surface point of a `Decoded`."""
    device = device or best_device()
    surface = Surface(decoded.vertices.to(device), decoded.faces.to(device))
    coords, attributes = decoded.coords.to(device), decoded.attributes.to(device)
    return VoxelAttributeLookup(surface, coords, attributes, decoded.resolution)
