"""Two jobs in flight on the GPU engine: each makes what it makes alone, whatever befalls the other.

The engine runs on the CPU with small models and the stand-in for upstream.
"""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.conftest import AMPLE, encoded, environment
from tests.test_joints_engine import MUG, TO_DECODE, plan_for
from trellis_runtime.contract.ladder import Plan
from trellis_runtime.contract.scope import Deadline, JobScope
from trellis_runtime.contract.stages import ENGINE_STAGES, Stage
from trellis_runtime.engines.trellis2 import Trellis2Engine
from trellis_runtime.engines.trellis2.baking.decoded import Decoded
from trellis_runtime.engines.trellis2.engine import job_bytes
from trellis_runtime.errors import DeadlineExceeded, EngineFault, JobCancelled, OutOfVram
from trellis_runtime.settings import Settings, Trellis2
from trellis_runtime.worker.worker import Worker

LONG_S = 120.0


def small_plan(seed: int) -> Plan:
    plan = plan_for(512, seed=seed, texture_size=256, decimation_target=2000)
    dense = plan.samplers.sparse_structure.model_copy(update={"steps": 1})  # the slowest of them
    samplers = plan.samplers.model_copy(update={"sparse_structure": dense})
    return replace(plan, samplers=samplers)


FIRST, SECOND = small_plan(5), small_plan(8)


@pytest.fixture(scope="module")
def load(small_checkpoint: Path, stand_in: None) -> Callable[[int], Trellis2Engine]:
    def made(room: int) -> Trellis2Engine:
        engine = Trellis2Engine(Trellis2(model_dir=small_checkpoint), device="cpu", room=room)
        engine.load(lambda _phase, _seconds: None)
        return engine

    return made


@pytest.fixture(scope="module")
def engine(load: Callable[[int], Trellis2Engine]) -> Trellis2Engine:
    return load(AMPLE)


@pytest.fixture(autouse=True)
def nothing_is_left_in_flight(engine: Trellis2Engine) -> Iterator[None]:
    yield
    assert engine._in_flight.room.in_flight == 0
    with engine._in_flight.baton.hold(lambda: None, alone=True) as turn:
        assert turn.waited < LONG_S


def job(
    engine: Trellis2Engine,
    plan: Plan,
    scope: JobScope | None = None,
    stages: tuple[Stage, ...] = TO_DECODE,
) -> Any:
    """Return what a job has after `stages`: what was decoded, or the asset after all of them."""
    scope = scope or JobScope("x")
    generation = engine.begin(MUG, plan)
    try:
        for stage in stages:
            with scope.stage(stage):
                generation.run(stage, plan, scope)
        return generation.asset() if stages == ENGINE_STAGES else generation.products.decoded
    finally:
        generation.close()


@pytest.fixture(scope="module")
def alone(engine: Trellis2Engine) -> dict[int, Decoded]:
    """What each plan decodes with nothing beside it, by its seed."""
    return {plan.seed: job(engine, plan) for plan in (FIRST, SECOND)}


def require_same(made: Any, wanted: Any) -> None:
    """Compare every array of what was decoded, or of two assets."""
    names = [field.name for field in fields(wanted)]
    arrays = [n for n in names if isinstance(getattr(wanted, n), Tensor | np.ndarray)]
    assert len(arrays) >= 4
    for name in arrays:
        assert np.array_equal(getattr(made, name), getattr(wanted, name)), name


class AtStep:
    """Does something once, at the `step`-th report of a stage; steps begin at 0."""

    def __init__(self, stage: Stage, step: int, act: Callable[[], None]) -> None:
        self.stage, self.left, self.act = stage, step, act
        self.done = threading.Event()

    def __call__(self, stage: str, _fraction: float) -> None:
        if stage == self.stage and not self.done.is_set():
            if self.left == 0:
                self.done.set()
                self.act()
            self.left -= 1


