"""Who has the device, and who has a claim on its memory: in order, and given back in every case."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from trellis_runtime.contract.scope import Deadline, JobScope
from trellis_runtime.engines.trellis2.device.baton import Baton
from trellis_runtime.engines.trellis2.device.shared_room import SharedRoom
from trellis_runtime.errors import DeadlineExceeded, JobCancelled

LONG_S = 30.0


def never() -> None:
    """A check that never raises."""


def until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG_S
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


@dataclass
class Stages:
    """Stages on threads of their own that each hold the baton until they are told to end."""

    baton: Baton = field(default_factory=Baton)
    order: list[str] = field(default_factory=list)
    ends: dict[str, threading.Event] = field(default_factory=dict)
    asked: int = 0
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(8))

    def begin(self, name: str, *, alone: bool = False, check: Any = never) -> Future[None]:
        """Ask for the baton, and return once the asking is known to the baton."""
        self.ends[name] = threading.Event()
        self.asked += 1
        running = self.pool.submit(self._run, name, alone, check)
        until(lambda: name in self.order or len(self.baton._queue) + len(self.order) >= self.asked)
        return running

    def _run(self, name: str, alone: bool, check: Any) -> None:
        with self.baton.hold(check, alone=alone):
            self.order.append(name)
            assert self.ends[name].wait(LONG_S)

    def end(self, *names: str) -> None:
        for name in names:
            until(lambda name=name: name in self.order)  # type: ignore[misc]
            self.ends[name].set()


@pytest.fixture
def stages() -> Any:
    made = Stages()
    yield made
    for event in made.ends.values():
        event.set()
    made.pool.shutdown(wait=True)


def test_turns_come_in_the_order_in_which_they_were_asked_for(stages: Stages) -> None:
    for name in "abcde":
        stages.begin(name)
    stages.end(*"abcde")
    assert stages.order == list("abcde")


def test_an_error_gives_the_device_back() -> None:
    baton = Baton()
    with pytest.raises(ZeroDivisionError), baton.hold(never):
        raise ZeroDivisionError
    with baton.hold(never, alone=True) as turn:
        assert turn.waited < LONG_S


def test_a_stopped_job_leaves_the_queue_and_the_next_one_is_served(stages: Stages) -> None:
    scope = JobScope("stopped")
    stages.begin("a")
    waiting = stages.begin("b", check=scope.check)
    stages.begin("c")
    scope.cancel()
    with pytest.raises(JobCancelled):
        waiting.result(LONG_S)
    stages.end("a", "c")
    assert stages.order == ["a", "c"]


def test_a_job_whose_time_is_over_waits_no_longer(stages: Stages) -> None:
    scope = JobScope("late", Deadline.after(0.1))
    stages.begin("a")
    with pytest.raises(DeadlineExceeded):
        stages.begin("b", check=scope.check).result(LONG_S)


def test_another_stage_runs_while_one_works_on_the_host(stages: Stages) -> None:
    baton, done = stages.baton, list[str]()
    with baton.hold(never) as turn:
        other = stages.begin("b")
        with baton.let_go(turn):
            until(lambda: stages.order == ["b"])
            done.append("host work beside b")
            stages.end("b")
        assert other.done() or stages.baton._holder is turn
        done.append("the device again")
    other.result(LONG_S)
    assert done == ["host work beside b", "the device again"]


def test_nobody_is_alone_while_a_stage_that_let_go_has_not_ended(stages: Stages) -> None:
    baton = stages.baton
    with baton.hold(never) as turn:
        stages.begin("alone", alone=True)
        stages.begin("late")
        with baton.let_go(turn):
            time.sleep(0.12)  # two looks: were it to be given, it would be by now
            assert stages.order == []
        assert baton._holder is turn  # past both that wait
    stages.end("alone", "late")
    assert stages.order == ["alone", "late"]


def test_a_job_stopped_in_its_host_work_ends_without_the_device(stages: Stages) -> None:
    scope, baton = JobScope("stopped"), stages.baton

    def stage() -> None:
        with baton.hold(scope.check) as turn, baton.let_go(turn):
            stages.begin("b")
            until(lambda: stages.order == ["b"])
            scope.cancel()

    with pytest.raises(JobCancelled):
        stage()
    assert stages.order == ["b"]  # which still has it
    waiting = stages.begin("c", alone=True)
    assert not waiting.done()
    stages.end("b", "c")
    waiting.result(LONG_S)


# --- memory ---------------------------------------------------------------------------------------


def admitted(room: SharedRoom, need: int | None, check: Any = never) -> Future[Any]:
    with_thread: Future[Any] = Future()

    def take() -> None:
        try:
            with_thread.set_result(room.take(need, check))
        except BaseException as err:
            with_thread.set_exception(err)

    threading.Thread(target=take, daemon=True).start()
    return with_thread


def test_two_jobs_run_where_the_sum_of_their_needs_fits() -> None:
    room = SharedRoom(lambda: 10, most=2)
    room.take(6, never)
    assert admitted(room, 4).result(LONG_S).need == 4
    assert room.in_flight == 2


@pytest.mark.parametrize("second", [5, None])
def test_a_job_waits_where_it_does_not_fit_beside_the_other(second: int | None) -> None:
    room = SharedRoom(lambda: 10, most=2)
    first = room.take(6, never)
    waiting = admitted(room, second)
    smaller = admitted(room, 1)  # it would fit, and comes later
    time.sleep(0.12)
    assert not waiting.done()
    assert not smaller.done()
    room.leave(first)
    seat = waiting.result(LONG_S)
    room.leave(seat)
    smaller.result(LONG_S)


def test_a_job_that_is_alone_is_admitted_whatever_it_needs() -> None:
    room = SharedRoom(lambda: 10, most=2)
    seat = room.take(99, never)
    room.leave(seat)
    room.leave(seat)
    assert room.take(None, never).need is None
    assert room.in_flight == 1


def test_no_more_jobs_than_most_and_a_stopped_one_stops_waiting() -> None:
    room = SharedRoom(lambda: 10, most=1)
    first = room.take(1, never)
    scope = JobScope("stopped")
    waiting = admitted(room, 1, scope.check)
    scope.cancel()
    with pytest.raises(JobCancelled):
        waiting.result(LONG_S)
    room.leave(first)
    assert admitted(room, 1).result(LONG_S)


def test_room_is_what_was_free_while_no_job_was_in_flight() -> None:
    free = [10]
    room = SharedRoom(lambda: free[0], most=2)
    seat = room.take(1, never)
    free[0] = 3
    assert room.when_idle() == 10
    room.leave(seat)
    assert room.when_idle() == 3
