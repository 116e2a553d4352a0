"""STL and 3MF, for printers: one welded surface, no colours. Units are the caller's: millimetres.

STL, binary: 80 bytes of header, a count, then for each face its normal, three corners and two spare
bytes. 3MF: a zip with a model in XML and two parts that say where it is. Sources: 3D Systems, STL
(1989); 3MF Consortium, 3MF Core Specification 1.3.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from trellis_runtime.assets.formats.archive import zipped
from trellis_runtime.assets.mesh import weld
from trellis_runtime.contract.engine import Asset

_HEADER = b"trellis-runtime; units are millimetres; +Z is up"
_FACE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("spare", "<u2")])

_CONTENT_TYPES = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    '<Default Extension="rels" '
    'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    '<Default Extension="model" '
    'ContentType="application/vnd.ms-package.3dmanufacturing-3dmodel+xml"/></Types>'
)
_RELATIONS = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
    '<Relationship Target="/3D/3dmodel.model" Id="rel0" '
    'Type="http://schemas.microsoft.com/3dmanufacturing/2013/01/3dmodel"/></Relationships>'
)
_MODEL_HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<model unit="millimeter" xml:lang="en-US" '
    'xmlns="http://schemas.microsoft.com/3dmanufacturing/core/2015/02">'
    '<metadata name="Application">trellis-runtime</metadata>'
    '<resources><object id="1" type="model"><mesh>\n'
)
_MODEL_TAIL = '</mesh></object></resources><build><item objectid="1"/></build></model>\n'


def encode_stl(asset: Asset) -> bytes:
    """Return the welded surface of `asset` as binary STL."""
    vertices, faces = weld(asset.vertices, asset.faces)
    corners = vertices[faces]
    records = np.zeros(len(faces), _FACE)
    records["normal"] = _face_normals(corners)
    records["corners"] = corners
    return _HEADER.ljust(80, b" ") + struct.pack("<I", len(faces)) + records.tobytes()


def encode_3mf(asset: Asset) -> bytes:
    """Return the welded surface of `asset` as 3MF."""
    vertices, faces = weld(asset.vertices, asset.faces)
    points = ('<vertex x="%.7g" y="%.7g" z="%.7g"/>\n' * len(vertices)) % tuple(
        vertices.ravel().tolist()
    )
    triangles = ('<triangle v1="%d" v2="%d" v3="%d"/>\n' * len(faces)) % tuple(
        faces.ravel().tolist()
    )
    model = [
        _MODEL_HEAD,
        "<vertices>\n", points, "</vertices>\n<triangles>\n", triangles, "</triangles>\n",
        _MODEL_TAIL,
    ]  # fmt: skip
    return zipped(
        {
            "[Content_Types].xml": _CONTENT_TYPES.encode(),
            "_rels/.rels": _RELATIONS.encode(),
            "3D/3dmodel.model": "".join(model).encode(),
        }
    )


def _face_normals(corners: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return unit normals (F, 3) of faces (F, 3, 3); zero, as STL allows, where there is none."""
    wide = corners.astype(np.float64)
    cross = np.cross(wide[:, 1] - wide[:, 0], wide[:, 2] - wide[:, 0])
    length = np.linalg.norm(cross, axis=1, keepdims=True)
    return np.asarray(np.divide(cross, length, out=np.zeros_like(cross), where=length > 0))
