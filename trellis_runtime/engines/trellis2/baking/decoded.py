"""What the decoders left: a surface, and the voxels that colour it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class DecodedSurface:
    """A mesh alone: vertices (V, 3) float32 in -0.5..0.5, faces (F, 3) int32, on one device.

    Decoded from a grid of `resolution` cells a side.
    """

    vertices: Tensor
    faces: Tensor
    resolution: int

    def on_host(self) -> DecodedSurface:
        """Return the same in host memory."""
        return self.to("cpu")

    def to(self, device: torch.device | str) -> DecodedSurface:
        """Return the same on `device`."""
        return DecodedSurface(self.vertices.to(device), self.faces.to(device), self.resolution)


@dataclass(frozen=True, slots=True)
class Decoded:
    """A mesh and coloured voxels, all on one device.

    vertices (V, 3) float32 in -0.5..0.5, faces (F, 3) int32, coords (L, 3) int32 in cells of
    `resolution`, attributes (L, 6) float32: base colour, metallic, roughness, alpha, each 0..1.
    """

    vertices: Tensor
    faces: Tensor
    coords: Tensor
    attributes: Tensor
    resolution: int

    @property
    def surface(self) -> DecodedSurface:
        """The mesh without its voxels."""
        return DecodedSurface(self.vertices, self.faces, self.resolution)

    def on_host(self) -> Decoded:
        """Return the same in host memory."""
        return self.to("cpu")

    def to(self, device: torch.device | str) -> Decoded:
        """Return the same on `device`."""
        return Decoded(
            self.vertices.to(device),
            self.faces.to(device),
            self.coords.to(device),
            self.attributes.to(device),
            self.resolution,
        )
