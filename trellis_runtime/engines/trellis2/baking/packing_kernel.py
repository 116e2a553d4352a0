"""Where each chart goes on a page of bits: the lowest row, then the leftmost column, that is free.

A chart is a list of runs (row, first column, length) of cells in each of four quarter turns. For
a candidate row of the page, all columns are tried at once, 64 to a word:

    level k of the page, bit x:  is any of the cells x .. x + 2^k - 1 of this row taken?
    a run of n cells from column c, with 2^k <= n < 2^(k+1), cannot start at x where
        level_k[x + c]  or  level_k[x + c + n - 2^k]   is set
    taken = or over the chart's runs, its longest first; a zero bit is a place

One thread does it, in compiled code on the CPU: each place depends on all before it. Charts come
from large to small; within a class of size, rows below the last place found are not tried again.
"""

# No `from __future__ import annotations` here: Warp reads the kernel's annotations as types.

import numpy as np
import warp
from numpy.typing import NDArray

_WORD = 64
_LEVELS = 14  # runs up to 2^14 cells
_CLASS = 0.85  # a chart of less than this part of the class's size begins a new class

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
    words = (width + _WORD - 1) // _WORD + 1
    page = np.zeros(_LEVELS * height * words, np.uint64)
    mask = np.zeros(words, np.uint64)
    places = np.zeros((len(order), 3), np.int32)
    used = np.zeros(1, np.int32)
    arrays = [runs, begins, sizes, order, page, mask, places, used]
    arguments = [warp.array(x.reshape(-1), device="cpu", copy=False) for x in arrays]
    numbers = [len(order), width, height, words, lift]
    warp.launch(_place, dim=1, inputs=[*arguments, *numbers], device="cpu")
    return places, int(used[0])


@warp.func
def _shifted(
    page: warp.array(dtype=warp.uint64),  # type: ignore[valid-type]
    begin: int,
    words: int,
    i: int,
    by: int,
) -> warp.uint64:
    """Word i of a row of bits from `begin`, moved `by` columns to the left."""
    at = i + by // 64
    bits = by % 64
    low = warp.uint64(0)
    if at < words:
        low = page[begin + at] >> warp.uint64(bits)
    if bits > 0 and at + 1 < words:
        low = low | (page[begin + at + 1] << warp.uint64(64 - bits))
    return low


@warp.func
def _log2(n: int) -> int:
    k = int(0)
    while (2 << k) <= n:
        k += 1
    return k


@warp.func
def _first_free(
    runs: warp.array(dtype=warp.int32),  # type: ignore[valid-type]
    first: int,
    last: int,
    page: warp.array(dtype=warp.uint64),  # type: ignore[valid-type]
    mask: warp.array(dtype=warp.uint64),  # type: ignore[valid-type]
    y: int,
    columns: int,
    height: int,
    words: int,
) -> int:
    """The first column where the runs fit at row y with `columns` starts to choose from, or -1."""
    used = (columns + 63) // 64
    for i in range(used):
        mask[i] = warp.uint64(0)
    if columns % 64 > 0:
        mask[used - 1] = ~warp.uint64(0) << warp.uint64(columns % 64)
    for r in range(first, last):
        length = runs[3 * r + 2]
        k = _log2(length)
        begin = (k * height + y + runs[3 * r]) * words
        column = runs[3 * r + 1]
        further = column + length - (1 << k)
        every = ~warp.uint64(0)
        for i in range(used):
            taken = mask[i]
            if taken != ~warp.uint64(0):
                taken = taken | _shifted(page, begin, words, i, column)
                taken = taken | _shifted(page, begin, words, i, further)
                mask[i] = taken
                every = every & taken
        if every == ~warp.uint64(0):
            return -1
    for i in range(used):
        taken = mask[i]
        if taken != ~warp.uint64(0):
            for bit in range(64):
                if (taken >> warp.uint64(bit)) & warp.uint64(1) == warp.uint64(0):
                    return 64 * i + bit
    return -1


@warp.func
def _take(
    page: warp.array(dtype=warp.uint64),  # type: ignore[valid-type]
    y: int,
    x: int,
    length: int,
    width: int,
    height: int,
    words: int,
) -> int:
    """Set the run's cells on the page and all that follows from them on its levels."""
    for k in range(14):
        low = warp.max(x - (1 << k) + 1, 0)
        high = x + length  # exclusive
        begin = (k * height + y) * words
        for i in range(low // 64, (high + 63) // 64):
            bits = ~warp.uint64(0)
            if low > 64 * i:
                bits = bits & (~warp.uint64(0) << warp.uint64(low - 64 * i))
            if high < 64 * i + 64:
                bits = bits & (~warp.uint64(0) >> warp.uint64(64 * i + 64 - high))
            page[begin + i] = page[begin + i] | bits
    return 0


@warp.kernel(enable_backward=False)
def _place(
    runs: warp.array(dtype=warp.int32),  # type: ignore[valid-type]
    begins: warp.array(dtype=warp.int32),  # type: ignore[valid-type]
    sizes: warp.array(dtype=warp.int32),  # type: ignore[valid-type]
    order: warp.array(dtype=warp.int32),  # type: ignore[valid-type]
    page: warp.array(dtype=warp.uint64),  # type: ignore[valid-type]
    mask: warp.array(dtype=warp.uint64),  # type: ignore[valid-type]
    places: warp.array(dtype=warp.int32),  # type: ignore[valid-type]
    used: warp.array(dtype=warp.int32),  # type: ignore[valid-type]
    count: int,
    width: int,
    height: int,
    words: int,
    lift: float,
) -> None:
    top = int(0)
    start = int(0)
    size = float(1.0e30)
    for n in range(count):
        c = order[n]
        here = float(sizes[2 * c] + sizes[2 * c + 1])
        if here < 0.85 * size:
            size = here
            start = 0
        best = float(height)
        best_x = int(0)
        best_y = int(0)
        best_turn = int(-1)
        for turn in range(4):
            w = sizes[2 * c + turn % 2]
            h = sizes[2 * c + (turn + 1) % 2]
            y = int(start)
            while y + h <= height and float(y) + lift * float(h) < best and w <= width:
                x = _first_free(
                    runs,
                    begins[4 * c + turn],
                    begins[4 * c + turn + 1],
                    page,
                    mask,
                    y,
                    width - w + 1,
                    height,
                    words,
                )
                if x >= 0:
                    best = float(y) + lift * float(h)
                    best_x = x
                    best_y = y
                    best_turn = turn
                y += 1
        if best_turn < 0:
            used[0] = -1
            return
        places[3 * c] = best_turn
        places[3 * c + 1] = best_x
        places[3 * c + 2] = best_y
        start = warp.max(start, best_y - sizes[2 * c + (best_turn + 1) % 2] // 4)
        top = warp.max(top, best_y + sizes[2 * c + (best_turn + 1) % 2])
        for r in range(begins[4 * c + best_turn], begins[4 * c + best_turn + 1]):
            _take(page, best_y + runs[3 * r], best_x + runs[3 * r + 1], runs[3 * r + 2], width, height, words)
    used[0] = top
