"""The GPU engine's wiring, whole, on the CPU: a small checkpoint and the stand-in for upstream.

What each of upstream's calls was given is compared with what upstream's own pipeline gives it, and
what comes out with the marked shape (`marked_shape`), by values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests import marked_shape
from tests.conftest import AMPLE, picture, pixels
from tests.upstream_record import CALLS, calls
from trellis_runtime.contract.ladder import Plan, ladder
from trellis_runtime.contract.request import parse_request
from trellis_runtime.contract.scope import Deadline, JobScope
from trellis_runtime.contract.stages import ENGINE_STAGES, Stage
from trellis_runtime.engines.trellis2 import Trellis2Engine
from trellis_runtime.engines.trellis2.baking.decoded import Decoded
from trellis_runtime.engines.trellis2.engine import Trellis2Generation
from trellis_runtime.errors import EngineFault, ImageRejected, JobCancelled, NotFinite
from trellis_runtime.settings import Trellis2

MUG = pixels(picture(256))
LOW, HIGH = 1029, 4101  # DINOv3's tokens of a picture of 512 and of 1024 px
TO_DECODE = ENGINE_STAGES[:5]
STUCK_S = 300
"""A test whose job waits for a seat that no other will leave says so after this time."""


def plan_for(resolution: int, **changes: Any) -> Plan:
    """A plan of a few sampler steps, each sampler's settings unlike the others'."""
    request = parse_request(
        {
            "image": "x",
            "resolution": resolution,
            "texture_size": 1024,
            "decimation_target": 20_000,
            "sampler": {
                "sparse_structure": {"steps": 2, "guidance_strength": 6.5, "rescale_t": 4.0},
                "shape": {"steps": 3, "guidance_strength": 5.5, "guidance_rescale": 0.25},
                "texture": {"steps": 4, "guidance_strength": 1.5, "guidance_interval": [0.5, 0.8]},
            },
        }
    )
    return replace(Plan.as_asked(request, 5), **changes)


@pytest.fixture(scope="module")
def engine(small_checkpoint: Path, stand_in: None) -> Trellis2Engine:
    made = Trellis2Engine(Trellis2(model_dir=small_checkpoint), device="cpu", room=AMPLE)
    phases: dict[str, float] = {}
    made.load(phases.__setitem__)
    assert {"import_upstream", "load", "place"} <= set(phases)
    return made


@pytest.fixture
def fresh(engine: Trellis2Engine) -> Iterator[Trellis2Engine]:
    CALLS.clear()
    yield engine
    CALLS.clear()


def run(
    engine: Trellis2Engine,
    plan: Plan,
    stages: tuple[Stage, ...] = TO_DECODE,
    image: Any = MUG,
    scope: JobScope | None = None,
) -> Trellis2Generation:
    generation = engine.begin(image, plan)
    scope = scope or JobScope("x", Deadline.after(STUCK_S))
    for stage in stages:
        with scope.stage(stage):
            generation.run(stage, plan, scope)
    return generation


def decoded(engine: Trellis2Engine, plan: Plan) -> Decoded:
    made = run(engine, plan).products.decoded
    assert made is not None
    return made


@pytest.fixture(scope="module")
def at_1024(engine: Trellis2Engine) -> Decoded:
    """What is decoded where nothing is leaner than it need be."""
    return decoded(engine, plan_for(1024))


def name_of(engine: Trellis2Engine, flow: Any) -> str:
    """Return which model a sampler was given."""
    modules = engine.parts()[0].modules
    return next(name for name, module in modules.items() if module is flow.model)


# --- what comes out -------------------------------------------------------------------------------


@pytest.mark.parametrize("resolution", [512, 1024])
def test_the_decoded_surface_and_voxels_are_the_marked_shapes(
    fresh: Trellis2Engine, resolution: int
) -> None:
    made = decoded(fresh, plan_for(resolution))
    assert made.resolution == resolution
    assert made.vertices.dtype == torch.float32
    assert made.faces.dtype == torch.int32
    cell = 1 / resolution
    low, high = made.vertices.min(dim=0).values, made.vertices.max(dim=0).values
    assert torch.allclose(low, torch.tensor(marked_shape.LOW), atol=0.01 * cell)
    assert torch.allclose(high, torch.tensor(marked_shape.HIGH), atol=0.01 * cell)
    assert int(made.faces.min()) == 0
    assert int(made.faces.max()) == len(made.vertices) - 1
    wanted = marked_shape.surface_cells(resolution)
    order = made.coords.long().unique(dim=0, return_inverse=True)  # type: ignore[no-untyped-call]
    assert torch.equal(order[0], wanted)
    expected = marked_shape.attributes(wanted)[order[1]]
    assert torch.allclose(made.attributes, expected, atol=1e-3)


def test_values_that_are_not_finite_are_refused(fresh: Trellis2Engine) -> None:
    bias = fresh.parts()[0].modules["shape_slat_flow_model_512"].get_parameter("out_layer.bias")
    before = bias.data.clone()
    bias.data.fill_(float("nan"))
    try:
        with pytest.raises(NotFinite, match="of the shape latent .* are not finite"):
            run(fresh, plan_for(512), TO_DECODE[:3])
    finally:
        bias.data.copy_(before)


# --- what each call was given ---------------------------------------------------------------------


@pytest.mark.parametrize("resolution", [512, 1024, 1536])
def test_each_sampling_gets_its_own_model_condition_and_tokens(
    fresh: Trellis2Engine, resolution: int
) -> None:
    generation = run(fresh, plan_for(resolution))
    given = [
        (name_of(fresh, call["model"]), call["cond"].shape[1], call["steps"])
        for call in calls("sample")
    ]
    cascade = [
        ("shape_slat_flow_model_512", LOW, 3),
        ("shape_slat_flow_model_1024", HIGH, 3),
        ("tex_slat_flow_model_1024", HIGH, 4),
    ]
    at_512 = [("shape_slat_flow_model_512", LOW, 3), ("tex_slat_flow_model_512", LOW, 4)]
    expected = at_512 if resolution == 512 else cascade
    assert given == [("sparse_structure_flow_model", LOW, 2), *expected]
    features = generation.products.features or {}
    for call in calls("sample"):
        assert torch.equal(call["cond"], features[512 if call["cond"].shape[1] == LOW else 1024])
        assert call["cond"].any()
        assert call["neg_cond"].shape == call["cond"].shape
        assert not call["neg_cond"].any()


def test_the_texture_is_sampled_beside_the_shape_that_was_sampled(fresh: Trellis2Engine) -> None:
    products = run(fresh, plan_for(1024)).products
    *others, texture = calls("sample")
    assert all(call["concat_cond"] is None for call in others)
    assert products.shape is not None
    assert torch.equal(texture["concat_cond"].feats, products.shape.rows.feats)
    assert torch.equal(texture["coords"], products.shape.rows.coords)


@pytest.mark.parametrize("resolution", [512, 1024])
def test_noise_is_drawn_from_the_seed_in_upstreams_order(
    fresh: Trellis2Engine, resolution: int
) -> None:
    run(fresh, plan_for(resolution))
    torch.manual_seed(5)
    given = [call["noise"] for call in calls("sample")]
    assert len(given) == (3 if resolution == 512 else 4)
    for noise in given:
        assert torch.equal(noise, torch.randn(noise.shape))


def test_samplers_get_the_jobs_own_parameters(fresh: Trellis2Engine) -> None:
    run(fresh, plan_for(512))
    structure, shape, texture = calls("sample")
    assert structure["guidance_strength"] == 6.5
    assert structure["rescale_t"] == 4.0
    assert shape["guidance_strength"] == 5.5
    assert shape["guidance_rescale"] == 0.25
    assert texture["guidance_strength"] == 1.5
    assert texture["guidance_interval"] == [0.5, 0.8]


@pytest.mark.parametrize("resolution", [512, 1024])
def test_resolutions_reach_every_part(fresh: Trellis2Engine, resolution: int) -> None:
    run(fresh, plan_for(resolution))
    assert [call["resolution"] for call in calls("structure")] == [32]
    assert [call["resolution"] for call in calls("set_resolution")] == [resolution]
    assert [call["grid_size"] for call in calls("mesh")] == [resolution]
    expected = [] if resolution == 512 else [{"low": 512, "high": 1024, "most": 32_768}]
    assert calls("cascade") == expected
    sizes = [512] if resolution == 512 else [512, 1024]
    assert [call["size"] for call in calls("encode")] == sizes


def test_a_cap_on_tokens_lowers_the_resolution_and_is_told(fresh: Trellis2Engine) -> None:
    made = run(fresh, replace(plan_for(1536), max_tokens=30)).products
    assert made.shape is not None
    assert made.shape.resolution == 1024
    assert made.decoded is not None
    assert made.decoded.resolution == 1024


@pytest.mark.parametrize("lean", [False, True])
def test_the_texture_follows_the_subdivisions_of_the_shape(
    fresh: Trellis2Engine, lean: bool
) -> None:
    run(fresh, plan_for(512, chunk_decoder=lean))
    made, given = calls("decoded")[-1]["guides"], calls("guided")[0]["guides"]
    assert len(given) == 4
    for ours, theirs in zip(given, made, strict=True):
        assert torch.equal(ours.feats, theirs.feats)
        assert torch.equal(ours.coords, theirs.coords)
        assert (ours is theirs) != lean  # lean ones were stripped of their caches


# --- placement and the lossless rungs -------------------------------------------------------------


@pytest.mark.parametrize("offload", [False, True])
def test_models_are_brought_on_use_when_the_plan_says_so(
    fresh: Trellis2Engine, offload: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, moved = fresh.parts()[0].modules["image_cond_model"], list[str]()

    def told(way: str, own: Any, *args: object) -> Any:
        moved.append(way)
        return own(*args)

    for way in ("to", "cpu"):
        monkeypatch.setattr(encoder, way, partial(told, way, getattr(encoder, way)))
    run(fresh, plan_for(1024, offload=offload))
    uses = calls("use")
    assert len(uses) == 10  # two encodings, four samplings, and four uses of decoders
    assert all(use["low_vram"] is offload for use in uses)
    assert moved == (["to", "cpu"] * 2 if offload else [])


def test_a_worker_that_is_told_to_offload_does_whatever_is_free() -> None:
    settings = Trellis2(model_dir=Path("x"), placement="offload")
    assert Trellis2Engine(settings, device="cpu").wants_offload(plan_for(512))


def lossless_plans() -> list[Any]:
    rungs = ladder(plan_for(1024))
    return [pytest.param(plan, id=rung.name) for rung, plan in rungs if rung.lossless]


@pytest.mark.parametrize("plan", lossless_plans())
def test_lossless_rungs_change_no_bit(at_1024: Decoded, fresh: Trellis2Engine, plan: Plan) -> None:
    leaner = decoded(fresh, plan)
    for name in ("vertices", "faces", "coords", "attributes"):
        assert torch.equal(getattr(leaner, name), getattr(at_1024, name)), name


def test_rows_are_chunked_where_the_rung_says_so(fresh: Trellis2Engine) -> None:
    run(fresh, plan_for(1024))
    assert all(call["norm"] for call in calls("rows"))  # a norm of one pass is always ours
    CALLS.clear()
    decoder = fresh.parts()[0].modules["shape_slat_decoder"]
    pipeline = fresh.parts()[0]
    with pipeline.decoding("shape_slat_decoder", chunk_rows=True, lean=True):
        patched = [m for m in decoder.modules() if "forward" in vars(m)]
    layers = pipeline.row_layers["shape_slat_decoder"]
    assert set(patched) == {*layers.norms, *layers.mlps}
    assert len(layers.mlps) == 4 + 16 + 8 + 4
    assert len(layers.norms) == len(layers.mlps) + 2 * 4
    assert not [m for m in decoder.modules() if "forward" in vars(m)]


def test_the_lean_rung_replaces_both_decoders(fresh: Trellis2Engine) -> None:
    run(fresh, plan_for(512))
    assert len(calls("whole_decoder")) == 2
    CALLS.clear()
    run(fresh, plan_for(512, chunk_decoder=True))
    assert calls("whole_decoder") == []


@pytest.mark.parametrize("stage", TO_DECODE)
def test_a_stage_is_repeated_from_the_products_before_it(
    fresh: Trellis2Engine, stage: Stage
) -> None:
    plan = plan_for(1024)
    generation = run(fresh, plan)
    before = generation.products.decoded
    assert before is not None
    kept = Decoded(*(getattr(before, n) for n in Decoded.__dataclass_fields__))
    for repeated in TO_DECODE[TO_DECODE.index(stage) :]:
        generation.reclaim()
        generation.run(repeated, plan, JobScope("x"))
    after = generation.products.decoded
    assert after is not None
    assert torch.equal(after.vertices, kept.vertices)
    assert torch.equal(after.attributes, kept.attributes)


def test_another_seed_gives_another_surface(fresh: Trellis2Engine) -> None:
    first, second = decoded(fresh, plan_for(512)), decoded(fresh, plan_for(512, seed=6))
    assert not torch.equal(first.vertices, second.vertices)


def test_products_wait_on_the_host_and_go_with_the_job(fresh: Trellis2Engine) -> None:
    generation = run(fresh, plan_for(512))
    generation.reclaim()
    made = generation.products
    held: list[Tensor] = [*(made.features or {}).values()]
    assert all(t.device.type == "cpu" for t in held)
    generation.close()
    assert generation.products.decoded is None
    with pytest.raises(EngineFault):
        generation.asset()


# --- the picture ----------------------------------------------------------------------------------


def test_the_encoder_sees_the_object_on_black(fresh: Trellis2Engine) -> None:
    run(fresh, plan_for(1024), TO_DECODE[:1])
    low, high = calls("encode")
    assert low["mode"] == high["mode"] == "RGB"
    assert low["given"] == high["given"]
    assert low["pixels"].shape == (512, 512, 3)
    corner, middle = low["pixels"][4, 4].astype(int), low["pixels"][256, 200].astype(int)
    assert corner.max() < 8
    assert middle[0] > 2 * middle[2] > 40  # the mug is red


def test_a_photograph_loses_its_background(fresh: Trellis2Engine) -> None:
    run(fresh, plan_for(512), TO_DECODE[:1], pixels(picture(256, alpha=False)))
    assert len(calls("matting")) == 1
    assert calls("matting")[0]["mode"] == "RGB"
    assert calls("encode")[0]["pixels"][4, 4].max() < 8


def test_a_picture_that_is_kept_is_encoded_whole(fresh: Trellis2Engine) -> None:
    wall = pixels(picture(256, alpha=False))
    run(fresh, plan_for(512, background="keep"), TO_DECODE[:1], wall)
    assert calls("matting") == calls("crop") == []
    assert calls("encode")[0]["pixels"][4, 4].min() > 150  # the wall


def test_a_picture_without_an_object_is_refused(fresh: Trellis2Engine) -> None:
    wall = np.full((64, 64, 4), 200, np.uint8)
    wall[..., 3] = 255
    with pytest.raises(ImageRejected, match="foreground"):
        run(fresh, plan_for(512), TO_DECODE[:1], wall)


# --- steps, start, facts --------------------------------------------------------------------------


def test_every_step_is_told_and_a_stopped_job_stops_there(fresh: Trellis2Engine) -> None:
    told: list[tuple[str, float]] = []
    scope = JobScope("x", progress=lambda stage, done: told.append((stage, done)))
    run(fresh, plan_for(1024), scope=scope)
    fractions = [done for _, done in told]
    assert fractions == sorted(fractions)
    steps = {stage: sum(1 for s, _ in told if s == stage) for stage in TO_DECODE}
    assert [steps[s] for s in TO_DECODE] == [1, 1 + 2, 1 + 6, 1 + 4, 1 + 2]
    scope.cancel()
    generation = run(fresh, plan_for(512), TO_DECODE[:1])
    with pytest.raises(JobCancelled):
        generation.run(Stage.STRUCTURE, plan_for(512), scope)


def test_what_the_engine_says_of_itself(fresh: Trellis2Engine) -> None:
    info, memory = fresh.info(), fresh.memory()
    assert info.synthetic
    assert info.card is None
    assert info.attention == "sdpa"
    assert memory is not None
    assert 0 < memory.free < memory.total
    assert memory.peak <= memory.total


def test_an_engine_that_was_not_loaded_cannot_begin() -> None:
    engine = Trellis2Engine(Trellis2(), device="cpu")
    assert engine.memory() is None
    assert not engine.info().synthetic
    with pytest.raises(EngineFault, match="before it was loaded"):
        engine.begin(MUG, plan_for(512))


# --- the asset ------------------------------------------------------------------------------------


def to_gltf(vector: tuple[float, float, float]) -> Tensor:
    """Turn upstream's z-up into glTF's y-up, right-handed both: (x, y, z) to (x, z, -y)."""
    return torch.tensor([vector[0], vector[2], -vector[1]])


@pytest.mark.parametrize("resolution", [512, 1024])
def test_the_asset_is_the_marked_shape_by_values(fresh: Trellis2Engine, resolution: int) -> None:
    """Axes, handedness, UV direction, channels and outward normals, from the picture's pixels."""
    plan = plan_for(resolution)
    generation = run(fresh, plan, ENGINE_STAGES)
    asset = generation.asset()
    generation.close()
    corners = torch.stack([to_gltf(marked_shape.LOW), to_gltf(marked_shape.HIGH)])
    low, high = corners.min(dim=0).values.numpy(), corners.max(dim=0).values.numpy()
    cell = 1 / resolution
    assert np.allclose(asset.vertices.min(axis=0), low, atol=2 * cell)
    assert np.allclose(asset.vertices.max(axis=0), high, atol=2 * cell)
    triangles = asset.vertices[asset.faces]
    crossed = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    assert (triangles[:, 0] * crossed).sum() > 0  # its signed volume: faces look outwards
    for side in marked_shape.SIDES:
        axis = to_gltf(tuple(float(side.axis == i) * side.sign for i in range(3))).numpy()  # type: ignore[arg-type]
        _check_side(asset, side, axis, triangles, crossed)


