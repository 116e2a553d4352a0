"""USDZ for Quick Look and others: one mesh, one UsdPreviewSurface, textures beside it.

The file holds a binary USD layer and its textures, uncompressed and aligned to 64 bytes, as the
format wants it. USD's v runs upwards and glTF's downwards. Sources: OpenUSD, Usdz File Format
Specification and UsdPreviewSurface Specification; Apple, Validating feature support for USD files.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from trellis_runtime.assets.color import srgb_to_linear
from trellis_runtime.assets.formats import pictures
from trellis_runtime.assets.formats.archive import aligned_zip
from trellis_runtime.contract.engine import Asset
from trellis_runtime.contract.request import TextureFormat

_LAYER = "model.usdc"


def encode_usdz(asset: Asset, texture_format: TextureFormat) -> bytes:
    """Return `asset` as USDZ; needs usd-core."""
    made = pictures.base_color(asset, texture_format)
    made |= pictures.metallic_roughness(asset) | pictures.normal(asset)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / _LAYER  # the library writes binary layers to files alone
        _write_layer(path, asset, made)
        layer = path.read_bytes()
    textures = {f"textures/{name}": data for name, data in made.values()}
    return aligned_zip({_LAYER: layer} | textures)


def _write_layer(path: Path, asset: Asset, made: dict[str, pictures.Picture]) -> None:
    from pxr import Usd, UsdGeom, UsdShade

    stage = Usd.Stage.CreateNew(str(path))
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    root = UsdGeom.Xform.Define(stage, "/model")
    stage.SetDefaultPrim(root.GetPrim())
    mesh = UsdGeom.Mesh.Define(stage, "/model/mesh")
    _set_mesh(mesh, asset)
    material = _material(stage, asset, made)
    UsdShade.MaterialBindingAPI.Apply(mesh.GetPrim()).Bind(material)
    stage.GetRootLayer().Save()


def _set_mesh(mesh: Any, asset: Asset) -> None:
    from pxr import Sdf, UsdGeom, Vt

    mesh.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(np.ascontiguousarray(asset.vertices)))
    mesh.CreateFaceVertexCountsAttr(Vt.IntArray.FromNumpy(np.full(len(asset.faces), 3, np.int32)))
    corners = np.ascontiguousarray(asset.faces.ravel().astype(np.int32))
    mesh.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(corners))
    mesh.CreateNormalsAttr(Vt.Vec3fArray.FromNumpy(np.ascontiguousarray(asset.normals)))
    mesh.SetNormalsInterpolation(UsdGeom.Tokens.vertex)
    mesh.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    mesh.CreateDoubleSidedAttr(asset.double_sided)
    low, high = asset.vertices.min(axis=0), asset.vertices.max(axis=0)
    mesh.CreateExtentAttr(Vt.Vec3fArray.FromNumpy(np.stack([low, high]).astype(np.float32)))
    variables = UsdGeom.PrimvarsAPI(mesh)
    if asset.uvs is not None:
        upwards = (asset.uvs * [1, -1] + [0, 1]).astype(np.float32)
        uv = variables.CreatePrimvar(
            "st", Sdf.ValueTypeNames.TexCoord2fArray, UsdGeom.Tokens.vertex
        )
        uv.Set(Vt.Vec2fArray.FromNumpy(np.ascontiguousarray(upwards)))
    if asset.vertex_colors is not None:
        linear = srgb_to_linear(asset.vertex_colors[:, :3] / 255.0).astype(np.float32)
        shown = variables.CreatePrimvar(
            "displayColor", Sdf.ValueTypeNames.Color3fArray, UsdGeom.Tokens.vertex
        )
        shown.Set(Vt.Vec3fArray.FromNumpy(np.ascontiguousarray(linear)))


def _material(stage: Any, asset: Asset, made: dict[str, pictures.Picture]) -> Any:
    from pxr import Sdf, UsdShade

    types = Sdf.ValueTypeNames
    material = UsdShade.Material.Define(stage, "/model/material")
    surface = UsdShade.Shader.Define(stage, "/model/material/surface")
    surface.CreateIdAttr("UsdPreviewSurface")
    material.CreateSurfaceOutput().ConnectToSource(surface.ConnectableAPI(), "surface")
    surface.CreateInput("roughness", types.Float).Set(0.9)
    surface.CreateInput("metallic", types.Float).Set(0.0)
    if asset.vertex_colors is not None:
        reader = _primvar_reader(stage, "color", "UsdPrimvarReader_float3", "displayColor")
        out = reader.CreateOutput("result", types.Float3)
        surface.CreateInput("diffuseColor", types.Color3f).ConnectToSource(out)
    if not made:
        return material
    uv = _primvar_reader(stage, "uv", "UsdPrimvarReader_float2", "st")
    coordinates = uv.CreateOutput("result", types.Float2)
    base = _texture(stage, "base_color", made, coordinates, "sRGB")
    color = base.CreateOutput("rgb", types.Float3)
    surface.CreateInput("diffuseColor", types.Color3f).ConnectToSource(color)
    if asset.alpha_mode != "OPAQUE":
        opacity = base.CreateOutput("a", types.Float)
        surface.CreateInput("opacity", types.Float).ConnectToSource(opacity)
        threshold = asset.alpha_cutoff if asset.alpha_mode == "MASK" else 0.0
        surface.CreateInput("opacityThreshold", types.Float).Set(threshold)
    if "metallic_roughness" in made:
        packed = _texture(stage, "metallic_roughness", made, coordinates, "raw")
        channels = [("roughness", "g"), ("metallic", "b")]
        channels += [("occlusion", "r")] if asset.has_occlusion else []
        for name, channel in channels:
            output = packed.CreateOutput(channel, types.Float)
            surface.CreateInput(name, types.Float).ConnectToSource(output)
    if "normal" in made:
        _connect_normals(surface, _texture(stage, "normal", made, coordinates, "raw"))
    return material


def _connect_normals(surface: Any, bumps: Any) -> None:
    """Have the surface take its normals from the picture `bumps`, whose 0..1 are -1..1."""
    from pxr import Gf, Sdf

    types = Sdf.ValueTypeNames
    bumps.CreateInput("scale", types.Float4).Set(Gf.Vec4f(2, 2, 2, 1))
    bumps.CreateInput("bias", types.Float4).Set(Gf.Vec4f(-1, -1, -1, 0))
    output = bumps.CreateOutput("rgb", types.Float3)
    surface.CreateInput("normal", types.Normal3f).ConnectToSource(output)


def _primvar_reader(stage: Any, name: str, kind: str, variable: str) -> Any:
    from pxr import Sdf, UsdShade

    reader = UsdShade.Shader.Define(stage, f"/model/material/{name}")
    reader.CreateIdAttr(kind)
    reader.CreateInput("varname", Sdf.ValueTypeNames.String).Set(variable)
    return reader


def _texture(
    stage: Any, name: str, made: dict[str, pictures.Picture], coordinates: Any, space: str
) -> Any:
    from pxr import Sdf, UsdShade

    types = Sdf.ValueTypeNames
    texture = UsdShade.Shader.Define(stage, f"/model/material/{name}")
    texture.CreateIdAttr("UsdUVTexture")
    texture.CreateInput("file", types.Asset).Set(Sdf.AssetPath(f"textures/{made[name][0]}"))
    texture.CreateInput("sourceColorSpace", types.Token).Set(space)
    texture.CreateInput("wrapS", types.Token).Set("clamp")
    texture.CreateInput("wrapT", types.Token).Set("clamp")
    texture.CreateInput("st", types.Float2).ConnectToSource(coordinates)
    return texture
