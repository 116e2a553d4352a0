"""Which things hang together by links: the least member of each connected part, on any device.

    each thing is its own parent
    a link    : the roots of both ends are sought, halving the way there; the higher root is hung
                under the lower one, by compare-and-swap, or sought again where another was faster
    in the end: each thing's parent is its root

A parent is never higher than its child, so a root is the least of what hangs under it: whichever
thread is first, the labels are the same. Every link is looked at once (Jaiganesh and Burtscher, A
High-Performance Connected Components Implementation for GPUs, HPDC 2018).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trellis_runtime.engines.trellis2.baking.component_kernels import join, settle
from trellis_runtime.engines.trellis2.baking.connectivity import BLOCK, Pairs
from trellis_runtime.engines.trellis2.baking.launch import launch

_MOST = 2**31 - 1


def connected_components(first: Tensor, second: Tensor, count: int, block: int = BLOCK) -> Tensor:
    """Return labels (count,) int64: the least member of each thing's connected part.

    `first` and `second` (L,) are the ends of links between `count` things.
    """

    def pairs() -> Pairs:
        return zip(torch.split(first, block), torch.split(second, block), strict=True)

    return component_labels(pairs, count, first.device).long()


def component_labels(pairs: Callable[[], Pairs], count: int, device: torch.device) -> Tensor:
    """Return labels (count,) int32: the least member of each thing's connected part.

    pairs: gives the links' ends, some at a time. Takes 8 bytes a thing; raises `ValueError` for
    2^31 things or more.
    """
    if count > _MOST:
        raise ValueError(f"{count} things to label; {_MOST} at most can be")
    parent = torch.arange(count, device=device, dtype=torch.int32)
    for first, second in pairs():
        launch(join, len(first), [first.int(), second.int(), parent])
    labels = torch.empty_like(parent)
    launch(settle, count, [parent, labels])
    return labels


__all__ = ["component_labels", "connected_components"]
