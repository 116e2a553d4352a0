"""What the bake needs of a job that was sampled: heights, silhouette and colours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from trellis_runtime.contract.engine import Arrays, Latents
from trellis_runtime.engines.embedded.inflation import Mask
from trellis_runtime.engines.embedded.surface import Floats
from trellis_runtime.engines.embedded.texture import Pixels
from trellis_runtime.errors import LatentsDamaged

_MOST_PICTURE_VALUES = 2**40
_HIGHEST = 4.0  # of the unit cube; heights are below 1


@dataclass(frozen=True, slots=True)
class Decoded:
    """The products of the stages before the bake.

    heights     front and back, (n + 1, n + 1) float32 >= 0 at the corners of `mask`
    mask        (n, n) bool, the cells that are object
    silhouette  (P, P) bool, the same in the crop's pixels
    colors      front and back, (P, P, 3) uint8 sRGB
    picture_values  the count of numbers in the picture, which the memory's sums start from
    """

    heights: tuple[Floats, Floats]
    mask: Mask
    silhouette: Mask
    colors: tuple[Pixels, Pixels]
    picture_values: int

    def to_latents(self) -> Latents:
        """Return the same as named arrays."""
        arrays: Arrays = {
            "front_height": self.heights[0],
            "back_height": self.heights[1],
            "mask": self.mask,
            "silhouette": self.silhouette,
            "front_color": self.colors[0],
            "back_color": self.colors[1],
        }
        return Latents(arrays, {"picture_values": self.picture_values})

    @classmethod
    def of(cls, latents: Latents, cells: int, most_px: int) -> Decoded:
        """Return what `latents` hold, of a grid of `cells` a side.

        Raises `LatentsDamaged` where an array is absent, or not as the bake takes it.
        """
        side = len(latents.arrays.get("silhouette", ()))
        if not 0 < side <= most_px:
            raise LatentsDamaged(f"the silhouette has {side} pixels a side, not 1 to {most_px}")
        corners, crop = (cells + 1, cells + 1), (side, side)
        heights = tuple(_array(latents, f"{n}_height", corners, np.float32) for n in _SIDES)
        if not all(((h >= 0) & (h <= _HIGHEST)).all() for h in heights):
            raise LatentsDamaged("heights are not finite, or out of the cube")
        mask = _array(latents, "mask", (cells, cells), np.bool_)
        if not mask.any():
            raise LatentsDamaged("mask is empty")
        colors = tuple(_array(latents, f"{n}_color", (*crop, 3), np.uint8) for n in _SIDES)
        values = latents.facts.get("picture_values", 0)
        if not 0 < values <= _MOST_PICTURE_VALUES:
            raise LatentsDamaged("picture_values is not the size of a picture")
        silhouette = _array(latents, "silhouette", crop, np.bool_)
        return cls((heights[0], heights[1]), mask, silhouette, (colors[0], colors[1]), values)


_SIDES = ("front", "back")


def _array(latents: Latents, name: str, shape: tuple[int, ...], kind: Any) -> Any:
    array = latents.arrays.get(name)
    if array is None or array.shape != shape or array.dtype != kind:
        raise LatentsDamaged(f"{name} is not there as {np.dtype(kind).name} of {shape}")
    return array
