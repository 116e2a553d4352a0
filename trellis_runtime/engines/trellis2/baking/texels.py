"""All maps of a texture in one pass over its texels.

    raster -> bands of rows -> points -> nearest decoded points -> attributes at texels' centres
           -> fitted, so that what filtering shows between centres is right too
           -> bytes -> gutters -> maps

A value taken at a texel's centre is not the best one to store: filtering flattens every bump by a
part that grows with its curvature. So the texture is read as a renderer reads it, linearly, at four
points a texel, a quarter of a texel from its centre along both axes, where a face covers them, and
what is missing there is given back to the texels that were read, by their shares: one step of the
simultaneous iterative reconstruction technique (SIRT) for least squares. It gains 1 to 3 dB, most
where texels are small and colours differ from voxel to voxel. Alpha is left as it is: opaque must
stay exactly opaque.

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
from trellis_runtime.engines.trellis2.baking.raster import NONE, Raster

_HALO = 2  # rows beside a band that its own depend on
_FITTED = 5  # attributes but alpha
_SIGNS = ((-1, -1), (-1, 1), (1, -1), (1, 1))
_LEAST_SHARE = 0.3  # of one sample: a texel that is read less is corrected less
_BYTES_PER_TEXEL = 256


@dataclass(frozen=True, slots=True)
class Maps:
    """base_color (S, S, 3 or 4) sRGB as decoded, metallic_roughness (S, S, 3): R, G, B.

    R is ambient occlusion where that was baked, else 0.
    """

    base_color: NDArray[np.uint8]
    metallic_roughness: NDArray[np.uint8]


def bake_texels(
    raster: Raster, lookup: VoxelAttributeLookup, budget: int = 256 << 20, *, fit: bool = True
) -> Tensor:
    """Return texels (S, S, 6) uint8 of all six attributes, gutters filled.

    Beside the result, bands take at most about `budget` bytes. fit: whether values are fitted to
    what filtering shows between the texels' centres too, at four more samples a texel.
    """
    size = raster.size
    shape = (size, size, 6)
    texels = torch.zeros(shape, dtype=torch.uint8, device=raster.owners.device)
    rows = max(4 * _HALO, budget // (_BYTES_PER_TEXEL * size)) - 2 * _HALO
    for start in range(0, size, rows):
        end = min(size, start + rows)
        texels[start:end] = as_bytes(_band(raster, lookup, start, end, fit=fit))
    return fill_gutters(texels, raster.shown)


def _band(
    raster: Raster, lookup: VoxelAttributeLookup, start: int, end: int, *, fit: bool
) -> Tensor:
    """Return the attributes (rows, S, 6) of rows `start` to `end` - 1, 0 where nothing shows."""
    size = raster.size
    first, last = max(0, start - _HALO), min(size, end + _HALO)
    texels = (raster.owners[first:last].reshape(-1) != NONE).nonzero()[:, 0]
    points = raster.points(texels + first * size)
    there = lookup.on_surface(points)
    values = torch.zeros(((last - first) * size, 6), device=points.device)
    values[texels] = lookup.attributes_at(there)
    values = values.reshape(last - first, size, 6)
    if fit:
        moved = torch.zeros(((last - first) * size, 3), device=points.device)
        moved[texels] = there - points
        values[..., :_FITTED] += _correction(raster, lookup, values, moved, first)
    return values[start - first : end - first]


def _correction(
    raster: Raster, lookup: VoxelAttributeLookup, values: Tensor, moved: Tensor, first: int
) -> Tensor:
    """Return what to add to values (R, S, 6) of rows from `first` on, (R, S, 5).

    moved (R * S, 3): from the centres' points to the decoded surface. A quarter of a texel away
    it is all but the same, and no nearest point has to be sought again.
    """
    rows, size = values.shape[:2]
    missing, shares = torch.zeros_like(values[..., :_FITTED]), torch.zeros_like(values[..., :1])
    for y, x in _SIGNS:
        offset = (x / 4, y / 4)
        owners = raster.owners_at(offset, first, first + rows).reshape(-1)
        texels = (owners >= 0).nonzero()[:, 0]
        points = raster.points(texels + first * size, offset, owners[texels]) + moved[texels]
        seen = _spread(values[..., :_FITTED], -y, -x).reshape(-1, _FITTED)[texels]
        short = torch.zeros((rows * size, _FITTED + 1), device=values.device)
        short[texels, :_FITTED] = lookup.attributes_at(points)[:, :_FITTED] - seen
        short[texels, _FITTED] = 1
        back = _spread(short.reshape(rows, size, -1), y, x)
        missing += back[..., :_FITTED]
        shares += back[..., _FITTED:]
    shown = raster.owners[first : first + rows, :, None] != NONE
    return missing * shown / shares.clamp(min=_LEAST_SHARE)


def _spread(values: Tensor, y: int, x: int) -> Tensor:
    """Return values (R, S, C) mixed with those `y` rows up and `x` columns left of them.

    The shares 9/16, 3/16, 3/16 and 1/16 are those of linear filtering a quarter of a texel away.
    """
    rows = values * 0.75 + _shifted(values, y, 0) * 0.25
    return rows * 0.75 + _shifted(rows, x, 1) * 0.25


def _shifted(values: Tensor, by: int, axis: int) -> Tensor:
    """Return values of which each is that of its neighbour before (by 1) or after (by -1) it."""
    edge = values.narrow(axis, 0 if by > 0 else values.shape[axis] - 1, 1)
    kept = values.narrow(axis, 0 if by > 0 else 1, values.shape[axis] - 1)
    return torch.cat([edge, kept] if by > 0 else [kept, edge], dim=axis)


def as_bytes(values: Tensor) -> Tensor:
    """Return values in 0..1 as the nearest of 0..255, uint8."""
    return (values.clamp(0, 1) * 255).round().to(torch.uint8)


def split_maps(texels: Tensor, *, alpha: bool, occlusion: Tensor | None = None) -> Maps:
    """Return texels (S, S, 6) as glTF's textures; `alpha`: whether the base colour has any.

    occlusion (S, S, 1) uint8 goes into the red of metallic-roughness, where glTF looks for it.
    """
    pixels = texels.cpu().numpy()
    base = pixels[..., [0, 1, 2, 5]] if alpha else pixels[..., :3]
    red = np.zeros_like(pixels[..., 4]) if occlusion is None else occlusion[..., 0].cpu().numpy()
    packed = np.stack([red, pixels[..., 4], pixels[..., 3]], axis=-1)
    return Maps(np.ascontiguousarray(base), packed)
