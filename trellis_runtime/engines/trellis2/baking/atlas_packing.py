"""Packing flat charts into one square texture, all at one density, with their true outlines.

    flat charts, texels per unit s (a guess)
      -> cells: the texture as a grid of at most 1024 a side; each chart widened by half of the
         padding on every side, and all cells that this touches          (Warp, on the device)
      -> runs of cells in each of four quarter turns
      -> `packing_kernel`: each chart at the lowest free place of a strip as wide as the texture
      -> the strip's height h tells the next guess  s sqrt(side / h); the largest s that fits stays

Two charts whose widened outlines share no cell lie at least the padding apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trellis_runtime.engines.trellis2.baking.chart_set import ChartSet, extents, signed_areas
from trellis_runtime.engines.trellis2.baking.launch import launch
from trellis_runtime.engines.trellis2.baking.packing_kernel import place
from trellis_runtime.engines.trellis2.baking.uv_kernels import mark_cells
from trellis_runtime.engines.trellis2.device.baton import HostWork

_FINEST = 1024  # cells a side; more only where there are too many charts
_GUESS = 0.8  # of the cells, that charts and the padding around them will fill
_LEAST_PADDING = 2  # texels
_LEAST_SHOWN = 0.7  # of the texture: where charts would take less, there is less padding
_TRIALS = 5
_MOST_TRIALS = 60  # each shrinks the charts, so that in the end they fit
_GOOD = 0.985  # rows used of those there are, after which no other density is tried
_STRIP = 3  # a strip is so many times as long as the texture


Ints = NDArray[np.int32]
_Strategy = tuple[Callable[[NDArray[np.int32]], NDArray[np.int32]], float]

_STRATEGIES: list[_Strategy] = [
    (lambda sizes: sizes.prod(1), 0.7),
    (lambda sizes: sizes.max(1), 0.4),
    (lambda sizes: sizes.sum(1), 0.4),
    (lambda sizes: sizes.min(1), 0.4),
]
"""By what charts are sorted, and how much a turn's height counts beside the row where it begins."""


@dataclass(frozen=True, slots=True)
class _Grid:
    side: int  # cells
    margin: float  # half of the padding, in cells


