"""Warp kernels of unwrapping: drawing charts, and the search for places.

What they are for stands in the modules that launch them: `chart_set` (bound), `overlaps`
(count_texels), `atlas_packing` (mark_cells) and `packing_kernel` (place_charts). Arrays are flat;
coordinates come as x, y, x, y. `int(0)` declares a variable that a loop changes.

Long because Warp wants each argument of each kernel named with its type.
"""

# No `from __future__ import annotations` here: Warp reads the kernels' annotations as types.

import warp

RUN = 64
"""Points that one thread looks at: those of a chart come together, so it seldom writes."""

SKIP = 64
"""A chart is tried at every row; one as high as this at every second, and so on."""


@warp.func
def _along(
    points: warp.array2d(dtype=warp.float32),
    ways: warp.array2d(dtype=warp.float32),
    i: int,
    way: int,
) -> float:
    far = points[i, 0] * ways[way, 0]
    for axis in range(1, points.shape[1]):
        far += points[i, axis] * ways[way, axis]
    return far


@warp.kernel(enable_backward=False)
def bound(
    points: warp.array2d(dtype=warp.float32),
    owner: warp.array(dtype=warp.int32),
    ways: warp.array2d(dtype=warp.float32),
    low: warp.array2d(dtype=warp.float32),
    high: warp.array2d(dtype=warp.float32),
) -> None:
    """Lower and raise the bounds of each owner to how far its points lie along each way."""
    run, way = warp.tid()
    first = run * RUN
    last = warp.min(first + RUN, points.shape[0])
    chart = owner[first]
    least = _along(points, ways, first, way)
    most = least
    for i in range(first, last):
        far = _along(points, ways, i, way)
        if owner[i] != chart:
            warp.atomic_min(low, chart, way, least)
            warp.atomic_max(high, chart, way, most)
            chart = owner[i]
            least = far
            most = far
        least = warp.min(least, far)
        most = warp.max(most, far)
    warp.atomic_min(low, chart, way, least)
    warp.atomic_max(high, chart, way, most)


@warp.kernel(enable_backward=False)
def count_texels(
    corners: warp.array(dtype=warp.float32),
    chart: warp.array(dtype=warp.int32),
    begins: warp.array(dtype=warp.int32),
    width: warp.array(dtype=warp.int32),
    counters: warp.array(dtype=warp.int32),
    twice: warp.array(dtype=warp.int32),
) -> None:
    """Add 1 to the counters of the texels that face f covers, and tell of those that had one."""
    f = warp.tid()
    c = chart[f]
    a = warp.vec2(corners[6 * f], corners[6 * f + 1])
    b = warp.vec2(corners[6 * f + 2], corners[6 * f + 3])
    d = warp.vec2(corners[6 * f + 4], corners[6 * f + 5])
    whole = (b[0] - a[0]) * (d[1] - a[1]) - (b[1] - a[1]) * (d[0] - a[0])
    if whole == 0.0:
        return
    x0 = int(warp.ceil(warp.min(a[0], warp.min(b[0], d[0])) - 0.5))
    x1 = int(warp.floor(warp.max(a[0], warp.max(b[0], d[0])) - 0.5))
    y0 = int(warp.ceil(warp.min(a[1], warp.min(b[1], d[1])) - 0.5))
    y1 = int(warp.floor(warp.max(a[1], warp.max(b[1], d[1])) - 0.5))
    for y in range(y0, y1 + 1):
        for x in range(x0, x1 + 1):
            p = warp.vec2(float(x) + 0.5, float(y) + 0.5)
            u = ((b[0] - p[0]) * (d[1] - p[1]) - (b[1] - p[1]) * (d[0] - p[0])) / whole
            v = ((d[0] - p[0]) * (a[1] - p[1]) - (d[1] - p[1]) * (a[0] - p[0])) / whole
            if u > 1e-3 and v > 1e-3 and u + v < 1.0 - 1e-3:
                at = begins[c] + y * width[c] + x
                if warp.atomic_add(counters, at, 1) > 0:
                    twice[c] = 1


@warp.kernel(enable_backward=False)
def mark_cells(
    corners: warp.array(dtype=warp.float32),
    chart: warp.array(dtype=warp.int32),
    begins: warp.array(dtype=warp.int32),
    sizes: warp.array(dtype=warp.int32),
    marks: warp.array(dtype=warp.int32),
    margin: float,
) -> None:
    """Mark the cells that face f, widened by `margin`, touches."""
    f = warp.tid()
    c = chart[f]
    width = sizes[2 * c]
    height = sizes[2 * c + 1]
    a = warp.vec2(corners[6 * f], corners[6 * f + 1])
    b = warp.vec2(corners[6 * f + 2], corners[6 * f + 3])
    d = warp.vec2(corners[6 * f + 4], corners[6 * f + 5])
    sign = float(1.0)
    if (b[0] - a[0]) * (d[1] - a[1]) - (b[1] - a[1]) * (d[0] - a[0]) < 0.0:
        sign = float(-1.0)
    x0 = warp.max(int(warp.floor(warp.min(a[0], warp.min(b[0], d[0])) - margin)), 0)
    x1 = warp.min(int(warp.floor(warp.max(a[0], warp.max(b[0], d[0])) + margin)), width - 1)
    y0 = warp.max(int(warp.floor(warp.min(a[1], warp.min(b[1], d[1])) - margin)), 0)
    y1 = warp.min(int(warp.floor(warp.max(a[1], warp.max(b[1], d[1])) + margin)), height - 1)
    reach = 0.5 + margin
    for y in range(y0, y1 + 1):
        for x in range(x0, x1 + 1):
            p = warp.vec2(float(x) + 0.5, float(y) + 0.5)
            if (
                _beside(a, b, p, sign, reach)
                and _beside(b, d, p, sign, reach)
                and _beside(d, a, p, sign, reach)
            ):
                marks[begins[c] + y * width + x] = 1


