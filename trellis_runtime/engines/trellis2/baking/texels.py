"""All maps of a texture in one pass over its texels.

    raster -> blocks of texels -> points -> attributes -> bytes -> gutters -> maps

Attributes are rounded to bytes, not cut off: at 50 dB the half step that truncation loses on the
mean is more than everything else together (1/3 against 1/12 of a step squared).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trellis_runtime.engines.trellis2.baking.gutters import fill_gutters
from trellis_runtime.engines.trellis2.baking.lookup import VoxelAttributeLookup
from trellis_runtime.engines.trellis2.baking.raster import Raster


@dataclass(frozen=True, slots=True)
class Maps:
    """base_color (S, S, 3 or 4) sRGB as decoded, metallic_roughness (S, S, 3): 0, G, B."""

    base_color: NDArray[np.uint8]
    metallic_roughness: NDArray[np.uint8]


def bake_texels(raster: Raster, lookup: VoxelAttributeLookup, budget: int = 256 << 20) -> Tensor:
    """Return texels (S, S, 6) uint8 of all six attributes, gutters filled.

    Beside the result, blocks take at most about `budget` bytes.
    """
    size = raster.size
    texels = torch.zeros((size * size, 6), dtype=torch.uint8, device=raster.owners.device)
    for block in raster.blocks(budget // 2):
        texels[block] = as_bytes(lookup(raster.points(block), budget // 2))
    return fill_gutters(texels.reshape(size, size, 6), raster.shown)


def as_bytes(values: Tensor) -> Tensor:
    """Return values in 0..1 as the nearest of 0..255, uint8."""
    return (values.clamp(0, 1) * 255).round().to(torch.uint8)


def split_maps(texels: Tensor, *, alpha: bool) -> Maps:
    """Return texels (S, S, 6) as glTF's textures; `alpha`: whether the base colour has any."""
    pixels = texels.cpu().numpy()
    base = pixels[..., [0, 1, 2, 5]] if alpha else pixels[..., :3]
    packed = np.stack([np.zeros_like(pixels[..., 4]), pixels[..., 4], pixels[..., 3]], axis=-1)
    return Maps(np.ascontiguousarray(base), packed)