def default_padding(texture_size: int) -> int:
    """Return how many texels lie between charts: 2; 4 in a texture of 2048, 8 in one of 4096."""
    return max(_LEAST_PADDING, texture_size // 512)


def pack(
    flat: Tensor,
    charts: ChartSet,
    texture_size: int,
    padding: int | None = None,
    on_host: HostWork = nullcontext,
) -> tuple[Tensor, float]:
    """Return texture coordinates (V, 2) in 0..1, and the texture's sides per unit of `flat`.

    flat (V, 2) float32: each chart's lower corner is at the origin. Without `padding` (texels) it
    is the default, or less, but no less than 2, where it would take most of the texture.
    """
    _, size = extents(flat, charts.owner, charts.count)
    area = float(signed_areas(flat, charts.faces).double().abs().sum())
    grid = _grid(area, size, texture_size, padding)
    scale = _first_guess(area, size, grid)
    best: tuple[Tensor, float] | None = None
    for trial in range(_MOST_TRIALS):
        strategies = _STRATEGIES[: 1 if trial == 0 else 4]
        uvs, rows = _packed(flat, size, charts, grid, scale, strategies, on_host)
        if 0 <= rows <= grid.side:
            if best is None or scale > best[1]:
                best = uvs, scale
            if rows >= _GOOD * grid.side or scale >= _largest(size, grid):
                break
        if trial >= _TRIALS and best is not None:
            break
        scale = _next(scale, rows, size, grid, best)
    if best is None:
        raise RuntimeError(f"{charts.count} charts found no place on {grid.side} x {grid.side}")
    return best[0], best[1] / grid.side


def _next(
    scale: float, rows: int, size: Tensor, grid: _Grid, best: tuple[Tensor, float] | None
) -> float:
    """Return the next scale to try after `scale` took `rows` rows, or did not fit (-1)."""
    factor = 0.6 if rows <= 0 else math.sqrt(0.997 * grid.side / rows)
    guess = min(scale * factor, _largest(size, grid))
    if best is not None and rows > grid.side and guess <= best[1]:
        return (scale + best[1]) / 2
    return guess


def _grid(area: float, size: Tensor, texture_size: int, padding: int | None) -> _Grid:
    """Return a grid on which charts of `size` (charts, 2) and `area` in all have room.

    There is less padding where so many charts would leave no room for what they show.
    """
    side = min(texture_size, _FINEST)
    texels = default_padding(texture_size) if padding is None else padding
    grid = _Grid(side, texels / 2 * side / texture_size)
    while padding is None and texels > _LEAST_PADDING and _shown(area, size, grid) < _LEAST_SHOWN:
        texels -= 1
        grid = _Grid(side, texels / 2 * side / texture_size)
    while (room := (math.sqrt(0.3 * side * side / len(size)) - 1) / 2) < min(grid.margin, 0.05):
        side *= 2
    return _Grid(side, min(grid.margin * side / grid.side, room))


def _shown(area: float, size: Tensor, grid: _Grid) -> float:
    """Return the share of charts in what they and the padding around them take."""
    scale = _first_guess(area, size, grid)
    return area * scale**2 / (_GUESS * grid.side**2)


def _largest(size: Tensor, grid: _Grid) -> float:
    """Return the scale at which the longest chart is as long as the grid."""
    return (grid.side - 2 * grid.margin - 1e-3) / max(float(size.max()), 1e-20)


def _first_guess(area: float, size: Tensor, grid: _Grid) -> float:
    """Return cells per unit at which charts and the padding around them fill _GUESS of the grid."""
    around = float(size.double().sum()) * (2 * grid.margin + 1)
    corners = len(size) * (2 * grid.margin + 1) ** 2 - _GUESS * grid.side**2
    # area s^2 + around s + corners = 0
    root = math.sqrt(max(around * around - 4 * area * corners, 0.0))
    guess = -2 * corners / max(around + root, 1e-20) if corners < 0 else 1e-3
    return min(guess, _largest(size, grid))


def _packed(
    flat: Tensor,
    size: Tensor,
    charts: ChartSet,
    grid: _Grid,
    scale: float,
    strategies: list[_Strategy],
    on_host: HostWork,
) -> tuple[Tensor, int]:
    """Return texture coordinates (V, 2) at `scale` cells per unit, and the rows that were used.

    Of the strategies, it is the first whose rows are no more than the grid's, or the one with the
    fewest.
    """
    cells = flat * scale + grid.margin
    columns_rows = (size * scale + 2 * grid.margin).ceil().int().clamp(min=1)
    runs, begins = cell_runs(*_touched(cells, charts, columns_rows, grid.margin), columns_rows)
    sizes = columns_rows.cpu().numpy()
    with on_host():
        best = _placed(runs, begins, sizes, grid.side, strategies)
    at = torch.from_numpy(best[0]).to(flat.device)
    return _moved(cells, columns_rows, at, charts.owner) / grid.side, best[1]


def _placed(
    runs: Ints, begins: Ints, sizes: Ints, side: int, strategies: list[_Strategy]
) -> tuple[Ints, int]:
    """Return each chart's place and the rows used, by the first strategy that fits, or the best.

    They are tried side by side; which is taken depends on their order alone.
    """

    def tried(strategy: _Strategy) -> tuple[Ints, int]:
        importance, lift = strategy
        order = np.lexsort((-sizes.min(1), -importance(sizes))).astype(np.int32)
        return place(runs, begins, sizes, order, side, _STRIP * side, lift)

    if len(strategies) == 1:
        return tried(strategies[0])
    with ThreadPoolExecutor(len(strategies)) as pool:  # compiled code lets other threads go on
        found = list(pool.map(tried, strategies))
    fitting = [one for one in found if 0 <= one[1] <= side]
    return fitting[0] if fitting else min(found, key=lambda one: one[1] if one[1] >= 0 else np.inf)


def _moved(cells: Tensor, sizes: Tensor, at: Tensor, owner: Tensor) -> Tensor:
    """Return cells (V, 2), each chart turned by its quarter turns and at its place (charts, 3)."""
    turn = at[owner, 0]
    x, y = cells.unbind(1)
    width, height = sizes[owner].to(cells.dtype).unbind(1)
    turned_x = torch.stack([x, height - y, width - x, y], 1).gather(1, turn.long()[:, None])
    turned_y = torch.stack([y, x, height - y, width - x], 1).gather(1, turn.long()[:, None])
    return torch.cat([turned_x, turned_y], 1) + at[owner, 1:]


def _touched(
    cells: Tensor, charts: ChartSet, sizes: Tensor, margin: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return all cells, as chart, x and y (N,), that faces widened by `margin` touch; sorted."""
    width, height = sizes.long().unbind(1)
    ends = (width * height).cumsum(0)
    begins = ends - width * height
    marks = torch.zeros(int(ends[-1]), dtype=torch.int32, device=cells.device)
    launch(
        mark_cells,
        len(charts.faces),
        [
            cells[charts.faces].reshape(-1),
            charts.chart.int(),
            begins.int(),
            sizes.contiguous().view(-1),
            marks,
            margin,
        ],
    )
    at = marks.nonzero()[:, 0]
    chart = torch.searchsorted(ends, at, right=True)
    within = at - begins[chart]
    return chart, within % width[chart], within // width[chart]


def cell_runs(chart: Tensor, x: Tensor, y: Tensor, sizes: Tensor) -> tuple[Ints, Ints]:
    """Return runs (N, 3) int32 of cells: row, column, length; and where each chart's turns begin.

    The cells, (N,) each, come by chart, row (y) and column (x); `sizes` are columns and rows
    (charts, 2). Runs are sorted by chart, turn (0..3 quarter turns to the left), the longest first.
    """
    width, height = sizes.long().unbind(1)
    flat = _lines((chart << 32) | (y << 16) | x)  # cells come in this order
    steep = _lines(((chart << 32) | (x << 16) | (height[chart] - 1 - y)).sort().values)
    turns = [flat, steep, _half_turn(*flat, width, height), _half_turn(*steep, height, width)]
    key, length = (torch.cat(parts) for parts in zip(*turns, strict=True))
    group = torch.cat([(first >> 32) * 4 + turn for turn, (first, _) in enumerate(turns)])
    order = ((group << 16) | (65535 - length)).argsort(stable=True)
    key, length, group = key[order], length[order], group[order]
    runs = torch.stack([(key >> 16) & 65535, key & 65535, length], 1).int()
    begins = torch.searchsorted(group, torch.arange(4 * len(sizes) + 1, device=key.device))
    return runs.cpu().numpy(), begins.int().cpu().numpy()


def _lines(key: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first of each run of consecutive keys (N,), and how many they are (N,)."""
    first = torch.ones_like(key, dtype=torch.bool)
    first[1:] = key[1:] != key[:-1] + 1
    begin = first.nonzero()[:, 0]
    return key[begin], torch.diff(begin, append=begin.new_tensor([len(key)]))


def _half_turn(key: Tensor, length: Tensor, columns: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return runs (N,) turned by 180 degrees in charts of so many columns and rows (charts,)."""
    chart = key >> 32
    row = rows[chart] - 1 - ((key >> 16) & 65535)
    column = columns[chart] - (key & 65535) - length
    # From the last to the first, which keeps each chart's own in order.
    return ((chart << 32) | (row << 16) | column).flip(0), length.flip(0)
