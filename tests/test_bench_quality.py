"""The quality suite measures any baker, and goes on where one fails."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.aims import AIMS, missed
from benchmarks.quality import from_asset, full_report, voxel_sampler
from benchmarks.quality_suite import Wish, bakers, decoded_of, rows, summary
from benchmarks.shapes import make_shape
from tests.conftest import ROOT
from trellis_runtime.contract.engine import Asset
from trellis_runtime.engines.trellis2.baking.decoded import Decoded
from trellis_runtime.engines.trellis2.baking.lookup import VoxelAttributeLookup
from trellis_runtime.engines.trellis2.baking.nearest import Surface
from trellis_runtime.engines.trellis2.baking.quality import Baked
from trellis_runtime.engines.trellis2.baking.raster import rasterize
from trellis_runtime.engines.trellis2.baking.texels import bake_texels

GAP = 2.0


def face_by_face(decoded: Decoded, wish: Wish) -> tuple[Baked, str]:
    """The simplest bake there is: each decoded face a chart of its own, two in a square."""
    faces = decoded.faces.long()
    count, size = len(faces), wish.texture
    across = math.ceil(math.sqrt(count / 2))
    cell = size / across
    low, high = GAP, cell - GAP
    lower = torch.tensor([[low, low], [high - GAP, low], [low, high - GAP]])
    index = torch.arange(count)
    flipped = torch.tensor([high, high]) + low - lower
    corners = torch.where((index % 2 == 0)[:, None, None], lower, flipped)
    square = index // 2
    origin = torch.stack([square % across, square // across], 1) * cell
    uvs = ((corners + origin[:, None]) / size).reshape(-1, 2)
    vertices = decoded.vertices[faces].reshape(-1, 3)
    own = torch.arange(3 * count).reshape(-1, 3)
    surface = Surface(decoded.vertices, decoded.faces)
    lookup = VoxelAttributeLookup(surface, decoded.coords, decoded.attributes, decoded.resolution)
    raster = rasterize(vertices, own, uvs, size)
    texels = bake_texels(raster, lookup)
    return Baked(vertices, own, uvs, texels[..., :3].contiguous(), raster), str(int(texels.sum()))


def broken(decoded: Decoded, wish: Wish) -> tuple[Baked, str]:
    raise RuntimeError("out of everything")


def test_a_row_has_what_the_table_needs_and_a_failure_is_a_result() -> None:
    shapes = [make_shape("closed_smooth", 32), make_shape("open_vase", 32)]
    wish = Wish(10**5, 1024, "cpu")
    found = list(rows(shapes, {"ours": face_by_face, "upstream": broken}, wish, bakes=2))
    assert [(row["case"], row["closed"]) for row in found] == [
        ("closed_smooth 32", True),
        ("open_vase 32", False),
    ]
    for row in found:
        ours = row["ours"]
        assert ours["area_ratio"] == pytest.approx(1, abs=1e-4)
        assert ours["distance_voxels"] < 1e-3
        assert (ours["boundary_edges"] == 0) == row["closed"]
        assert ours["overlap"] == 0
        assert ours["psnr_db"] > 45
        assert ours["dark_texels"] == 0
        assert (ours["bakes"], ours["different"]) == (2, 1)
        assert ours["seconds"] > 0
        assert row["upstream"] == {"error": "RuntimeError: out of everything"}
    whole = json.loads(json.dumps(summary(found, wish)))
    assert whole["suite"] == "quality"
    assert whole["psnr_gain_db"] is None  # there is nothing to compare with


GOOD: dict[str, Any] = {
    "area_ratio": 0.999, "distance_voxels": 0.02, "boundary_edges": 0, "nonmanifold_edges": 0,
    "manifold3d": "NoError", "overlap": 0.0, "psnr_db": 61.0, "different": 1,
}  # fmt: skip
BAD = {
    "area_ratio": 1.98, "distance_voxels": 1.0, "boundary_edges": 2, "nonmanifold_edges": 3,
    "manifold3d": "NotManifold", "overlap": 1e-4, "psnr_db": 51.0, "different": 2,
}  # fmt: skip


def row_of(figures: dict[str, Any], *, closed: bool = True) -> dict[str, Any]:
    return {"case": "gyroid 512", "closed": closed, "ours": figures}


def test_each_aim_can_be_missed_alone_and_says_by_how_much() -> None:
    assert list(missed(row_of(GOOD))) == []
    assert [aim.name for aim in AIMS] == list(BAD)
    for name, value in BAD.items():
        (line,) = missed(row_of(GOOD | {name: value}))
        assert line.startswith(f"gyroid 512: {name} is {value}; it must be ")
        absent = {key: figure for key, figure in GOOD.items() if key != name}
        assert len(list(missed(row_of(absent)))) == 1
    assert list(missed(row_of(GOOD | {"area_ratio": 2.0}, closed=False))) == []
    (line,) = missed(row_of({"error": "MeshRejected: no"}))
    assert line == "gyroid 512: the bake failed: MeshRejected: no"


def test_the_suite_fails_where_an_aim_is_required_and_missed(tmp_path: Path) -> None:
    """At 24 cells a vase is coarser than its texture: what 512 reaches is out of its reach."""
    command = [
        sys.executable, "-m", "benchmarks.quality_suite", "--shapes", "open_vase", "--require",
        "--resolutions", "24", "--faces", "200", "--texture", "64", "--bakes", "1",
        "--device", "cpu", "--cache", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 1, done.stderr
    assert "open_vase 24: psnr_db is " in done.stderr
    assert '"suite": "quality"' in done.stdout.splitlines()[-1]


def test_upstream_is_left_out_where_it_cannot_run() -> None:
    assert bakers("cpu")["upstream"] is None
    shape = make_shape("gyroid", 24)
    (row,) = rows([shape], {"ours": face_by_face, "upstream": None}, Wish(10**5, 512, "cpu"), 1)
    assert row["upstream"] is None


def test_an_asset_is_measured_in_the_decoders_axes_and_its_texture_is_not_turned_over() -> None:
    decoded = decoded_of(make_shape("closed_smooth", 24))
    baked, _ = face_by_face(decoded, Wish(10**5, 512, "cpu"))
    assert baked.uvs is not None
    assert baked.base_color is not None
    x, y, z = baked.vertices.numpy().T
    turned = np.stack([x, z, -y], 1)  # glTF has y up
    asset = Asset(
        vertices=turned,
        faces=baked.faces.numpy().astype(np.uint32),
        normals=turned,
        uvs=baked.uvs.numpy(),
        base_color=baked.base_color.numpy(),
    )
    report = full_report(from_asset(asset, "cpu"), voxel_sampler(decoded, "cpu"), 10**5)
    assert report["distance_voxels"] < 1e-3
    assert report["psnr_db"] > 45
