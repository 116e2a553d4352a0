"""Convex hulls that stand for a mesh in a physics engine, found in a child process.

    mesh ─► child (`hulls_child`: weld, decimate, V-HACD) ─► hulls, checked ─► a GLB of their own

A library of C++ cannot be stopped, and may end its whole process (coacd did): so each mesh gets a
process, with a bound on its time and its memory. Source: Mamou, Volumetric Hierarchical Approximate
Convex Decomposition, in Game Engine Gems 3 (2016).

Each hull is a node and a mesh UCX_asset_00, UCX_asset_01, ...: Unreal's names for the convex pieces
of a mesh called asset, as the model's node is. They have positions and indices alone.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import trellis_runtime
from trellis_runtime.assets.glb_format import pack_glb
from trellis_runtime.contract.engine import Asset
from trellis_runtime.contract.scope import Deadline, JobScope
from trellis_runtime.errors import FileRejected

TIMEOUT_S = 60.0
"""The longest that a mesh may take; of 20,000 faces it is a few seconds."""

_LOOK_S = 0.1
_ROOT = str(Path(trellis_runtime.__file__).parent.parent)
_RUN = (
    f"import sys; sys.path.insert(0, {_ROOT!r}); "
    "from trellis_runtime.assets.hulls_child import main; main()"
)
_FLOAT, _USHORT = 5126, 5123
_ARRAY_BUFFER, _ELEMENT_BUFFER = 34962, 34963


@dataclass(frozen=True, slots=True)
class Hull:
    """A convex body: vertices (V, 3) float32, faces (F, 3) uint16, counter-clockwise outside."""

    vertices: NDArray[np.float32]
    faces: NDArray[np.uint16]


def convex_hulls(
    asset: Asset, most: int, scope: JobScope, timeout_s: float = TIMEOUT_S
) -> list[Hull]:
    """Return at most `most` convex hulls that cover `asset` together; needs vhacdx.

    Raises `FileRejected` where its process takes too long, ends itself or finds nothing that can
    be used, and what `scope.check` raises when the job is stopped or its time is over.
    """
    buffer = io.BytesIO()
    np.savez(buffer, vertices=asset.vertices, faces=asset.faces, most=np.int64(most))
    hulls = _unpacked(_asked(buffer.getvalue(), scope, timeout_s))
    if not 1 <= len(hulls) <= most or not all(_is_body(hull) for hull in hulls):
        raise FileRejected("the convex hulls that were found cannot be used")
    return hulls


def _asked(request: bytes, scope: JobScope, timeout_s: float) -> bytes:
    """Return the child's answer; the child is ended with the time, or the job."""
    deadline = Deadline.after(min(timeout_s, scope.deadline.remaining()))
    # A file, since `communicate` forgets the rest of its input where it has to be called again.
    with tempfile.TemporaryFile() as given:
        given.write(request)
        given.seek(0)
        child = subprocess.Popen(  # noqa: S603 - our own code, no input of a caller
            [sys.executable, "-c", _RUN],
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    with child:
        try:
            answer = _answer(child, scope, deadline)
        finally:
            child.kill()
    if child.returncode != 0 or not answer:
        raise FileRejected(
            f"the convex hulls' process ended without an answer (exit code {child.returncode})"
        )
    return answer


def _answer(child: subprocess.Popen[bytes], scope: JobScope, deadline: Deadline) -> bytes:
    while True:
        try:
            return child.communicate(timeout=_LOOK_S)[0]
        except subprocess.TimeoutExpired:
            scope.check()
            if deadline.passed:
                raise FileRejected("finding the convex hulls took too long") from None


def _unpacked(answer: bytes) -> list[Hull]:
    try:
        with np.load(io.BytesIO(answer), allow_pickle=False) as arrays:
            pairs = [(arrays[f"v{i}"], arrays[f"f{i}"]) for i in range(len(arrays.files) // 2)]
    except (OSError, ValueError, KeyError, EOFError) as err:
        raise FileRejected("the convex hulls' process gave no hulls") from err
    return [Hull(v.astype(np.float32), f.astype(np.uint16)) for v, f in pairs]


def _is_body(hull: Hull) -> bool:
    """Whether a hull has a volume, and indices of its own vertices."""
    if hull.vertices.ndim != 2 or len(hull.vertices) < 4 or len(hull.faces) < 4:
        return False
    if not np.isfinite(hull.vertices).all() or int(hull.faces.max()) >= len(hull.vertices):
        return False
    a, b, c = (hull.vertices[hull.faces[:, i]].astype(np.float64) for i in range(3))
    return float(np.einsum("nd,nd->n", a, np.cross(b, c)).sum()) > 0


def encode_hulls(hulls: list[Hull], extras: dict[str, Any]) -> bytes:
    """Return the hulls as a GLB, each a node of its own; `extras` as of `encode_glb`."""
    blob, views, accessors = bytearray(), list[dict[str, Any]](), list[dict[str, Any]]()

    def add(values: NDArray[Any], target: int, told: dict[str, Any]) -> int:
        blob.extend(b"\0" * (-len(blob) % 4))
        data = np.ascontiguousarray(values).tobytes()
        view = {"buffer": 0, "byteOffset": len(blob), "byteLength": len(data), "target": target}
        blob.extend(data)
        views.append(view)
        accessors.append({"bufferView": len(views) - 1} | told)
        return len(accessors) - 1

    meshes = []
    for number, hull in enumerate(hulls):
        positions = add(hull.vertices, _ARRAY_BUFFER, _points(hull.vertices))
        corners = {"componentType": _USHORT, "count": hull.faces.size, "type": "SCALAR"}
        indices = add(hull.faces, _ELEMENT_BUFFER, corners)
        primitive = {"attributes": {"POSITION": positions}, "indices": indices}
        meshes.append({"name": f"UCX_asset_{number:02}", "primitives": [primitive]})
    document = {
        "asset": {"version": "2.0", "generator": "trellis-runtime", "extras": extras},
        "scene": 0,
        "scenes": [{"nodes": list(range(len(meshes)))}],
        "nodes": [{"mesh": i, "name": mesh["name"]} for i, mesh in enumerate(meshes)],
        "meshes": meshes,
        "buffers": [{"byteLength": len(blob)}],
        "bufferViews": views,
        "accessors": accessors,
    }
    return pack_glb(document, blob)


def _points(vertices: NDArray[np.float32]) -> dict[str, Any]:
    low, high = ([float(v) for v in edge(vertices, axis=0)] for edge in (np.min, np.max))
    told = {"componentType": _FLOAT, "count": len(vertices), "type": "VEC3"}
    return told | {"min": low, "max": high}