def beside(
    engine: Trellis2Engine,
    scope: JobScope,
    act: AtStep | None = None,
    stages: tuple[Stage, ...] = TO_DECODE,
    other_act: AtStep | None = None,
) -> tuple[Any, Any, JobScope]:
    """Run FIRST with `scope` beside SECOND, both in flight from the first stage to the last.

    Returns FIRST's product or error, SECOND's, and SECOND's scope.
    """
    second, both = JobScope("second", progress=other_act), threading.Barrier(2, timeout=LONG_S)
    scope.progress = act

    def run(plan: Plan, scope: JobScope) -> Any:
        generation = engine.begin(MUG, plan)
        try:
            for number, stage in enumerate(stages):
                if number == 1:
                    both.wait()
                with scope.stage(stage):
                    generation.run(stage, plan, scope)
            return generation.asset() if stages == ENGINE_STAGES else generation.products.decoded
        finally:
            generation.close()

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.submit(run, FIRST, scope), pool.submit(run, SECOND, second)
        return one.exception(LONG_S) or one.result(), other.result(LONG_S), second


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_two_jobs_in_flight_make_what_each_makes_alone(
    engine: Trellis2Engine, alone: dict[int, Decoded]
) -> None:
    scope = JobScope("first")
    one, other, second = beside(engine, scope)
    require_same(one, alone[FIRST.seed])
    require_same(other, alone[SECOND.seed])
    assert scope.waits.keys() | second.waits.keys()  # they did take turns
    for told in (scope, second):
        assert all(seconds <= told.timings[stage] for stage, seconds in told.waits.items())


def test_assets_are_the_same_though_memory_runs_out_in_one_bake(engine: Trellis2Engine) -> None:
    wanted = job(engine, FIRST, stages=ENGINE_STAGES)
    act = AtStep(Stage.BAKE, 4, out_of_memory)
    one, other, _ = beside(engine, JobScope("first"), act, ENGINE_STAGES)
    assert act.done.is_set()
    require_same(one, wanted)
    assert not np.array_equal(other.vertices, wanted.vertices)


def test_stages_that_alternate_keep_their_noise_apart(
    engine: Trellis2Engine, alone: dict[int, Decoded]
) -> None:
    pair = [(engine.begin(MUG, plan), plan) for plan in (FIRST, SECOND)]
    for stage in TO_DECODE:
        for generation, plan in pair:
            generation.run(stage, plan, JobScope("x"))
    for generation, plan in pair:
        require_same(generation.products.decoded, alone[plan.seed])
        generation.close()


def test_memory_that_runs_out_in_both_jobs_leaves_both_as_they_are_alone(
    engine: Trellis2Engine, alone: dict[int, Decoded]
) -> None:
    """Each failed stage is repeated with the card to itself; the ladder never hears of it."""
    acts = AtStep(Stage.SHAPE, 2, out_of_memory), AtStep(Stage.TEXTURE, 1, out_of_memory)
    one, other, _ = beside(engine, JobScope("first"), acts[0], other_act=acts[1])
    assert all(act.done.is_set() for act in acts)
    require_same(one, alone[FIRST.seed])
    require_same(other, alone[SECOND.seed])


def test_memory_that_runs_out_alone_is_the_ladders(engine: Trellis2Engine) -> None:
    with pytest.raises(OutOfVram):
        scope = JobScope("x", progress=AtStep(Stage.STRUCTURE, 1, out_of_memory))
        job(engine, FIRST, scope)


@pytest.mark.parametrize("stage", [Stage.STRUCTURE, Stage.DECODE])
def test_a_job_that_is_stopped_leaves_the_other_as_it_is_alone(
    engine: Trellis2Engine, alone: dict[int, Decoded], stage: Stage
) -> None:
    scope = JobScope("first")
    failed, other, _ = beside(engine, scope, AtStep(stage, 1, scope.cancel))
    assert isinstance(failed, JobCancelled)
    require_same(other, alone[SECOND.seed])


def test_a_fault_in_one_job_is_told_and_holds_nothing(
    engine: Trellis2Engine, alone: dict[int, Decoded]
) -> None:
    def fault() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    failed, other, _ = beside(engine, JobScope("first"), AtStep(Stage.TEXTURE, 1, fault))
    assert isinstance(failed, EngineFault)
    require_same(other, alone[SECOND.seed])


def test_a_job_whose_time_ends_while_it_waits_stops_waiting(engine: Trellis2Engine) -> None:
    with engine._in_flight.baton.hold(lambda: None), pytest.raises(DeadlineExceeded):
        job(engine, FIRST, JobScope("late", Deadline.after(0.1)))


