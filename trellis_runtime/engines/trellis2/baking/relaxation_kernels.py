"""What relaxing flat charts does at each face and vertex, as Warp kernels: see `relaxation`.

faces, weights (3 F,): each corner's vertex, and the weight of the edge from it to the next;
corners: those around vertex v are corners[begins[v]] to corners[begins[v + 1] - 1]. Vectors are in
the plane. numbers (4,): what conjugate gradients know of all vertices together.
"""

# No `from __future__ import annotations` here: Warp reads the kernels' annotations as types.

import warp

from trellis_runtime.engines.trellis2.baking.kernel_types import Floats, Ints, Plane

POWER, NEXT_POWER, ALONG, ROUNDING = 0, 1, 2, 3
"""Places in `numbers`: residual . ready before and after a step, search . image, and the least
power that tells anything."""

warp.set_module_options({"enable_backward": False})


@warp.kernel
def turn_faces(faces: Ints, rest: Plane, weights: Floats, flat: Plane, spokes: Plane) -> None:
    """Write, at each corner of a face turned as it lies now, its two edges' weighted difference."""
    f = warp.tid()
    cos = float(0.0)
    sin = float(0.0)
    for k in range(3):
        edge = flat[faces[3 * f + (k + 1) % 3]] - flat[faces[3 * f + k]]
        at = rest[3 * f + k]
        cos += weights[3 * f + k] * (at[0] * edge[0] + at[1] * edge[1])
        sin += weights[3 * f + k] * (at[0] * edge[1] - at[1] * edge[0])
    size = warp.max(warp.sqrt(cos * cos + sin * sin), 1.0e-30)
    cos = cos / size
    sin = sin / size
    for k in range(3):
        before = 3 * f + (k + 2) % 3
        here = rest[3 * f + k] * weights[3 * f + k]
        there = rest[before] * weights[before]
        out = there - here
        spokes[3 * f + k] = warp.vec2(cos * out[0] - sin * out[1], sin * out[0] + cos * out[1])


@warp.kernel
def diagonal(weights: Floats, begins: Ints, corners: Ints, out: Floats) -> None:
    """Write the sum of the weights of the edges around each vertex, face by face."""
    v = warp.tid()
    total = float(0.0)
    for i in range(begins[v], begins[v + 1]):
        c = corners[i]
        total += weights[c] + weights[c - c % 3 + (c % 3 + 2) % 3]
    out[v] = warp.max(total, 1.0e-12)


@warp.func
def _laplacian(
    faces: Ints, weights: Floats, begins: Ints, corners: Ints, values: Plane, v: warp.int32
) -> warp.vec2:
    """The weighted sum of differences of vertex v to its neighbours, face by face."""
    total = warp.vec2(0.0, 0.0)
    here = values[v]
    for i in range(begins[v], begins[v + 1]):
        c = corners[i]
        f = c - c % 3
        k = c - f
        before = f + (k + 2) % 3
        total += weights[c] * (here - values[faces[f + (k + 1) % 3]])
        total += weights[before] * (here - values[faces[before]])
    return total


@warp.kernel
def begin(
    faces: Ints,
    weights: Floats,
    begins: Ints,
    corners: Ints,
    diagonal: Floats,
    spokes: Plane,
    flat: Plane,
    residual: Plane,
    search: Plane,
    powers: Floats,
    sizes: Floats,
) -> None:
    """Write what is amiss at each vertex, the first way to go, and their product."""
    v = warp.tid()
    wanted = warp.vec2(0.0, 0.0)
    for i in range(begins[v], begins[v + 1]):
        wanted += spokes[corners[i]]
    amiss = wanted - _laplacian(faces, weights, begins, corners, flat, v)
    residual[v] = amiss
    search[v] = amiss / diagonal[v]
    powers[v] = warp.dot(amiss, amiss / diagonal[v])
    sizes[v] = warp.length_sq(flat[v]) * diagonal[v]


@warp.kernel
def look(
    faces: Ints,
    weights: Floats,
    begins: Ints,
    corners: Ints,
    search: Plane,
    image: Plane,
    along: Floats,
) -> None:
    """Write the Laplacian of the way to go, and their product."""
    v = warp.tid()
    image[v] = _laplacian(faces, weights, begins, corners, search, v)
    along[v] = warp.dot(search[v], image[v])


@warp.kernel
def step(
    diagonal: Floats,
    search: Plane,
    image: Plane,
    numbers: Floats,
    rounding: warp.float32,
    flat: Plane,
    residual: Plane,
    powers: Floats,
) -> None:
    """Go along `search` as far as it helps, and write what is amiss then."""
    v = warp.tid()
    far = float(0.0)
    if numbers[POWER] > rounding * numbers[ROUNDING]:
        far = numbers[POWER] / warp.max(numbers[ALONG], 1.0e-30)
    flat[v] = flat[v] + search[v] * far
    amiss = residual[v] - image[v] * far
    residual[v] = amiss
    powers[v] = warp.dot(amiss, amiss / diagonal[v])


@warp.kernel
def turn(diagonal: Floats, residual: Plane, numbers: Floats, search: Plane) -> None:
    """Write the next way to go, which undoes nothing of those before."""
    v = warp.tid()
    kept = numbers[NEXT_POWER] / warp.max(numbers[POWER], 1.0e-30)
    search[v] = residual[v] / diagonal[v] + search[v] * kept
