"""What every engine must do.

The embedded engine; the GPU engine on the CPU, with small models and the stand-in for upstream; and
the GPU engine itself on a machine that has a card and a model folder (`pytest -m gpu`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import picture, pixels
from trellis_runtime.assets.glb_reader import require_glb
from trellis_runtime.assets.glb_writer import encode_glb
from trellis_runtime.assets.mesh import inspect_mesh, require_mesh
from trellis_runtime.contract.engine import Asset, Engine
from trellis_runtime.contract.ladder import LadderState, Plan, ladder
from trellis_runtime.contract.request import parse_request
from trellis_runtime.contract.scope import Deadline, JobScope
from trellis_runtime.contract.stages import ENGINE_STAGES, Stage
from trellis_runtime.engines.embedded import EmbeddedEngine
from trellis_runtime.errors import DeadlineExceeded, ImageRejected, JobCancelled
from trellis_runtime.settings import Settings, Trellis2
from trellis_runtime.worker.finishes import Finisher

MUG = pixels(picture(256))
ASKED = Plan.as_asked(
    parse_request(
        {
            "image": "x",
            "resolution": 512,
            "texture_size": 512,
            "decimation_target": 20_000,
            "sampler": {name: {"steps": 2} for name in ("sparse_structure", "shape", "texture")},
        }
    ),
    5,
)


def embedded(request: pytest.FixtureRequest) -> Engine:
    return EmbeddedEngine()


def on_the_cpu(request: pytest.FixtureRequest) -> Engine:
    from trellis_runtime.engines.trellis2 import Trellis2Engine

    request.getfixturevalue("stand_in")
    folder = request.getfixturevalue("small_checkpoint")
    return Trellis2Engine(Trellis2(model_dir=folder), device="cpu")


def on_a_card(request: pytest.FixtureRequest) -> Engine:
    """The engine as a worker has it, from the environment's TRELLIS2_MODEL_DIR."""
    from trellis_runtime.engines.trellis2 import Trellis2Engine

    if "TRELLIS2_MODEL_DIR" not in os.environ:
        pytest.skip("TRELLIS2_MODEL_DIR names no model folder")
    return Trellis2Engine(Settings.from_env(dict(os.environ)).trellis2)


@pytest.fixture(
    params=[
        embedded,
        on_the_cpu,
        pytest.param(on_a_card, marks=pytest.mark.gpu),
    ],
    ids=lambda make: make.__name__,
    scope="module",
)
def engine(request: pytest.FixtureRequest) -> Engine:
    made = request.param(request)
    phases: dict[str, float] = {}
    made.load(phases.__setitem__)
    assert phases
    return made


def run(
    engine: Engine, plan: Plan, scope: JobScope | None = None, image: np.ndarray = MUG
) -> Asset:  # type: ignore[type-arg]
    generation = engine.begin(image, plan)
    try:
        for stage in ENGINE_STAGES:
            generation.run(stage, plan, scope or JobScope("x"))
        return generation.asset()
    finally:
        generation.close()


@pytest.fixture(scope="module")
def made(engine: Engine) -> Asset:
    """What the engine makes of the mug as it is asked."""
    return run(engine, ASKED)


def test_it_makes_a_closed_textured_asset(made: Asset, khronos: Callable[[bytes], None]) -> None:
    asset = made
    require_mesh(asset)
    report = inspect_mesh(asset)
    assert report.boundary_edges == report.nonmanifold_edges == 0
    assert 1000 < report.faces <= ASKED.decimation_target
    assert asset.texture_size == 512
    assert asset.uvs is not None
    assert 0 <= asset.uvs.min() <= asset.uvs.max() <= 1
    assert np.allclose(np.linalg.norm(asset.normals, axis=1), 1, atol=1e-4)
    glb = encode_glb(asset, "png", {})
    require_glb(glb.data)
    khronos(glb.data)


def test_the_same_seed_gives_the_same_asset_and_another_seed_another(
    engine: Engine, made: Asset
) -> None:
    first, second = made, run(engine, ASKED)
    other = run(engine, replace(ASKED, seed=6))
    assert np.array_equal(first.vertices, second.vertices)
    assert np.array_equal(first.base_color, second.base_color)  # type: ignore[arg-type]
    assert not np.array_equal(first.vertices, other.vertices)


def test_a_stage_can_be_repeated_alone(engine: Engine, made: Asset) -> None:
    generation = engine.begin(MUG, ASKED)
    for stage in ENGINE_STAGES:
        generation.run(stage, ASKED, JobScope("x"))
        generation.reclaim()
        generation.run(stage, ASKED, JobScope("x"))
    assert np.array_equal(generation.asset().vertices, made.vertices)
    generation.close()