def test_a_job_waits_for_its_room_and_offloaded_ones_are_alone(engine: Trellis2Engine) -> None:
    assert job_bytes(FIRST) == 3 * 2**30
    assert job_bytes(replace(FIRST, offload=True)) is None
    first = engine.begin(MUG, FIRST)
    first.run(Stage.CONDITION, FIRST, JobScope("first"))
    offloaded = replace(SECOND, offload=True)
    second = engine.begin(MUG, offloaded)
    with pytest.raises(DeadlineExceeded):
        second.run(Stage.CONDITION, offloaded, JobScope("second", Deadline.after(0.2)))
    first.close()
    second.run(Stage.CONDITION, offloaded, JobScope("second", Deadline.after(20)))
    second.close()


def test_a_job_that_takes_to_offload_has_the_card_to_itself(
    engine: Trellis2Engine, alone: dict[int, Decoded]
) -> None:
    """A rung of the ladder, in mid-job: models leave the card, and come back for the other job."""
    first, second = engine.begin(MUG, FIRST), engine.begin(MUG, SECOND)
    for stage in TO_DECODE:
        first.run(stage, replace(FIRST, offload=stage in TO_DECODE[2:]), JobScope("first"))
        first.reclaim()
        second.run(stage, SECOND, JobScope("second"))
    require_same(first.products.decoded, alone[FIRST.seed])
    require_same(second.products.decoded, alone[SECOND.seed])
    first.close()
    second.close()


def test_below_the_room_for_two_there_is_one_at_a_time(
    load: Callable[[int], Trellis2Engine],
) -> None:
    need = job_bytes(plan_for(1024, texture_size=2048, decimation_target=500_000)) or 0
    assert load(2 * need + 2**30).most_side_by_side == 2
    small = load(2 * need - 2**30)
    assert small.most_side_by_side == 1
    first, second = small.begin(MUG, FIRST), small.begin(MUG, FIRST)
    first.run(Stage.CONDITION, FIRST, JobScope("first"))
    with pytest.raises(DeadlineExceeded):
        second.run(Stage.CONDITION, FIRST, JobScope("second", Deadline.after(0.2)))
    first.close()
    second.run(Stage.CONDITION, FIRST, JobScope("second"))
    second.close()


def test_a_job_that_was_dropped_without_being_closed_gives_its_seat_back(
    engine: Trellis2Engine,
) -> None:
    generation = engine.begin(MUG, FIRST)
    generation.run(Stage.CONDITION, FIRST, JobScope("x"))
    assert engine._in_flight.room.in_flight == 1
    generation._watch.stop()
    del generation
    assert engine._in_flight.room.in_flight == 0


def test_a_worker_answers_two_jobs_in_flight_as_it_answers_each_alone(
    engine: Trellis2Engine, tmp_path: Path
) -> None:
    """From the request to the delivered file; the platform is told of two."""
    variables = environment(tmp_path, MAX_CONCURRENT_GENERATIONS="2")
    worker = Worker.start(Settings.from_env(variables), engine)
    assert worker.concurrency == 2
    encoded_mug = base64.b64encode(encoded(Image.fromarray(MUG))).decode()

    async def ask(job_id: str, seed: int) -> dict[str, Any]:
        plan = small_plan(seed)
        request = {
            "image": encoded_mug,
            "seed": seed,
            "resolution": 512,
            "texture_size": 512,
            "decimation_target": 4000,
            "sampler": plan.samplers.model_dump(mode="json"),
            "output": {"preview": False},
        }
        return await worker.handle({"id": job_id, "input": request})

    async def together() -> list[dict[str, Any]]:
        return list(await asyncio.gather(ask("one", 5), ask("two", 8)))

    pair = asyncio.run(together())
    solo = asyncio.run(ask("solo", 8))
    worker.close()
    assert pair[1]["mesh"] == solo["mesh"]
    assert pair[1]["artifact"]["sha256"] == solo["artifact"]["sha256"]
    assert pair[0]["artifact"]["sha256"] != solo["artifact"]["sha256"]
    assert solo["overlap"] is None
    waited = [one["overlap"]["waited"] for one in pair if one["overlap"]]
    assert waited
    assert all(seconds > 0 for told in waited for seconds in told.values())
