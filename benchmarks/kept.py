"""Baked meshes kept in files, to be drawn on another machine than the one with the card.

One .npz a mesh: vertices, faces, texture coordinates, and the base colour as a WebP, since pictures
need no more of it. 200,000 faces with a texture of 2048 take some 4 MB.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from trellis_runtime.assets.glb_reader import GlbContent
from trellis_runtime.engines.trellis2.baking.quality import Baked

_QUALITY = 90  # of the WebP


@dataclass(frozen=True, slots=True)
class KeptName:
    """What a file's name says: the shape, the resolution it was voxelised at, and whose bake."""

    shape: str
    resolution: int
    side: str

    def path(self, folder: Path) -> Path:
        """Return where the mesh lies in `folder`."""
        return folder / f"{self.shape}-{self.resolution}-{self.side}.npz"

    @classmethod
    def of(cls, path: Path) -> KeptName:
        """Return what a path that `path` made says."""
        shape, resolution, side = path.stem.rsplit("-", 2)
        return cls(shape, int(resolution), side)


def keep_mesh(baked: Baked, path: Path) -> None:
    """Write a baked mesh to `path`, whose folder is made."""
    arrays = {"vertices": baked.vertices.float(), "faces": baked.faces.int()}
    if baked.uvs is not None and baked.base_color is not None:
        arrays |= {"uvs": baked.uvs.float(), "base_color": _as_webp(baked.base_color)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        given: dict[str, Any] = {name: array.cpu().numpy() for name, array in arrays.items()}
        np.savez_compressed(file, **given)


def read_mesh(path: Path) -> GlbContent:
    """Return a kept mesh as the previews take it: in glTF's axes, with y up."""
    with np.load(path) as kept:
        x, y, z = kept["vertices"].T
        textured = "uvs" in kept.files
        return GlbContent(
            positions=np.stack([x, z, -y], 1),
            faces=kept["faces"].astype(np.int64),
            normals=None,
            uvs=kept["uvs"] if textured else None,
            colors=None,
            base_color=_picture(kept["base_color"]) if textured else None,
            metallic_roughness=None,
        )


def _as_webp(pixels: torch.Tensor) -> torch.Tensor:
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., :3].cpu().numpy()).save(buffer, "WEBP", quality=_QUALITY)
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def _picture(data: NDArray[np.uint8]) -> Image.Image:
    return Image.open(io.BytesIO(data.tobytes())).convert("RGB")
