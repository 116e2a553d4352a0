"""Encoding, and inspection of any bytes."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trellis_runtime.assets import glb_reader
from trellis_runtime.assets.glb_reader import (
    check_glb,
    inspect_glb,
    read_glb,
    read_textures,
    require_glb,
)
from trellis_runtime.assets.glb_writer import encode_glb
from trellis_runtime.assets.preview import render
from trellis_runtime.contract.engine import Asset, CutOut
from trellis_runtime.contract.request import TextureFormat
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.errors import GlbRejected

Validate = Callable[[bytes], None]
RNG = np.random.default_rng(1)


def ball(**changes: Any) -> Asset:
    mesh = trimesh.creation.icosphere(subdivisions=3, radius=0.4)
    fields: dict[str, Any] = {
        "vertices": mesh.vertices.astype(np.float32),
        "faces": mesh.faces.astype(np.uint32),
        "normals": mesh.vertex_normals.astype(np.float32),
        "uvs": RNG.random((len(mesh.vertices), 2), np.float32),
        "base_color": RNG.integers(0, 255, (64, 64, 3), np.uint8),
        "metallic_roughness": RNG.integers(0, 255, (64, 64, 3), np.uint8),
    }
    return Asset(**(fields | changes))


GOOD = encode_glb(ball(), "png", {}).data


@pytest.mark.parametrize("form", get_args(TextureFormat))
def test_khronos_finds_nothing_amiss(form: TextureFormat, khronos: Validate) -> None:
    glb = encode_glb(ball(), form, {"seed": 1})
    khronos(glb.data)
    report = require_glb(glb.data)
    assert (report.vertices, report.faces) == (642, 1280)
    assert glb.texture_format == form
    assert report.extensions_required == (["EXT_texture_webp"] if form == "webp" else [])


def test_khronos_finds_nothing_amiss_with_vertex_colours(khronos: Validate) -> None:
    colors = RNG.integers(0, 255, (642, 3), np.uint8)
    glb = encode_glb(
        ball(uvs=None, base_color=None, metallic_roughness=None, vertex_colors=colors), "png", {}
    )
    khronos(glb.data)
    assert glb.texture_format == "none"


def test_an_independent_reader_sees_the_same_mesh() -> None:
    loaded = trimesh.load(io.BytesIO(GOOD), file_type="glb", force="mesh", process=False)
    asset = ball()
    assert np.allclose(loaded.vertices, asset.vertices)
    assert np.array_equal(loaded.faces, asset.faces)


@pytest.mark.parametrize("form", get_args(TextureFormat))
def test_metallic_roughness_is_lossless_and_base_colour_close(form: TextureFormat) -> None:
    smooth = np.zeros((64, 64, 3), np.uint8)
    smooth[..., 0] = np.linspace(0, 255, 64)
    asset = ball(base_color=smooth)
    content = read_glb(encode_glb(asset, form, {}).data)
    assert content.metallic_roughness is not None
    assert content.base_color is not None
    assert np.array_equal(np.asarray(content.metallic_roughness), asset.metallic_roughness)
    error = np.abs(np.asarray(content.base_color).astype(int) - smooth).mean()
    assert error == 0 if form == "png" else error < 3


def test_opaque_material_drops_alpha_and_blend_keeps_it() -> None:
    rgba = RNG.integers(0, 255, (64, 64, 4), np.uint8)
    opaque = read_glb(encode_glb(ball(base_color=rgba), "png", {}).data)
    blend = read_glb(encode_glb(ball(base_color=rgba, alpha_mode="BLEND"), "png", {}).data)
    assert opaque.base_color is not None
    assert opaque.base_color.mode == "RGB"
    assert blend.base_color is not None
    assert blend.base_color.mode == "RGBA"


def test_blended_faces_are_a_primitive_of_their_own(khronos: Validate) -> None:
    rgba = RNG.integers(0, 255, (64, 64, 4), np.uint8)
    apart = np.arange(1280) % 5 == 0
    asset = ball(base_color=rgba, alpha_mode="BLEND", translucent=apart)
    data = encode_glb(asset, "png", {}).data
    khronos(data)
    document, _ = parts(data)
    modes = [material.get("alphaMode", "OPAQUE") for material in document["materials"]]
    assert modes == ["OPAQUE", "BLEND"]
    counts = [
        document["accessors"][primitive["indices"]]["count"] // 3
        for primitive in document["meshes"][0]["primitives"]
    ]
    assert counts == [1024, 256]
    report = require_glb(data)
    assert (report.vertices, report.faces) == (642, 1280)  # vertices are shared
    content = read_glb(data)
    wanted = np.concatenate([asset.faces[~apart], asset.faces[apart]])
    assert np.array_equal(content.faces, wanted)
    assert content.base_color is not None
    assert content.base_color.mode == "RGBA"
    loaded = trimesh.load(io.BytesIO(data), file_type="glb")
    assert sorted(len(part.faces) for part in loaded.geometry.values()) == [256, 1024]


def test_a_primitive_without_faces_is_not_written(khronos: Validate) -> None:
    rgba = RNG.integers(0, 255, (64, 64, 4), np.uint8)
    for value, mode in ((True, "BLEND"), (False, "OPAQUE")):
        asset = ball(base_color=rgba, alpha_mode="BLEND", translucent=np.full(1280, value))
        data = encode_glb(asset, "png", {}).data
        khronos(data)
        document, _ = parts(data)
        assert [m.get("alphaMode", "OPAQUE") for m in document["materials"]] == [mode]
        content = read_glb(data)
        assert content.base_color is not None
        assert content.base_color.mode == ("RGBA" if value else "RGB")  # opaque: no alpha


def test_a_masked_material_says_where_it_is_cut(khronos: Validate) -> None:
    rgba = RNG.integers(0, 255, (64, 64, 4), np.uint8)
    data = encode_glb(ball(base_color=rgba, alpha_mode="MASK", alpha_cutoff=0.25), "png", {}).data
    khronos(data)
    (material,) = parts(data)[0]["materials"]
    assert (material["alphaMode"], material["alphaCutoff"]) == ("MASK", 0.25)


def test_vertex_colours_keep_alpha_where_it_counts(khronos: Validate) -> None:
    colors = RNG.integers(0, 255, (642, 4), np.uint8)
    plain: dict[str, Any] = {"uvs": None, "base_color": None, "metallic_roughness": None}
    for mode, kept in (("BLEND", colors[:, 3] / 255), ("OPAQUE", np.ones(642))):
        data = encode_glb(ball(vertex_colors=colors, alpha_mode=mode, **plain), "png", {}).data
        khronos(data)
        content = read_glb(data)
        assert content.colors is not None
        assert np.allclose(content.colors[:, 3], kept, atol=1e-6)


def test_an_encoder_that_fails_gives_way_to_png(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's WebP was seen to raise "encoding error 6"; a texture over its 16383 px does too."""
    wide = np.zeros((4, 16_400, 3), np.uint8)
    glb = encode_glb(ball(base_color=wide), "webp", {})
    assert glb.texture_format == "png"
    require_glb(glb.data)