def test_lossless_rungs_change_nothing(engine: Engine, made: Asset) -> None:
    for rung, plan in ladder(ASKED):
        if rung.lossless:
            asset = run(engine, plan)
            assert np.array_equal(asset.vertices, made.vertices), rung.name
            assert np.array_equal(asset.faces, made.faces), rung.name
            assert np.array_equal(asset.base_color, made.base_color), rung.name  # type: ignore[arg-type]


def test_every_rung_gives_a_deliverable_asset(
    engine: Engine, khronos: Callable[[bytes], None]
) -> None:
    big = replace(
        ASKED,
        resolution=1536,
        remesh_resolution=1536,
        max_tokens=49_152,
    )
    for rung, plan in ladder(big):
        asset = run(engine, plan)
        require_mesh(asset)
        assert asset.texture_size == plan.texture_size, rung.name
        assert asset.effective["resolution"] == plan.resolution
        glb = encode_glb(asset, "png", {})
        require_glb(glb.data)
        khronos(glb.data)


def test_resolutions_differ_for_real(engine: Engine) -> None:
    plenty = replace(ASKED, decimation_target=2_000_000)
    faces = [
        len(run(engine, replace(plenty, resolution=r, remesh_resolution=r)).faces)
        for r in (512, 1024, 1536)
    ]
    assert faces[0] * 3 < faces[1]
    assert faces[1] * 2 < faces[2]


def test_remeshing_smooths_the_outline(engine: Engine, made: Asset) -> None:
    raw = run(engine, replace(ASKED, remesh=False))
    assert not np.array_equal(made.vertices, raw.vertices)
    require_mesh(raw)


@pytest.mark.parametrize("stage", ENGINE_STAGES)
def test_a_stopped_job_stops_by_the_next_stage(engine: Engine, stage: Stage) -> None:
    generation = engine.begin(MUG, ASKED)
    stopped, late = JobScope("x"), JobScope("y", Deadline.after(0))
    for earlier in ENGINE_STAGES[: ENGINE_STAGES.index(stage)]:
        generation.run(earlier, ASKED, JobScope("x"))
    stopped.cancel()
    with pytest.raises(JobCancelled), stopped.stage(stage):
        generation.run(stage, ASKED, stopped)
    with pytest.raises(DeadlineExceeded), late.stage(stage):
        generation.run(stage, ASKED, late)
    generation.close()


def test_a_photo_without_alpha_is_cut_out(engine: Engine, made: Asset) -> None:
    asset = run(engine, ASKED, image=pixels(picture(256, alpha=False)))
    cut, whole = inspect_mesh(asset), inspect_mesh(made)
    for ours, theirs in zip(cut.bounds[1], whole.bounds[1], strict=True):
        assert ours == pytest.approx(theirs, abs=0.05)


def test_a_picture_without_an_object_is_refused(engine: Engine) -> None:
    wall = np.full((128, 128, 4), 200, np.uint8)
    wall[..., 3] = 255
    with pytest.raises(ImageRejected, match="foreground"):
        run(engine, ASKED, image=wall)
    require_mesh(run(engine, replace(ASKED, background="keep"), image=wall))


def test_one_opaque_pixel_is_refused(engine: Engine) -> None:
    dust = np.zeros((256, 256, 4), np.uint8)
    dust[100, 100] = 255
    with pytest.raises(ImageRejected, match="foreground"):
        run(engine, ASKED, image=dust)


def test_finishes_are_baked_from_what_was_sampled_once(engine: Engine) -> None:
    """Another budget, colours at the vertices, a closed surface for printers: no stage but bake."""
    request = parse_request(
        {
            "image": "x",
            "resolution": 512,
            "texture_size": 512,
            "decimation_target": 20_000,
            "output": {
                "finishes": [
                    {"name": "small", "decimation_target": 2000, "texture_size": 1024},
                    {"name": "print", "format": "3mf"},
                    {"name": "points", "format": "ply", "decimation_target": 3000},
                    {"name": "look", "format": "usdz"},
                ]
            },
        }
    )
    generation = engine.begin(MUG, ASKED)
    try:
        for stage in ENGINE_STAGES:
            generation.run(stage, ASKED, JobScope("x"))
        first = generation.asset()
        finisher = Finisher(generation, LadderState.begin(ASKED, 12), first, request, lambda *_: {})
        finished = finisher.make(JobScope("x"))
    finally:
        generation.close()
    told = [one.told for one in finished]
    assert [one.error for one in told] == [None] * 4
    assert told[0].faces is not None and 1000 < told[0].faces <= 2000
    assert [one.texture.size for one in told if one.texture] == [1024, 0, 0, 512]
    assert told[3].faces == len(first.faces)
    assert told[1].warnings == []  # closed
    require_glb(finished[0].data or b"")
    assert (told[0].quality is None) != engine.measures_quality
