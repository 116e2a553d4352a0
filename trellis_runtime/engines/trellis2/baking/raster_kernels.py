"""Warp kernels of the rasteriser: see `raster` for what they are for and why they are exact.

Corners (F, 6) int64 are x and y of three corners in 1/65536 texel, counter-clockwise. `cover` and
`touch` run once for each row of texels that a face comes near: thread t belongs to the first face
whose `ends` is greater than t.
"""

# No `from __future__ import annotations` here: Warp reads the kernels' annotations as types.

import warp

UNIT = 1 << 16
"""Fixed-point steps in a texel."""

HALF = UNIT // 2
REACH = UNIT
"""A texel farther than this from a face, along x or y, is not read beside it."""

NONE = -1
"""No face is near the texel."""

warp.set_module_options({"fuse_fp": False, "enable_backward": False})


@warp.func
def _side(
    ax: warp.int64, ay: warp.int64, bx: warp.int64, by: warp.int64, x: warp.int64, y: warp.int64
) -> warp.int64:
    return (bx - ax) * (y - ay) - (by - ay) * (x - ax)


@warp.func
def _within(e: warp.int64, dx: warp.int64, dy: warp.int64) -> warp.bool:
    zero = warp.int64(0)
    if e != zero:
        return e > zero
    return dy < zero or (dy == zero and dx > zero)


@warp.func
def _lowest(a: warp.int64, b: warp.int64, c: warp.int64) -> warp.int64:
    return warp.min(a, warp.min(b, c))


@warp.func
def _highest(a: warp.int64, b: warp.int64, c: warp.int64) -> warp.int64:
    return warp.max(a, warp.max(b, c))


@warp.func
def _first(low: warp.int64) -> warp.int32:
    """The first column of texels whose centre is at `low` or right of it."""
    return warp.int32(warp.max(low + warp.int64(HALF - 1), warp.int64(0)) / warp.int64(UNIT))


@warp.func
def _end(high: warp.int64, side: warp.int32) -> warp.int32:
    """The column after the last whose centre is at `high` or left of it."""
    end = warp.int32(warp.max(high + warp.int64(HALF), warp.int64(0)) / warp.int64(UNIT))
    return warp.min(end, side)


@warp.kernel
def cover(
    corners: warp.array2d(dtype=warp.int64),  # type: ignore[valid-type]
    ends: warp.array(dtype=warp.int64),  # type: ignore[valid-type]
    first_rows: warp.array(dtype=warp.int32),  # type: ignore[valid-type]
    side: warp.int32,
    first: warp.int32,
    owners: warp.array(dtype=warp.int32),  # type: ignore[valid-type]
    hits: warp.array(dtype=warp.int64),  # type: ignore[valid-type]
) -> None:
    """One row of one face's texels; `owners` begins with row `first`.

    corners (F, 6) turn counter-clockwise.
    """
    thread = warp.int64(warp.tid())
    face = warp.lower_bound(ends, thread + warp.int64(1))
    row = first_rows[face] + warp.int32(ends[face] - thread) - 1
    ax, ay = corners[face, 0], corners[face, 1]
    bx, by = corners[face, 2], corners[face, 3]
    cx, cy = corners[face, 4], corners[face, 5]
    unit, half = warp.int64(UNIT), warp.int64(HALF)
    y = warp.int64(row) * unit + half
    count = warp.int32(0)
    for column in range(_first(_lowest(ax, bx, cx)), _end(_highest(ax, bx, cx), side)):
        x = warp.int64(column) * unit + half
        inside = _within(_side(ax, ay, bx, by, x, y), bx - ax, by - ay)
        inside = inside and _within(_side(bx, by, cx, cy, x, y), cx - bx, cy - by)
        inside = inside and _within(_side(cx, cy, ax, ay, x, y), ax - cx, ay - cy)
        if inside:
            warp.atomic_min(owners, (row - first) * side + column, warp.int32(face))
            count += 1
    if count > 0:
        warp.atomic_add(hits, 0, warp.int64(count))


@warp.func
def _share(ax: warp.int64, ay: warp.int64, bx: warp.int64, by: warp.int64, x: warp.int64,
           y: warp.int64) -> warp.float64:  # fmt: skip
    """How far along a -> b the point nearest to (x, y) lies, 0..1."""
    dx, dy = warp.float64(bx - ax), warp.float64(by - ay)
    along = dx * warp.float64(x - ax) + dy * warp.float64(y - ay)
    square = dx * dx + dy * dy
    if square <= warp.float64(0.0):
        return warp.float64(0.0)
    return warp.clamp(along / square, warp.float64(0.0), warp.float64(1.0))


@warp.func
def _distance2(ax: warp.int64, ay: warp.int64, bx: warp.int64, by: warp.int64, x: warp.int64,
               y: warp.int64) -> warp.float64:  # fmt: skip
    share = _share(ax, ay, bx, by, x, y)
    ox = warp.float64(ax - x) + share * warp.float64(bx - ax)
    oy = warp.float64(ay - y) + share * warp.float64(by - ay)
    return ox * ox + oy * oy


@warp.func
def _clear(e: warp.int64, dx: warp.int64, dy: warp.int64) -> warp.bool:
    """Whether the square of the texel's reach lies wholly outside this edge."""
    return e + (warp.abs(dx) + warp.abs(dy)) * warp.int64(REACH) <= warp.int64(0)


