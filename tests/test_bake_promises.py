"""What is promised of every asset, judged by others' tools: Khronos' validator, lib3mf, manifold3d.

Nine shapes as a decoder gives them, small; and the bytes, which are the same each time.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import lib3mf
import manifold3d
import numpy as np
import pytest
import torch
import trimesh
from numpy.typing import NDArray

from benchmarks.quality_suite import decoded_of
from benchmarks.shapes import SHAPES, make_shape
from trellis_runtime.assets.glb_writer import encode_glb
from trellis_runtime.contract.engine import Asset
from trellis_runtime.engines.trellis2.baking.bake import BakeOptions, bake_surface
from trellis_runtime.engines.trellis2.baking.decoded import Decoded

SIDE, TEXTURE = 48, 256
FACES = {"plant": 20_000, "thin_tubes": 8000}  # of a thousand parts, that fewer would not hold
ARRAYS = ("vertices", "faces", "normals", "uvs", "base_color", "metallic_roughness")


@pytest.fixture(scope="module", params=list(SHAPES))
def baked(request: pytest.FixtureRequest) -> Asset:
    shape = make_shape(request.param, SIDE, pricks=2, jitter=0.02)
    options = BakeOptions(FACES.get(request.param, 2000), texture_size=TEXTURE)
    return bake_surface(decoded_of(shape), options, "cpu")


def welded(asset: Asset) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
    """Vertices and faces with what the charts' seams have doubled at one place made one."""
    vertices, place = np.unique(asset.vertices, axis=0, return_inverse=True)
    return vertices, place.reshape(-1).astype(np.uint32)[asset.faces]


def test_khronos_finds_nothing_to_say(baked: Asset, khronos: Callable[[bytes], None]) -> None:
    khronos(encode_glb(baked, "png", {}).data)


def test_a_printer_takes_it_as_manifold_and_oriented(baked: Asset) -> None:
    vertices, faces = welded(baked)
    mesh = lib3mf.get_wrapper().CreateModel().AddMeshObject()
    positions, triangles = [], []
    for place in vertices.tolist():
        position = lib3mf.Position()
        position.Coordinates[:] = place
        positions.append(position)
    for corners in faces.tolist():
        triangle = lib3mf.Triangle()
        triangle.Indices[:] = corners
        triangles.append(triangle)
    mesh.SetGeometry(positions, triangles)
    assert mesh.IsManifoldAndOriented()
    assert (
        manifold3d.Manifold(manifold3d.Mesh(vertices, faces)).status() == manifold3d.Error.NoError
    )
    assert trimesh.Trimesh(vertices, faces, process=False).volume > 0


def test_charts_have_one_density_and_cover_nothing_twice(baked: Asset) -> None:
    report = baked.quality
    assert report is not None
    # Of thousands of charts one may be over itself by less than a texel, and still meet a centre.
    assert report.overlap is not None
    assert report.utilization is not None
    assert report.density_min is not None
    assert report.density_max is not None
    assert report.overlap * report.utilization * TEXTURE**2 < 1.5
    assert report.density_min > 0.95
    assert report.density_max < 1.05
    assert (report.boundary_edges, report.nonmanifold_edges) == (0, 0)


def ball() -> Decoded:
    """A small ball with a voxel in each cell near it."""
    mesh = trimesh.creation.icosphere(3, 0.4)
    axis = torch.arange(24, dtype=torch.int32)
    coords = torch.cartesian_prod(axis, axis, axis)
    near = (((coords + 0.5) / 24 - 0.5).norm(dim=1) - 0.4).abs() < 2 / 24
    values = torch.linspace(0, 1, 6 * int(near.sum())).reshape(-1, 6)
    values[:, 5] = 1
    faces = torch.tensor(mesh.faces, dtype=torch.int32)
    return Decoded(torch.tensor(mesh.vertices).float(), faces, coords[near], values, 24)


SMALL = BakeOptions(decimation_target=600, texture_size=64)


def digest() -> str:
    """Of a bake's arrays; run in processes of their own, too."""
    asset = bake_surface(ball(), SMALL, "cpu")
    together = hashlib.sha256()
    for name in ARRAYS:
        together.update(getattr(asset, name).tobytes())
    return together.hexdigest()


@pytest.fixture
def threads() -> Iterator[None]:
    """Torch has as many threads afterwards as before."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_twenty_bakes_are_the_same_bytes_whatever_was_drawn_before(threads: None) -> None:
    found = set()
    for number in range(20):
        torch.manual_seed(number)
        random.seed(number)
        np.random.seed(number)
        torch.set_num_threads(1 + (number % 7 == 0))
        found.add(digest())
    assert len(found) == 1


def test_a_bake_draws_nothing_from_global_random_states() -> None:
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()  # type: ignore[index, union-attr]
    digest()
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert states[2] == np.random.get_state()[1].tobytes()  # type: ignore[index, union-attr]


def test_another_process_with_another_hash_order_and_more_threads_gives_the_same_bytes() -> None:
    hashed = int(os.environ.get("PYTHONHASHSEED", "0").replace("random", "0")) + 1
    environment = os.environ | {"PYTHONHASHSEED": str(hashed), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", "from tests.test_bake_promises import digest; print(digest())"],
        env=environment, cwd=Path(__file__).parent.parent, capture_output=True, check=True,
        text=True,
    )  # fmt: skip
    assert done.stdout.split()[-1] == digest()


def test_a_ball_has_the_euler_number_of_a_sphere() -> None:
    asset = bake_surface(ball(), SMALL, "cpu")
    vertices, faces = welded(asset)
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    assert len(vertices) - len(np.unique(edges, axis=0)) + len(faces) == 2
