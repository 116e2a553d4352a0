"""glTF 2.0 binary: an asset as the bytes of one file.

Layout: a 12-byte header (magic, version, length), a JSON chunk and a BIN chunk, each with length
and type, all little-endian and padded to 4 bytes. Source: Khronos, glTF 2.0 specification,
section 4 (GLB). No extension is required unless the caller asks for WebP.
"""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trellis_runtime.assets.color import srgb_to_linear
from trellis_runtime.assets.glb_format import pack_glb
from trellis_runtime.assets.png import encode_png
from trellis_runtime.contract.engine import Asset
from trellis_runtime.contract.request import TextureFormat

_FLOAT, _USHORT, _UINT, _UBYTE = 5126, 5123, 5125, 5121
_ARRAY_BUFFER, _ELEMENT_BUFFER = 34962, 34963
_LINEAR, _TRILINEAR, _CLAMP = 9729, 9987, 33071
_LARGEST_LOSSLESS_WEBP_PX = 2048
"""Above this side a data map is a PNG: ten times as fast, a quarter larger (docs/benchmarks.md)."""


@dataclass(frozen=True, slots=True)
class EncodedGlb:
    """The file's bytes and the format its base colour really has ("none" without textures)."""

    data: bytes
    texture_format: str


def encode_glb(asset: Asset, texture_format: TextureFormat, extras: dict[str, Any]) -> EncodedGlb:
    """Return `asset` as GLB; `extras` (plain JSON) are kept in the file's `asset` object.

    An extra with the name `CONTENT_HASH` gets the hash of the file's BIN chunk.
    """
    builder = _Builder()
    attributes = {
        "POSITION": builder.accessor(asset.vertices, "VEC3", _ARRAY_BUFFER, bounds=True),
        "NORMAL": builder.accessor(asset.normals, "VEC3", _ARRAY_BUFFER),
    }
    if asset.normal_map is not None and asset.tangents is not None:
        attributes["TANGENT"] = builder.accessor(asset.tangents, "VEC4", _ARRAY_BUFFER)
    if asset.uvs is not None:
        attributes["TEXCOORD_0"] = builder.accessor(asset.uvs, "VEC2", _ARRAY_BUFFER)
    if asset.vertex_colors is not None:
        linear = _linear_u16(asset.vertex_colors, alpha=asset.alpha_mode != "OPAQUE")
        attributes["COLOR_0"] = builder.accessor(linear, "VEC4", _ARRAY_BUFFER, normalized=True)
    groups = _groups(asset)
    primitives = [
        {
            "attributes": attributes,
            "indices": builder.accessor(_narrow(faces).reshape(-1), "SCALAR", _ELEMENT_BUFFER),
            "material": material,
        }
        for material, (_, faces) in enumerate(groups)
    ]
    surface, used_format = _surface(asset, texture_format, builder)
    document = builder.document | {
        "asset": {"version": "2.0", "generator": "trellis-runtime", "extras": extras},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "asset"}],
        "meshes": [{"primitives": primitives}],
        "materials": [_material(asset, mode, surface) for mode, _ in groups],
    }
    return EncodedGlb(pack_glb(document, builder.blob), used_format)


def _groups(asset: Asset) -> list[tuple[str, NDArray[np.uint32]]]:
    """Return alpha mode and faces of each primitive; an opaque one comes first, none is empty."""
    if asset.alpha_mode != "BLEND" or asset.translucent is None:
        return [(asset.alpha_mode, asset.faces)]
    parts = [("OPAQUE", asset.faces[~asset.translucent]), ("BLEND", asset.faces[asset.translucent])]
    return [(mode, faces) for mode, faces in parts if len(faces)]


class _Builder:
    """Collects buffer views, accessors and images."""

    def __init__(self) -> None:
        self.blob = bytearray()
        self._views: list[dict[str, Any]] = []
        self._accessors: list[dict[str, Any]] = []
        self._extra: dict[str, Any] = {}

    @property
    def document(self) -> dict[str, Any]:
        return {
            "buffers": [{"byteLength": len(self.blob)}],
            "bufferViews": self._views,
            "accessors": self._accessors,
            **self._extra,
        }

    def view(self, data: bytes, target: int | None = None) -> int:
        self.blob.extend(b"\0" * (-len(self.blob) % 4))
        view = {"buffer": 0, "byteOffset": len(self.blob), "byteLength": len(data)}
        self.blob.extend(data)
        self._views.append(view | ({"target": target} if target else {}))
        return len(self._views) - 1

    def accessor(
        self,
        values: NDArray[Any],
        kind: str,
        target: int,
        *,
        bounds: bool = False,
        normalized: bool = False,
    ) -> int:
        codes = {"f": _FLOAT, "u2": _USHORT, "u4": _UINT, "u1": _UBYTE}
        code = codes.get(values.dtype.str[1:]) or codes[values.dtype.kind]
        accessor: dict[str, Any] = {
            "bufferView": self.view(np.ascontiguousarray(values).tobytes(), target),
            "componentType": code,
            "count": len(values),
            "type": kind,
        }
        if normalized:
            accessor["normalized"] = True
        if bounds:
            accessor["min"] = [float(v) for v in values.min(axis=0)]
            accessor["max"] = [float(v) for v in values.max(axis=0)]
        self._accessors.append(accessor)
        return len(self._accessors) - 1

    def textures(self, images: list[tuple[bytes, str]]) -> None:
        """Add one texture per (bytes, format)."""
        self._extra["samplers"] = [
            {"magFilter": _LINEAR, "minFilter": _TRILINEAR, "wrapS": _CLAMP, "wrapT": _CLAMP}
        ]
        self._extra["images"] = [
            {"bufferView": self.view(data), "mimeType": f"image/{form}"} for data, form in images
        ]
        self._extra["textures"] = [
            {"sampler": 0, "extensions": {"EXT_texture_webp": {"source": i}}}
            if form == "webp"
            else {"sampler": 0, "source": i}
            for i, (_, form) in enumerate(images)
        ]
        if any(form == "webp" for _, form in images):
            self._extra["extensionsUsed"] = ["EXT_texture_webp"]
            self._extra["extensionsRequired"] = ["EXT_texture_webp"]


