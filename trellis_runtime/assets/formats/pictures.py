"""An asset's textures as files of pictures: as a GLB has them, and channel by channel.

base_color            sRGB, with alpha where a material is not opaque
metallic_roughness    linear: occlusion where there is one, roughness, metallic (ORM)
normal                linear, tangent space, green upwards
opacity, roughness, metallic, occlusion    grey: one channel of those, for what knows no channels
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trellis_runtime.assets.glb_writer import encode_image, shown_base_color
from trellis_runtime.contract.engine import Asset
from trellis_runtime.contract.request import TextureFormat

_SUFFIX = {"png": "png", "jpeg": "jpg", "webp": "webp"}

Picture = tuple[str, bytes]
"""The name of its file, and its bytes."""


def base_color(asset: Asset, form: TextureFormat, *, alpha: bool = True) -> dict[str, Picture]:
    """Return the base colour, as a GLB has it, or without `alpha`."""
    pixels = shown_base_color(asset)
    if pixels is None:
        return {}
    data, used = encode_image(pixels if alpha else pixels[..., :3], form, is_data=False)
    return {"base_color": (f"base_color.{_SUFFIX[used]}", data)}


def metallic_roughness(asset: Asset) -> dict[str, Picture]:
    """Return the map of three channels, lossless."""
    if asset.metallic_roughness is None:
        return {}
    return {"metallic_roughness": _png("metallic_roughness", asset.metallic_roughness)}


def normal(asset: Asset) -> dict[str, Picture]:
    """Return the normal map, lossless, where there is one."""
    return {} if asset.normal_map is None else {"normal": _png("normal", asset.normal_map)}


def channels(asset: Asset) -> dict[str, Picture]:
    """Return each channel that says something as a grey picture of its own, lossless."""
    made = {}
    base, packed = shown_base_color(asset), asset.metallic_roughness
    if base is not None and base.shape[2] == 4:
        made["opacity"] = _grey("opacity", base[..., 3])
    if packed is not None:
        made["roughness"] = _grey("roughness", packed[..., 1])
        made["metallic"] = _grey("metallic", packed[..., 2])
        if asset.has_occlusion:
            made["occlusion"] = _grey("occlusion", packed[..., 0])
    return made


def _png(name: str, pixels: NDArray[np.uint8]) -> Picture:
    return f"{name}.png", encode_image(pixels, "png", is_data=True)[0]


def _grey(name: str, channel: NDArray[np.uint8]) -> Picture:
    """Return a channel (H, W) as a picture whose red, green and blue are it."""
    return _png(name, np.repeat(channel[..., None], 3, axis=2))
