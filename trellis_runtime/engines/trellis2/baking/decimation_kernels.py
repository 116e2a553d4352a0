"""What decimation does at each vertex and edge, as Warp kernels: see `decimation`.

Long because Warp wants each argument of each kernel named with its type.

ends (E, 2) are edges, keys (E,) their ranks; starts and corners list the corners at each vertex;
rim marks vertices on a boundary, closed those whose neighbourhood has changed in this round.
"""

# No `from __future__ import annotations` here: Warp reads the kernels' annotations as types.

import warp

from trellis_runtime.engines.trellis2.baking.kernel_types import (
    NEVER,
    Bools,
    Floats,
    Ints,
    Longs,
    Points,
)
from trellis_runtime.engines.trellis2.baking.quadrics import (
    LENGTH,
    RIM,
    added,
    best_point,
    loaded,
    plane,
    stored,
    value,
)

_LEAST_COSINE = 0.2  # between a face's normal before and after
_REACH = 2.0  # lengths of an edge that its new vertex may lie from its middle
_PLACES = 4  # that a new vertex is tried at: the best, the middle, the ends

warp.set_module_options({"fuse_fp": False, "enable_backward": False})

Faces = warp.array2d(dtype=warp.int32)
Doubles = warp.array2d(dtype=warp.float64)


@warp.func
def _at(vertices: Points, i: warp.int32) -> warp.vec3d:
    p = vertices[i]
    return warp.vec3d(warp.float64(p[0]), warp.float64(p[1]), warp.float64(p[2]))


@warp.func
def _upright(a: warp.vec3d, b: warp.vec3d, normal: warp.vec3d):
    """The quadric of the plane through a rim's edge, square to its face."""
    along = b - a
    n = warp.normalize(warp.cross(along, normal))
    return plane(n, warp.dot(n, a), warp.float64(RIM) * warp.length_sq(along))


@warp.kernel
def vertex_quadrics(
    vertices: Points,
    faces: Faces,
    starts: Ints,
    corners: Ints,
    rims: Ints,
    quadrics: Doubles,
) -> None:
    """Write each vertex's quadric (V, 11): its faces', a third each, and its rims'."""
    v = warp.tid()
    total = plane(warp.vec3d(), warp.float64(0.0), warp.float64(0.0))
    here = _at(vertices, v)
    for i in range(starts[v], starts[v + 1]):
        face, k = corners[i] // 3, corners[i] % 3
        following = _at(vertices, faces[face, (k + 1) % 3])
        before = _at(vertices, faces[face, (k + 2) % 3])
        cross = warp.cross(following - here, before - here)
        twice = warp.length(cross)
        if twice > warp.float64(0.0):
            n = cross / twice
            third = twice / warp.float64(6.0)
            total = added(total, plane(n, warp.dot(n, here), third))
            if rims[corners[i]] == 1:
                total = added(total, _upright(here, following, n))
            if rims[3 * face + (k + 2) % 3] == 1:
                total = added(total, _upright(here, before, n))
    stored(total, quadrics, v)


@warp.func
def _new_vertex(
    vertices: Points,
    quadrics: Doubles,
    a: warp.int32,
    b: warp.int32,
    choice: warp.int32,
) -> warp.vec3d:
    """The best point, the middle, or an end of the edge a b, by `choice`."""
    p, q = _at(vertices, a), _at(vertices, b)
    middle = (p + q) * warp.float64(0.5)
    if choice == 1:
        return middle
    if choice == 2:
        return p
    if choice == 3:
        return q
    reach = warp.float64(_REACH) * warp.length(q - p)
    return best_point(added(loaded(quadrics, a), loaded(quadrics, b)), middle, reach)


@warp.func
def _cost_at(
    vertices: Points,
    quadrics: Doubles,
    a: warp.int32,
    b: warp.int32,
    to: warp.vec3d,
) -> warp.float32:
    both = added(loaded(quadrics, a), loaded(quadrics, b))
    square = warp.length_sq(_at(vertices, b) - _at(vertices, a))
    return warp.float32(value(both, to) + warp.float64(LENGTH) * square * both.weight)


