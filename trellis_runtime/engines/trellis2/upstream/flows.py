"""Upstream's flow models as ours: where their weights are, and what its samplers expect of one.

upstream's module ──read_flow──► FlowWeights ──► models.flow.FlowTransformer
                                                 ▲
upstream's sampler ──(x, t, cond)──► FastFlow ───┘   rows, coordinates, context as plain tensors
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trellis_runtime.engines.trellis2.models.flow import (
    Affine,
    Block,
    CrossAttention,
    FlowTransformer,
    FlowWeights,
    SelfAttention,
)
from trellis_runtime.engines.trellis2.models.graphs import PassGraphs


class FastFlow(nn.Module):
    """Stands where upstream's samplers expect a flow model, dense or sparse, with a batch of one.

    Weights stay the module's own, so that whoever moves them moves these.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._held: tuple[Any] = (model,)  # in a tuple: its weights are not counted twice
        self._transformer = FlowTransformer(read_flow(model))

    @property
    def model(self) -> Any:
        """Upstream's module."""
        return self._held[0]

    @property
    def in_channels(self) -> int:
        """What upstream's pipeline asks for to draw the noise."""
        return int(self.model.in_channels)

    @property
    def resolution(self) -> int:
        """As `in_channels`, of a dense model."""
        return int(self.model.resolution)

    def to(self, *args: Any, **kwargs: Any) -> FastFlow:
        """Move upstream's module: `low_vram` calls this."""
        self.model.to(*args, **kwargs)
        return self

    def cpu(self) -> FastFlow:
        """Move upstream's module away, and drop what was computed from it."""
        self.model.cpu()
        self.clear_cache()
        return self

    def use_graphs(self, graphs: PassGraphs | None) -> None:
        """Have passes captured and replayed by `graphs`, where that pays."""
        self._transformer.graphs = graphs

    def clear_cache(self) -> None:
        """Drop what was computed for a job."""
        self._transformer.clear_cache()

    def forward(self, x: Any, t: Tensor, cond: Tensor, concat_cond: Any = None) -> Any:
        """Return the velocity at `x`: (1, C, R, R, R), or a sparse tensor of N rows."""
        if isinstance(x, Tensor):
            rows = x.reshape(x.shape[1], -1).t().contiguous()
            out = self._transformer.velocity(rows, t, cond)
            return out.t().reshape(1, -1, *x.shape[2:]).contiguous()
        feats = x.feats
        if concat_cond is not None:
            feats = torch.cat([feats, concat_cond.feats], dim=-1)
        return x.replace(self._transformer.velocity(feats, t, cond, x.coords))


def read_flow(model: Any) -> FlowWeights:
    """Return where a `SparseStructureFlowModel` or `SLatFlowModel` keeps its weights."""
    blocks = tuple(_block(block) for block in model.blocks)
    rope = getattr(model.blocks[0].self_attn, "rope", None) if blocks else None
    return FlowWeights(
        dtype=model.dtype,
        modulation=lambda t: model.adaLN_modulation(model.t_embedder(t)),
        input_layer=_affine(model.input_layer),
        blocks=blocks,
        output_layer=_affine(model.out_layer),
        head_dim=blocks[0].self_attention.q_gamma.shape[-1] if blocks else 0,
        # Looked up at each use: torch replaces a buffer that it moves.
        dense_phases=(lambda: model.rope_phases) if hasattr(model, "rope_phases") else None,
        frequencies=None if rope is None else rope.freqs,
    )


def _block(block: Any) -> Block:
    own, cross = block.self_attn, block.cross_attn
    first, _, last = block.mlp.mlp
    return Block(
        modulation=block.modulation,
        self_attention=SelfAttention(
            own.num_heads,
            _affine(own.to_qkv),
            own.q_rms_norm.gamma,
            own.k_rms_norm.gamma,
            _affine(own.to_out),
        ),
        cross_norm=_affine(block.norm2),
        cross_attention=CrossAttention(
            cross.num_heads,
            _affine(cross.to_q),
            _affine(cross.to_kv),
            cross.q_rms_norm.gamma,
            cross.k_rms_norm.gamma,
            _affine(cross.to_out),
        ),
        mlp=(_affine(first), _affine(last)),
    )


def _affine(layer: Any) -> Affine:
    return Affine(layer.weight, layer.bias)