@given(st.binary(max_size=3000))
def test_any_bytes_give_a_report_and_no_crash(data: bytes) -> None:
    assert inspect_glb(data).errors


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_any_json_inside_a_glb_gives_a_report_and_no_crash(data: st.DataObject) -> None:
    document, blob = parts(GOOD)
    node: Any = document
    for _ in range(data.draw(st.integers(1, 6))):
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if isinstance(node[key], dict | list) and data.draw(st.booleans()):
            node = node[key]
            continue
        node[key] = data.draw(json_values)
        break
    inspect_glb(packed(document, blob))


@given(st.sampled_from([*range(20)]), st.integers(1, 255))
def test_one_changed_byte_in_the_headers_is_noticed(at: int, flip: int) -> None:
    damaged = bytearray(GOOD)
    damaged[at] ^= flip
    assert inspect_glb(bytes(damaged)).errors


@given(st.integers(0, 7), st.integers(1, 255))
def test_one_changed_byte_in_the_second_chunks_header_is_noticed(at: int, flip: int) -> None:
    (length,) = struct.unpack_from("<I", GOOD, 12)
    damaged = bytearray(GOOD)
    damaged[20 + length + at] ^= flip
    assert inspect_glb(bytes(damaged)).errors


@given(st.integers(0, len(GOOD) - 1))
def test_a_truncated_file_is_noticed(length: int) -> None:
    assert inspect_glb(GOOD[:length]).errors


def test_bounds_that_are_not_those_of_the_data_are_noticed() -> None:
    document, blob = parts(GOOD)
    document["accessors"][0]["max"][1] += 0.25
    assert any("max" in e for e in inspect_glb(packed(document, blob)).errors)


