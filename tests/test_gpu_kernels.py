"""The Triton kernels against their formulas in torch, interpreted on the CPU.

Triton's interpreter (`TRITON_INTERPRET`, set in conftest) runs a kernel's own code program by
program: masks, strides and padding are tried here, speed is not.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trellis_runtime.engines.trellis2.models import kernels

pytestmark = pytest.mark.skipif(kernels.triton is None, reason="Triton is for Linux alone")

# One unit in the last place of a bfloat16 near 8, and what float32 sums differ by.
TOLERANCE = {torch.bfloat16: 0.0625, torch.float16: 0.004, torch.float32: 1e-5}


def seeded(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rotate", [True, False], ids=["rotated", "still"])
@pytest.mark.parametrize(
    ("heads", "width", "parts"), [(12, 128, 2), (3, 12, 2), (12, 128, 1)], ids=str
)
def test_heads_are_normalised_and_turned(
    heads: int, width: int, parts: int, rotate: bool, dtype: torch.dtype
) -> None:
    packed = seeded(19, 3, heads, width).to(dtype)
    gammas = [torch.rand(heads, width) + 0.5 for _ in range(parts)]
    phases = (seeded(19, width // 2), seeded(20, width // 2)[:19]) if rotate else (None, None)
    wanted, got = packed.clone(), packed.clone()
    kernels.rms_rope(wanted[:, :parts], gammas, *phases)
    kernels._rms_rope_triton(got[:, :parts], gammas, *phases)
    assert not torch.equal(wanted[:, :parts], packed[:, :parts])
    assert torch.equal(got[:, parts:], packed[:, parts:])  # values are not touched
    assert (got.float() - wanted.float()).abs().max() <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("width", [7, 64, 96, 1024])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_rows_are_normalised_in_one_pass(width: int, affine: bool, dtype: torch.dtype) -> None:
    x = (seeded(301, width) * 3 + 1).to(dtype)
    weight, bias = (seeded(width), seeded(width + 1)[:width]) if affine else (None, None)
    wanted = kernels.row_norm(x, weight, bias, 1e-6)
    got = kernels._row_norm_triton(x, weight, bias, 1e-6)
    assert got.dtype == dtype
    assert (got.float() - wanted.float()).abs().max() <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [48, 1536])
@pytest.mark.parametrize("changed", [True, False], ids=["residual", "norm"])
def test_residual_and_norm_in_one_pass(width: int, changed: bool, dtype: torch.dtype) -> None:
    x, change = seeded(23, width).to(dtype), seeded(24, width)[:23].to(dtype)
    gate, constant, scale, shift = seeded(4, width)
    first, second = x.clone(), x.clone()
    arguments = (change if changed else None, gate, constant, scale, shift)
    wanted = kernels.residual_norm(first, *arguments)
    got = kernels._residual_norm_triton(second, *arguments)
    assert (second.float() - first.float()).abs().max() <= TOLERANCE[dtype]
    assert (got.float() - wanted.float()).abs().max() <= TOLERANCE[dtype]
    assert torch.equal(second, x) != changed
