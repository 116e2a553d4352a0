"""A stage that never returns: the job is answered, the worker takes no other, the process leaves."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.plane import Plane, WorkerProcess
from tests.test_platform import FAULTY, INLINE, plane  # noqa: F401 - a fixture
from trellis_runtime.contract.scope import Deadline, JobScope
from trellis_runtime.errors import DeadlineExceeded
from trellis_runtime.worker.watchdog import wait_until_thread_exits

STUCK = {"FAULT": "never:shape", "TRELLIS2_STUCK_GRACE_S": "1"}


def test_a_stage_that_never_returns_is_answered_and_the_process_leaves(
    plane: Plane,  # noqa: F811
    tmp_path: Path,
) -> None:
    with WorkerProcess(plane, tmp_path, FAULTY, **STUCK, TRELLIS2_JOB_TIMEOUT_S="3") as worker:
        job = plane.submit(INLINE)
        waiting = plane.submit(INLINE)
        record = plane.result(job)
        assert worker.wait(30) == 1
    answer = record.results[0]
    assert answer["stopPod"] is True
    assert answer["output"]["code"] == "deadline_exceeded"
    assert "shape did not return" in answer["error"]
    assert plane.jobs[waiting].takes == 0


def test_a_stop_ends_a_stage_that_never_returns(plane: Plane, tmp_path: Path) -> None:  # noqa: F811
    with WorkerProcess(plane, tmp_path, FAULTY, **STUCK) as worker:
        job = plane.submit(INLINE)
        worker.until_event("stage_finished", stage="structure")
        plane.stop(job)
        assert worker.wait(30) == 1
        assert worker.events("worker_defunct")
    assert plane.jobs[job].results == []


def test_a_stage_that_returns_within_its_grace_is_no_fault(
    plane: Plane,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Stuck for two seconds beyond the job's time, and then it sees that its time is over."""
    with WorkerProcess(
        plane, tmp_path, FAULTY, FAULT="stuck:decode", TRELLIS2_JOB_TIMEOUT_S="2"
    ) as worker:
        record = plane.ask(INLINE)
        assert record.results[0]["output"]["code"] == "deadline_exceeded"
        assert "stopPod" not in record.results[0]
        assert worker.process.poll() is None
        assert not worker.events("worker_defunct")


def waited(future: Future[dict[str, Any]], scope: JobScope, told: list[str]) -> None:
    asyncio.run(wait_until_thread_exits(future, scope, 0.2, told.append))


def test_a_job_that_never_got_a_thread_condemns_nobody() -> None:
    told: list[str] = []
    with pytest.raises(DeadlineExceeded, match="did not begin"):
        waited(Future(), JobScope("x", Deadline.after(0.1)), told)
    assert told == []


def test_what_wakes_up_after_it_was_given_up_delivers_nothing() -> None:
    future: Future[dict[str, Any]] = Future()
    future.set_running_or_notify_cancel()
    scope, told = JobScope("x", Deadline.after(0.1)), list[str]()
    with pytest.raises(DeadlineExceeded):
        waited(future, scope, told)
    assert scope.cancelled
    assert len(told) == 1


def test_many_stops_do_not_lengthen_the_grace() -> None:
    future: Future[dict[str, Any]] = Future()
    future.set_running_or_notify_cancel()
    told: list[str] = []

    async def stopped_again_and_again() -> None:
        task = asyncio.create_task(
            wait_until_thread_exits(future, JobScope("x", Deadline.after(600)), 0.5, told.append)
        )
        for _ in range(200):
            await asyncio.sleep(0.05)
            if task.done():
                break
            task.cancel()
        assert task.done(), "each stop gave it more time"
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(stopped_again_and_again())
    assert len(told) == 1


FROZEN = """
import asyncio, ctypes
from trellis_runtime.worker import watchdog
watchdog.LOOP_FROZEN_S = 1.0
async def main():
    beating = asyncio.create_task(watchdog.beat())
    await asyncio.sleep(0.1)
    ctypes.PyDLL(None).sleep(600)  # with the interpreter's lock held
asyncio.run(main())
"""


def test_a_process_whose_loop_is_frozen_ends() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FROZEN], cwd=ROOT, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert b"Timeout" in done.stderr


def test_a_loop_that_runs_is_left_alone() -> None:
    code = FROZEN.replace("ctypes.PyDLL(None).sleep(600)", "await asyncio.sleep(3)").replace(
        "watchdog.LOOP_FROZEN_S = 1.0", "watchdog.LOOP_FROZEN_S, watchdog._BEAT_S = 1.0, 0.1"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False).returncode
        == 0
    )
