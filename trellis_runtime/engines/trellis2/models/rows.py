"""A decoder's row-wise layers: fewer passes over memory, or a smaller working set.

Norms, activations and linear layers treat each voxel's row alone. A norm is one kernel that reads
and writes half precision, without upstream's float copies; and the result over all rows is that
over blocks of them. Unchunked, the widened rows of an MLP are the largest allocation besides the
convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trellis_runtime.engines.trellis2.models.kernels import row_norm

BLOCK_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class RowLayers:
    """The layers of a decoder that treat each row alone: layer norms over (N, C), and MLPs."""

    norms: tuple[nn.Module, ...]
    mlps: tuple[nn.Module, ...]

    def __post_init__(self) -> None:
        if not self.norms or not self.mlps:
            # A lossless rung that silently frees nothing would only repeat the failure.
            raise ValueError(
                f"a decoder needs norms and MLPs to be run over blocks of rows; "
                f"{len(self.norms)} norms and {len(self.mlps)} MLPs were found"
            )


@contextmanager
def chunked_rows(layers: RowLayers, *, chunked: bool, rows: int = BLOCK_ROWS) -> Iterator[None]:
    """Have norms take one pass while the context lasts.

    With `chunked`, norms and MLPs run over blocks of `rows` too.
    """
    patched = [(norm, fused_layer_norm(norm)) for norm in layers.norms]
    patched += [(mlp, mlp.forward) for mlp in layers.mlps]
    for layer, forward in patched:
        layer.forward = _in_blocks(forward, rows) if chunked else forward
    try:
        yield
    finally:
        for layer, _ in patched:
            del layer.forward  # the class's own is found again


def fused_layer_norm(norm: Any) -> Callable[[Tensor], Tensor]:
    """Return a forward pass of `norm` that reads and writes half precision once."""
    return lambda x: row_norm(x, norm.weight, norm.bias, norm.eps)


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
