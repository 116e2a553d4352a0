"""Gutters: texels that no face covers get the value of the nearest covered one.

Filtering and mipmaps read beyond a chart's edge, and must not find black there. Jump flooding (Rong
and Tan, Jump Flooding in GPU with Applications to Voronoi Diagram and Distance Transform, I3D 2006)
finds the nearest texel, or now and then one a little farther, in log2(size) passes.
"""

from __future__ import annotations

import torch
from torch import Tensor

_FAR = 1 << 14
_STEPS = (-1, 0, 1)


def fill_gutters(texels: Tensor, covered: Tensor) -> Tensor:
    """Return texels (H, W, C), those outside `covered` (H, W) filled, the others as given."""
    if not bool(covered.any()) or bool(covered.all()):
        return texels
    rows, columns = _nearest(covered)
    return texels[rows.long(), columns.long()]


def _nearest(covered: Tensor) -> tuple[Tensor, Tensor]:
    """Return row and column (H, W) int16 of a covered texel near each texel."""
    height, width = covered.shape
    y = torch.arange(height, dtype=torch.int16, device=covered.device)[:, None].expand(
        covered.shape
    )
    x = torch.arange(width, dtype=torch.int16, device=covered.device)[None, :].expand(covered.shape)
    rows = torch.where(covered, y, _FAR).contiguous()
    columns = torch.where(covered, x, _FAR).contiguous()
    step = 1 << (max(height, width) - 1).bit_length() - 1
    while step >= 1:
        found_y, found_x = rows.clone(), columns.clone()
        best = _square(found_y, y) + _square(found_x, x)
        for dy in _STEPS:
            for dx in _STEPS:
                if dy or dx:
                    _offer(
                        (found_y, found_x, best), (rows, columns), (y, x), (dy * step, dx * step)
                    )
        rows, columns = found_y, found_x
        step //= 2
    return rows, columns


def _offer(
    best: tuple[Tensor, Tensor, Tensor],
    seeds: tuple[Tensor, Tensor],
    at: tuple[Tensor, Tensor],
    shift: tuple[int, int],
) -> None:
    """Where the texel `shift` away knows a nearer seed, take it over."""
    height, width = seeds[0].shape
    (dy, dx) = shift
    if abs(dy) >= height or abs(dx) >= width:
        return
    to = (slice(max(0, -dy), height - max(0, dy)), slice(max(0, -dx), width - max(0, dx)))
    source = (slice(max(0, dy), height + min(0, dy)), slice(max(0, dx), width + min(0, dx)))
    row, column = seeds[0][source], seeds[1][source]
    distance = _square(row, at[0][to]) + _square(column, at[1][to])
    nearer = distance < best[2][to]
    best[0][to] = torch.where(nearer, row, best[0][to])
    best[1][to] = torch.where(nearer, column, best[1][to])
    best[2][to] = torch.where(nearer, distance, best[2][to])


def _square(a: Tensor, b: Tensor) -> Tensor:
    difference = a.int() - b.int()
    return difference * difference