def _surface(
    asset: Asset, texture_format: TextureFormat, builder: _Builder
) -> tuple[dict[str, Any], str]:
    """Return what a material says of its textures, and the format of the base colour."""
    pbr: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": 0.9}
    surface: dict[str, Any] = {"pbrMetallicRoughness": pbr}
    base = shown_base_color(asset)
    if base is None:
        return surface, "none"
    del pbr["roughnessFactor"]
    pbr["baseColorTexture"] = {"index": 0}
    jobs = [(base, texture_format, False)]
    if asset.metallic_roughness is not None:
        del pbr["metallicFactor"]
        pbr["metallicRoughnessTexture"] = {"index": 1}
        if asset.has_occlusion:  # the red of the same picture
            surface["occlusionTexture"] = {"index": 1}
        jobs.append((asset.metallic_roughness, texture_format, True))
    if asset.normal_map is not None:
        surface["normalTexture"] = {"index": len(jobs)}
        jobs.append((asset.normal_map, texture_format, True))
    with ThreadPoolExecutor(len(jobs)) as pool:  # the encoders release the GIL
        images = list(pool.map(lambda job: _encode_image(*job), jobs))
    builder.textures(images)
    return surface, images[0][1]


def shown_base_color(asset: Asset) -> NDArray[np.uint8] | None:
    """Return the base colour as a file shows it: without alpha where all materials are opaque."""
    if asset.base_color is None or any(mode != "OPAQUE" for mode, _ in _groups(asset)):
        return asset.base_color
    return asset.base_color[..., :3]  # viewers may show what lies under a forgotten alpha channel


def _material(asset: Asset, mode: str, surface: dict[str, Any]) -> dict[str, Any]:
    name = "material" if mode == asset.alpha_mode else "opaque"
    material: dict[str, Any] = {**surface, "name": name}
    if mode != "OPAQUE":
        material["alphaMode"] = mode
    if mode == "MASK":
        material["alphaCutoff"] = asset.alpha_cutoff
    if asset.double_sided:
        material["doubleSided"] = True
    return material


def encode_image(
    pixels: NDArray[np.uint8], form: TextureFormat, *, is_data: bool = False
) -> tuple[bytes, str]:
    """Return one texture (H, W, 3) or (H, W, 4), encoded, and the format that it got.

    For the writers of other formats. Data maps never lose a bit.
    """
    return _encode_image(pixels, form, is_data)


def _encode_image(
    pixels: NDArray[np.uint8], form: TextureFormat, is_data: bool
) -> tuple[bytes, str]:
    """Encode one texture; data maps never lose a bit. A failing encoder gives way to PNG."""
    if _must_be_png(pixels, form, is_data):
        return encode_png(pixels), "png"
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if form == "webp":
        # quality 40, method 2: half as long to twice as long again, for 0 to 20 % less
        options: dict[str, Any] = {"lossless": True, "quality": 10, "method": 1, "exact": True}
        if not is_data:
            options = {"quality": 95, "method": 2, "exact": True}  # 4: twice the time, 2 % less
    else:
        options = {"quality": 95, "subsampling": 0, "optimize": True}
    buffer = io.BytesIO()
    try:
        image.save(buffer, form, **options)
    except (OSError, ValueError):  # WebP was seen to fail on a 4096 texture: "encoding error 6"
        return encode_png(pixels), "png"
    return buffer.getvalue(), form


def _must_be_png(pixels: NDArray[np.uint8], form: TextureFormat, is_data: bool) -> bool:
    if form == "jpeg":  # it has neither exact values nor alpha
        return is_data or pixels.shape[2] == 4
    return form == "png" or (is_data and len(pixels) > _LARGEST_LOSSLESS_WEBP_PX)


def _linear_u16(colors: NDArray[np.uint8], *, alpha: bool) -> NDArray[np.uint16]:
    """Return sRGB bytes as linear 16-bit RGBA: COLOR_0 is linear, and 8 bits would band.

    Alpha is linear already; it is kept where there is one and `alpha` says so.
    """
    linear = srgb_to_linear(colors[:, :3].astype(np.float64) / 255)
    out = np.full((len(colors), 4), 65535, np.uint16)
    out[:, :3] = (linear * 65535).round()
    if alpha and colors.shape[1] == 4:
        out[:, 3] = colors[:, 3].astype(np.uint16) * 257
    return out


def _narrow(faces: NDArray[np.uint32]) -> NDArray[Any]:
    # 65535 itself is the restart index of some APIs and is not allowed
    return faces.astype(np.uint16) if int(faces.max()) < 65535 else faces.astype(np.uint32)
