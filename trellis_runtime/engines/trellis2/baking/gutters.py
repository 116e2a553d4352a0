"""Gutters: texels that no face covers get the value of the nearest covered one.

    seeds: each covered texel knows itself          step = S / 2, S / 4, ... 1:
    others know nobody                     ->       ask the eight texels `step` away whom they know

Filtering and mipmaps read beyond a chart's edge, and must not find black there. Jump flooding (Rong
and Tan, Jump Flooding in GPU with Applications to Voronoi Diagram and Distance Transform, I3D 2006)
finds the nearest texel, or now and then one a little farther, in log2(size) passes. Of two equally
near the one with the lower index counts. Two maps of 4 bytes a texel are all that it needs.
"""

# No `from __future__ import annotations` here: Warp reads the kernels' annotations as types.

import torch
import warp
from torch import Tensor

from trellis_runtime.engines.trellis2.baking.launch import launch

_NOBODY = -1
_BLOCK = 1 << 22

warp.set_module_options({"enable_backward": False})


@warp.func
def _square_distance(
    seed: warp.int32, y: warp.int32, x: warp.int32, width: warp.int32
) -> warp.int32:
    dy, dx = seed / width - y, seed % width - x
    return dy * dy + dx * dx


@warp.kernel
def _flood(
    known: warp.array(dtype=warp.int32),  # type: ignore[valid-type]
    height: warp.int32,
    width: warp.int32,
    step: warp.int32,
    found: warp.array(dtype=warp.int32),  # type: ignore[valid-type]
) -> None:
    i = warp.tid()
    y, x = i / width, i % width
    best = warp.int32(known[i])
    least = warp.int32(0x7FFFFFFF)
    if best >= 0:
        least = _square_distance(best, y, x, width)
    for dy in range(-1, 2):
        for dx in range(-1, 2):
            there_y, there_x = y + dy * step, x + dx * step
            if min(there_y, there_x) >= 0 and there_y < height and there_x < width:
                seed = known[there_y * width + there_x]
                if seed >= 0:
                    away = _square_distance(seed, y, x, width)
                    if away < least or (away == least and seed < best):
                        least = away
                        best = seed
    found[i] = best


def fill_gutters(texels: Tensor, covered: Tensor) -> Tensor:
    """Return texels (H, W, C), those outside `covered` (H, W) filled, the others as given."""
    if not bool(covered.any()) or bool(covered.all()):
        return texels
    nearest = _nearest(covered)
    flat, filled = texels.reshape(-1, texels.shape[2]), torch.empty_like(texels)
    into = filled.reshape(-1, texels.shape[2])
    for start in range(0, len(flat), _BLOCK):
        part = slice(start, start + _BLOCK)
        into[part] = flat[nearest[part].long()]
    return filled


def _nearest(covered: Tensor) -> Tensor:
    """Return the index (H * W,) int32 of a covered texel near each texel."""
    height, width = covered.shape
    itself = torch.arange(height * width, dtype=torch.int32, device=covered.device)
    known = torch.where(covered.reshape(-1), itself, _NOBODY)
    found = itself
    step = 1 << (max(height, width) - 1).bit_length() - 1
    while step >= 1:
        launch(_flood, height * width, [known, height, width, step, found])
        known, found = found, known
        step //= 2
    return known
