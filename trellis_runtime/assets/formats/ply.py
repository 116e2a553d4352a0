"""PLY, binary little-endian: positions, normals and colours at the vertices.

Source: Turk, The PLY Polygon File Format (1994), with the property names that readers know.
"""

from __future__ import annotations

import numpy as np

from trellis_runtime.contract.engine import Asset

_VERTEX = [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")]
_COLOR = [(name, "u1") for name in ("red", "green", "blue", "alpha")]
_FACE = np.dtype([("count", "u1"), ("corners", "<u4", 3)])


def encode_ply(asset: Asset) -> bytes:
    """Return `asset` as PLY; its colours must be at its vertices, sRGB, or it has none."""
    colors = asset.vertex_colors
    fields = _VERTEX + ([] if colors is None else _COLOR[: colors.shape[1]])
    records = np.zeros(len(asset.vertices), np.dtype(fields))
    for values, names in ((asset.vertices, "x y z"), (asset.normals, "nx ny nz")):
        for column, name in enumerate(names.split()):
            records[name] = values[:, column]
    if colors is not None:
        for column, (name, _) in enumerate(_COLOR[: colors.shape[1]]):
            records[name] = colors[:, column]
    faces = np.zeros(len(asset.faces), _FACE)
    faces["count"], faces["corners"] = 3, asset.faces
    return _head(fields, len(records), len(faces)) + records.tobytes() + faces.tobytes()


def _head(fields: list[tuple[str, str]], vertices: int, faces: int) -> bytes:
    kinds = {"<f4": "float", "u1": "uchar"}
    lines = [
        "ply", "format binary_little_endian 1.0", "comment trellis-runtime",
        f"element vertex {vertices}",
        *(f"property {kinds[kind]} {name}" for name, kind in fields),
        f"element face {faces}", "property list uchar uint vertex_indices", "end_header",
    ]  # fmt: skip
    return ("\n".join(lines) + "\n").encode()
