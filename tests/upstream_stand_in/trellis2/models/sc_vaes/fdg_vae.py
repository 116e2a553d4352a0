"""The shape's decoder: seven channels a cell, as a flexible dual grid, to a mesh."""

import torch
from o_voxel.convert import flexible_dual_grid_to_mesh
from torch.nn.functional import softplus

from tests import marked_shape
from tests.upstream_record import note
from trellis2.modules.sparse import SparseLinear
from trellis2.representations import Mesh

from .sparse_unet_vae import SparseUnetVaeDecoder


class DualGrid(SparseLinear):
    """The marked shape's dual vertices, moved by the network a thousandth of a cell, and edges."""

    def __init__(self, wide, out):
        super().__init__(wide, out)
        self.decoder = None

    def forward(self, x):
        y = super().forward(x)
        vertices, crossings = marked_shape.dual_grid(x.coords[:, 1:], self.decoder[0].marks_at)
        share = (vertices + y.feats[:, :3].tanh() / 1000 + 0.5) / 2
        feats = y.feats.clone()
        feats[:, :3] = torch.logit(share)
        feats[:, 3:6] = crossings.float() * 2 - 1
        return y.replace(feats)


class FlexiDualGridVaeDecoder(SparseUnetVaeDecoder):
    output_class = DualGrid

    def __init__(self, resolution, *args, voxel_margin=0.5, **kwargs):
        self.margin = voxel_margin
        super().__init__(7, *args, **kwargs)
        self.resolution = resolution
        self.output_layer.decoder = (self,)

    def set_resolution(self, resolution):
        note("set_resolution", resolution=resolution)
        self.resolution = self.marks_at = resolution

    def forward(self, x, gt_intersected=None, **kwargs):
        made = super().forward(x, **kwargs)
        out, *guides = made if isinstance(made, tuple) else (made,)
        wide = 1 + 2 * self.margin
        vertices, faces = flexible_dual_grid_to_mesh(
            out.coords[:, 1:],
            wide * torch.sigmoid(out.feats[:, :3]) - self.margin,
            out.feats[:, 3:6] > 0,
            softplus(out.feats[:, 6:7]),
            aabb=[[-0.5] * 3, [0.5] * 3],
            grid_size=self.resolution,
            train=False,
        )
        note("decoded", guides=guides[0] if guides else None)
        return ([Mesh(vertices, faces)], *guides)
