"""Upstream's decoders over blocks of rows: their layers' own weights and formula, less memory.

A decoder's last upsampling widens 1.5 million cells to 512 channels at 1536, 1.5 GB, only to spread
them over their children; neighbour maps take 108 bytes a cell. Here a convolution gathers the
neighbours of one block of rows at a time, found by binary search, and an upsampling spreads each
block at once. What stays whole is each level's input and output.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, silu

from trellis_runtime.engines.trellis2.grid import cell_keys, find

BLOCK_ROWS = 32_768

_OFFSETS = tuple((i // 9 - 1, i // 3 % 3 - 1, i % 3 - 1) for i in range(27))


@contextmanager
def lean_decoders(decoder_class: Any, *, active: bool, rows: int = BLOCK_ROWS) -> Iterator[None]:
    """Have every `SparseUnetVaeDecoder` decode over blocks of `rows` while the context lasts."""
    whole = decoder_class.forward
    if active:
        decoder_class.forward = lambda decoder, x, guide_subs=None, return_subs=False: decode(
            decoder, x, guide_subs, return_subs, rows
        )
    try:
        yield
    finally:
        decoder_class.forward = whole


def decode(decoder: Any, x: Any, guides: Any, return_guides: bool, rows: int = BLOCK_ROWS) -> Any:
    """Return what the decoder's own `forward` does: a sparse tensor, and subdivisions if asked for.

    `x` is the latent as a sparse tensor with a batch of one; `guides` the subdivisions to follow
    where the decoder predicts none.
    """
    sparse = type(x)
    feats = decoder.from_latent(x).feats.to(decoder.dtype)
    coords, made = x.coords, []
    last = len(decoder.blocks) - 1
    for level, blocks in enumerate(decoder.blocks):
        for number, block in enumerate(blocks):
            if level < last and number == len(blocks) - 1:
                if decoder.pred_subdiv:
                    guide = block.to_subdiv(sparse(feats=feats, coords=coords))
                    made.append(guide)
                else:
                    guide = guides[level]
                feats, coords = _upsample(block, feats, coords, guide.feats > 0, rows)
            else:
                feats = _conv_next(block, feats, coords, rows)
    parts = []
    for part, places in zip(torch.split(feats, rows), torch.split(coords, rows), strict=True):
        normed = layer_norm(part.to(x.dtype), part.shape[-1:])
        parts.append(decoder.output_layer(sparse(feats=normed, coords=places)).feats)
    out = sparse(feats=torch.cat(parts), coords=coords)
    return (out, made) if return_guides else out


class Neighbours:
    """Finds the 27 cells around each cell of coords (N, 4): batch, x, y, z."""

    def __init__(self, coords: Tensor) -> None:
        self._cells = coords[:, 1:].long()
        self._side = int(self._cells.max()) + 1 if len(coords) else 1
        self._keys, self._order = cell_keys(self._cells, self._side).sort()

    def of(self, part: slice) -> tuple[Tensor, Tensor]:
        """Return rows (B, 27) of the neighbours of some rows, and which exist (B, 27) bool."""
        cells = self._cells[part]
        around = cells[:, None] + cells.new_tensor(_OFFSETS)
        at, exist = find(self._keys, around, self._side)
        return self._order[at], exist


def convolve(conv: Any, feats: Tensor, near: Neighbours, part: slice) -> Tensor:
    """Return a submanifold convolution's rows `part`; weights are (Co, 3, 3, 3, Ci)."""
    rows, exist = near.of(part)
    columns = feats[rows] * exist[..., None]
    weight = conv.weight.reshape(conv.weight.shape[0], -1)
    return torch.nn.functional.linear(columns.flatten(1), weight, conv.bias)


def _parts(count: int, rows: int) -> Iterator[slice]:
    return (slice(start, min(start + rows, count)) for start in range(0, count, rows))


def _conv_next(block: Any, feats: Tensor, coords: Tensor, rows: int) -> Tensor:
    near, out = Neighbours(coords), torch.empty_like(feats)
    for part in _parts(len(feats), rows):
        h = block.norm(convolve(block.conv, feats, near, part))
        out[part] = block.mlp(h) + feats[part]
    return out


def _upsample(
    block: Any, feats: Tensor, coords: Tensor, exists: Tensor, rows: int
) -> tuple[Tensor, Tensor]:
    """Spread each cell's channels over its children that `exists` (N, 8) names."""
    parent, child = torch.nonzero(exists, as_tuple=True)
    ends = exists.sum(dim=1).cumsum(0)
    below = coords[parent]
    below[:, 1:] = below[:, 1:] * 2 + torch.stack([child >> i & 1 for i in range(3)], dim=1).int()
    hidden = torch.empty((len(parent), block.out_channels), dtype=feats.dtype, device=feats.device)
    lit = torch.empty_like(feats)
    for part in _parts(len(feats), rows):
        lit[part] = silu(block.norm1(feats[part]))
    near = Neighbours(coords)
    for part in _parts(len(feats), rows):
        spread = convolve(block.conv1, lit, near, part).reshape(-1, block.out_channels)
        start = int(ends[part.start - 1]) if part.start else 0
        inside = slice(start, int(ends[part.stop - 1]))
        at = (parent[inside] - part.start) * 8 + child[inside]
        hidden[inside] = silu(block.norm2(spread[at]))
    del lit
    near, out = Neighbours(below), torch.empty_like(hidden)
    source = feats.reshape(len(feats) * 8, -1)
    for part in _parts(len(parent), rows):
        skip = source[parent[part] * 8 + child[part]]
        repeat = block.out_channels // skip.shape[1]
        out[part] = convolve(block.conv2, hidden, near, part) + skip.repeat_interleave(
            repeat, dim=1
        )
    return out, below
