"""Upstream's flow models on plain tensors: the same weights and formula, fewer passes over memory.

What is saved, against upstream's modules: keys and values of the cross attention are computed once
per job, not at each step; the unconditional context is all zeros, so that its cross attention is
one constant row per block; positions' phases once per job, as real numbers; norms, modulation,
rotations and gates are fused (`kernels`); no copies between host and device in a pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import layer_norm, linear, scaled_dot_product_attention

from trellis_runtime.engines.trellis2.models.kernels import residual_norm, rms_rope

_BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


@dataclass(frozen=True, slots=True)
class _Context:
    """What one conditioning tensor comes to in each block: keys and values, or a constant row."""

    source: Tensor
    pairs: list[tuple[Tensor, Tensor]]  # (1, H, L, D) each; empty for a context of zeros
    constants: list[Tensor]  # (C,) float32 each; empty otherwise


@dataclass(frozen=True, slots=True)
class _Positions:
    source: Tensor
    cos: Tensor  # (N, D / 2) float32
    sin: Tensor


class FastFlow(nn.Module):
    """Stands where upstream's samplers expect a flow model, dense or sparse, with a batch of one.

    Weights stay the module's own, so that whoever moves them moves these. `clear_cache` drops what
    was computed for a job.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._held: tuple[Any] = (model,)  # in a tuple: its weights are not counted twice
        self._contexts: list[_Context] = []
        self._positions: _Positions | None = None

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

    def clear_cache(self) -> None:
        """Drop what was computed for a job."""
        self._contexts.clear()
        self._positions = None

    def forward(self, x: Any, t: Tensor, cond: Tensor, concat_cond: Any = None) -> Any:
        """Return the velocity at `x`: (1, C, R, R, R), or a sparse tensor of N rows."""
        context = self._context(cond)
        if isinstance(x, Tensor):
            return self._dense(x, t, context)
        feats = x.feats
        if concat_cond is not None:
            feats = torch.cat([feats, concat_cond.feats], dim=-1)
        positions = self._at(x.coords)
        return x.replace(self._backbone(feats, t, context, positions))

    def _dense(self, x: Tensor, t: Tensor, context: _Context) -> Tensor:
        rows = x.reshape(x.shape[1], -1).t().contiguous()
        phases = self.model.rope_phases
        if self._positions is None or self._positions.source is not phases:
            self._positions = _Positions(
                phases, phases.real.float().contiguous(), phases.imag.float().contiguous()
            )
        out = self._backbone(rows, t, context, self._positions)
        return out.t().reshape(1, -1, *x.shape[2:]).contiguous()

    def _backbone(
        self, feats: Tensor, t: Tensor, context: _Context, positions: _Positions
    ) -> Tensor:
        model = self.model
        dtype = model.dtype
        x = linear(feats, model.input_layer.weight, model.input_layer.bias).to(dtype)
        modulation = model.adaLN_modulation(model.t_embedder(t)).to(dtype)
        parts = [_modulation(block, modulation) for block in model.blocks]
        ones = torch.ones_like(parts[0][0])
        zeros = torch.zeros_like(ones)
        h = residual_norm(x, None, ones, zeros, *parts[0][:2])
        for number, block in enumerate(model.blocks):
            _, _, gate, scale, shift, gate_mlp = parts[number]
            change = _self_attention(block.self_attn, h, positions)
            if context.constants:
                h = residual_norm(x, change, gate, context.constants[number], scale, shift)
            else:
                norm = block.norm2
                h = residual_norm(x, change, gate, zeros, norm.weight, norm.bias)
                change = _cross_attention(block.cross_attn, h, *context.pairs[number])
                h = residual_norm(x, change, ones, zeros, scale, shift)
            change = _mlp(block.mlp.mlp, h)
            # The next block's norm; after the last one its result is not used.
            following = parts[number + 1][:2] if number + 1 < len(parts) else (ones, zeros)
            h = residual_norm(x, change, gate_mlp, zeros, *following)
        normed = layer_norm(x.to(feats.dtype), (x.shape[1],))
        return linear(normed, model.out_layer.weight, model.out_layer.bias)

    def _context(self, cond: Tensor) -> _Context:
        for known in self._contexts:
            if known.source is cond:
                return known
        rows = cond[0].to(self.model.dtype)
        attentions = [block.cross_attn for block in self.model.blocks]
        if bool(rows.any()):
            made = _Context(cond, [_keys_values(a, rows) for a in attentions], [])
        else:
            made = _Context(cond, [], [_constant(a) for a in attentions])
        self._contexts = [*self._contexts[-1:], made]
        return made

    def _at(self, coords: Tensor) -> _Positions:
        if self._positions is None or self._positions.source is not coords:
            rope = self.model.blocks[0].self_attn.rope
            frequencies = rope.freqs.to(coords.device)
            phases = coords[:, 1:, None].float() * frequencies
            phases = phases.reshape(len(coords), -1)
            missing = rope.head_dim // 2 - phases.shape[1]
            phases = torch.nn.functional.pad(phases, (0, missing))
            self._positions = _Positions(coords, phases.cos(), phases.sin())
        return self._positions


