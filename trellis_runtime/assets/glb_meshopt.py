"""A GLB whose geometry is compressed with meshoptimizer: EXT_meshopt_compression, by gltfpack.

Textures stay as they are. Positions are kept to 14 bits of the mesh's longest side, normals to 10
bits, colours to 16 and texture coordinates to an eighth of a texel. Positions and coordinates stay
floats: as integers they would be 2 % less, and need a node that scales them and
KHR_texture_transform. gltfpack's filter leaves normals as bytes and shorts: KHR_mesh_quantization.
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
from trellis_runtime.assets.glb_lossy import NORMAL_BITS, POSITION_BITS, require_box, uv_bits
from trellis_runtime.assets.glb_reader import GlbParts, read_document, take_apart
from trellis_runtime.errors import FileRejected

EXTENSION = "EXT_meshopt_compression"
_COLOR_BITS = 16  # linear, as they are: 8 would band
_MOST_BITS = 16  # that gltfpack takes
_KEEP = ["-kn", "-km", "-ke"]  # named nodes, named materials, extras
_DECODE = [*_KEEP, "-noq"]


def compress_glb(data: bytes, texture_size: int = 0) -> bytes:
    """Return a GLB of ours with its geometry compressed; needs wasmtime and gltfpack's file.

    Raises `FileRejected` where what was written does not decode to the same mesh.
    """
    document, blob = read_document(data)
    bare = pack_glb(document | {"meshes": _without_tangents(document["meshes"])}, blob)
    small = gltfpack.pack(bare, _options(texture_size))
    _require_same(take_apart(data), take_apart(gltfpack.pack(small, _DECODE)))
    written, packed = read_document(small)
    return pack_glb(written | {"asset": document["asset"]}, packed)


def _options(texture_size: int) -> list[str]:
    coordinate = min(uv_bits(texture_size), _MOST_BITS)
    bits = {"-vp": POSITION_BITS, "-vn": NORMAL_BITS, "-vt": coordinate, "-vc": _COLOR_BITS}
    return [*_KEEP, "-cc", "-vpf", "-vtf", *(word for o, n in bits.items() for word in (o, str(n)))]


def _without_tangents(meshes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def bare(primitive: dict[str, Any]) -> dict[str, Any]:
        attributes = primitive["attributes"].items()
        return primitive | {"attributes": {n: at for n, at in attributes if n != "TANGENT"}}

    return [mesh | {"primitives": [bare(p) for p in mesh["primitives"]]} for mesh in meshes]


def _require_same(before: GlbParts, after: GlbParts) -> None:
    """Raise `FileRejected` unless the same faces, boxes and pictures came back."""
    if len(before.primitives) != len(after.primitives):
        raise FileRejected("compression changed the number of primitives")
    for (ours, faces), (theirs, back) in zip(before.primitives, after.primitives, strict=True):
        corners = ours["POSITION"][faces]
        if not len(faces) - _collapsed(corners) <= len(back) <= len(faces):
            raise FileRejected(f"{len(faces)} faces were compressed and {len(back)} came back")
        if lost := sorted(ours.keys() - theirs.keys() - {"TANGENT"}):
            raise FileRejected(f"the attribute {lost[0]} was lost in compression")
        require_box(corners.reshape(-1, 3), theirs["POSITION"][back].reshape(-1, 3))
    if _pictures(before) != _pictures(after):
        raise FileRejected("compression changed a texture")


def _collapsed(corners: NDArray[np.float32]) -> int:
    """Return how many faces (F, 3, 3) have two corners at one point, which gltfpack may drop."""
    return int((corners == corners[:, [1, 2, 0]]).all(axis=2).any(axis=1).sum())


def _pictures(parts: GlbParts) -> list[bytes]:
    views = [
        parts.document["bufferViews"][i["bufferView"]] for i in parts.document.get("images", [])
    ]
    return [parts.blob[v.get("byteOffset", 0) :][: v["byteLength"]] for v in views]
