"""Warp's part of the detail maps: the decoded surface's normal at a texel, and the sky it sees."""

# No `from __future__ import annotations` here: Warp reads the kernels' annotations as types.

import warp

warp.set_module_options({"enable_backward": False})

TILE = 4
"""Texels a side of the square in which each sends other rays."""
RAYS = 16
"""Rays a texel; `_reversed` knows their number."""
_STEEPEST = 0.2  # cosine to the texel's own normal: what is steeper a normal map cannot show
_GOLDEN = 0.6180339887498949


@warp.func
def _times(tensors: warp.array2d(dtype=warp.float32), i: warp.int32, n: warp.vec3) -> warp.vec3:  # type: ignore[valid-type]
    """The symmetric matrix i (xx, xy, xz, yy, yz, zz) times n, unit."""
    x = tensors[i, 0] * n[0] + tensors[i, 1] * n[1] + tensors[i, 2] * n[2]
    y = tensors[i, 1] * n[0] + tensors[i, 3] * n[1] + tensors[i, 4] * n[2]
    z = tensors[i, 2] * n[0] + tensors[i, 4] * n[1] + tensors[i, 5] * n[2]
    return warp.normalize(warp.vec3(x, y, z))


@warp.kernel
def surface_normals(
    mesh: warp.uint64,
    faces: warp.array2d(dtype=warp.int32),  # type: ignore[valid-type]
    tensors: warp.array2d(dtype=warp.float32),  # type: ignore[valid-type]
    points: warp.array(dtype=warp.vec3),  # type: ignore[valid-type]
    facing: warp.array(dtype=warp.vec3),  # type: ignore[valid-type]
    near: warp.float32,
    far: warp.float32,
    places: warp.array(dtype=warp.vec3),  # type: ignore[valid-type]
    normals: warp.array(dtype=warp.vec3),  # type: ignore[valid-type]
) -> None:
    """The place nearest to each of `points`, and the surface's smooth normal there.

    facing: which side is outside; also the normal where there is none, or none that can be shown.
    """
    i = warp.tid()
    outside = facing[i]
    places[i] = points[i]
    normals[i] = outside
    found = warp.mesh_query_point_no_sign(mesh, points[i], near)
    if not found.result:
        found = warp.mesh_query_point_no_sign(mesh, points[i], far)
    if not found.result:
        return
    flat = warp.mesh_eval_face_normal(mesh, found.face)
    smooth = warp.normalize(
        _times(tensors, faces[found.face, 0], flat) * found.u
        + _times(tensors, faces[found.face, 1], flat) * found.v
        + _times(tensors, faces[found.face, 2], flat) * (1.0 - found.u - found.v)
    )
    lean = warp.dot(smooth, outside)
    places[i] = warp.mesh_eval_position(mesh, found.face, found.u, found.v)
    if warp.abs(lean) >= _STEEPEST:  # false for what is not a number, too
        normals[i] = smooth * warp.sign(lean)


@warp.kernel
def open_sky(
    mesh: warp.uint64,
    places: warp.array(dtype=warp.vec3),  # type: ignore[valid-type]
    normals: warp.array(dtype=warp.vec3),  # type: ignore[valid-type]
    texels: warp.array(dtype=warp.int64),  # type: ignore[valid-type]
    side: warp.int32,
    lift: warp.float32,
    far: warp.float32,
    sky: warp.array(dtype=warp.float32),  # type: ignore[valid-type]
) -> None:
    """The share of the rays of each texel that nothing stops, more of them towards its normal.

    Directions follow the cosine (Malley: even in the disc, lifted to the half-sphere); elevations
    are evenly spread, azimuths by van der Corput's sequence. Both are shifted from texel to texel
    of a tile, so that a tile's mean is that of 256 rays.
    """
    i = warp.tid()
    normal = normals[i]
    axis = warp.vec3(1.0, 0.0, 0.0)
    if warp.abs(normal[0]) > 0.7:
        axis = warp.vec3(0.0, 1.0, 0.0)
    u = warp.normalize(warp.cross(normal, axis))
    v = warp.cross(normal, u)
    texel = warp.int32(texels[i])
    shift = warp.float32((texel / side) % TILE * TILE + (texel % side) % TILE)
    free = warp.float32(0.0)
    for k in range(RAYS):
        area = (warp.float32(k) + (shift + 0.5) / warp.float32(TILE * TILE)) / warp.float32(RAYS)
        turn = _reversed(k) + shift * _GOLDEN
        angle = 6.2831853 * turn
        across = (u * warp.cos(angle) + v * warp.sin(angle)) * warp.sqrt(area)
        along = across + normal * warp.sqrt(1.0 - area)
        hit = warp.mesh_query_ray(mesh, places[i] + normal * lift, along, far)
        if not hit.result:
            free += 1.0
    sky[i] = free / warp.float32(RAYS)


@warp.func
def _reversed(k: warp.int32) -> warp.float32:
    """The four bits of k behind the point, the other way round."""
    bits = (k & 1) * 8 + (k & 2) * 2 + (k & 4) / 2 + (k & 8) / 8
    return warp.float32(bits) / 16.0
