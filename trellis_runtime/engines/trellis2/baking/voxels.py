"""Coloured voxels that can be asked for the values at a point.

    cells -> bricks of 4 x 4 x 4, each a mask of 64 bits and the row of its first value
    point -> brick (dense table) -> bit -> first row + number of lower bits set = the cell's row

As FlexGEMM's `grid_sample_3d` in trilinear mode, whose kernel is tuned anew for every number of
points, 1.5 s each time; here a cell is found without searching. The table takes 4 bytes a brick of
the whole grid: 8 MiB at 512, 64 at 1024, 216 at 1536, beside 12 bytes an occupied brick.
"""

# No `from __future__ import annotations` here: Warp reads the kernels' annotations as types.

import torch
import warp
from torch import Tensor

from trellis_runtime.engines.trellis2.baking.launch import launch

_BRICK = 4
_SEARCH = 4  # cells that an empty place is searched around before all voxels are asked
_SURE = (_SEARCH + 0.5) ** 2
_BLOCK_PAIRS = 1 << 26

warp.set_module_options({"fuse_fp": False, "enable_backward": False})


@warp.struct
class _Bricks:
    """The grid as kernels see it."""

    table: warp.array(dtype=warp.int32)  # type: ignore[valid-type]
    masks: warp.array(dtype=warp.int64)  # type: ignore[valid-type]
    first: warp.array(dtype=warp.int32)  # type: ignore[valid-type]
    side: warp.int32
    across: warp.int32


@warp.func
def _ones(mask: warp.uint64) -> warp.int32:
    """The number of set bits, summed in pairs, fours and eights (Warp has it only from 1.18 on)."""
    pairs = mask - ((mask >> warp.uint64(1)) & warp.uint64(0x5555555555555555))
    low = warp.uint64(0x3333333333333333)
    fours = (pairs & low) + ((pairs >> warp.uint64(2)) & low)
    eights = (fours + (fours >> warp.uint64(4))) & warp.uint64(0x0F0F0F0F0F0F0F0F)
    return warp.int32((eights * warp.uint64(0x0101010101010101)) >> warp.uint64(56))


@warp.func
def _row(grid: _Bricks, x: warp.int32, y: warp.int32, z: warp.int32) -> warp.int32:
    """The row of a cell's values, -1 where there is none."""
    if warp.min(x, warp.min(y, z)) < 0 or warp.max(x, warp.max(y, z)) >= grid.side:
        return -1
    brick = grid.table[((x >> 2) * grid.across + (y >> 2)) * grid.across + (z >> 2)]
    if brick < 0:
        return -1
    bit = warp.uint64(((x & 3) << 4) | ((y & 3) << 2) | (z & 3))
    mask = warp.uint64(grid.masks[brick])
    if (mask >> bit) & warp.uint64(1) == warp.uint64(0):
        return -1
    below = mask & ((warp.uint64(1) << bit) - warp.uint64(1))
    return grid.first[brick] + _ones(below)


@warp.func
def _nearest_row(grid: _Bricks, p: warp.vec3) -> warp.int32:
    """The row of the cell whose centre is nearest to `p`, within `_SEARCH` cells; else -1."""
    x = warp.int32(warp.floor(p[0]))
    y = warp.int32(warp.floor(p[1]))
    z = warp.int32(warp.floor(p[2]))
    best = warp.int32(-1)
    least = warp.float32(_SURE)  # a centre farther may have one outside nearer
    for dx in range(-_SEARCH, _SEARCH + 1):
        for dy in range(-_SEARCH, _SEARCH + 1):
            for dz in range(-_SEARCH, _SEARCH + 1):
                row = _row(grid, x + dx, y + dy, z + dz)
                if row >= 0:
                    centre = warp.vec3(float(x + dx), float(y + dy), float(z + dz))
                    away = warp.length_sq(centre + warp.vec3(0.5, 0.5, 0.5) - p)
                    if away < least:
                        least = away
                        best = row
    return best


