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

from trellis_runtime.assets.formats import pictures
from trellis_runtime.assets.formats.archive import zipped
from trellis_runtime.contract.engine import Asset
from trellis_runtime.contract.request import TextureFormat


def encode_obj_zip(asset: Asset, texture_format: TextureFormat) -> bytes:
    """Return a zip with model.obj, model.mtl and, where there are textures, their pictures."""
    made = _pictures(asset, texture_format)
    files = {"model.obj": _obj(asset).encode(), "model.mtl": _mtl(made).encode()}
    return zipped(files | dict(made.values()))


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


def _pictures(asset: Asset, form: TextureFormat) -> dict[str, pictures.Picture]:
    """Return each picture's file, by its part in the material."""
    base = pictures.base_color(asset, form, alpha=False)
    return base | pictures.channels(asset) | pictures.normal(asset)


def _mtl(made: dict[str, pictures.Picture]) -> str:
    keys = {
        "base_color": "map_Kd", "opacity": "map_d", "roughness": "map_Pr", "metallic": "map_Pm",
        "normal": "norm",
    }  # fmt: skip
    textured = "roughness" in made
    lines = ["newmtl model", "Ka 0 0 0", "Kd 1 1 1", "Ks 0 0 0", "illum 2"]
    lines += [f"Pr {1.0 if textured else 0.9}", f"Pm {1.0 if textured else 0.0}"]
    lines += [f"{keys[name]} {file}" for name, (file, _) in made.items() if name in keys]
    return "\n".join(lines) + "\n"