def _modulation(block: Any, shared: Tensor) -> tuple[Tensor, ...]:
    """Return scale, shift and gate of a block's attention, then of its MLP: (C,) float32 each."""
    values = (block.modulation + shared).to(shared.dtype).float()[0].chunk(6)
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = values
    return 1 + scale, shift, gate, 1 + scale_mlp, shift_mlp, gate_mlp


def _self_attention(attention: Any, h: Tensor, positions: _Positions) -> Tensor:
    qkv = linear(h, attention.to_qkv.weight, attention.to_qkv.bias)
    qkv = qkv.view(len(h), 3, attention.num_heads, -1)
    gammas = attention.q_rms_norm.gamma, attention.k_rms_norm.gamma
    rms_rope(qkv[:, :2], gammas, positions.cos, positions.sin)
    out = _attend(*(part.transpose(0, 1)[None] for part in qkv.unbind(1)))
    return linear(out, attention.to_out.weight, attention.to_out.bias)


def _cross_attention(attention: Any, h: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    q = linear(h, attention.to_q.weight, attention.to_q.bias)
    q = q.view(len(h), 1, attention.num_heads, -1)
    rms_rope(q, [attention.q_rms_norm.gamma])
    out = _attend(q.permute(1, 2, 0, 3), keys, values)
    return linear(out, attention.to_out.weight, attention.to_out.bias)


def _keys_values(attention: Any, context: Tensor) -> tuple[Tensor, Tensor]:
    kv = linear(context, attention.to_kv.weight, attention.to_kv.bias)
    kv = kv.view(len(context), 2, attention.num_heads, -1)
    rms_rope(kv[:, :1], [attention.k_rms_norm.gamma])
    keys, values = kv.unbind(1)
    return keys.transpose(0, 1)[None], values.transpose(0, 1)[None]


def _constant(attention: Any) -> Tensor:
    """Return what cross attention adds to every row when its context is all zeros.

    Every value is the bias then, and so is any weighted mean of them.
    """
    values = attention.to_kv.bias.chunk(2)[1]
    return linear(values, attention.to_out.weight, attention.to_out.bias).float()


def _mlp(layers: Any, h: Tensor) -> Tensor:
    first, _, last = layers
    if h.is_cuda:  # cuBLASLt adds the bias and applies GELU (tanh) as it writes the product
        wide = torch._addmm_activation(first.bias, h, first.weight.t(), use_gelu=True)
    else:
        wide = torch.nn.functional.gelu(linear(h, first.weight, first.bias), approximate="tanh")
    return linear(wide, last.weight, last.bias)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return attention (N, H * D) of q, k, v (1, H, N, D)."""
    with sdpa_kernel(_BACKENDS, set_priority=True):
        out = scaled_dot_product_attention(q, k, v)
    return out[0].transpose(0, 1).reshape(q.shape[2], -1)
