"""The models' element-wise work, each in one pass over memory.

Each function has two forms: a Triton kernel for CUDA tensors, and the formula itself in torch,
which a CPU runs and the tests compare against.
"""

from __future__ import annotations

from collections.abc import Sequence
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
_TILE = 4096  # values that one program of `row_norm` holds


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


def rms_rope(
    x: Tensor, gammas: Sequence[Tensor], cos: Tensor | None = None, sin: Tensor | None = None
) -> None:
    """Normalise heads to length sqrt(D) times gamma and rotate pairs by their phases, in place.

    x (N, P, H, D) is any view whose last dimension is dense: P is 1 or 2, queries and keys side by
    side, say, with a gamma (H, D) float32 for each; cos and sin (N, D / 2) float32, or None for no
    rotation.
    """
    if x.is_cuda and triton is not None:
        _rms_rope_triton(x, gammas, cos, sin)
        return
    wide = torch.nn.functional.normalize(x.float(), dim=-1) * x.shape[-1] ** 0.5
    wide = wide * torch.stack(list(gammas))
    if cos is not None and sin is not None:
        a, b = wide[..., 0::2], wide[..., 1::2]
        c, s = cos[:, None, None], sin[:, None, None]
        wide = torch.stack([a * c - b * s, a * s + b * c], dim=-1).flatten(-2)
    x.copy_(wide)


def row_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Return the layer norm of each row of x (N, C) in x's dtype, computed in float32.

    weight and bias (C,) float32 may be None.
    """
    if x.is_cuda and triton is not None:
        return _row_norm_triton(x, weight, bias, eps)
    normed = torch.nn.functional.layer_norm(x.float(), (x.shape[1],), weight, bias, eps)
    return normed.to(x.dtype)


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
        other_gamma_at,
        cos_at,
        sin_at,
        row_stride,
        part_stride,
        head_stride,
        heads,
        width,
        root,
        smallest,
        ROTATE: tl.constexpr,
        HEADS: tl.constexpr,
        HALF: tl.constexpr,
    ):
        row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
        head = tl.arange(0, HEADS)[:, None]
        column = tl.arange(0, 2 * HALF)[None, :]
        here = (head < heads) & (column < width)
        at = x_at + row * row_stride + part * part_stride + head * head_stride + column
        x = tl.load(at, mask=here, other=0.0).to(tl.float32)
        if part == 0:
            gamma = tl.load(gamma_at + head * width + column, mask=here, other=0.0)
        else:
            gamma = tl.load(other_gamma_at + head * width + column, mask=here, other=0.0)
        length = tl.sqrt(tl.sum(x * x, 1))[:, None]
        x = x * (root / tl.maximum(length, smallest)) * gamma
        if ROTATE:
            # Whole rows are read and written at once; pairs part only in registers.
            a, b = tl.split(tl.reshape(x, (HEADS, HALF, 2)))
            pair = tl.arange(0, HALF)[None, :]
            phase = row * (width // 2) + pair
            c = tl.load(cos_at + phase, mask=pair < width // 2, other=0.0)
            s = tl.load(sin_at + phase, mask=pair < width // 2, other=0.0)
            x = tl.reshape(tl.join(a * c - b * s, a * s + b * c), (HEADS, 2 * HALF))
        tl.store(at, x.to(x_at.dtype.element_ty), mask=here)

    @triton.jit
    def _row_norm_kernel(
        x_at,
        weight_at,
        bias_at,
        out_at,
        rows,
        width,
        eps,
        AFFINE: tl.constexpr,
        ROWS: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        column = tl.arange(0, BLOCK)[None, :]
        inside = column < width
        here = (row < rows) & inside
        x = tl.load(x_at + row * width + column, mask=here, other=0.0).to(tl.float32)
        centred = tl.where(inside, x - tl.sum(x, 1)[:, None] / width, 0.0)
        variance = tl.sum(centred * centred, 1)[:, None] / width
        out = centred * tl.rsqrt(variance + eps)
        if AFFINE:
            weight = tl.load(weight_at + column, mask=inside, other=0.0).to(tl.float32)
            out = out * weight + tl.load(bias_at + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(out_at + row * width + column, out.to(out_at.dtype.element_ty), mask=here)


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


def _rms_rope_triton(
    x: Tensor, gammas: Sequence[Tensor], cos: Tensor | None, sin: Tensor | None
) -> None:
    rows, parts, heads, width = x.shape
    kernel: Any = _rms_rope_kernel
    kernel[(rows, parts)](
        x,
        gammas[0],
        gammas[-1],
        gammas[0] if cos is None else cos,
        gammas[0] if sin is None else sin,
        x.stride(0),
        x.stride(1),
        x.stride(2),
        heads,
        width,
        width**0.5,
        _SMALLEST_NORM,
        ROTATE=cos is not None,
        HEADS=triton.next_power_of_2(heads),
        HALF=triton.next_power_of_2(width) // 2,
        num_warps=4,
    )


def _row_norm_triton(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    rows, width = x.shape
    block = triton.next_power_of_2(width)
    tile = max(1, _TILE // block)
    kernel: Any = _row_norm_kernel
    kernel[(triton.cdiv(rows, tile),)](
        x,
        x if weight is None else weight,
        x if bias is None else bias,
        out,
        rows,
        width,
        eps,
        AFFINE=weight is not None,
        ROWS=tile,
        BLOCK=block,
        num_warps=4,
    )
    return out
