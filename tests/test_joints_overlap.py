"""A job's geometry baked while its texture is sampled: the same asset, and no thread left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests import marked_shape
from tests.conftest import AMPLE
from tests.test_joints_engine import MUG
from tests.test_joints_in_flight import FIRST, AtStep, job, out_of_memory, require_same
from tests.upstream_record import CALLS, calls
from trellis_runtime.contract.engine import Asset
from trellis_runtime.contract.scope import Deadline, JobScope
from trellis_runtime.contract.stages import ENGINE_STAGES, Stage
from trellis_runtime.engines.trellis2 import Trellis2Engine
from trellis_runtime.engines.trellis2.baking.ahead import GeometryAhead, geometry_beside
from trellis_runtime.engines.trellis2.baking.bake import BakeOptions, geometry_bytes
from trellis_runtime.engines.trellis2.baking.decoded import Decoded, DecodedSurface
from trellis_runtime.errors import DeadlineExceeded, JobCancelled, OutOfVram
from trellis_runtime.settings import Trellis2

OPTIONS = BakeOptions.of(FIRST)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def engine(small_checkpoint: Path, stand_in: None) -> Trellis2Engine:
    made = Trellis2Engine(Trellis2(model_dir=small_checkpoint, overlap=True), "cpu", room=AMPLE)
    made.load(lambda _phase, _seconds: None)
    return made


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    CALLS.clear()
    yield
    CALLS.clear()
    assert [t.name for t in threading.enumerate() if t.name.startswith("geometry")] == []


@pytest.fixture(scope="module")
def in_sequence(small_checkpoint: Path, stand_in: None) -> Asset:
    made = Trellis2Engine(Trellis2(model_dir=small_checkpoint), "cpu", room=AMPLE)
    made.load(lambda _phase, _seconds: None)
    scope = JobScope("x")
    asset: Asset = job(made, FIRST, scope, ENGINE_STAGES)
    assert scope.beside == {}
    return asset


def test_the_asset_is_the_one_made_in_sequence_and_nothing_is_made_twice(
    engine: Trellis2Engine, in_sequence: Asset
) -> None:
    told: list[float] = []
    scope = JobScope("x", progress=lambda _stage, fraction: told.append(fraction))
    require_same(job(engine, FIRST, scope, ENGINE_STAGES), in_sequence)
    assert len(calls("mesh")) == 1
    assert scope.beside["geometry"] > 0
    assert {"holes", "shells", "decimate", "unwrap", "texels"} <= set(scope.parts)
    assert told == sorted(told)
    assert set(scope.timings) == set(ENGINE_STAGES)


def test_without_room_for_both_they_follow_each_other(
    engine: Trellis2Engine, in_sequence: Asset
) -> None:
    engine._room = 3 * 2**30 + geometry_bytes(1, OPTIONS)  # for sampling, and less than a mesh
    try:
        scope = JobScope("x")
        require_same(job(engine, FIRST, scope, ENGINE_STAGES), in_sequence)
    finally:
        engine._room = AMPLE
    assert scope.beside == {}


def test_a_texture_that_ran_out_of_memory_is_repeated_without_geometry_beside(
    engine: Trellis2Engine, in_sequence: Asset
) -> None:
    scope = JobScope("x", progress=AtStep(Stage.TEXTURE, 2, out_of_memory))
    generation = engine.begin(MUG, FIRST)
    for stage in ENGINE_STAGES:
        with scope.stage(stage):
            if stage is Stage.TEXTURE:
                with pytest.raises(OutOfVram):
                    generation.run(stage, FIRST, scope)
                generation.reclaim()
            generation.run(stage, FIRST, scope)
    require_same(generation.asset(), in_sequence)
    generation.close()
    assert scope.beside == {}


def test_a_job_stopped_while_it_samples_leaves_no_geometry_behind(engine: Trellis2Engine) -> None:
    scope = JobScope("x")
    scope.progress = AtStep(Stage.TEXTURE, 2, scope.cancel)
    with pytest.raises(JobCancelled):
        job(engine, FIRST, scope)


def test_a_bake_that_is_leaner_than_the_geometry_beside_makes_its_own(
    engine: Trellis2Engine, in_sequence: Asset
) -> None:
    generation, scope = engine.begin(MUG, FIRST), JobScope("x")
    for stage in ENGINE_STAGES[:-1]:
        generation.run(stage, FIRST, scope)
    generation.run(Stage.BAKE, replace(FIRST, chunk_bake=True), scope)
    require_same(generation.asset(), in_sequence)
    generation.close()


# --- the thread -----------------------------------------------------------------------------------


def box() -> DecodedSurface:
    low, high = torch.tensor(marked_shape.LOW), torch.tensor(marked_shape.HIGH)
    corners = torch.cartesian_prod(*torch.stack([low, high], 1))
    faces = [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1]]
    faces += [[2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]]
    return DecodedSurface(corners, torch.tensor(faces, dtype=torch.int32), 512)


def coloured(surface: DecodedSurface, alpha: float = 1.0) -> Decoded:
    """The surface with a voxel at each vertex."""
    cells = ((surface.vertices + 0.5) * surface.resolution).int()
    values = torch.full((len(cells), 6), alpha)
    return Decoded(surface.vertices, surface.faces, cells, values, surface.resolution)


def test_geometry_that_finds_no_surface_is_left_to_the_bake() -> None:
    flat = DecodedSurface(torch.zeros(3, 3), torch.tensor([[0, 1, 2]], dtype=torch.int32), 512)
    scope = JobScope("x")
    with geometry_beside(flat, OPTIONS, CPU, scope) as ahead:
        pass
    assert ahead.fit_for(OPTIONS, coloured(flat)) is None
    assert scope.beside == {}


def test_geometry_is_for_the_bake_that_it_was_made_for() -> None:
    with geometry_beside(box(), OPTIONS, CPU, JobScope("x")) as ahead:
        pass
    assert ahead.fit_for(OPTIONS, coloured(box())) is not None
    assert ahead.fit_for(replace(OPTIONS, texture_size=512), coloured(box())) is None


def test_geometry_is_made_again_where_alpha_shows_what_it_had_dropped() -> None:
    outer = box()
    middle = outer.vertices.mean(0)
    corners = torch.cat([outer.vertices, middle + (outer.vertices - middle) / 3])
    nested = DecodedSurface(corners, torch.cat([outer.faces, outer.faces + 8]), 512)
    for surface, shown in ((nested, False), (outer, True)):
        with geometry_beside(surface, OPTIONS, CPU, JobScope("x")) as ahead:
            pass
        opaque, glass = coloured(surface), coloured(surface, 0.3)
        assert ahead.fit_for(OPTIONS, opaque) is not None
        assert (ahead.fit_for(OPTIONS, glass) is not None) == shown
        asked = replace(OPTIONS, alpha_mode="opaque")
        assert GeometryAhead(asked, ahead.geometry).fit_for(asked, glass) is not None


def test_a_fault_of_the_geometry_is_raised() -> None:
    broken = DecodedSurface(torch.zeros(3, 3), torch.tensor([[0, 1, 99]], dtype=torch.int32), 512)
    with pytest.raises(IndexError), geometry_beside(broken, OPTIONS, CPU, JobScope("x")):
        pass


def test_the_jobs_end_reaches_the_geometry_and_its_own_end_not_the_job() -> None:
    scope = JobScope("x")
    with pytest.raises(ZeroDivisionError), geometry_beside(box(), OPTIONS, CPU, scope):
        raise ZeroDivisionError
    assert not scope.cancelled
    late = JobScope("x", Deadline.after(0.0))
    with pytest.raises(DeadlineExceeded), geometry_beside(box(), OPTIONS, CPU, late):
        pass
    scope.cancel()
    with pytest.raises(JobCancelled), geometry_beside(box(), OPTIONS, CPU, scope):
        pass
