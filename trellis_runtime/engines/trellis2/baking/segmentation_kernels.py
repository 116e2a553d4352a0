"""What cutting a surface into charts asks of pairs of regions, as Warp kernels: see `segmentation`.

pair (E, 2): regions that are neighbours; normal (R, 3) and area (R,): of each region.
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

warp.set_module_options({"fuse_fp": False, "enable_backward": False})

Pairs = warp.array2d(dtype=warp.int64)
Doubles = warp.array(dtype=warp.float64)
Normals = warp.array(dtype=warp.vec3d)


@warp.func
def _cost(
    normal: Normals,
    area: Doubles,
    length: Longs,
    balance: warp.float32,
    e: warp.int32,
    a: warp.int64,
    b: warp.int64,
) -> warp.float64:
    """The error that merging regions a and b adds, per length of the boundary removed."""
    apart = warp.length(normal[a]) + warp.length(normal[b])
    error = warp.max(apart - warp.length(normal[a] + normal[b]), warp.float64(0.0))
    fair = warp.float64(balance) * warp.min(area[a], area[b])
    return (error + fair) / warp.float64(warp.max(length[e], warp.int64(1)))


@warp.kernel
def rank_pairs(
    pair: Pairs,
    normal: Normals,
    area: Doubles,
    length: Longs,
    barred: Bools,
    balance: warp.float32,
    small: warp.float32,
    keys: Longs,
    best: Longs,
) -> None:
    """Write each pair's key, all different, and lower `best` of both its regions to it.

    A key is the cost, rounded to a quarter, over a hash of the pair's number. A pair that is barred
    or of which neither region is smaller than `small` has none.
    """
    e = warp.tid()
    a, b = pair[e, 0], pair[e, 1]
    keys[e] = warp.int64(NEVER)
    if barred[e] or warp.min(area[a], area[b]) >= warp.float64(small):
        return
    cost = warp.float32(_cost(normal, area, length, balance, e, a, b))
    rounded = warp.int64(warp.cast(cost, warp.int32)) >> warp.int64(21)  # exponent and two bits
    # Knuth's multiplicative hash: one to one
    mixed = (warp.int64(e) * warp.int64(2654435761)) & warp.int64(0xFFFFFFFF)
    key = (rounded << warp.int64(32)) | mixed
    keys[e] = key
    warp.atomic_min(best, a, key)
    warp.atomic_min(best, b, key)


@warp.kernel
def match_pairs(pair: Pairs, keys: Longs, best: Longs, chosen: Bools) -> None:
    """Write whether a pair is the cheapest of both its regions."""
    e = warp.tid()
    key = keys[e]
    chosen[e] = key != warp.int64(NEVER) and best[pair[e, 0]] == key and best[pair[e, 1]] == key


@warp.kernel
def least_along(directions: Points, label: Longs, pair: Ints, axes: Points, least: Floats) -> None:
    """Lower, for each pair, the least cosine between one of its faces and the pair's axis.

    pair (R,): that each region would merge in, -1 for none. Faces without direction are not asked.
    """
    f = warp.tid()
    way = directions[f]
    asked = pair[label[f]]
    if asked >= 0 and (way[0] != 0.0 or way[1] != 0.0 or way[2] != 0.0):
        along = warp.dot(way, axes[asked])
        if along < least[asked]:  # most are not: fewer writes
            warp.atomic_min(least, asked, along)
