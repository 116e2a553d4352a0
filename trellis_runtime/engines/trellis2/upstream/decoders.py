"""Upstream's sparse decoders as ours: which layers work row by row, and decoding over blocks.

    SparseUnetVaeDecoder ──row_layers──► RowLayers      ──► models.rows.chunked_rows
                         ──read_layers─► DecoderLayers  ──► models.lean_decoder.decode

Layers are told by their classes, which `interface` has checked; a decoder in which none is found
stops the start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from trellis_runtime.engines.trellis2.models.lean_decoder import (
    BLOCK_ROWS,
    Convolution,
    DecoderLayers,
    ResidualBlock,
    Upsampling,
    decode,
)
from trellis_runtime.engines.trellis2.models.rows import RowLayers
from trellis_runtime.errors import SetupFailed


def row_layers(decoder: nn.Module) -> RowLayers:
    """Return a decoder's norms and MLPs; raises `SetupFailed` where there are none of either."""
    from trellis2.models.sc_vaes.sparse_unet_vae import SparseConvNeXtBlock3d
    from trellis2.modules.norm import LayerNorm32

    modules = list(decoder.modules())
    norms = tuple(m for m in modules if isinstance(m, LayerNorm32))
    mlps = tuple(m.mlp for m in modules if isinstance(m, SparseConvNeXtBlock3d))
    try:
        return RowLayers(norms, mlps)
    except ValueError as err:
        raise SetupFailed(f"upstream's {type(decoder).__name__}: {err}") from None


def deciding_layers(name: str, model: Any) -> list[tuple[str, nn.Module]]:
    """Return the layers of a model whose outputs decide what exists and how it looks, named.

    Of a sparse decoder: which children each cell has, level by level, and the last layer. Any other
    model is one layer.
    """
    if not hasattr(model, "output_layer"):
        return [(f"{name}'s output", model)]
    layers = [(f"{name}'s output", model.output_layer)]
    for level, blocks in enumerate(list(model.blocks)[:-1]):
        if model.pred_subdiv:
            layers.append((f"{name}'s subdivision {level}", blocks[-1].to_subdiv))
    return layers


def layers_by_level(model: Any) -> list[tuple[str, nn.Module]]:
    """Return every layer of a decoder that has no parts, under the level that it belongs to.

    A level of a sparse decoder ends with its upsampling; the dense one's blocks are a level each.
    """
    groups = [("input", model.get_submodule(_input_of(model)))]
    if hasattr(model, "middle_block"):
        groups.append(("middle", model.middle_block))
    groups += [(f"level {number}", part) for number, part in enumerate(model.blocks)]
    return [
        (label, layer)
        for label, part in groups
        for layer in part.modules()
        if not list(layer.children())
    ]


def _input_of(model: Any) -> str:
    return "from_latent" if hasattr(model, "from_latent") else "input_layer"


@contextmanager
def lean_decoders(decoder_class: Any, *, active: bool, rows: int = BLOCK_ROWS) -> Iterator[None]:
    """Have every `SparseUnetVaeDecoder` decode over blocks of `rows` while the context lasts."""
    whole = decoder_class.forward
    if active:
        decoder_class.forward = lambda decoder, x, guide_subs=None, return_subs=False: _decode(
            decoder, x, guide_subs, return_subs, rows
        )
    try:
        yield
    finally:
        decoder_class.forward = whole


def _decode(decoder: Any, x: Any, guides: Any, return_guides: bool, rows: int) -> Any:
    """Return what the decoder's own `forward` does, in its own types."""
    sparse = type(x)
    plain_guides = None if guides is None else [guide.feats for guide in guides]
    layers = read_layers(decoder, sparse)
    feats, coords, made = decode(layers, x.feats, x.coords, plain_guides, rows)
    out = sparse(feats=feats, coords=coords)
    if not return_guides:
        return out
    return out, [sparse(feats=guide, coords=places) for guide, places in made]


def read_layers(decoder: Any, sparse: Any) -> DecoderLayers:
    """Return a decoder's layers; `sparse` makes upstream's sparse tensor of feats and coords."""

    def from_latent(latent: Tensor) -> Tensor:
        weights = decoder.from_latent
        return nn.functional.linear(latent, weights.weight, weights.bias)

    def placed(layer: nn.Module) -> Any:
        return lambda feats, coords: layer(sparse(feats=feats, coords=coords)).feats

    levels = []
    for number, blocks in enumerate(decoder.blocks):
        *residual, last = blocks if number < len(decoder.blocks) - 1 else (*blocks, None)
        upsampling = None
        if last is not None:
            subdivide = placed(last.to_subdiv) if decoder.pred_subdiv else None
            upsampling = Upsampling(
                last.norm1,
                _convolution(last.conv1),
                last.norm2,
                _convolution(last.conv2),
                last.out_channels,
                subdivide,
            )
        levels.append((tuple(_residual(block) for block in residual), upsampling))
    return DecoderLayers(decoder.dtype, from_latent, tuple(levels), placed(decoder.output_layer))


def _residual(block: Any) -> ResidualBlock:
    return ResidualBlock(_convolution(block.conv), block.norm, block.mlp)


def _convolution(conv: Any) -> Convolution:
    return Convolution(conv.weight, conv.bias)
