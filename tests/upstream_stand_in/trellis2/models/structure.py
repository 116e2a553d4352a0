"""The decoder of the sparse structure: a grid of 16 to one of 64."""

import torch
from torch import nn

from tests import marked_shape
from trellis2.modules.norm import LayerNorm32


class Residual(nn.Module):
    def __init__(self, wide, dtype):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm32(wide), LayerNorm32(wide)
        self.conv1, self.conv2 = (
            nn.Conv3d(wide, wide, 3, padding=1, dtype=dtype) for _ in range(2)
        )


class Upsample(nn.Module):
    def __init__(self, wide, out, dtype):
        super().__init__()
        self.conv = nn.Conv3d(wide, 8 * out, 3, padding=1, dtype=dtype)


class SparseStructureDecoder(nn.Module):
    def __init__(
        self,
        out_channels,
        latent_channels,
        num_res_blocks,
        channels,
        num_res_blocks_middle=2,
        norm_type="layer",
        use_fp16=False,
    ):
        super().__init__()
        self.dtype = torch.float16 if use_fp16 else torch.float32
        self.input_layer = nn.Conv3d(latent_channels, channels[0], 3, padding=1)
        self.middle_block = nn.Sequential(
            *(Residual(channels[0], self.dtype) for _ in range(num_res_blocks_middle))
        )
        blocks = []
        for level, wide in enumerate(channels):
            blocks += [Residual(wide, self.dtype) for _ in range(num_res_blocks)]
            if level + 1 < len(channels):
                blocks.append(Upsample(wide, channels[level + 1], self.dtype))
        self.blocks = nn.ModuleList(blocks)
        self.out_layer = nn.Sequential(
            LayerNorm32(channels[-1]),
            nn.SiLU(),
            nn.Conv3d(channels[-1], out_channels, 3, padding=1),
        )

    def forward(self, x):
        """Return logits (1, 1, 64, 64, 64): positive where the marked shape is."""
        side = 4 * x.shape[-1]
        axis = torch.arange(side)
        cells = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
        there = marked_shape.touched(cells, side, 512).reshape(1, 1, side, side, side)
        return self.input_layer(x).mean().tanh() / 2 + there.float() * 2 - 1