@warp.kernel
def touch(
    corners: warp.array2d(dtype=warp.int64),  # type: ignore[valid-type]
    ends: warp.array(dtype=warp.int64),  # type: ignore[valid-type]
    first_rows: warp.array(dtype=warp.int32),  # type: ignore[valid-type]
    side: warp.int32,
    first: warp.int32,
    owners: warp.array(dtype=warp.int32),  # type: ignore[valid-type]
    nearest: warp.array(dtype=warp.int64),  # type: ignore[valid-type]
) -> None:
    """As `cover`, for texels within reach of the face that have no owner yet."""
    thread = warp.int64(warp.tid())
    face = warp.lower_bound(ends, thread + warp.int64(1))
    row = first_rows[face] + warp.int32(ends[face] - thread) - 1
    ax, ay = corners[face, 0], corners[face, 1]
    bx, by = corners[face, 2], corners[face, 3]
    cx, cy = corners[face, 4], corners[face, 5]
    unit, half, reach = warp.int64(UNIT), warp.int64(HALF), warp.int64(REACH)
    y = warp.int64(row) * unit + half
    low, high = _lowest(ax, bx, cx) - reach, _highest(ax, bx, cx) + reach
    for column in range(_first(low), _end(high, side)):
        if owners[row * side + column] == NONE:
            x = warp.int64(column) * unit + half
            apart = _clear(_side(ax, ay, bx, by, x, y), bx - ax, by - ay)
            apart = apart or _clear(_side(bx, by, cx, cy, x, y), cx - bx, cy - by)
            apart = apart or _clear(_side(cx, cy, ax, ay, x, y), ax - cx, ay - cy)
            if not apart:
                square = _distance2(ax, ay, bx, by, x, y)
                square = warp.min(square, _distance2(bx, by, cx, cy, x, y))
                square = warp.min(square, _distance2(cx, cy, ax, ay, x, y))
                whole = warp.int64(square * warp.float64(0.0625))  # (1/4 step)^2: far below 2^31
                key = warp.min(whole, warp.int64(0x3FFFFFFF)) * warp.int64(4294967296)
                warp.atomic_min(nearest, (row - first) * side + column, key + warp.int64(face))


@warp.func
def _nearest_weights(
    ax: warp.int64, ay: warp.int64, bx: warp.int64, by: warp.int64, cx: warp.int64, cy: warp.int64,
    x: warp.int64, y: warp.int64,
) -> warp.vec3d:  # fmt: skip
    """Weights of a and b at the point of the triangle's edges nearest to (x, y); its distance."""
    one, zero = warp.float64(1.0), warp.float64(0.0)
    da = _distance2(bx, by, cx, cy, x, y)
    db = _distance2(cx, cy, ax, ay, x, y)
    dc = _distance2(ax, ay, bx, by, x, y)
    least = warp.min(da, warp.min(db, dc))
    away = warp.sqrt(least) / warp.float64(UNIT)
    if da == least:
        return warp.vec3d(zero, one - _share(bx, by, cx, cy, x, y), away)
    if db == least:
        return warp.vec3d(_share(cx, cy, ax, ay, x, y), zero, away)
    share = _share(ax, ay, bx, by, x, y)
    return warp.vec3d(one - share, share, away)


@warp.kernel
def place(
    corners: warp.array2d(dtype=warp.int64),  # type: ignore[valid-type]
    vertices: warp.array(dtype=warp.vec3),  # type: ignore[valid-type]
    faces: warp.array2d(dtype=warp.int32),  # type: ignore[valid-type]
    texels: warp.array(dtype=warp.int64),  # type: ignore[valid-type]
    owners: warp.array(dtype=warp.int32),  # type: ignore[valid-type]
    side: warp.int32,
    offset_x: warp.int32,
    offset_y: warp.int32,
    longest: warp.float64,
    points: warp.array(dtype=warp.vec3),  # type: ignore[valid-type]
) -> None:
    """The point of each of `texels`; `longest`: how far one texel of distance may lead."""
    i = warp.tid()
    texel = warp.int32(texels[i])
    face = owners[i]
    if face < 0:
        face = -2 - face
    x = warp.int64(texel % side) * warp.int64(UNIT) + warp.int64(HALF + offset_x)
    y = warp.int64(texel / side) * warp.int64(UNIT) + warp.int64(HALF + offset_y)
    ax, ay = corners[face, 0], corners[face, 1]
    bx, by = corners[face, 2], corners[face, 3]
    cx, cy = corners[face, 4], corners[face, 5]
    a, b, c = _side(bx, by, cx, cy, x, y), _side(cx, cy, ax, ay, x, y), _side(ax, ay, bx, by, x, y)
    whole = warp.float64(a + b + c)
    p, q, r = vertices[faces[face, 0]], vertices[faces[face, 1]], vertices[faces[face, 2]]
    there = _mean(p, q, r, warp.float64(a) / whole, warp.float64(b) / whole)
    if _lowest(a, b, c) < warp.int64(0):
        weights = _nearest_weights(ax, ay, bx, by, cx, cy, x, y)
        near = _mean(p, q, r, weights[0], weights[1])
        step = there - near
        length = warp.max(warp.length(step), warp.float64(1.0e-30))
        there = near + step * warp.min(warp.float64(1.0), longest * weights[2] / length)
    points[i] = warp.vec3(warp.float32(there[0]), warp.float32(there[1]), warp.float32(there[2]))


@warp.func
def _mean(
    p: warp.vec3, q: warp.vec3, r: warp.vec3, wa: warp.float64, wb: warp.float64
) -> warp.vec3d:
    a = warp.vec3d(warp.float64(p[0]), warp.float64(p[1]), warp.float64(p[2]))
    b = warp.vec3d(warp.float64(q[0]), warp.float64(q[1]), warp.float64(q[2]))
    c = warp.vec3d(warp.float64(r[0]), warp.float64(r[1]), warp.float64(r[2]))
    return a * wa + b * wb + c * (warp.float64(1.0) - wa - wb)
