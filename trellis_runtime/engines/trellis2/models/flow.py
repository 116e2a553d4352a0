"""Flow transformers on plain tensors: upstream's formula, fewer passes over memory.

What is saved, against upstream's modules: keys and values of the cross attention are computed once
per job, not at each step; the unconditional context is all zeros, so that its cross attention is
one constant row per block; positions' phases once per job, as real numbers; norms, modulation,
rotations and gates are fused (`kernels`); no copies between host and device in a pass.

Formula, per block (Peebles and Xie 2023, "Scalable Diffusion Models with Transformers", with
cross attention to the picture's features between attention and MLP):

    x += gate1 * attention(norm(x) * (1 + scale1) + shift1)       rotary positions, RMS-normed q, k
    x += cross(norm(x) * weight + bias, context)
    x += gate2 * mlp(norm(x) * (1 + scale2) + shift2)

x (N, C), one row per token; context (L, K). Weights are held, not copied: whoever moves a
parameter's data moves what is used here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import layer_norm, linear, scaled_dot_product_attention

from trellis_runtime.engines.trellis2.models.graphs import Inputs, PassGraphs, PassKey
from trellis_runtime.engines.trellis2.models.kernels import residual_norm, rms_rope

_BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


@dataclass(frozen=True, slots=True)
class Affine:
    """A linear layer or an affine norm: weight (O, I) or (C,), bias (O,) or (C,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class SelfAttention:
    """Weights of attention among the rows; gammas (H, D) scale normed queries and keys."""

    heads: int
    to_qkv: Affine
    q_gamma: Tensor
    k_gamma: Tensor
    to_out: Affine


@dataclass(frozen=True, slots=True)
class CrossAttention:
    """Weights of attention from the rows to the context."""

    heads: int
    to_q: Affine
    to_kv: Affine
    q_gamma: Tensor
    k_gamma: Tensor
    to_out: Affine


@dataclass(frozen=True, slots=True)
class Block:
    """Weights of one block; modulation (6 C,) is added to the model's own."""

    modulation: Tensor
    self_attention: SelfAttention
    cross_norm: Affine
    cross_attention: CrossAttention
    mlp: tuple[Affine, Affine]


@dataclass(frozen=True, slots=True)
class FlowWeights:
    """Weights of a flow transformer.

    `modulation` maps timesteps (1,) to (1, 6 C) float32. Positions come from `dense_phases`, which
    returns (N, D / 2) complex for a dense grid, or from `frequencies` (F,) times coordinates.
    """

    dtype: torch.dtype
    modulation: Callable[[Tensor], Tensor]
    input_layer: Affine
    blocks: tuple[Block, ...]
    output_layer: Affine
    head_dim: int
    dense_phases: Callable[[], Tensor] | None = None
    frequencies: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """Return every weight that a pass reads by its place."""
        affine = [self.input_layer, self.output_layer]
        plain = []
        for block in self.blocks:
            own, cross = block.self_attention, block.cross_attention
            affine += [own.to_qkv, own.to_out, block.cross_norm, cross.to_q, cross.to_out]
            affine += block.mlp
            plain += [block.modulation, own.q_gamma, own.k_gamma, cross.q_gamma, cross.k_gamma]
        return [*plain, *(tensor for layer in affine for tensor in (layer.weight, layer.bias))]


@dataclass(frozen=True, slots=True)
class _Context:
    """What one conditioning tensor comes to in each block: keys and values, or a constant row."""

    source: Tensor
    pairs: list[tuple[Tensor, Tensor]]  # (1, H, L, D) each; empty for a context of zeros
    constants: list[Tensor]  # (C,) float32 each; empty otherwise

    def tensors(self) -> list[Tensor]:
        """Return what a pass reads of it."""
        return self.constants or [tensor for pair in self.pairs for tensor in pair]

    def with_tensors(self, tensors: Inputs) -> _Context:
        """Return the same of other tensors, in the order of `tensors`."""
        if self.constants:
            return _Context(self.source, [], list(tensors))
        return _Context(self.source, list(zip(tensors[::2], tensors[1::2], strict=True)), [])


@dataclass(frozen=True, slots=True)
class _Positions:
    source: Tensor
    cos: Tensor  # (N, D / 2) float32
    sin: Tensor


class FlowTransformer:
    """A flow transformer with a batch of one, and what it has computed for the current job."""

    def __init__(self, weights: FlowWeights) -> None:
        self.weights = weights
        self._contexts: list[_Context] = []
        self._positions: _Positions | None = None
        self.graphs: PassGraphs | None = None
        """Where passes are captured; unset, none is."""

    def clear_cache(self) -> None:
        """Drop what was computed for a job."""
        self._contexts.clear()
        self._positions = None
        if self.graphs is not None:
            self.graphs.end_job()

    def velocity(
        self, rows: Tensor, timestep: Tensor, context: Tensor, coords: Tensor | None = None
    ) -> Tensor:
        """Return the velocity (N, O) at rows (N, I).

        timestep (1,) in 0..1000; context (1, L, K); coords (N, 4) int32 of sparse rows, None for
        the rows of the whole dense grid.
        """
        positions = self._grid() if coords is None else self._at(coords)
        ready = self._context(context)
        modulation = self.weights.modulation(timestep).to(self.weights.dtype)
        if self.graphs is None:
            return self._backbone(rows, modulation, ready, positions)

        def compute(given: Inputs) -> Tensor:
            there = _Positions(positions.source, given[2], given[3])
            return self._backbone(given[0], given[1], ready.with_tensors(given[4:]), there)

        inputs = (rows, modulation, positions.cos, positions.sin, *ready.tensors())
        places = tuple(tensor.data_ptr() for tensor in self.weights.tensors())
        key = PassKey.of(self, inputs)
        return self.graphs.run(key, compute, inputs, places, lasting=coords is None)

    def _grid(self) -> _Positions:
        if self.weights.dense_phases is None:
            raise ValueError("this model has no dense grid: coordinates are needed")
        phases = self.weights.dense_phases()
        if self._positions is None or self._positions.source is not phases:
            self._positions = _Positions(
                phases, phases.real.float().contiguous(), phases.imag.float().contiguous()
            )
        return self._positions

    def _backbone(
        self, feats: Tensor, modulation: Tensor, context: _Context, positions: _Positions
    ) -> Tensor:
        model = self.weights
        x = model.input_layer(feats).to(model.dtype)
        parts = [_modulation(block, modulation) for block in model.blocks]
        ones = torch.ones_like(parts[0][0])
        zeros = torch.zeros_like(ones)
        h = residual_norm(x, None, ones, zeros, *parts[0][:2])
        for number, block in enumerate(model.blocks):
            _, _, gate, scale, shift, gate_mlp = parts[number]
            change = _self_attention(block.self_attention, h, positions)
            if context.constants:
                h = residual_norm(x, change, gate, context.constants[number], scale, shift)
            else:
                norm = block.cross_norm
                h = residual_norm(x, change, gate, zeros, norm.weight, norm.bias)
                change = _cross_attention(block.cross_attention, h, *context.pairs[number])
                h = residual_norm(x, change, ones, zeros, scale, shift)
            change = _mlp(block.mlp, h)
            # The next block's norm; after the last one its result is not used.
            following = parts[number + 1][:2] if number + 1 < len(parts) else (ones, zeros)
            h = residual_norm(x, change, gate_mlp, zeros, *following)
        normed = layer_norm(x.to(feats.dtype), (x.shape[1],))
        return model.output_layer(normed)

    def _context(self, cond: Tensor) -> _Context:
        for known in self._contexts:
            if known.source is cond:
                return known
        rows = cond[0].to(self.weights.dtype)
        attentions = [block.cross_attention for block in self.weights.blocks]
        if bool(rows.any()):
            made = _Context(cond, [_keys_values(a, rows) for a in attentions], [])
        else:
            made = _Context(cond, [], [_constant(a) for a in attentions])
        self._contexts = [*self._contexts[-1:], made]
        return made

    def _at(self, coords: Tensor) -> _Positions:
        if self._positions is None or self._positions.source is not coords:
            if self.weights.frequencies is None:
                raise ValueError("this model has a dense grid alone: it takes no coordinates")
            frequencies = self.weights.frequencies.to(coords.device)
            phases = coords[:, 1:, None].float() * frequencies
            phases = phases.reshape(len(coords), -1)
            missing = self.weights.head_dim // 2 - phases.shape[1]
            phases = torch.nn.functional.pad(phases, (0, missing))
            self._positions = _Positions(coords, phases.cos(), phases.sin())
        return self._positions


def _modulation(block: Block, shared: Tensor) -> tuple[Tensor, ...]:
    """Return scale, shift and gate of a block's attention, then of its MLP: (C,) float32 each."""
    values = (block.modulation + shared).to(shared.dtype).float()[0].chunk(6)
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = values
    return 1 + scale, shift, gate, 1 + scale_mlp, shift_mlp, gate_mlp


def _self_attention(attention: SelfAttention, h: Tensor, positions: _Positions) -> Tensor:
    qkv = attention.to_qkv(h).view(len(h), 3, attention.heads, -1)
    gammas = attention.q_gamma, attention.k_gamma
    rms_rope(qkv[:, :2], gammas, positions.cos, positions.sin)
    out = _attend(*(part.transpose(0, 1)[None] for part in qkv.unbind(1)))
    return attention.to_out(out)


def _cross_attention(attention: CrossAttention, h: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    q = attention.to_q(h).view(len(h), 1, attention.heads, -1)
    rms_rope(q, [attention.q_gamma])
    out = _attend(q.permute(1, 2, 0, 3), keys, values)
    return attention.to_out(out)


def _keys_values(attention: CrossAttention, context: Tensor) -> tuple[Tensor, Tensor]:
    kv = attention.to_kv(context).view(len(context), 2, attention.heads, -1)
    rms_rope(kv[:, :1], [attention.k_gamma])
    keys, values = kv.unbind(1)
    return keys.transpose(0, 1)[None], values.transpose(0, 1)[None]


def _constant(attention: CrossAttention) -> Tensor:
    """Return what cross attention adds to every row when its context is all zeros.

    Every value is the bias then, and so is any weighted mean of them.
    """
    values = attention.to_kv.bias.chunk(2)[1]
    return attention.to_out(values).float()


def _mlp(layers: tuple[Affine, Affine], h: Tensor) -> Tensor:
    first, last = layers
    if h.is_cuda:  # cuBLASLt adds the bias and applies GELU (tanh) as it writes the product
        wide = torch._addmm_activation(first.bias, h, first.weight.t(), use_gelu=True)
    else:
        wide = torch.nn.functional.gelu(first(h), approximate="tanh")
    return last(wide)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return attention (N, H * D) of q, k, v (1, H, N, D)."""
    with sdpa_kernel(_BACKENDS, set_priority=True):
        out = scaled_dot_product_attention(q, k, v)
    return out[0].transpose(0, 1).reshape(q.shape[2], -1)
