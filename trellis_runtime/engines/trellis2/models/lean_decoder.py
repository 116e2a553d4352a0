"""A sparse decoder over blocks of rows: its layers' own weights and formula, less memory.

A decoder's last upsampling widens 1.5 million cells to 512 channels at 1536, 1.5 GB, only to spread
them over their children; neighbour maps take 108 bytes a cell. Here a convolution gathers the
neighbours of one block of rows at a time, found by binary search, and an upsampling spreads each
block at once. What stays whole is each level's input and output.

    latent (N, L) ─ from_latent ─► level 0: residual blocks ─ upsample ─► level 1 ─► ... ─► output
                                                                 ▲
                                     which of 8 children exist: predicted, or given as guides

residual block   x + mlp(norm(conv(x)))                       Liu et al. 2022, ConvNeXt
upsampling       conv2(silu(norm2(spread(conv1(silu(norm1(x))))))) + repeated spread(x)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, silu

from trellis_runtime.engines.trellis2.grid import cell_keys, find

BLOCK_ROWS = 32_768

_OFFSETS = tuple((i // 9 - 1, i // 3 % 3 - 1, i % 3 - 1) for i in range(27))

RowLayer = Callable[[Tensor], Tensor]
"""A layer that treats each row alone: (N, I) to (N, O)."""

PlacedLayer = Callable[[Tensor, Tensor], Tensor]
"""As `RowLayer`, and told the rows' coordinates (N, 4) too."""


@dataclass(frozen=True, slots=True)
class Convolution:
    """A submanifold convolution: weight (O, 3, 3, 3, I), bias (O,)."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True)
class ResidualBlock:
    """A level's block that keeps its cells."""

    conv: Convolution
    norm: RowLayer
    mlp: RowLayer


@dataclass(frozen=True, slots=True)
class Upsampling:
    """The step to the next level: each cell's eight children, where they exist.

    `subdivide` predicts which do, (N, 8) with positive values for those; None follows a guide.
    """

    norm1: RowLayer
    conv1: Convolution
    norm2: RowLayer
    conv2: Convolution
    out_channels: int
    subdivide: PlacedLayer | None


@dataclass(frozen=True, slots=True)
class DecoderLayers:
    """A decoder's layers, read from wherever they are; `dtype` is that of its torso."""

    dtype: torch.dtype
    from_latent: RowLayer
    levels: tuple[tuple[tuple[ResidualBlock, ...], Upsampling | None], ...]
    output: PlacedLayer


def decode(
    decoder: DecoderLayers,
    latent: Tensor,
    coords: Tensor,
    guides: Sequence[Tensor] | None,
    rows: int = BLOCK_ROWS,
) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
    """Decode a latent (N, L) at coords (N, 4), over blocks of `rows`.

    `guides` are each level's subdivisions (N, 8), to be followed where the decoder predicts none.
    Returns features (M, O), their coords (M, 4), and the predicted subdivisions with their coords.
    """
    feats = decoder.from_latent(latent).to(decoder.dtype)
    made: list[tuple[Tensor, Tensor]] = []
    for level, (blocks, upsampling) in enumerate(decoder.levels):
        for block in blocks:
            feats = _residual(block, feats, coords, rows)
        if upsampling is not None:
            if upsampling.subdivide is not None:
                guide = upsampling.subdivide(feats, coords)
                made.append((guide, coords))
            elif guides is not None:
                guide = guides[level]
            else:
                raise ValueError("a decoder that predicts no subdivision needs guides")
            feats, coords = _upsample(upsampling, feats, coords, guide > 0, rows)
    parts = []
    for part, places in zip(torch.split(feats, rows), torch.split(coords, rows), strict=True):
        normed = layer_norm(part.to(latent.dtype), part.shape[-1:])
        parts.append(decoder.output(normed, places))
    return torch.cat(parts), coords, made


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


def convolve(conv: Convolution, feats: Tensor, near: Neighbours, part: slice) -> Tensor:
    """Return a submanifold convolution's rows `part`; see `Convolution`."""
    rows, exist = near.of(part)
    columns = feats[rows] * exist[..., None]
    weight = conv.weight.reshape(conv.weight.shape[0], -1)
    return torch.nn.functional.linear(columns.flatten(1), weight, conv.bias)


def _parts(count: int, rows: int) -> Iterator[slice]:
    return (slice(start, min(start + rows, count)) for start in range(0, count, rows))


def _residual(block: ResidualBlock, feats: Tensor, coords: Tensor, rows: int) -> Tensor:
    near, out = Neighbours(coords), torch.empty_like(feats)
    for part in _parts(len(feats), rows):
        h = block.norm(convolve(block.conv, feats, near, part))
        out[part] = block.mlp(h) + feats[part]
    return out


def _upsample(
    block: Upsampling, feats: Tensor, coords: Tensor, exists: Tensor, rows: int
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
