"""Where an asset lies in a file's coordinates, how large it is, and which way is up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trellis_runtime.contract.engine import Asset
from trellis_runtime.contract.request import Pivot, SizeAxis


@dataclass(frozen=True, slots=True)
class Placement:
    """How a file has an asset; the defaults leave it as it was made.

    size_m    length along `axis` in metres, None: as it is
    axis      of the asset (+Y up), before anything is turned
    pivot     what becomes the origin: nothing (made), the box's middle, its lower side's middle
    up        z turns the asset by a quarter about x, so that +Y becomes +Z
    per_metre units of the file in one metre
    """

    size_m: float | None = None
    axis: SizeAxis = "longest"
    pivot: Pivot = "made"
    up: Literal["y", "z"] = "y"
    per_metre: float = 1.0

    @property
    def changes_nothing(self) -> bool:
        return self == Placement(axis=self.axis)


def place(asset: Asset, placement: Placement) -> Asset:
    """Return `asset` with its vertices in the file's units and axes, and its normals turned."""
    if placement.changes_nothing:
        return asset
    points = asset.vertices.astype(np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    scale = _scale(high - low, placement) * placement.per_metre
    moved = (points - _origin(low, high, placement.pivot)) * scale
    return replace(
        asset,
        vertices=_turned(moved, placement.up).astype(np.float32),
        normals=_turned(asset.normals, placement.up).astype(np.float32),
        tangents=_turned_tangents(asset.tangents, placement.up),
    )


def extents_m(asset: Asset, placement: Placement) -> list[float]:
    """Return a placed asset's lengths along its file's axes, in metres."""
    lengths = np.ptp(asset.vertices.astype(np.float64), axis=0) / placement.per_metre
    return [round(float(length), 6) for length in lengths]


def _scale(lengths: NDArray[np.float64], placement: Placement) -> float:
    """Return the factor that gives the axis its length; a flat axis leaves all as it is."""
    if placement.size_m is None:
        return 1.0
    longest = placement.axis == "longest"
    now = lengths.max() if longest else lengths["xyz".index(placement.axis)]
    return float(placement.size_m / now) if now > 1e-9 else 1.0


def _origin(
    low: NDArray[np.float64], high: NDArray[np.float64], pivot: Pivot
) -> NDArray[np.float64]:
    if pivot == "made":
        return np.zeros(3)
    middle = (low + high) / 2
    if pivot == "bottom":
        middle[1] = low[1]
    return middle


def _turned_tangents(tangents: NDArray[np.float32] | None, up: str) -> NDArray[np.float32] | None:
    """Return tangents turned; a turn mirrors nothing, so their signs stay."""
    if tangents is None:
        return None
    return np.hstack([_turned(tangents[:, :3], up), tangents[:, 3:]]).astype(np.float32)


def _turned(vectors: NDArray[np.floating], up: str) -> NDArray[np.floating]:
    """Turn +Y to +Z: what faced the viewer (+Z) then faces -Y, as modelling programs have it."""
    if up == "y":
        return vectors
    x, y, z = vectors.T
    return np.ascontiguousarray(np.stack([x, -z, y], axis=1))