@warp.kernel
def cost(
    vertices: Points,
    quadrics: Doubles,
    ends: Faces,
    costs: Floats,
) -> None:
    """Write what collapsing each edge to its best point costs."""
    e = warp.tid()
    a, b = ends[e, 0], ends[e, 1]
    costs[e] = _cost_at(vertices, quadrics, a, b, _new_vertex(vertices, quadrics, a, b, 0))


@warp.kernel
def least_key(
    ends: Faces,
    keys: Longs,
    closed: Ints,
    least: Longs,
) -> None:
    """Write the least key of the edges at each vertex that is not closed."""
    e = warp.tid()
    a, b = ends[e, 0], ends[e, 1]
    if closed[a] == 0 and closed[b] == 0:
        warp.atomic_min(least, a, keys[e])
        warp.atomic_min(least, b, keys[e])


@warp.kernel
def spread(ends: Faces, least: Longs, nearby: Longs) -> None:
    """Write the least of `least` at each vertex and its neighbours."""
    e = warp.tid()
    a, b = ends[e, 0], ends[e, 1]
    warp.atomic_min(nearby, a, least[b])
    warp.atomic_min(nearby, b, least[a])


@warp.kernel
def winners(ends: Faces, keys: Longs, closed: Ints, nearby: Longs, wins: Bools) -> None:
    """Write whether an edge's key is the least of `nearby` at both its ends, which are open."""
    e = warp.tid()
    a, b = ends[e, 0], ends[e, 1]
    key = keys[e]
    open_ = closed[a] == 0 and closed[b] == 0 and key != warp.int64(NEVER)
    wins[e] = open_ and nearby[a] == key and nearby[b] == key


@warp.func
def _has(faces: Faces, face: warp.int32, v: warp.int32) -> warp.bool:
    return faces[face, 0] == v or faces[face, 1] == v or faces[face, 2] == v


@warp.func
def _evenness(a: warp.vec3d, b: warp.vec3d, c: warp.vec3d, twice: warp.float64) -> warp.float64:
    """4 sqrt(3) area over the sum of squared sides: 1 for an even triangle."""
    sides = warp.length_sq(b - a) + warp.length_sq(c - b) + warp.length_sq(a - c)
    return warp.float64(3.4641016151377544) * twice / warp.max(sides, warp.float64(1.0e-300))


@warp.func
def _turns_well(
    vertices: Points,
    faces: Faces,
    starts: Ints,
    corners: Ints,
    v: warp.int32,
    other: warp.int32,
    to: warp.vec3d,
    least_even: warp.float32,
) -> warp.bool:
    """Whether no face at v folds over or becomes a sliver when v moves; those of `other` go."""
    here = _at(vertices, v)
    for i in range(starts[v], starts[v + 1]):
        face, k = corners[i] // 3, corners[i] % 3
        if not _has(faces, face, other):
            x = _at(vertices, faces[face, (k + 1) % 3])
            y = _at(vertices, faces[face, (k + 2) % 3])
            before, after = warp.cross(x - here, y - here), warp.cross(x - to, y - to)
            was, now = warp.length(before), warp.length(after)
            if warp.dot(before, after) < warp.float64(_LEAST_COSINE) * was * now:
                return False
            even = _evenness(to, x, y, now)
            if even < warp.float64(least_even) and even <= _evenness(here, x, y, was):
                return False
    return True


@warp.func
def _tips(faces: Faces, starts: Ints, corners: Ints, a: warp.int32, b: warp.int32) -> warp.vec3i:
    """How many faces the edge a b has, and the third vertices of the last two; -1 for none."""
    shared = warp.int32(0)
    first, second = warp.int32(-1), warp.int32(-1)
    for i in range(starts[a], starts[a + 1]):
        face, k = corners[i] // 3, corners[i] % 3
        u, w = faces[face, (k + 1) % 3], faces[face, (k + 2) % 3]
        if u == b or w == b:
            shared += 1
            second = first
            first = u + w - b
    return warp.vec3i(shared, first, second)


