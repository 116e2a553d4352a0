"""The whole bake on the CPU: each kind of shell, colours at the vertices, what memory it asks for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

from benchmarks.quality_suite import decoded_of
from benchmarks.shapes import make_shape
from trellis_runtime.contract.engine import Asset
from trellis_runtime.contract.ladder import RUNGS, Plan
from trellis_runtime.contract.request import parse_request
from trellis_runtime.engines.trellis2.baking.bake import BakeOptions, bake_bytes, bake_surface
from trellis_runtime.engines.trellis2.baking.decoded import Decoded

OPTIONS = BakeOptions(decimation_target=3000, texture_size=256)


@pytest.fixture(scope="module")
def smooth() -> Decoded:
    return decoded_of(make_shape("closed_smooth", 64, pricks=2))


@pytest.fixture(scope="module")
def vase() -> Decoded:
    return decoded_of(make_shape("open_vase", 64))


def as_mesh(asset: Asset) -> trimesh.Trimesh:
    welded = trimesh.Trimesh(asset.vertices, asset.faces, process=False)
    welded.merge_vertices(merge_tex=True, merge_norm=True)
    return welded


def test_a_closed_body_is_one_closed_shell_on_its_surface(smooth: Decoded) -> None:
    asset = bake_surface(smooth, OPTIONS, "cpu")
    mesh, report = as_mesh(asset), asset.quality
    assert report is not None
    assert mesh.is_watertight
    assert mesh.volume > 0
    assert len(asset.faces) == 3000
    assert report.shells == 1
    assert report.area_ratio == pytest.approx(1, abs=0.02)
    assert report.distance_voxels < 0.1
    assert report.psnr_db is not None
    assert report.psnr_db > 40
    assert not asset.double_sided
    assert np.linalg.norm(asset.normals, axis=1) == pytest.approx(1, abs=1e-5)


def test_the_same_surface_gives_the_same_bytes(smooth: Decoded) -> None:
    first, second = (bake_surface(smooth, OPTIONS, "cpu") for _ in range(2))
    for name in ("vertices", "faces", "normals", "uvs", "base_color", "metallic_roughness"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()


def test_small_blocks_give_the_same_bytes(smooth: Decoded) -> None:
    plain = bake_surface(smooth, OPTIONS, "cpu")
    chunked = bake_surface(smooth, replace(OPTIONS, chunked=True), "cpu")
    assert np.array_equal(plain.faces, chunked.faces)
    assert np.array_equal(plain.base_color, chunked.base_color)  # type: ignore[arg-type]


def test_an_open_surface_stays_open_only_when_that_is_asked(vase: Decoded) -> None:
    closed = bake_surface(vase, OPTIONS, "cpu")
    opened = bake_surface(vase, replace(OPTIONS, shell="double_sided"), "cpu")
    assert closed.quality is not None
    assert opened.quality is not None
    assert as_mesh(closed).is_watertight
    assert not as_mesh(opened).is_watertight
    assert opened.double_sided
    assert closed.quality.area_ratio == pytest.approx(2, abs=0.1)
    assert opened.quality.area_ratio == pytest.approx(1, abs=0.05)


def test_remeshing_is_there_under_its_name_and_lies_a_voxel_off(smooth: Decoded) -> None:
    options = replace(OPTIONS, shell="remeshed", remesh_resolution=64)
    report = bake_surface(smooth, options, "cpu").quality
    assert report is not None
    assert report.boundary_edges == 0
    assert report.area_ratio == pytest.approx(2, abs=0.15)
    assert report.distance_voxels > 0.8


def test_colours_can_go_to_the_vertices(smooth: Decoded) -> None:
    asset = bake_surface(smooth, replace(OPTIONS, texture_size=0), "cpu")
    assert asset.base_color is None
    assert asset.vertex_colors is not None
    assert asset.vertex_colors.shape == (len(asset.vertices), 3)
    red = smooth.attributes[:, 0]
    assert abs(asset.vertex_colors[:, 0].mean() / 255 - float(red.mean())) < 0.1


def test_a_translucent_half_is_blended_by_faces_of_its_own() -> None:
    decoded = decoded_of(make_shape("closed_smooth", 48, alpha="blend"))
    asset = bake_surface(decoded, OPTIONS, "cpu")
    assert asset.alpha_mode == "BLEND"
    assert asset.translucent is not None
    assert 0.2 < asset.translucent.mean() < 0.8
    opaque = bake_surface(decoded, replace(OPTIONS, alpha_mode="opaque"), "cpu")
    assert opaque.alpha_mode == "OPAQUE"
    assert opaque.base_color is not None
    assert opaque.base_color.shape[2] == 3


def test_the_need_falls_with_what_its_rungs_lower() -> None:
    request = parse_request({"image": "x", "texture_size": 4096})
    plan = Plan.as_asked(request, 1)
    need = bake_bytes(5_000_000, 2_500_000, BakeOptions.of(plan))
    chunk = next(rung for rung in RUNGS if rung.name == "chunk_bake")
    less = bake_bytes(5_000_000, 2_500_000, BakeOptions.of(chunk.apply(plan)))
    assert less < 2 * 2**30 < need


def test_remesh_false_is_double_sided() -> None:
    plan = Plan.as_asked(parse_request({"image": "x", "remesh": False}), 1)
    assert BakeOptions.of(plan).shell == "double_sided"
    asked = parse_request({"image": "x", "shell": "remeshed", "min_thickness": 0.01})
    options = BakeOptions.of(Plan.as_asked(asked, 1))
    assert (options.shell, options.min_thickness) == ("remeshed", 0.01)


def test_inputs_stay_where_they_are(smooth: Decoded) -> None:
    kept = smooth.vertices.clone()
    bake_surface(smooth, OPTIONS, torch.device("cpu"))
    assert torch.equal(smooth.vertices, kept)
