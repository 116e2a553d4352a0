"""Error quadrics of a triangle mesh, and what collapsing an edge would cost.

A face with unit normal n through p has the quadric of its squared distance, weighted by its area w:

    E(x) = w (n . (x - p))^2 = x' A x - 2 b' x + c      A = w n n', b = w (n . p) n, c = w (n . p)^2

A vertex sums those of its faces; an edge sums those of its ends, and its best point solves A x = b
(Garland and Heckbert, Surface Simplification Using Quadric Error Metrics, SIGGRAPH 1997). Where
the surface is flat or straight, A has no inverse: a small pull towards the edge's middle chooses
one of the many best points (Tikhonov's regularisation). A boundary edge adds the quadric of the
plane that stands upright on it (their section 6), so that rims keep their place.

Everything is float64, and sums run in a fixed order: two runs decide alike.
"""

# No `from __future__ import annotations` here: Warp reads the kernels' annotations as types.

import warp

_PULL = 1e-6  # towards the middle of an edge, as a share of the quadric's own weight
LENGTH = 1e-6  # of an edge's squared length, times its area: short edges go first on flat ground
RIM = 10.0  # weight of a boundary's upright planes against its faces'
NUMBERS = 11
"""In a quadric: six of A, three of b, c, and the weight."""

warp.set_module_options({"fuse_fp": False, "enable_backward": False})


@warp.struct
class Quadric:
    """A symmetric A (xx, xy, xz, yy, yz, zz), b, c, and the area that it speaks for."""

    xx: warp.float64
    xy: warp.float64
    xz: warp.float64
    yy: warp.float64
    yz: warp.float64
    zz: warp.float64
    b: warp.vec3d
    c: warp.float64
    weight: warp.float64


@warp.func
def plane(n: warp.vec3d, d: warp.float64, w: warp.float64) -> Quadric:
    """The quadric of the plane n . x = d, weighted."""
    q = Quadric()
    q.xx = w * n[0] * n[0]
    q.xy = w * n[0] * n[1]
    q.xz = w * n[0] * n[2]
    q.yy = w * n[1] * n[1]
    q.yz = w * n[1] * n[2]
    q.zz = w * n[2] * n[2]
    q.b = n * (w * d)
    q.c = w * d * d
    q.weight = w
    return q


@warp.func
def added(p: Quadric, q: Quadric) -> Quadric:
    """The sum of two quadrics."""
    r = Quadric()
    r.xx = p.xx + q.xx
    r.xy = p.xy + q.xy
    r.xz = p.xz + q.xz
    r.yy = p.yy + q.yy
    r.yz = p.yz + q.yz
    r.zz = p.zz + q.zz
    r.b = p.b + q.b
    r.c = p.c + q.c
    r.weight = p.weight + q.weight
    return r


@warp.func
def loaded(table: warp.array2d(dtype=warp.float64), i: warp.int32) -> Quadric:
    """Row i of a table (V, 11)."""
    q = Quadric()
    q.xx = table[i, 0]
    q.xy = table[i, 1]
    q.xz = table[i, 2]
    q.yy = table[i, 3]
    q.yz = table[i, 4]
    q.zz = table[i, 5]
    q.b = warp.vec3d(table[i, 6], table[i, 7], table[i, 8])
    q.c = table[i, 9]
    q.weight = table[i, 10]
    return q


@warp.func
def stored(q: Quadric, table: warp.array2d(dtype=warp.float64), i: warp.int32):
    """Write row i of a table (V, 11)."""
    table[i, 0] = q.xx
    table[i, 1] = q.xy
    table[i, 2] = q.xz
    table[i, 3] = q.yy
    table[i, 4] = q.yz
    table[i, 5] = q.zz
    table[i, 6] = q.b[0]
    table[i, 7] = q.b[1]
    table[i, 8] = q.b[2]
    table[i, 9] = q.c
    table[i, 10] = q.weight


@warp.func
def times(q: Quadric, x: warp.vec3d) -> warp.vec3d:
    """A x."""
    return warp.vec3d(
        q.xx * x[0] + q.xy * x[1] + q.xz * x[2],
        q.xy * x[0] + q.yy * x[1] + q.yz * x[2],
        q.xz * x[0] + q.yz * x[1] + q.zz * x[2],
    )


@warp.func
def value(q: Quadric, x: warp.vec3d) -> warp.float64:
    """E(x), never below zero."""
    e = warp.dot(x, times(q, x)) - warp.float64(2.0) * warp.dot(q.b, x) + q.c
    return warp.max(e, warp.float64(0.0))


@warp.func
def best_point(q: Quadric, middle: warp.vec3d, reach: warp.float64) -> warp.vec3d:
    """Where E is least, pulled a little towards `middle`, and no farther from it than `reach`."""
    pull = warp.float64(_PULL) * (q.xx + q.yy + q.zz) + warp.float64(1.0e-30)
    a = warp.matrix_from_rows(
        warp.vec3d(q.xx + pull, q.xy, q.xz),
        warp.vec3d(q.xy, q.yy + pull, q.yz),
        warp.vec3d(q.xz, q.yz, q.zz + pull),
    )
    x = warp.inverse(a) * (q.b + middle * pull)
    step = x - middle
    length = warp.length(step)
    if not length <= reach:  # also where it is not a number
        if length > reach:
            return middle + step * (reach / length)
        return middle
    return x