@warp.func
def _meets(faces: Faces, starts: Ints, corners: Ints, v: warp.int32, u: warp.int32) -> warp.bool:
    """Whether an edge joins v and u."""
    for i in range(starts[v], starts[v + 1]):
        if _has(faces, corners[i] // 3, u):
            return True
    return False


@warp.func
def _keeps_topology(
    faces: Faces,
    starts: Ints,
    corners: Ints,
    rim: Ints,
    a: warp.int32,
    b: warp.int32,
) -> warp.bool:
    """The link condition for the edge a b."""
    tips = _tips(faces, starts, corners, a, b)
    shared, first, second = tips[0], tips[1], tips[2]
    if shared > 2 or (shared == 2 and first == second):
        return False
    if shared == 2 and rim[a] == 1 and rim[b] == 1:
        return False
    least = warp.where(shared == 2, 3, 1)
    if starts[a + 1] - starts[a] <= least and starts[b + 1] - starts[b] <= least:
        return False  # a tetrahedron, two faces back to back, or a single face
    for i in range(starts[a], starts[a + 1]):
        face, k = corners[i] // 3, corners[i] % 3
        for side in range(2):
            near = faces[face, (k + 1 + side) % 3]
            tip = near == b or near == first or near == second
            if not tip and _meets(faces, starts, corners, b, near):
                return False
    return True


@warp.func
def _close(
    faces: Faces,
    starts: Ints,
    corners: Ints,
    v: warp.int32,
    closed: Ints,
):
    for i in range(starts[v], starts[v + 1]):
        face = corners[i] // 3
        closed[faces[face, 0]] = 1
        closed[faces[face, 1]] = 1
        closed[faces[face, 2]] = 1


@warp.kernel
def check(
    vertices: Points,
    faces: Faces,
    quadrics: Doubles,
    starts: Ints,
    corners: Ints,
    ends: Faces,
    rim: Ints,
    dearest: Floats,
    sliver: warp.float32,
    which: Longs,
    fine: Ints,
    closed: Ints,
    keys: Longs,
) -> None:
    """Write where each edge of `which` may collapse to, from 1, and close what it changes.

    One that may not is not asked again in this round.
    """
    i = warp.tid()
    edge = warp.int32(which[i])
    a, b = ends[edge, 0], ends[edge, 1]
    if not _keeps_topology(faces, starts, corners, rim, a, b):
        keys[edge] = warp.int64(NEVER)
        return
    for choice in range(_PLACES):
        if fine[i] == 0:
            to = _new_vertex(vertices, quadrics, a, b, choice)
            cheap = choice == 0 or _cost_at(vertices, quadrics, a, b, to) <= dearest[0]
            if (
                cheap
                and _turns_well(vertices, faces, starts, corners, a, b, to, sliver)
                and _turns_well(vertices, faces, starts, corners, b, a, to, sliver)
            ):
                fine[i] = choice + 1
    if fine[i] == 0:
        keys[edge] = warp.int64(NEVER)
    else:
        _close(faces, starts, corners, a, closed)
        _close(faces, starts, corners, b, closed)


@warp.kernel
def merge(
    vertices: Points,
    quadrics: Doubles,
    ends: Faces,
    which: Longs,
    choices: Ints,
    points: Points,
) -> None:
    """Write the new vertex of each edge of `which`, and its quadric at its first end."""
    i = warp.tid()
    edge = warp.int32(which[i])
    a, b = ends[edge, 0], ends[edge, 1]
    to = _new_vertex(vertices, quadrics, a, b, choices[i] - 1)
    points[i] = warp.vec3(warp.float32(to[0]), warp.float32(to[1]), warp.float32(to[2]))
    stored(added(loaded(quadrics, a), loaded(quadrics, b)), quadrics, a)
