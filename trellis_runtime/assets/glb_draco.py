"""A GLB whose geometry is compressed with Draco: KHR_draco_mesh_compression, for files of ours.

Textures stay as they are. Positions are kept to 14 bits of the mesh's longest side, normals to 10
bits and texture coordinates to 12, or to an eighth of a texel where that is finer. Draco puts
vertices into an order of its own. Tangents are left out: Draco would keep their 16 bytes as they
are, and glTF has readers compute MikkTSpace's where there are none, which is what ours are. What
was written is decoded again, and compared, before it is given out. Source: Khronos,
KHR_draco_mesh_compression.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trellis_runtime.assets.glb_format import pack_glb
from trellis_runtime.assets.glb_lossy import (
    NORMAL_BITS,
    POSITION_BITS,
    require_box,
    stated_primitives,
    uv_bits,
)
from trellis_runtime.assets.glb_reader import GlbParts, take_apart
from trellis_runtime.errors import FileRejected

EXTENSION = "KHR_draco_mesh_compression"
_LEVEL = 7  # of 10; 10 takes a third longer for 2 % less
_COLOR_ID = 9
_TYPES = {"POSITION": 0, "NORMAL": 1, "TEXCOORD_0": 3, "COLOR_0": 4}
"""Draco's types of attributes; colours are generic, which alone have 16 bits."""
_COMPONENTS = {"f": 5126, "u": 5123}
_KINDS = {2: "VEC2", 3: "VEC3", 4: "VEC4"}


@dataclass(frozen=True, slots=True)
class _Packed:
    """One primitive's compressed bytes, its attributes' ids there, and what they decode to."""

    data: bytes
    ids: dict[str, int]
    decoded: dict[str, NDArray[Any]]
    faces: NDArray[np.uint32]


def compress_glb(data: bytes, texture_size: int = 0) -> bytes:
    """Return a GLB of ours with its geometry compressed; needs DracoPy.

    Raises `FileRejected` where what was written does not decode to the same mesh.
    """
    parts = take_apart(data)
    packed = [_pack(attributes, faces, texture_size) for attributes, faces in parts.primitives]
    return _written(parts, packed)


def _pack(attributes: dict[str, NDArray[Any]], faces: NDArray[Any], texture_size: int) -> _Packed:
    used, corners = np.unique(faces, return_inverse=True)
    kept = {
        name: np.ascontiguousarray(values[used])
        for name, values in attributes.items()
        if name in _TYPES
    }
    faces = corners.reshape(-1, 3).astype(np.uint32)
    uvs, colors = kept.get("TEXCOORD_0"), kept.get("COLOR_0")
    data, found = _through_draco(
        kept["POSITION"],
        faces,
        quantization_bits=POSITION_BITS,
        compression_level=_LEVEL,
        normals=kept["NORMAL"].astype(np.float64),
        normal_quantization_bits=NORMAL_BITS,
        tex_coord=None if uvs is None else uvs.astype(np.float64),
        tex_coord_quantization_bits=uv_bits(texture_size),
        generic_attributes=None if colors is None else {_COLOR_ID: colors},
    )
    by_type = {told["attribute_type"]: told for told in found.attributes}
    told = {name: by_type.get(_TYPES[name]) for name in kept}
    if None in told.values():
        raise FileRejected("an attribute was lost in compression")
    packed = _Packed(
        data,
        {name: int(fact["unique_id"]) for name, fact in told.items() if fact is not None},
        {name: np.asarray(fact["data"]) for name, fact in told.items() if fact is not None},
        np.asarray(found.faces, np.uint32),
    )
    _require_same(kept, faces, packed)
    return packed


def _through_draco(
    points: NDArray[np.float32], faces: NDArray[np.uint32], **options: Any
) -> tuple[bytes, Any]:
    """Return a compressed mesh, and what it decodes to; raises `FileRejected`."""
    import DracoPy

    failures = (DracoPy.EncodingFailedException, DracoPy.FileTypeException)
    try:
        data = DracoPy.encode(points, faces, **options)
        return data, DracoPy.decode(data)
    except (*failures, ValueError, AssertionError, RuntimeError) as err:
        raise FileRejected(f"Draco does not take the mesh ({type(err).__name__})") from err


def _require_same(
    before: dict[str, NDArray[Any]], faces: NDArray[np.uint32], after: _Packed
) -> None:
    """Raise `FileRejected` unless as many faces and the same box came back."""
    if len(after.faces) != len(faces):
        raise FileRejected(f"{len(faces)} faces were compressed and {len(after.faces)} came back")
    require_box(before["POSITION"], after.decoded["POSITION"])


def _written(parts: GlbParts, packed: list[_Packed]) -> bytes:
    """Return the file: pictures' buffer views as they were, then one for each primitive."""
    blob, views, images = bytearray(), list[dict[str, Any]](), list[dict[str, Any]]()

    def add(data: bytes) -> int:
        blob.extend(b"\0" * (-len(blob) % 4))
        views.append({"buffer": 0, "byteOffset": len(blob), "byteLength": len(data)})
        blob.extend(data)
        return len(views) - 1

    for image in parts.document.get("images", []):
        view = parts.document["bufferViews"][image["bufferView"]]
        images.append(image | {"bufferView": add(parts.bytes_of(view))})
    accessors: list[dict[str, Any]] = []
    primitives = []
    for stated, one in zip(stated_primitives(parts.document), packed, strict=True):
        primitives.append(stated | _primitive(one, add(one.data), accessors))
    document = parts.document | {
        "buffers": [{"byteLength": len(blob)}],
        "bufferViews": views,
        "accessors": accessors,
        "meshes": [{"primitives": primitives}],
        "extensionsUsed": [*parts.document.get("extensionsUsed", []), EXTENSION],
        "extensionsRequired": [*parts.document.get("extensionsRequired", []), EXTENSION],
    }
    return pack_glb(document | ({"images": images} if images else {}), blob)


def _primitive(one: _Packed, view: int, accessors: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a primitive says of its compressed data; its accessors are added to the list."""

    def add(accessor: dict[str, Any]) -> int:
        accessors.append(accessor)
        return len(accessors) - 1

    attributes = {}
    for name, values in one.decoded.items():
        accessor: dict[str, Any] = {
            "componentType": _COMPONENTS[values.dtype.kind],
            "count": len(values),
            "type": _KINDS[values.shape[1]],
        }
        if name == "COLOR_0":
            accessor["normalized"] = True
        if name == "POSITION":
            accessor["min"] = [float(v) for v in values.min(axis=0)]
            accessor["max"] = [float(v) for v in values.max(axis=0)]
        attributes[name] = add(accessor)
    indices = {"componentType": 5125, "count": int(one.faces.size), "type": "SCALAR"}
    told = {"bufferView": view, "attributes": one.ids}
    return {"attributes": attributes, "indices": add(indices), "extensions": {EXTENSION: told}}