@warp.func
def _around(
    grid: _Bricks,
    p: warp.vec3,
    values: warp.array2d(dtype=warp.float32),  # type: ignore[valid-type]
    i: warp.int32,
    out: warp.array2d(dtype=warp.float32),  # type: ignore[valid-type]
) -> warp.float32:
    """Add up the eight cells around `p` that exist, by their weights; return the weights' sum."""
    x = warp.int32(warp.floor(p[0] - 0.5))
    y = warp.int32(warp.floor(p[1] - 0.5))
    z = warp.int32(warp.floor(p[2] - 0.5))
    share = warp.vec3(p[0] - 0.5 - float(x), p[1] - 0.5 - float(y), p[2] - 0.5 - float(z))
    total = warp.float32(0.0)
    for corner in range(8):
        dx, dy, dz = corner & 1, (corner >> 1) & 1, (corner >> 2) & 1
        row = _row(grid, x + dx, y + dy, z + dz)
        if row >= 0:
            weight = warp.abs(1.0 - float(dx) - share[0])
            weight = weight * warp.abs(1.0 - float(dy) - share[1])
            weight = weight * warp.abs(1.0 - float(dz) - share[2])
            total += weight
            for k in range(values.shape[1]):
                out[i, k] = out[i, k] + weight * values[row, k]
    return total


@warp.kernel
def _sample(
    grid: _Bricks,
    points: warp.array(dtype=warp.vec3),  # type: ignore[valid-type]
    values: warp.array2d(dtype=warp.float32),  # type: ignore[valid-type]
    out: warp.array2d(dtype=warp.float32),  # type: ignore[valid-type]
    lost: warp.array(dtype=warp.int32),  # type: ignore[valid-type]
) -> None:
    i = warp.tid()
    total = _around(grid, points[i], values, i, out)
    if total >= 1.0e-6:
        for k in range(values.shape[1]):
            out[i, k] = out[i, k] / total
        return
    # Nothing is there, or nothing but a corner's last rounding error.
    row = _nearest_row(grid, points[i])
    if row < 0:
        lost[i] = 1
        return
    for k in range(values.shape[1]):
        out[i, k] = values[row, k]


class VoxelGrid:
    """Cells (L, 3) int, L > 0, of a grid of `resolution` a side, with values (L, C)."""

    def __init__(self, cells: Tensor, values: Tensor, resolution: int) -> None:
        warp.init()  # does its work once
        self._given = cells, values
        self._resolution = resolution
        self._across = -(-resolution // _BRICK)
        keys, order = self._keys(cells).sort(stable=True)
        fresh = torch.ones_like(keys, dtype=torch.bool)
        fresh[1:] = keys[1:] != keys[:-1]  # of a cell given twice the first counts
        self._values = values[order[fresh]].float().contiguous()
        self._index(keys[fresh])

    def _keys(self, cells: Tensor) -> Tensor:
        """Return numbers (L,) int64 that sort cells by brick, and then by bit."""
        brick = torch.zeros(len(cells), dtype=torch.int64, device=cells.device)
        bit = torch.zeros_like(brick)
        for along in cells.unbind(1):
            brick.mul_(self._across).add_(along >> 2)
            bit.mul_(_BRICK).add_(along & 3)
        return brick.mul_(64).add_(bit)

    def _index(self, keys: Tensor) -> None:
        found, place, number = torch.unique_consecutive(
            keys // 64, return_inverse=True, return_counts=True
        )
        self._first = (number.cumsum(0) - number).int()
        self._masks = torch.zeros_like(found)
        self._masks.index_add_(0, place, torch.ones_like(keys) << (keys % 64))  # bits of their own
        self._table = torch.full((self._across**3,), -1, dtype=torch.int32, device=keys.device)
        self._table[found] = torch.arange(len(found), dtype=torch.int32, device=keys.device)

    def sample(self, points: Tensor) -> Tensor:
        """Return values (N, C) at points (N, 3) in cells: a cell's centre is at its index + 0.5.

        The eight cells around a point weigh in trilinearly, those that exist alone. Where none
        of them does, the value of the nearest cell is taken, however far it is.
        """
        points = points.float().contiguous()
        out = points.new_zeros((len(points), self._values.shape[1]))
        lost = torch.zeros(len(points), dtype=torch.int32, device=points.device)
        launch(_sample, len(points), [self._bricks(), points, self._values, out, lost])
        missing = lost.nonzero()[:, 0]
        if len(missing):
            out[missing] = self._nearest(points[missing])
        return out

    def _bricks(self) -> _Bricks:
        grid = _Bricks()
        grid.table = warp.from_torch(self._table)
        grid.masks = warp.from_torch(self._masks)
        grid.first = warp.from_torch(self._first)
        grid.side, grid.across = self._resolution, self._across
        return grid

    def _nearest(self, points: Tensor) -> Tensor:
        """Return the values (N, C) of the cells nearest to points far from all of them."""
        cells, values = self._given
        centres = cells + 0.5
        step = max(1, _BLOCK_PAIRS // len(centres))
        rows = [torch.cdist(some, centres).argmin(1) for some in torch.split(points, step)]
        return values[torch.cat(rows)].float()
