"""The same layers over blocks of rows: a smaller working set, the same numbers.

A decoder's norms, activations and linear layers treat each voxel's row alone, so their result over
all rows is that over blocks of them. Unchunked, the widened rows of an MLP and the float copies of
a norm are the largest allocations besides the convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

BLOCK_ROWS = 65_536
_ROWWISE = ("LayerNorm32", "Sequential")


@contextmanager
def chunked_rows(model: nn.Module, *, active: bool, rows: int = BLOCK_ROWS) -> Iterator[None]:
    """Run the row-wise layers of `model` in blocks of `rows` while the context lasts."""
    layers = [m for m in model.modules() if type(m).__name__ in _ROWWISE] if active else []
    for layer in layers:
        layer.forward = _in_blocks(layer.forward, rows)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own is found again


def _in_blocks(forward: Callable[[Tensor], Tensor], rows: int) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        if len(x) <= rows:
            return forward(x)
        first = forward(x[:rows])
        out = torch.empty((len(x), *first.shape[1:]), dtype=first.dtype, device=first.device)
        out[:rows] = first
        for start in range(rows, len(x), rows):
            out[start : start + rows] = forward(x[start : start + rows])
        return out

    return run
