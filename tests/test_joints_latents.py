"""The GPU engine's latents on a CPU, with upstream's stand-in: reseeded, kept, and resumed."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import encoded, environment, picture
from tests.test_joints_engine import TO_DECODE, plan_for, run
from tests.test_joints_engine import engine as engine
from tests.test_worker import handle
from tests.upstream_record import CALLS
from trellis_runtime.assets.arrays import pack, unpack
from trellis_runtime.contract.engine import Latents
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import ENGINE_STAGES, Stage
from trellis_runtime.engines.trellis2.engine import Trellis2Engine
from trellis_runtime.errors import LatentsDamaged
from trellis_runtime.settings import Settings
from trellis_runtime.worker.worker import Worker

ASKED: dict[str, Any] = {
    "image": base64.b64encode(encoded(picture(128))).decode(),
    "resolution": 512, "texture_size": 512, "decimation_target": 4000,
    "sampler": {name: {"steps": 1} for name in ("sparse_structure", "shape", "texture")},
    "output": {"preview": False},
}  # fmt: skip


@pytest.fixture
def worker(engine: Trellis2Engine, tmp_path: Path) -> Iterator[Worker]:
    settings = Settings.from_env(environment(tmp_path, TRELLIS2_PRELOAD="0"))
    made = Worker.start(settings, engine)
    made._loaded = True  # the module's engine is loaded once
    yield made
    made.close()


def latents_of(engine: Trellis2Engine, resolution: int = 512) -> Latents:
    return run(engine, plan_for(resolution)).latents()


@pytest.mark.parametrize("resolution", [512, 1024])
def test_resumed_decoding_is_that_of_the_job_that_sampled(
    engine: Trellis2Engine, resolution: int
) -> None:
    plan = plan_for(resolution)
    first = run(engine, plan)
    latents, one = first.latents(), first.products.decoded
    first.close()
    latents = Latents(unpack(pack(latents.arrays)), json.loads(json.dumps(dict(latents.facts))))
    CALLS.clear()
    resumed = engine.resume(latents, plan)
    resumed.run(Stage.DECODE, plan, JobScope("later"))
    other = resumed.products.decoded
    assert one is not None and other is not None
    for name in ("vertices", "faces", "coords", "attributes"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.resolution == other.resolution
    resumed.close()


def test_another_seed_after_the_first_is_as_a_job_of_its_own(engine: Trellis2Engine) -> None:
    plan, other = plan_for(512), replace(plan_for(512), seed=8)
    generation = run(engine, plan)
    before = generation.latents()
    features = generation.products.features
    generation.reseed(8)
    assert generation.products.shape is None
    assert generation.products.features is features
    for stage in TO_DECODE[1:]:
        generation.run(stage, other, JobScope("x"))
    ours = generation.latents()
    generation.close()
    alone = run(engine, other).latents()
    assert list(ours.arrays) == list(alone.arrays)
    for name, array in alone.arrays.items():
        assert np.array_equal(ours.arrays[name], array), name
    assert not np.array_equal(before.arrays["shape_feats"], ours.arrays["shape_feats"])


def test_latents_that_are_not_the_engines_own_reach_no_kernel(engine: Trellis2Engine) -> None:
    true = latents_of(engine)
    coords, feats = true.arrays["shape_coords"], true.arrays["shape_feats"]

    def moved(at: int, value: int) -> Any:
        changed = coords.copy()
        changed[0, at] = value
        return {"shape_coords": changed, "texture_coords": changed}

    twice = coords.copy()
    twice[0] = twice[1]
    wrong: list[dict[str, Any]] = [
        {"shape_feats": None},
        {"shape_feats": feats.astype(np.float16)},
        {"shape_feats": feats[:, :-1]},
        {"shape_feats": np.full_like(feats, np.inf)},
        {"shape_feats": feats[:0], "shape_coords": coords[:0]},
        {"shape_coords": coords.astype(np.int64)},
        {"texture_coords": np.roll(coords, 1, axis=0)},
        moved(0, 1), moved(1, -1), moved(3, 32),
        {"shape_coords": twice, "texture_coords": twice},
    ]  # fmt: skip
    for changes in wrong:
        arrays = {k: v for k, v in {**true.arrays, **changes}.items() if v is not None}
        with pytest.raises(LatentsDamaged):
            engine.resume(Latents(arrays, true.facts), plan_for(512))
    for resolution in (0, 500, 4096):
        with pytest.raises(LatentsDamaged, match="resolution"):
            engine.resume(Latents(true.arrays, {"resolution": resolution}), plan_for(512))


def test_a_later_job_makes_the_first_ones_bytes_and_samples_nothing(
    worker: Worker, tmp_path: Path
) -> None:
    first = handle(worker, ASKED | {"seed": 3, "keep": "latents"})
    assert "error" not in first
    CALLS.clear()
    later = handle(worker, {"finish_of": "j1", "output": {"preview": False}}, "j2")
    assert "error" not in later
    assert {"condition", "structure", "shape", "texture"}.isdisjoint(later["timings"])
    assert {"decode", "bake"} <= set(later["timings"])
    models = [(tmp_path / f"output/{job}/model.glb").read_bytes() for job in ("j1", "j2")]
    assert models[0] == models[1]
    assert later["degradation"] == first["degradation"]
    assert later["quality"] == first["quality"]


def test_variants_condition_once_and_are_as_jobs_of_their_own(
    worker: Worker, tmp_path: Path
) -> None:
    answer = handle(worker, ASKED | {"seeds": [3, 8]})
    assert [told["error"] for told in answer["variants"]] == [None, None]
    alone = handle(worker, ASKED | {"seed": 8}, "j2")
    assert answer["variants"][1]["artifact"]["sha256"] == alone["artifact"]["sha256"]
    assert answer["variants"][0]["artifact"]["sha256"] != alone["artifact"]["sha256"]
    assert ENGINE_STAGES[0] not in answer["variants"][1]["timings"]
