"""Decoders of sparse latents: blocks that keep their cells, and steps that subdivide them.

What exists is decided by the marked shape: `Subdivisions` answers for the shape's decoder, and
`Attributes` gives the texture's decoder its colours.
"""

import torch
from torch import nn
from torch.nn.functional import layer_norm, silu

from tests import marked_shape
from tests.upstream_record import note
from trellis2.modules.norm import LayerNorm32
from trellis2.modules.sparse import SparseConv3d, SparseLinear, SparseTensor


class SparseConvNeXtBlock3d(nn.Module):
    def __init__(self, wide, dtype):
        super().__init__()
        self.norm, self.conv = LayerNorm32(wide, eps=1e-6), SparseConv3d(wide, wide, dtype)
        self.mlp = nn.Sequential(
            nn.Linear(wide, 4 * wide, dtype=dtype),
            nn.SiLU(),
            nn.Linear(4 * wide, wide, dtype=dtype),
        )

    def forward(self, x):
        note("rows", norm="forward" in vars(self.norm), mlp="forward" in vars(self.mlp))
        return x + x.replace(self.mlp(self.norm(self.conv(x).feats)))


class Subdivisions(SparseLinear):
    """Which of a cell's eight children the marked shape touches."""

    def __init__(self, wide, decoder, level, dtype):
        super().__init__(wide, 8, dtype=dtype)
        self.held, self.level = (decoder,), level

    def forward(self, x):
        y = super().forward(x)
        resolution = self.held[0].marks_at
        side = (resolution >> 4) << (self.level + 1)
        children = x.coords[:, 1:] * 2
        there = [
            marked_shape.touched(
                children + torch.tensor([i & 1, i >> 1 & 1, i >> 2 & 1]), side, resolution
            )
            for i in range(8)
        ]
        sure = torch.stack(there, dim=1).to(y.dtype) * 2 - 1
        return y.replace(sure + y.feats.tanh() / 4)


class SparseResBlockC2S3d(nn.Module):
    def __init__(self, wide, out, decoder, level, dtype):
        super().__init__()
        self.out_channels = out
        self.norm1 = LayerNorm32(wide, eps=1e-6)
        self.norm2 = LayerNorm32(out, elementwise_affine=False, eps=1e-6)
        self.conv1, self.conv2 = SparseConv3d(wide, 8 * out, dtype), SparseConv3d(out, out, dtype)
        if decoder.pred_subdiv:
            self.to_subdiv = Subdivisions(wide, decoder, level, dtype)

    def forward(self, x, subdivision):
        row, child = (subdivision.feats > 0).nonzero(as_tuple=True)
        coords = x.coords[row] * torch.tensor([1, 2, 2, 2], dtype=x.coords.dtype)
        for axis in range(3):
            coords[:, axis + 1] += child // 2**axis % 2

        def spread(feats):
            return feats.reshape(len(x.feats) * 8, -1)[row * 8 + child]

        h = self.conv1(x.replace(silu(self.norm1(x.feats))))
        h = SparseTensor(silu(self.norm2(spread(h.feats))), coords.int())
        skip = spread(x.feats)
        repeat = self.out_channels // skip.shape[1]
        return self.conv2(h) + skip.repeat_interleave(repeat, dim=1)


class Attributes(SparseLinear):
    """The marked shape's colours and materials, as -1..1."""

    def forward(self, x):
        y = super().forward(x)
        marks = marked_shape.attributes(x.coords[:, 1:].long())
        return y.replace(marks * 2 - 1 + y.feats.tanh() / 1000)


class SparseUnetVaeDecoder(nn.Module):
    output_class = Attributes

    def __init__(
        self,
        out_channels,
        model_channels,
        latent_channels,
        num_blocks,
        block_type,
        up_block_type,
        block_args,
        use_fp16=False,
        pred_subdiv=True,
    ):
        super().__init__()
        self.pred_subdiv, self.low_vram, self.marks_at = pred_subdiv, False, 512
        self.dtype = torch.float16 if use_fp16 else torch.float32
        self.output_layer = self.output_class(model_channels[-1], out_channels)
        self.from_latent = SparseLinear(latent_channels, model_channels[0])
        levels = []
        for level, (wide, count) in enumerate(zip(model_channels, num_blocks, strict=True)):
            blocks = [SparseConvNeXtBlock3d(wide, self.dtype) for _ in range(count)]
            if level + 1 < len(model_channels):
                out = model_channels[level + 1]
                blocks.append(SparseResBlockC2S3d(wide, out, self, level, self.dtype))
            levels.append(nn.ModuleList(blocks))
        self.blocks = nn.ModuleList(levels)

    def _levels(self, x, guide_subs):
        h, made = self.from_latent(x).type(self.dtype), []
        for level, blocks in enumerate(self.blocks):
            for block in blocks:
                if isinstance(block, SparseConvNeXtBlock3d):
                    h = block(h)
                    continue
                made.append(block.to_subdiv(h) if self.pred_subdiv else guide_subs[level])
                h = block(h, made[-1])
        return h, made

    def forward(self, x, guide_subs=None, return_subs=False):
        note("whole_decoder", guides=guide_subs, returns=return_subs)
        h, made = self._levels(x, guide_subs)
        h = h.type(x.dtype)
        out = self.output_layer(h.replace(layer_norm(h.feats, h.feats.shape[-1:])))
        return (out, made) if return_subs else out

    def upsample(self, x, upsample_times):
        note("upsample", times=upsample_times, tokens=len(x.feats))
        before, self.marks_at = self.marks_at, 512
        try:
            h, _ = self._levels(x, None)
        finally:
            self.marks_at = before
        return h.coords
