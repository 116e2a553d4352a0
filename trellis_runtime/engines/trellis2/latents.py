"""Structured latents on the host: what sampling leaves, what decoding takes, what may be kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from trellis_runtime.contract.engine import Latents
from trellis_runtime.contract.ladder import MAX_TOKENS
from trellis_runtime.engines.trellis2.grid import cell_keys
from trellis_runtime.engines.trellis2.models.finite import require_finite
from trellis_runtime.engines.trellis2.upstream.adapter import Rows
from trellis_runtime.errors import LatentsDamaged

_CELLS_A_TOKEN = 16  # the decoders double the grid four times
_RESOLUTIONS = range(128, 1537, _CELLS_A_TOKEN)


@dataclass(slots=True)
class Latent:
    """A structured latent on the host, and the resolution that it is for."""

    rows: Rows
    resolution: int


def on_host(rows: Rows, resolution: int, name: str) -> Latent:
    """Return a sampled latent in host memory; raises `NotFinite`."""
    require_finite(f"the {name} latent", rows.feats)
    return Latent(Rows(rows.feats.cpu(), rows.coords.cpu()), resolution)


def to_latents(shape: Latent, texture: Latent) -> Latents:
    """Return both latents as plain arrays, bit for bit."""
    arrays = {}
    for name, latent in (("shape", shape), ("texture", texture)):
        arrays[f"{name}_feats"] = latent.rows.feats.float().numpy()
        arrays[f"{name}_coords"] = latent.rows.coords.int().numpy()
    return Latents(arrays, {"resolution": shape.resolution})


def from_latents(latents: Latents, channels: tuple[int, int]) -> tuple[Latent, Latent]:
    """Return the shape's and the texture's latent, which have so many `channels`.

    Raises `LatentsDamaged` where they are not as this engine leaves them: a kernel would not tell.
    """
    resolution = latents.facts.get("resolution", 0)
    if resolution not in _RESOLUTIONS:
        raise LatentsDamaged(f"the latents' resolution is {resolution}, which no job has")
    shape = _rows(latents, "shape", channels[0], resolution)
    texture = _rows(latents, "texture", channels[1], resolution)
    if not torch.equal(shape.coords, texture.coords):
        raise LatentsDamaged("the texture's latent is not of the shape's cells")
    return Latent(shape, resolution), Latent(texture, resolution)


def _rows(latents: Latents, name: str, channels: int, resolution: int) -> Rows:
    feats, coords = (latents.arrays.get(f"{name}_{part}") for part in ("feats", "coords"))
    if feats is None or feats.dtype != np.float32 or feats.shape[1:] != (channels,):
        raise LatentsDamaged(f"{name}_feats is not there as float32 of {channels} channels")
    count, side = len(feats), resolution // _CELLS_A_TOKEN
    if not 0 < count <= MAX_TOKENS:
        raise LatentsDamaged(f"{name}_feats has {count} tokens, not 1 to {MAX_TOKENS}")
    if coords is None or coords.dtype != np.int32 or coords.shape != (count, 4):
        raise LatentsDamaged(f"{name}_coords is not there as int32 of ({count}, 4)")
    cells = torch.from_numpy(coords)
    inside = bool((cells[:, 0] == 0).all() and (cells[:, 1:] >= 0).all() and (cells < side).all())
    if not inside or len(cell_keys(cells[:, 1:], side).unique()) < count:  # type: ignore[no-untyped-call]
        raise LatentsDamaged(f"{name}_coords is not a set of cells of a grid of {side}")
    if not np.isfinite(feats).all():
        raise LatentsDamaged(f"{name}_feats is not finite")
    return Rows(torch.from_numpy(feats), cells)
