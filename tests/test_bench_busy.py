"""What the benchmark makes of a profiler's intervals, and that its jobs run at all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from benchmarks import busy, jobs
from tests.conftest import AMPLE
from tests.test_joints_engine import MUG
from tests.test_joints_in_flight import FIRST
from trellis_runtime.engines.trellis2 import Trellis2Engine
from trellis_runtime.settings import Trellis2


def event(name: str, begin: float, end: float, where: DeviceType = DeviceType.CUDA) -> object:
    return SimpleNamespace(
        name=name, device_type=where, time_range=SimpleNamespace(start=begin, end=end)
    )


def test_kernels_at_once_are_counted_once() -> None:
    assert busy.covered([]) == 0
    assert busy.covered([(5, 8), (0, 2), (1, 3), (6, 7)]) == 6


def test_a_stage_has_what_ran_in_its_time_and_no_more() -> None:
    kernels = [(0.0, 4e6), (5e6, 9e6)]
    windows = {"shape": [(1e6, 6e6)], "bake": [(6e6, 7e6), (8e6, 20e6)], "store": [(30e6, 31e6)]}
    assert busy.busy_by_stage(kernels, windows) == {"shape": 4, "bake": 2, "store": 0}


def test_a_mark_is_no_kernel_and_a_host_event_no_work_of_the_device() -> None:
    events = [
        event("stage:shape", 0, 10, DeviceType.CPU),
        event("stage:shape", 2, 10),
        event("stage:shape", 20, 25, DeviceType.CPU),
        event("aten::mm", 0, 9, DeviceType.CPU),
        event("gemm", 3, 5),
    ]
    kernels, windows = busy._intervals(events)
    assert kernels == [(3, 5)]
    assert windows == {"shape": [(0, 10), (20, 25)]}


def test_the_profiler_tells_marked_stages() -> None:
    def work() -> float:
        for stage in ("shape", "bake"):
            with busy.mark(stage):
                total = float(torch.ones(64, 64).sum())
        return total

    made, by_stage, whole = busy.measure(work)
    assert made == 4096
    assert set(by_stage) == {"shape", "bake"}
    if not torch.cuda.is_available():
        assert whole == 0


@pytest.mark.parametrize(("wall", "seconds", "wanted"), [(3.0, 2.0, 1.5), (3.0, 0.0, None)])
def test_the_ratio_needs_a_device_that_was_busy(
    wall: float, seconds: float, wanted: float | None
) -> None:
    assert busy.ratio(wall, seconds) == wanted


@pytest.fixture(scope="module")
def engine(small_checkpoint: Path, stand_in: None) -> Trellis2Engine:
    made = Trellis2Engine(Trellis2(model_dir=small_checkpoint), device="cpu", room=AMPLE)
    made.load(lambda _phase, _seconds: None)
    return made


def test_jobs_in_flight_are_timed_and_compared(engine: Trellis2Engine) -> None:
    alone, together = jobs.in_flight(engine, MUG, FIRST, busy_s=0.0, jobs=2, form="png")
    assert alone["jobs_per_hour"] > 0
    assert alone["busy_s"] is together["wall_over_busy"] is None
    assert together["difference"] == "the same bytes"
    assert together["waited_s"] >= 0


def test_a_job_is_run_each_way_and_its_file_compared(engine: Trellis2Engine) -> None:
    found = list(jobs.ways(engine, MUG, FIRST, form="png"))
    assert [row["case"].rpartition(", ")[2] for row in found] == list(jobs.WAYS)
    assert {row["difference"] for row in found} == {"the same bytes"}
    assert all({"shape", "bake", "export"} <= set(row["stages"]) for row in found)
    assert engine.overlap
