"""OBJ with its MTL and textures, in a zip.

The metallic-roughness map becomes two grey pictures, since MTL's extension for physically based
shading (`Pr`, `Pm`, `map_Pr`, `map_Pm`, `norm`) knows no channels. It has no word for occlusion
either, whose picture lies in the zip without being named there. v runs upwards in OBJ and
downwards in glTF. Sources: Wavefront, Advanced Visualizer manual, appendix B1; Exocortex, PBR
extension of MTL.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trellis_runtime.assets.formats.archive import zipped
from trellis_runtime.assets.glb_writer import encode_image
from trellis_runtime.contract.engine import Asset
from trellis_runtime.contract.request import TextureFormat

_SUFFIX = {"png": "png", "jpeg": "jpg"}


def encode_obj_zip(asset: Asset, texture_format: TextureFormat) -> bytes:
    """Return a zip with model.obj, model.mtl and, where there are textures, their pictures."""
    pictures = _pictures(asset, texture_format)
    files = {"model.obj": _obj(asset).encode(), "model.mtl": _mtl(asset, pictures).encode()}
    return zipped(files | {f"{stem}.{suffix}": data for stem, (suffix, data) in pictures.items()})


def _obj(asset: Asset) -> str:
    head = "# trellis-runtime; metres\nmtllib model.mtl\no model\n"
    normals = _lines("vn %.5f %.5f %.5f\n", asset.normals)
    if asset.uvs is None:
        corners = np.repeat(asset.faces.astype(np.int64) + 1, 2, axis=1)
        body = _positions(asset) + normals
        return head + body + "usemtl model\n" + _lines("f %d//%d %d//%d %d//%d\n", corners)
    upwards = asset.uvs * [1, -1] + [0, 1]
    corners = np.repeat(asset.faces.astype(np.int64) + 1, 3, axis=1)
    body = _positions(asset) + _lines("vt %.6f %.6f\n", upwards) + normals
    return head + body + "usemtl model\n" + _lines("f %d/%d/%d %d/%d/%d %d/%d/%d\n", corners)


def _positions(asset: Asset) -> str:
    """Return the vertices; colours, where they are at the vertices, stand behind the position."""
    if asset.vertex_colors is None:
        return _lines("v %.7g %.7g %.7g\n", asset.vertices)
    colors = asset.vertex_colors[:, :3] / 255.0
    return _lines("v %.7g %.7g %.7g %.4f %.4f %.4f\n", np.hstack([asset.vertices, colors]))


def _lines(template: str, rows: NDArray[np.generic]) -> str:
    return (template * len(rows)) % tuple(rows.ravel().tolist())


def _pictures(asset: Asset, form: TextureFormat) -> dict[str, tuple[str, bytes]]:
    """Return each picture's suffix and bytes, by its name."""
    made = {}
    if asset.base_color is not None:
        data, used = encode_image(asset.base_color[..., :3], form, is_data=False)
        made["base_color"] = _SUFFIX[used], data
        if asset.alpha_mode != "OPAQUE" and asset.base_color.shape[2] == 4:
            made["opacity"] = "png", _grey(asset.base_color[..., 3])
    if asset.metallic_roughness is not None:
        for name, channel in (("roughness", 1), ("metallic", 2)):
            made[name] = "png", _grey(asset.metallic_roughness[..., channel])
        if asset.has_occlusion:
            made["occlusion"] = "png", _grey(asset.metallic_roughness[..., 0])
    if asset.normal_map is not None:
        made["normal"] = encode_image(asset.normal_map, "png", is_data=True)[::-1]
    return made


def _grey(channel: NDArray[np.uint8]) -> bytes:
    """Return a channel (H, W) as a picture whose red, green and blue are it."""
    return encode_image(np.repeat(channel[..., None], 3, axis=2), "png", is_data=True)[0]


def _mtl(asset: Asset, pictures: dict[str, tuple[str, bytes]]) -> str:
    keys = {
        "base_color": "map_Kd", "opacity": "map_d", "roughness": "map_Pr", "metallic": "map_Pm",
        "normal": "norm",
    }  # fmt: skip
    textured = "roughness" in pictures
    lines = ["newmtl model", "Ka 0 0 0", "Kd 1 1 1", "Ks 0 0 0", "illum 2"]
    lines += [f"Pr {1.0 if textured else 0.9}", f"Pm {1.0 if textured else 0.0}"]
    for name in (name for name in pictures if name in keys):
        lines.append(f"{keys[name]} {name}.{pictures[name][0]}")
    return "\n".join(lines) + "\n"
