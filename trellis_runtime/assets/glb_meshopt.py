"""A GLB whose geometry is compressed with meshoptimizer: EXT_meshopt_compression, by gltfpack.

gltfpack gets the geometry alone, each primitive with a material whose name is its number: what it
would do to materials (it takes a texture without alpha for a reason to end blending), to textures
(it copies them several times) and to names is ours to leave as it is. Positions are kept to 14 bits
of the mesh's longest side, normals to 10 bits, colours to 16 and texture coordinates to an eighth
of a texel. Positions and coordinates stay floats: as integers they would be 2 % less, and need a
node that scales them and KHR_texture_transform. Normals, as shorts, need KHR_mesh_quantization.
Tangents are left out: gltfpack has at most 8 bits for them, and glTF has readers compute
MikkTSpace's where there are none, which is what ours are. What was written is decoded again, and
compared, before it is given out. Source: Khronos, EXT_meshopt_compression.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trellis_runtime.assets import gltfpack
from trellis_runtime.assets.glb_format import pack_glb
from trellis_runtime.assets.glb_lossy import (
    NORMAL_BITS,
    POSITION_BITS,
    require_box,
    stated_primitives,
    uv_bits,
)
from trellis_runtime.assets.glb_reader import GlbParts, read_document, take_apart
from trellis_runtime.errors import FileRejected

EXTENSION = "EXT_meshopt_compression"
_COLOR_BITS = 16  # linear, as they are: 8 would band
_MOST_BITS = 16  # that gltfpack takes
_KEEP = ["-km", "-kv"]  # named materials, and attributes that no material uses
_DECODE = [*_KEEP, "-noq"]

_Primitive = tuple[dict[str, NDArray[Any]], NDArray[Any]]
"""Attributes by name, and faces (F, 3)."""


def compress_glb(data: bytes, texture_size: int = 0) -> bytes:
    """Return a GLB of ours with its geometry compressed; needs wasmtime and gltfpack's file.

    Raises `FileRejected` where what was written does not decode to the same mesh.
    """
    parts = take_apart(data)
    small = gltfpack.pack(_geometry(parts), _options(texture_size))
    back = take_apart(gltfpack.pack(small, _DECODE))
    order = _numbers(back.document)
    _require_same(parts.primitives, [back.primitives[order.index(n)] for n in sorted(order)])
    return _written(parts, *read_document(small))


def _options(texture_size: int) -> list[str]:
    coordinate = min(uv_bits(texture_size), _MOST_BITS)
    bits = {"-vp": POSITION_BITS, "-vn": NORMAL_BITS, "-vt": coordinate, "-vc": _COLOR_BITS}
    return [*_KEEP, "-cc", "-vpf", "-vtf", *(word for o, n in bits.items() for word in (o, str(n)))]


def _geometry(parts: GlbParts) -> bytes:
    """Return a GLB with nothing but the primitives, without tangents."""
    document, blob, views = parts.document, bytearray(), list[dict[str, Any]]()
    of_pictures = {image["bufferView"] for image in document.get("images", [])}
    for at, view in enumerate(document["bufferViews"]):
        data = b"\0\0\0\0" if at in of_pictures else parts.bytes_of(view)
        views.append(view | {"byteOffset": len(blob), "byteLength": len(data)})
        blob.extend(data + b"\0" * (-len(data) % 4))
    primitives = [
        {
            "attributes": {n: at for n, at in stated["attributes"].items() if n != "TANGENT"},
            "indices": stated["indices"],
            "material": number,
        }
        for number, stated in enumerate(stated_primitives(document))
    ]
    bare = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": primitives}],
        "materials": [{"name": str(number)} for number in range(len(primitives))],
        "accessors": document["accessors"],
        "bufferViews": views,
        "buffers": [{"byteLength": len(blob)}],
    }
    return pack_glb(bare, blob)


def _written(parts: GlbParts, small: dict[str, Any], packed: bytes) -> bytes:
    """Return our file with the geometry of `small`, and its pictures behind that."""
    ours, blob, views, images = parts.document, bytearray(packed), list(small["bufferViews"]), []
    for image in ours.get("images", []):
        data = parts.bytes_of(ours["bufferViews"][image["bufferView"]])
        blob.extend(b"\0" * (-len(blob) % 4))
        images.append(image | {"bufferView": len(views)})
        views.append({"buffer": 0, "byteOffset": len(blob), "byteLength": len(data)})
        blob.extend(data)
    found = dict(zip(_numbers(small), stated_primitives(small), strict=True))
    primitives = [
        stated | {name: found[number][name] for name in ("attributes", "indices")}
        for number, stated in enumerate(stated_primitives(ours))
    ]
    document = ours | {
        "buffers": [small["buffers"][0] | {"byteLength": len(blob)}, *small["buffers"][1:]],
        "bufferViews": views,
        "accessors": small["accessors"],
        "meshes": [{"primitives": primitives}],
    }
    for name in ("extensionsUsed", "extensionsRequired"):
        document[name] = [*ours.get(name, []), *small[name]]
    return pack_glb(document | ({"images": images} if images else {}), blob)


def _numbers(document: dict[str, Any]) -> list[int]:
    """Return which of our primitives each primitive of gltfpack's is."""
    materials = document["materials"]
    return [int(materials[p["material"]]["name"]) for p in stated_primitives(document)]


def _require_same(before: list[_Primitive], after: list[_Primitive]) -> None:
    """Raise `FileRejected` unless the same faces, attributes and boxes came back."""
    if len(before) != len(after):
        raise FileRejected(f"{len(before)} primitives were compressed and {len(after)} came back")
    for (ours, faces), (theirs, back) in zip(before, after, strict=True):
        corners = ours["POSITION"][faces]
        if not len(faces) - _collapsed(corners) <= len(back) <= len(faces):
            raise FileRejected(f"{len(faces)} faces were compressed and {len(back)} came back")
        if lost := sorted(ours.keys() - theirs.keys() - {"TANGENT"}):
            raise FileRejected(f"the attribute {lost[0]} was lost in compression")
        require_box(corners.reshape(-1, 3), theirs["POSITION"][back].reshape(-1, 3))


def _collapsed(corners: NDArray[np.float32]) -> int:
    """Return how many faces (F, 3, 3) have two corners at one point, which gltfpack may drop."""
    return int((corners == corners[:, [1, 2, 0]]).all(axis=2).any(axis=1).sum())
