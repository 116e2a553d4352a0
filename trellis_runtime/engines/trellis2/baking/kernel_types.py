"""Arrays that several modules' Warp kernels declare."""

import warp

Ints = warp.array(dtype=warp.int32)
Longs = warp.array(dtype=warp.int64)
Bools = warp.array(dtype=warp.bool)
Floats = warp.array(dtype=warp.float32)
Plane = warp.array(dtype=warp.vec2)
Points = warp.array(dtype=warp.vec3)

NEVER = 0x7FFFFFFFFFFFFFFF
"""The key of an edge or a pair that is not asked, where the least key goes first."""