def _check_side(
    asset: Any, side: marked_shape.Side, axis: Any, triangles: Any, crossed: Any
) -> None:
    """Look at the middle of one side: what its normals and its texels say."""
    lengths = np.linalg.norm(crossed, axis=1)
    facing = crossed @ axis > 0.98 * lengths
    middle = (to_gltf(marked_shape.LOW) + to_gltf(marked_shape.HIGH)).numpy() / 2
    extent = np.abs((to_gltf(marked_shape.HIGH) - to_gltf(marked_shape.LOW)).numpy()) / 2
    centres = triangles.mean(axis=1)
    off = np.abs(centres - middle) / extent
    inner = (np.where(np.abs(axis) > 0.5, 0, off) < 0.8).all(axis=1)
    chosen = facing & inner & (lengths > 0)
    assert chosen.any(), side
    corners = asset.faces[chosen]
    assert (asset.normals[corners] @ axis > 0.9).all(), side
    uvs = asset.uvs[corners].mean(axis=1)
    size = asset.base_color.shape[0]
    x, y = (np.clip(uvs * size, 0, size - 1).astype(int)).T  # glTF: v runs down from the top
    color = asset.base_color[y, x, :3].astype(float) / 255
    material = asset.metallic_roughness[y, x].astype(float) / 255
    assert np.allclose(np.median(color, axis=0), side.color, atol=0.02), side
    assert np.median(material[:, 1]) == pytest.approx(side.roughness, abs=0.02), side
    assert np.median(material[:, 2]) == pytest.approx(side.metallic, abs=0.02), side
    assert (np.abs(color - np.array(side.color)).max(axis=1) < 0.05).mean() > 0.95, side


def test_pictures_of_the_sent_size_are_bounded(fresh: Trellis2Engine) -> None:
    large = np.asarray(Image.fromarray(MUG).resize((1500, 1500)))
    run(fresh, plan_for(512), TO_DECODE[:1], large)
    assert calls("crop")[0]["size"] == (1024, 1024)