@warp.func
def _beside(a: warp.vec2, b: warp.vec2, p: warp.vec2, sign: float, reach: float) -> bool:
    """Whether some point within `reach` of p in x and in y is left of the line from a to b."""
    along = b - a
    left = sign * (along[0] * (p[1] - a[1]) - along[1] * (p[0] - a[0]))
    return left + reach * (warp.abs(along[0]) + warp.abs(along[1])) >= 0.0


@warp.func
def _log2(n: int) -> int:
    k = int(0)
    while (2 << k) <= n:
        k += 1
    return k


@warp.func
def _first_free(
    runs: warp.array(dtype=warp.int32),
    first: int,
    last: int,
    page: warp.array(dtype=warp.uint64),
    mask: warp.array(dtype=warp.uint64),
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
        near = begin + column // 64
        far = begin + further // 64
        # Both words of what is moved by 0 to 63 columns; a shift by 64 in one go is undefined.
        low = warp.uint64(column % 64)
        high = warp.uint64(63 - column % 64)
        low_2 = warp.uint64(further % 64)
        high_2 = warp.uint64(63 - further % 64)
        one = warp.uint64(1)
        every = ~warp.uint64(0)
        for i in range(used):
            taken = mask[i]
            if taken != ~warp.uint64(0):
                taken = taken | (page[near + i] >> low) | ((page[near + i + 1] << one) << high)
                taken = taken | (page[far + i] >> low_2) | ((page[far + i + 1] << one) << high_2)
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
    page: warp.array(dtype=warp.uint64),
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


@warp.func
def _best_place(
    runs: warp.array(dtype=warp.int32),
    begins: warp.array(dtype=warp.int32),
    sizes: warp.array(dtype=warp.int32),
    page: warp.array(dtype=warp.uint64),
    mask: warp.array(dtype=warp.uint64),
    c: int,
    start: int,
    width: int,
    height: int,
    words: int,
    lift: float,
) -> warp.vec3i:
    """The turn, column and row of the lowest place for chart c; turn -1 where there is none."""
    best = float(height)
    best_x = int(0)
    best_y = int(0)
    best_turn = int(-1)
    for turn in range(4):
        w = sizes[2 * c + turn % 2]
        h = sizes[2 * c + (turn + 1) % 2]
        step = int(1 + h // SKIP)
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
            if x >= 0 and step == 1:
                best = float(y) + lift * float(h)
                best_x = x
                best_y = y
                best_turn = turn
            if x >= 0 and step > 1:  # and the rows that were passed over, from the lowest
                y = warp.max(start, y - step + 1) - 1
                step = int(1)
            y += step
    return warp.vec3i(best_turn, best_x, best_y)


@warp.kernel(enable_backward=False)
def place_charts(
    runs: warp.array(dtype=warp.int32),
    begins: warp.array(dtype=warp.int32),
    sizes: warp.array(dtype=warp.int32),
    order: warp.array(dtype=warp.int32),
    page: warp.array(dtype=warp.uint64),
    mask: warp.array(dtype=warp.uint64),
    places: warp.array(dtype=warp.int32),
    used: warp.array(dtype=warp.int32),
    count: int,
    width: int,
    height: int,
    words: int,
    lift: float,
) -> None:
    """Find all charts their places, one after another; `lift` weighs the height of a turn."""
    top = int(0)
    start = int(0)
    size = float(1.0e30)
    for n in range(count):
        c = order[n]
        here = float(sizes[2 * c] + sizes[2 * c + 1])
        if here < 0.85 * size:
            size = here
            start = 0
        place = _best_place(runs, begins, sizes, page, mask, c, start, width, height, words, lift)
        best_turn, best_x, best_y = place[0], place[1], place[2]
        if best_turn < 0:
            used[0] = -1
            return
        places[3 * c] = best_turn
        places[3 * c + 1] = best_x
        places[3 * c + 2] = best_y
        start = warp.max(start, best_y - sizes[2 * c + (best_turn + 1) % 2] // 4)
        top = warp.max(top, best_y + sizes[2 * c + (best_turn + 1) % 2])
        for r in range(begins[4 * c + best_turn], begins[4 * c + best_turn + 1]):
            _take(
                page,
                best_y + runs[3 * r],
                best_x + runs[3 * r + 1],
                runs[3 * r + 2],
                width,
                height,
                words,
            )
    used[0] = top
