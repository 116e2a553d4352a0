"""The flow models' element-wise work, each in one pass over memory.

Each function has two forms: a Triton kernel for CUDA tensors, and the formula itself in torch,
which a CPU runs and the tests compare against.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # a CPU's torch comes without Triton
    triton = None

_EPS = 1e-6
_SMALLEST_NORM = 1e-12


def residual_norm(
    x: Tensor, change: Tensor | None, gate: Tensor, constant: Tensor, scale: Tensor, shift: Tensor
) -> Tensor:
    """Add `change * gate + constant` to `x` in place; return its layer norm times scale plus shift.

    x and change (N, C) in the torso's dtype, the others (C,) float32; `change` may be None, and
    x is left as it is then. Returns (N, C). Norm and sums are in float32, epsilon 1e-6.
    """
    if x.is_cuda and triton is not None:
        return _residual_norm_triton(x, change, gate, constant, scale, shift)
    if change is not None:
        x.copy_(x.float() + change.float() * gate + constant)
    normed = torch.nn.functional.layer_norm(x.float(), (x.shape[1],), eps=_EPS)
    return (normed * scale + shift).to(x.dtype)


def rms_rope(x: Tensor, gamma: Tensor, cos: Tensor | None, sin: Tensor | None) -> None:
    """Normalise heads to length sqrt(D) times gamma and rotate pairs by their phases, in place.

    x (N, H, D) is any view whose last dimension is dense; gamma (H, D) float32; cos and sin
    (N, D / 2) float32, or None for no rotation.
    """
    if x.is_cuda and triton is not None:
        _rms_rope_triton(x, gamma, cos, sin)
        return
    wide = torch.nn.functional.normalize(x.float(), dim=-1) * gamma * x.shape[-1] ** 0.5
    if cos is not None and sin is not None:
        a, b = wide[..., 0::2], wide[..., 1::2]
        c, s = cos[:, None], sin[:, None]
        wide = torch.stack([a * c - b * s, a * s + b * c], dim=-1).flatten(-2)
    x.copy_(wide)


if triton is not None:

    @triton.jit
    def _residual_norm_kernel(
        x_at,
        change_at,
        gate_at,
        constant_at,
        scale_at,
        shift_at,
        out_at,
        width,
        eps,
        HAS_CHANGE: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        column = tl.arange(0, BLOCK)
        here = column < width
        x = tl.load(x_at + row * width + column, mask=here, other=0.0).to(tl.float32)
        if HAS_CHANGE:
            change = tl.load(change_at + row * width + column, mask=here, other=0.0)
            gate = tl.load(gate_at + column, mask=here, other=0.0)
            constant = tl.load(constant_at + column, mask=here, other=0.0)
            x = x + change.to(tl.float32) * gate + constant
            stored = x.to(x_at.dtype.element_ty)
            tl.store(x_at + row * width + column, stored, mask=here)
            x = stored.to(tl.float32)
        mean = tl.sum(x, 0) / width
        centred = tl.where(here, x - mean, 0.0)
        variance = tl.sum(centred * centred, 0) / width
        scale = tl.load(scale_at + column, mask=here, other=0.0)
        shift = tl.load(shift_at + column, mask=here, other=0.0)
        out = centred * tl.rsqrt(variance + eps) * scale + shift
        tl.store(out_at + row * width + column, out.to(out_at.dtype.element_ty), mask=here)

    @triton.jit
    def _rms_rope_kernel(
        x_at,
        gamma_at,
        cos_at,
        sin_at,
        row_stride,
        head_stride,
        heads,
        half,
        root,
        smallest,
        ROTATE: tl.constexpr,
        HEADS: tl.constexpr,
        HALF: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        head = tl.arange(0, HEADS)[:, None]
        pair = tl.arange(0, HALF)[None, :]
        here = (head < heads) & (pair < half)
        at = x_at + row * row_stride + head * head_stride + 2 * pair
        a = tl.load(at, mask=here, other=0.0).to(tl.float32)
        b = tl.load(at + 1, mask=here, other=0.0).to(tl.float32)
        length = tl.sqrt(tl.sum(a * a + b * b, 1))[:, None]
        factor = root / tl.maximum(length, smallest)
        gamma = gamma_at + head * 2 * half + 2 * pair
        a = a * factor * tl.load(gamma, mask=here, other=0.0)
        b = b * factor * tl.load(gamma + 1, mask=here, other=0.0)
        if ROTATE:
            phase = row * half + pair
            c = tl.load(cos_at + phase, mask=pair < half, other=0.0)
            s = tl.load(sin_at + phase, mask=pair < half, other=0.0)
            turned = a * c - b * s
            b = a * s + b * c
            a = turned
        tl.store(at, a.to(x_at.dtype.element_ty), mask=here)
        tl.store(at + 1, b.to(x_at.dtype.element_ty), mask=here)


def _residual_norm_triton(
    x: Tensor, change: Tensor | None, gate: Tensor, constant: Tensor, scale: Tensor, shift: Tensor
) -> Tensor:
    out = torch.empty_like(x)
    rows, width = x.shape
    kernel: Any = _residual_norm_kernel
    kernel[(rows,)](
        x,
        x if change is None else change,
        gate,
        constant,
        scale,
        shift,
        out,
        width,
        _EPS,
        HAS_CHANGE=change is not None,
        BLOCK=triton.next_power_of_2(width),
        num_warps=4,
    )
    return out


def _rms_rope_triton(x: Tensor, gamma: Tensor, cos: Tensor | None, sin: Tensor | None) -> None:
    rows, heads, width = x.shape
    kernel: Any = _rms_rope_kernel
    kernel[(rows,)](
        x,
        gamma,
        gamma if cos is None else cos,
        gamma if sin is None else sin,
        x.stride(0),
        x.stride(1),
        heads,
        width // 2,
        width**0.5,
        _SMALLEST_NORM,
        ROTATE=cos is not None,
        HEADS=triton.next_power_of_2(heads),
        HALF=triton.next_power_of_2(width // 2),
        num_warps=4,
    )
