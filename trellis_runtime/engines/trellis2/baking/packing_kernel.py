"""Where each chart goes on a page of bits: the lowest row, then the leftmost column, that is free.

A chart is a list of runs (row, first column, length) of cells in each of four quarter turns. For
a candidate row of the page, all columns are tried at once, 64 to a word:

    level k of the page, bit x:  is any of the cells x .. x + 2^k - 1 of this row taken?
    a run of n cells from column c, with 2^k <= n < 2^(k+1), cannot start at x where
        level_k[x + c]  or  level_k[x + c + n - 2^k]   is set
    taken = or over the chart's runs, its longest first; a zero bit is a place

One thread does it, in compiled code on the CPU: each place depends on all before it. Charts come
from large to small; within a class of size, rows below the last place found are not tried again. A
high chart is tried at every second row, or fewer, and then at those below where it fits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import warp
from numpy.typing import NDArray

from trellis_runtime.engines.trellis2.baking.uv_kernels import place_charts

_WORD = 64
_LEVELS = 14  # runs up to 2^14 cells

Ints = NDArray[np.int32]


def place(
    runs: Ints, begins: Ints, sizes: Ints, order: Ints, width: int, height: int, lift: float = 1.0
) -> tuple[Ints, int]:
    """Return each chart's place (charts, 3): quarter turns, column, row; and rows used, or -1.

    runs (N, 3) int32: row, first column, length; those of chart i turned t times are
    begins[4 i + t] to begins[4 i + t + 1]. sizes (charts, 2): columns and rows before turning.
    order (charts,): from large to small. The page has `width` columns and `height` rows; -1 where
    they were too few.
    """
    warp.init()  # does its work once
    words = (width + _WORD - 1) // _WORD + 2  # a run that is moved reads beyond the last column
    page = np.zeros(_LEVELS * height * words, np.uint64)
    mask = np.zeros(words, np.uint64)
    places = np.zeros((len(order), 3), np.int32)
    used = np.zeros(1, np.int32)
    arrays: list[NDArray[Any]] = [runs, begins, sizes, order, page, mask, places, used]
    arguments = [warp.array(x.reshape(-1), device="cpu", copy=False) for x in arrays]
    numbers = [len(order), width, height, words, lift]
    warp.launch(place_charts, dim=1, inputs=[*arguments, *numbers], device="cpu")
    return places, int(used[0])
