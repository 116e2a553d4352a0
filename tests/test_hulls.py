"""Convex hulls: by value against shapes that are known, and a process that hangs, dies, or overeats."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import trimesh

from tests.conftest import ROOT
from tests.test_finishes import ALL, Watched, asking
from tests.test_worker import handle, start
from trellis_runtime.assets.glb_reader import take_apart
from trellis_runtime.assets.hulls import Hull, convex_hulls, encode_hulls
from trellis_runtime.contract.engine import Asset
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.errors import FileRejected, JobCancelled

BOTH = {"name": "solid", "format": "hulls", "hulls": 4}


def as_asset(mesh: trimesh.Trimesh) -> Asset:
    vertices = np.asarray(mesh.vertices, np.float32)
    return Asset(vertices, np.asarray(mesh.faces, np.uint32), np.zeros_like(vertices))


def angle_iron() -> trimesh.Trimesh:
    """An L of two boards: its convex hull has a third more volume than it."""
    outline = np.array([[0, 0], [0.8, 0], [0.8, 0.2], [0.2, 0.2], [0.2, 0.8], [0, 0.8]])
    corners = [[x, y, z] for z in (0.0, 0.5) for x, y in outline]
    low = [[0, 2, 1], [0, 3, 2], [0, 4, 3], [0, 5, 4]]
    sides = [[i, (i + 1) % 6, (i + 1) % 6 + 6] for i in range(6)]
    sides += [[i, (i + 1) % 6 + 6, i + 6] for i in range(6)]
    high = [[a + 6, c + 6, b + 6] for a, b, c in low]
    return trimesh.Trimesh(corners, low + sides + high).subdivide().subdivide()


def bodies(hulls: list[Hull]) -> list[trimesh.Trimesh]:
    return [trimesh.Trimesh(hull.vertices, hull.faces, process=False) for hull in hulls]


def hull_processes() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "hulls_child" in " ".join(p.cmdline())]


def test_an_angle_needs_two_hulls_and_one_is_its_convex_hull() -> None:
    mesh = angle_iron()
    assert mesh.is_volume
    few, enough = (convex_hulls(as_asset(mesh), most, JobScope("x")) for most in (1, 4))
    assert len(few) == 1
    assert 2 <= len(enough) <= 4
    for body in bodies(few + enough):
        assert body.is_convex
        assert body.is_volume
    assert bodies(few)[0].volume == pytest.approx(mesh.convex_hull.volume, rel=0.05)
    assert sum(body.volume for body in bodies(enough)) == pytest.approx(mesh.volume, rel=0.12)


def test_the_hulls_cover_the_surface_and_are_the_same_each_time() -> None:
    asset = as_asset(angle_iron())
    first, second = (convex_hulls(asset, 4, JobScope("x")) for _ in range(2))
    assert encode_hulls(first, {}) == encode_hulls(second, {})
    outside = np.full(len(asset.vertices), np.inf)
    for body in bodies(first):
        planes = np.einsum(
            "fd,nfd->nf", body.face_normals, asset.vertices[:, None] - body.triangles[:, 0]
        )
        outside = np.minimum(outside, planes.max(axis=1))
    assert outside.max() < 0.02  # a voxel


def test_a_mesh_larger_than_a_pipe_and_than_what_hulls_are_found_for() -> None:
    mesh = angle_iron()
    while len(mesh.faces) < 60_000:
        mesh = mesh.subdivide()
    hulls = convex_hulls(as_asset(mesh), 4, JobScope("x"))
    assert sum(body.volume for body in bodies(hulls)) == pytest.approx(mesh.volume, rel=0.12)


def test_the_file_is_clean_and_names_each_hull_as_unreal_does(
    khronos: Callable[[bytes], None],
) -> None:
    data = encode_hulls(convex_hulls(as_asset(angle_iron()), 4, JobScope("x")), {"seed": 1})
    khronos(data)
    document = take_apart(data).document
    names = [node["name"] for node in document["nodes"]]
    assert names == [f"UCX_asset_{number:02}" for number in range(len(names))]
    assert [mesh["name"] for mesh in document["meshes"]] == names
    assert document["asset"]["extras"] == {"seed": 1}
    scene = trimesh.load(io.BytesIO(data), file_type="glb")
    assert len(scene.geometry) == len(names)


def test_a_process_that_takes_too_long_is_ended() -> None:
    with pytest.raises(FileRejected, match="too long"):
        convex_hulls(as_asset(angle_iron()), 4, JobScope("x"), timeout_s=0.2)
    assert hull_processes() == []


def test_a_job_that_is_stopped_ends_its_process() -> None:
    scope = JobScope("x")
    scope.cancel()
    with pytest.raises(JobCancelled):
        convex_hulls(as_asset(angle_iron()), 4, scope)
    assert hull_processes() == []


def test_a_mesh_without_a_volume_is_told() -> None:
    flat = Asset(
        np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32),
        np.array([[0, 1, 2]], np.uint32),
        np.zeros((3, 3), np.float32),
    )
    with pytest.raises(FileRejected, match="hulls"):
        convex_hulls(flat, 4, JobScope("x"))


def test_the_bound_on_memory_holds() -> None:
    code = (
        "from trellis_runtime.assets.address_space import bound_address_space\n"
        "import numpy\nbound_address_space(200 << 20)\nnumpy.ones(1 << 24)\n"
        "try:\n    numpy.ones(1 << 26)\nexcept MemoryError:\n    print('bounded')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "bounded\n"


def kill_the_first(seen: list[int], until: threading.Event) -> None:
    """End the first process for hulls that appears, as a failed assertion in C++ does."""
    while not until.is_set():
        for process in hull_processes():
            os.kill(process.pid, signal.SIGABRT)
            seen.append(process.pid)
            return
        time.sleep(0.01)


def test_a_process_that_aborts_takes_no_other_file_with_it(tmp_path: Path) -> None:
    seen: list[int] = []
    done = threading.Event()
    killer = threading.Thread(target=kill_the_first, args=(seen, done))
    killer.start()
    try:
        answer = handle(start(tmp_path, Watched()), asking(BOTH, ALL[4], hulls=2))
    finally:
        done.set()
        killer.join()
    assert len(seen) == 1
    solid, printed, hulls = answer["files"]
    assert solid["error"]["code"] == "file_rejected"
    assert "ended without an answer" in solid["error"]["text"]
    assert solid["artifact"] is None
    assert printed["error"] is hulls["error"] is None
    assert hull_processes() == []


def test_hulls_are_a_file_of_the_job_and_lie_where_the_model_does(tmp_path: Path) -> None:
    engine = Watched()
    asked: dict[str, Any] = asking(BOTH, hulls=2, size_m=2.0, pivot="bottom")
    answer = handle(start(tmp_path, engine), asked)
    assert len(engine.plans) == 1  # nothing is baked for them
    solid, hulls = answer["files"]
    assert [solid["file_name"], hulls["file_name"]] == ["solid.glb", "hulls.glb"]
    assert [solid["hulls"], hulls["hulls"]] == [4, 2]
    assert hulls["format"] == "hulls"
    model = trimesh.load(tmp_path / "output/j1/model.glb")
    for told in (solid, hulls):
        scene = trimesh.load(tmp_path / "output/j1" / told["file_name"])
        assert len(scene.geometry) == told["hulls"]
        assert sum(len(mesh.faces) for mesh in scene.geometry.values()) == told["faces"]
        assert scene.bounds == pytest.approx(model.bounds, abs=0.05)  # a voxel of two metres
    document = take_apart((tmp_path / "output/j1/hulls.glb").read_bytes()).document
    assert document["asset"]["extras"]["finish"] == "hulls"
    assert json.dumps(document["asset"]["extras"])
