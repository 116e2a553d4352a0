"""Which things hang together, as Warp kernels: see `components`.

parent (N,) int32: each thing's, never higher than itself; a root is its own.
"""

# No `from __future__ import annotations` here: Warp reads the kernels' annotations as types.

import warp


@warp.func
def _root(parent: warp.array(dtype=warp.int32), thing: warp.int32) -> warp.int32:
    """The root above a thing; those on the way there are hung under their grandparents."""
    here = thing
    above = parent[here]
    while above != here:
        further = parent[above]
        if further != above:
            parent[here] = further
        here = above
        above = further
    return here


@warp.kernel(enable_backward=False)
def join(
    first: warp.array(dtype=warp.int32),
    second: warp.array(dtype=warp.int32),
    parent: warp.array(dtype=warp.int32),
) -> None:
    """Hang the higher of both ends' roots under the lower."""
    i = warp.tid()
    a = _root(parent, first[i])
    b = _root(parent, second[i])
    while a != b:
        high = warp.max(a, b)
        low = warp.min(a, b)
        met = warp.atomic_cas(parent, high, high, low)
        if met == high:
            return
        a = _root(parent, met)  # another link was faster
        b = low


@warp.kernel(enable_backward=False)
def settle(parent: warp.array(dtype=warp.int32), labels: warp.array(dtype=warp.int32)) -> None:
    """Write each thing's root."""
    i = warp.tid()
    here = parent[i]
    while parent[here] != here:
        here = parent[here]
    labels[i] = here
