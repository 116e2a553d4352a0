"""The lean decoder against upstream's formula, its convolutions done densely by torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv3d, layer_norm, silu

from trellis_runtime.engines.trellis2.upstream.decoders import lean_decoders

LATENT, OUT = 4, 7


class Sparse:
    """What the decoder needs of upstream's SparseTensor."""

    def __init__(self, feats: Tensor, coords: Tensor) -> None:
        self.feats, self.coords, self.dtype = feats, coords, feats.dtype


class Linear(nn.Linear):
    def forward(self, x: Any) -> Any:
        return Sparse(super().forward(x.feats), x.coords)


class Conv(nn.Module):
    """FlexGEMM's layout: (Co, 3, 3, 3, Ci)."""

    def __init__(self, wide: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, 3, 3, 3, wide) / (27 * wide) ** 0.5)
        self.bias = nn.Parameter(torch.randn(out) / 5)

    def densely(self, feats: Tensor, coords: Tensor) -> Tensor:
        cells = coords[:, 1:].long()
        side = int(cells.max()) + 1
        x, y, z = cells.unbind(1)
        grid = torch.zeros(1, feats.shape[1], side, side, side, dtype=feats.dtype)
        grid[0, :, x, y, z] = feats.T
        return conv3d(grid, self.weight.permute(0, 4, 1, 2, 3), self.bias, padding=1)[0][
            :, x, y, z
        ].T


class ConvNext(nn.Module):
    def __init__(self, wide: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.LayerNorm(wide), Conv(wide, wide)
        self.mlp = nn.Sequential(nn.Linear(wide, 4 * wide), nn.SiLU(), nn.Linear(4 * wide, wide))


class Up(nn.Module):
    def __init__(self, wide: int, out: int, *, predicts: bool) -> None:
        super().__init__()
        self.out_channels = out
        self.norm1, self.norm2 = nn.LayerNorm(wide), nn.LayerNorm(out, elementwise_affine=False)
        self.conv1, self.conv2 = Conv(wide, 8 * out), Conv(out, out)
        if predicts:
            self.to_subdiv = Linear(wide, 8)


class Decoder(nn.Module):
    """`SparseUnetVaeDecoder` at 5565d24, its forward pass written out whole."""

    def __init__(self, *, predicts: bool) -> None:
        super().__init__()
        self.dtype, self.pred_subdiv = torch.float64, predicts
        wide = (32, 16, 8)
        self.from_latent, self.output_layer = Linear(LATENT, wide[0]), Linear(wide[-1], OUT)
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                [ConvNext(width) for _ in range(2 - level)]
                + ([Up(width, wide[level + 1], predicts=predicts)] if level < 2 else [])
            )
            for level, width in enumerate(wide)
        )

    def forward(self, x: Any, guide_subs: Any = None, return_subs: bool = False) -> Any:
        feats, coords, made = self.from_latent(x).feats, x.coords, []
        for level, blocks in enumerate(self.blocks):
            for block in blocks:
                if isinstance(block, ConvNext):
                    h = block.norm(block.conv.densely(feats, coords))
                    feats = block.mlp(h) + feats
                    continue
                guide = guide_subs[level] if guide_subs else block.to_subdiv(Sparse(feats, coords))
                made.append(guide)
                feats, coords = self._up(block, feats, coords, guide.feats > 0)
        out = self.output_layer(Sparse(layer_norm(feats, feats.shape[-1:]), coords))
        return (out, made) if return_subs else out

    def _up(self, block: Any, feats: Tensor, coords: Tensor, exists: Tensor) -> Any:
        row, child = exists.nonzero(as_tuple=True)
        below = coords[row] * torch.tensor([1, 2, 2, 2])
        for axis in range(3):
            below[:, axis + 1] += child // 2**axis % 2
        h = block.conv1.densely(silu(block.norm1(feats)), coords)
        h = h.reshape(len(feats) * 8, -1)[row * 8 + child]
        h = block.conv2.densely(silu(block.norm2(h)), below)
        skip = feats.reshape(len(feats) * 8, -1)[row * 8 + child]
        return h + skip.repeat_interleave(h.shape[1] // skip.shape[1], dim=1), below


@pytest.mark.parametrize("rows", [1, 13, 10_000])
@torch.no_grad()
def test_decoding_over_blocks_of_rows_is_decoding(rows: int) -> None:
    torch.manual_seed(5)
    shape, texture = Decoder(predicts=True).double(), Decoder(predicts=False).double()
    cells = torch.randint(0, 4, (20, 3)).unique(dim=0)
    coords = torch.cat([torch.zeros(len(cells), 1).long(), cells], 1).int()
    x = Sparse(torch.randn(len(cells), LATENT).double(), coords)
    wanted, guides = shape(x, return_subs=True)
    colors = texture(x, guide_subs=guides)
    with lean_decoders(Decoder, active=True, rows=rows):
        got, made = shape(x, return_subs=True)
        lean = texture(x, guide_subs=made)
    assert torch.equal(got.coords, wanted.coords)
    assert len(wanted.coords) > len(cells)
    assert torch.allclose(got.feats, wanted.feats, atol=1e-10)
    assert all(
        torch.allclose(a.feats, b.feats, atol=1e-10) for a, b in zip(made, guides, strict=True)
    )
    assert torch.allclose(lean.feats, colors.feats, atol=1e-10)


def test_the_decoder_is_its_own_again_afterwards() -> None:
    own = Decoder.forward
    with lean_decoders(Decoder, active=False):
        assert Decoder.forward is own
    with pytest.raises(ValueError, match="x"), lean_decoders(Decoder, active=True):
        assert Decoder.forward is not own
        raise ValueError("x")
    assert Decoder.forward is own
