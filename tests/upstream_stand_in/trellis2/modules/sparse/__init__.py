"""A sparse tensor with a batch of one, and the layers over it."""

import torch
from torch import nn

from . import config

__all__ = ["SparseConv3d", "SparseLinear", "SparseTensor", "config"]


class SparseTensor:
    def __init__(self, feats, coords):
        self.feats, self.coords = feats, coords

    @property
    def device(self):
        return self.feats.device

    @property
    def dtype(self):
        return self.feats.dtype

    @property
    def shape(self):
        return torch.Size([1, *self.feats.shape[1:]])

    def replace(self, feats):
        return SparseTensor(feats, self.coords)

    def type(self, dtype):
        return self.replace(self.feats.to(dtype))

    def _with(self, other, operation):
        return self.replace(operation(self.feats, getattr(other, "feats", other)))

    def __add__(self, other):
        return self._with(other, torch.add)

    def __sub__(self, other):
        return self._with(other, torch.sub)

    def __mul__(self, other):
        return self._with(other, torch.mul)

    __rmul__ = __mul__

    def __truediv__(self, other):
        return self._with(other, torch.div)


class SparseLinear(nn.Linear):
    def forward(self, x):
        return x.replace(super().forward(x.feats))


class SparseConv3d(nn.Module):
    """A submanifold convolution: weight (Co, 3, 3, 3, Ci), neighbours from a table of all cells."""

    def __init__(self, wide, out, dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out, 3, 3, 3, wide, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(out, dtype=dtype))

    def forward(self, x):
        cells = x.coords[:, 1:].long()
        low = cells.min(dim=0).values - 1
        size = (cells.max(dim=0).values + 2 - low).tolist()
        table = torch.full(size, -1, dtype=torch.long)
        at = cells - low
        table[tuple(at.T)] = torch.arange(len(cells))
        steps = [(a, b, c) for a in (-1, 0, 1) for b in (-1, 0, 1) for c in (-1, 0, 1)]
        rows = torch.stack([table[tuple((at + torch.tensor(s)).T)] for s in steps], dim=1)
        columns = x.feats[rows.clamp(min=0)] * (rows >= 0)[..., None]
        weight = self.weight.reshape(len(self.weight), -1)
        return x.replace(nn.functional.linear(columns.flatten(1), weight, self.bias))
