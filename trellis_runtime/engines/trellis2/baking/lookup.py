"""The decoded voxels' attributes at points near the decoded surface, in blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from trellis_runtime.engines.trellis2.baking.nearest import Surface
from trellis_runtime.engines.trellis2.baking.voxels import VoxelGrid

_NEAR_VOXELS = 3.0
_BYTES_PER_POINT = 80  # points, their nearest ones, in cells, values, and what is not found


class VoxelAttributeLookup:
    """Base colour, metallic, roughness and alpha of the voxels around a surface's points.

    surface: the surface as decoded, before holes are filled: all of it lies among voxels. coords
    (L, 3) int in cells of `resolution` a side of -0.5..0.5, attributes (L, 6) in 0..1.
    tree_budget: bytes that the tree over the surface may take, else it is searched in slabs.
    """

    def __init__(
        self,
        surface: Surface,
        coords: Tensor,
        attributes: Tensor,
        resolution: int,
        tree_budget: int | None = None,
    ) -> None:
        self._surface = surface
        self._resolution = resolution
        self._tree_budget = tree_budget
        self._voxels = VoxelGrid(coords, attributes, resolution)

    @property
    def surface(self) -> Surface:
        """The surface as decoded."""
        return self._surface

    @property
    def resolution(self) -> int:
        """Cells a side."""
        return self._resolution

    def __call__(self, points: Tensor, budget: int = 256 << 20) -> Tensor:
        """Return attributes (N, 6) float32 of points (N, 3), in blocks of `budget` bytes.

        Each point is first moved to the nearest one of the decoded surface (decimation has moved
        it off), and takes the trilinear mean of those of the eight voxels around that exist.
        """
        out = torch.empty((len(points), 6), device=points.device)
        step = max(1024, budget // _BYTES_PER_POINT)
        for start in range(0, len(points), step):
            part = slice(start, start + step)
            out[part] = self.attributes_at(self.on_surface(points[part]))
        return out

    def attributes_at(self, points: Tensor) -> Tensor:
        """Return attributes (N, 6) of points (N, 3) that are on the surface already."""
        return self._voxels.sample((points + 0.5) * self._resolution)

    def on_surface(self, points: Tensor) -> Tensor:
        """Return the points (N, 3) of the decoded surface nearest to points (N, 3)."""
        near = _NEAR_VOXELS / self._resolution
        return self._surface.project(points, near, self._tree_budget)