def test_an_index_out_of_range_is_noticed() -> None:
    document, blob = parts(GOOD)
    view = document["bufferViews"][document["accessors"][-1]["bufferView"]]
    damaged = bytearray(blob)
    struct.pack_into("<H", damaged, view["byteOffset"], 60_000)
    errors = inspect_glb(packed(document, bytes(damaged))).errors
    assert any("index is 60000" in e for e in errors)


def test_a_damaged_texture_is_noticed() -> None:
    document, blob = parts(GOOD)
    view = document["bufferViews"][document["images"][0]["bufferView"]]
    damaged = bytearray(blob)
    damaged[view["byteOffset"] + 30 : view["byteOffset"] + 200] = bytes(170)
    with pytest.raises(GlbRejected, match="does not decode"):
        require_glb(packed(document, bytes(damaged)))


def test_textures_are_read_beside_a_buffer_that_has_no_bytes_and_beside_no_other() -> None:
    """EXT_meshopt_compression says in a second buffer what the geometry is when it is unpacked."""
    document, blob = parts(GOOD)
    told: dict[str, Any] = {"EXT_meshopt_compression": {"fallback": True}}
    unpacked = {"byteLength": 4000, "extensions": told}
    buffers = [*document["buffers"], unpacked]
    base, rough = read_textures(packed(document | {"buffers": buffers}, blob))
    assert base is not None and rough is not None
    for other in (
        {"byteLength": 4000},
        unpacked | {"uri": "https://a.example/b.bin"},
        {"byteLength": 4000, "extensions": {"EXT_meshopt_compression": {}}},
        "text",
    ):
        with pytest.raises(GlbRejected, match="only one buffer"):
            read_textures(packed(document | {"buffers": [*document["buffers"], other]}, blob))


def test_a_small_file_is_refused() -> None:
    tiny = packed({"asset": {"version": "2.0"}}, b"")
    assert any("at least 1024" in e for e in inspect_glb(tiny).errors)


def test_the_preview_is_a_picture_of_the_file_itself() -> None:
    red = np.full((64, 64, 3), (220, 20, 20), np.uint8)
    image = Image.open(
        io.BytesIO(render(check_glb(encode_glb(ball(base_color=red), "png", {}).data).content))
    )
    assert image.size == (512, 512)
    seen = np.asarray(image).astype(int)
    assert seen[256, 256, 0] > seen[256, 256, 1] + 60  # the ball's own colour, in the middle
    assert abs(seen[5, 5, 0] - seen[5, 5, 1]) < 10  # grey behind it
    assert seen[160:350, 160:350].std() > 5  # shaded, not flat


def test_a_finished_file_is_read_once_and_what_was_validated_is_rendered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Through the whole job, with preview and turntable: one split into chunks, two images."""
    from trellis_runtime.contract.request import Output
    from trellis_runtime.worker.export import draw_pictures, export

    read, opened = list[int](), list[object]()
    chunks, decode = glb_reader._chunks, Image.open

    def counted(data: bytes) -> Any:
        read.append(len(data))
        return chunks(data)

    def decoded(file: Any, *args: Any, **options: Any) -> Any:
        opened.append(file)
        return decode(file, *args, **options)

    monkeypatch.setattr(glb_reader, "_chunks", counted)
    monkeypatch.setattr(glb_reader.Image, "open", decoded)
    exported = export(ball(), "png", {})
    assert len(opened) == 2
    wanted = Output(preview=False, turntable=True, cutout=True)
    cutout = CutOut(np.zeros((4, 4, 4), np.uint8), "keep", 1.0, 1.0, 4)
    drawn = draw_pictures(exported.glb.content, cutout, wanted, JobScope("j"))
    assert [picture.file.name for picture in drawn] == ["turntable.webp", "cutout.png"]
    render(exported.glb.content, 64)
    assert read == [len(exported.glb.data)]
    assert len(opened) == 2


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack_from("<I", data, 12)
    return json.loads(data[20 : 20 + length]), data[28 + length :]


def packed(document: dict[str, Any], blob: bytes) -> bytes:
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    blob += b"\0" * (-len(blob) % 4)
    chunks = struct.pack("<II", len(text), 0x4E4F534A) + text
    chunks += struct.pack("<II", len(blob), 0x004E4942) + blob
    return struct.pack("<III", 0x46546C67, 2, 12 + len(chunks)) + chunks
