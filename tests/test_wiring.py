"""How the parts are joined: rules that hold between modules, each with a mutant in `mutants/`."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import http.server
import sys
import threading
import time
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.conftest import environment
from tests.generations import WithinGeneration
from tests.loopback import Reply, body, http_server
from tests.test_worker import QUICK, Raising, handle, start
from trellis_runtime.contract.engine import Asset, Generation
from trellis_runtime.contract.ladder import RUNGS, Plan
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import ENGINE_STAGES, Stage
from trellis_runtime.delivery import s3
from trellis_runtime.delivery.choose import require_answer_fits
from trellis_runtime.delivery.storage import LocalStore
from trellis_runtime.engines.embedded import EmbeddedEngine
from trellis_runtime.errors import (
    AnswerTooLarge,
    FetchFailed,
    JobCancelled,
    MeshRejected,
    OutOfVram,
    StorageFailed,
    WorkerStopping,
)
from trellis_runtime.server import create_app
from trellis_runtime.settings import JobLimits, Settings
from trellis_runtime.worker.admission import Admission, State
from trellis_runtime.worker.drain import Drain
from trellis_runtime.worker.progress import ProgressSender

# --- memory runs out --------------------------------------------------------------------------


class Held:
    """Stands for the arrays of a stage: what a garbage collector can be asked about."""


class Short(EmbeddedEngine):
    """The embedded engine, whose stage `at` runs out of memory the first `times` times."""

    def __init__(self, at: Stage, times: int) -> None:
        super().__init__()
        self.at, self.left = at, times
        self.happened: list[str] = []
        self.held: list[weakref.ref[Held]] = []
        self.alive_at_reclaim: list[bool] = []
        self.effective: dict[str, int] = {}

    def begin(self, image: Any, plan: Plan) -> Any:
        return ShortGeneration(self, super().begin(image, plan))


class ShortGeneration(WithinGeneration):
    def __init__(self, engine: Short, inner: Generation) -> None:
        super().__init__(inner)
        self._engine = engine

    def run(self, stage: Stage, plan: Plan, scope: JobScope) -> None:
        engine = self._engine
        engine.happened.append(f"run {stage}")
        if stage is engine.at and engine.left:
            engine.left -= 1
            arrays = Held()
            engine.held.append(weakref.ref(arrays))
            raise OutOfVram(f"attempt with {engine.left} to come")
        super().run(stage, plan, scope)

    def reclaim(self) -> None:
        self._engine.happened.append("reclaim")
        self._engine.alive_at_reclaim.append(self._engine.held[-1]() is not None)
        super().reclaim()

    def asset(self) -> Asset:
        asset = super().asset()
        return replace(asset, effective={**asset.effective, **self._engine.effective})

    def close(self) -> None:
        self._engine.happened.append("close")
        super().close()


def test_memory_is_reclaimed_between_attempts(tmp_path: Path) -> None:
    engine = Short(Stage.BAKE, 2)
    assert "error" not in handle(start(tmp_path, engine), QUICK)
    failed = engine.happened.index("run bake")
    assert engine.happened[failed:] == [
        "run bake",
        "reclaim",
        "run bake",
        "reclaim",
        "run bake",
        "close",
    ]


def test_nothing_holds_the_arrays_of_a_failed_stage(tmp_path: Path) -> None:
    """An exception's traceback keeps its frames alive, and they keep the arrays on the card."""
    engine = Short(Stage.DECODE, 1)
    gc.disable()  # a card's memory must be free at once, not when a cycle is collected
    try:
        answer = handle(start(tmp_path, engine), QUICK)
    finally:
        gc.enable()
    assert "error" not in answer
    assert engine.alive_at_reclaim
    assert not any(engine.alive_at_reclaim)


def test_every_attempt_is_told(tmp_path: Path) -> None:
    answer = handle(start(tmp_path, Short(Stage.BAKE, 2)), QUICK)
    told = [(a["stage"], a["rung"], a["error"]) for a in answer["degradation"]["attempts"]]
    assert told == [
        ("bake", "as_asked", "attempt with 1 to come"),
        ("bake", "offload", "attempt with 0 to come"),
    ]
    assert answer["degradation"]["rung"] == "chunk_bake"


def test_what_was_given_is_told(tmp_path: Path) -> None:
    """Both what the ladder gave up and what the engine itself had to lower."""
    engine = Short(Stage.BAKE, 4)
    engine.effective = {"decimation_target": 1234}
    given = handle(start(tmp_path, engine), QUICK)["degradation"]
    assert given["rung"] == RUNGS[10].name
    assert given["requested"]["texture_size"] == QUICK["texture_size"]
    assert given["effective"]["texture_size"] == QUICK["texture_size"] // 2  # type: ignore[operator]
    assert given["effective"]["decimation_target"] == 1234


@pytest.mark.parametrize("times", [0, 99], ids=["well", "badly"])
def test_a_generation_is_closed_however_it_ends(tmp_path: Path, times: int) -> None:
    engine = Short(Stage.SHAPE, times)
    answer = handle(start(tmp_path, engine), QUICK)
    assert ("error" in answer) == bool(times)
    assert Counter(engine.happened)["close"] == 1
    assert engine.happened[-1] == "close"


# --- the event loop and progress --------------------------------------------------------------


def test_our_code_never_holds_the_event_loop(tmp_path: Path) -> None:
    """Sampled: the loop's thread is never found at one line of ours time after time."""
    package = str(Path(sys.modules["trellis_runtime"].__file__ or "").parent)
    worker, longest, over = start(tmp_path), Counter[str](), threading.Event()

    def sample(loop_thread: int) -> None:
        last, run = "", 0
        while not over.wait(0.01):
            frame = sys._current_frames().get(loop_thread)
            ours = frame is not None and frame.f_code.co_filename.startswith(package)
            at = f"{frame.f_code.co_filename}:{frame.f_lineno}" if ours and frame else ""
            run = run + 1 if at and at == last else 0
            last = at
            longest[at] = max(longest[at], run)

    async def ask() -> dict[str, Any]:
        sampler = threading.Thread(target=sample, args=(threading.get_ident(),))
        sampler.start()
        try:
            return await worker.handle({"id": "j", "input": QUICK})
        finally:
            over.set()
            sampler.join()

    assert "error" not in asyncio.run(ask())
    del longest[""]
    assert not {at: times for at, times in longest.items() if times > 15}


def test_a_generation_runs_beside_the_loop(tmp_path: Path) -> None:
    threads: list[int] = []

    class Telling(EmbeddedEngine):
        def begin(self, image: Any, plan: Plan) -> Any:
            threads.append(threading.get_ident())
            return super().begin(image, plan)

    assert "error" not in handle(start(tmp_path, Telling()), QUICK)
    assert threads != [threading.get_ident()]


def test_a_slow_progress_update_does_not_hold_the_loop(tmp_path: Path) -> None:
    """And the answer waits for it: the loop can let it go, and the answer comes after."""
    release, order = threading.Event(), list[str]()

    def notify(_update: dict[str, Any]) -> None:
        release.wait(30)
        order.append("sent")

    async def let_go() -> None:
        while not (tmp_path / "output/j/answer.json").exists():  # the generation's last act
            await asyncio.sleep(0.02)
        await asyncio.sleep(1.0)  # its thread has left by then, and the answer waits
        order.append("let go")
        release.set()

    async def ask() -> None:
        letting = asyncio.create_task(let_go())
        await worker.handle({"id": "j", "input": QUICK}, notify)
        order.append("answered")
        await letting

    worker = start(tmp_path)
    asyncio.run(ask())
    assert order == ["let go", "sent", "answered"]


def test_progress_ends_below_the_result() -> None:
    """The platform shows an update of 1.0 as an end; the result alone is one."""
    seen: list[float] = []
    sender = ProgressSender(lambda update: seen.append(update["progress"]))
    sender.update("store", 0.97)
    sender.update("image", 0.5)
    deadline = time.monotonic() + 20
    while not seen and time.monotonic() < deadline:
        time.sleep(0.01)
    sender.update("store", 1.0)
    time.sleep(1.2)  # past the interval in which one update is sent
    sender.close()
    assert seen == [0.5]


def test_the_platforms_time_is_capped_by_ours(tmp_path: Path) -> None:
    class Reading(EmbeddedEngine):
        def begin(self, image: Any, plan: Plan) -> Any:
            inner = super().begin(image, plan)
            run = inner.run

            def timed(stage: Stage, plan: Plan, scope: JobScope) -> None:
                left.append(scope.deadline.remaining())
                run(stage, plan, scope)

            inner.run = timed  # type: ignore[method-assign]
            return inner

    left: list[float] = []
    worker = start(tmp_path, Reading(), TRELLIS2_JOB_TIMEOUT_S="500")
    assert "error" not in handle(worker, QUICK, policy={"executionTimeout": 9_000_000})
    assert 400 < left[0] <= 500
    left.clear()
    assert "error" not in handle(worker, QUICK, policy={"executionTimeout": 300_000})
    assert 200 < left[0] <= 300


# --- admission and leaving --------------------------------------------------------------------


@pytest.mark.parametrize("between", ["success", "failure"])
def test_rejections_count_only_in_a_row(tmp_path: Path, between: str) -> None:
    gate = Admission(JobLimits(min_free_disk_gb=0), tmp_path)
    gate.open()
    gate.note_failure(MeshRejected("empty"))
    if between == "success":
        gate.note_success()
    else:
        gate.note_failure(FetchFailed("no such host"))
    gate.note_failure(MeshRejected("empty"))
    assert gate.defunct_reason is None
    gate.note_failure(MeshRejected("empty"))
    assert gate.state is State.DEFUNCT


def test_a_refusal_by_the_gate_is_no_result_between_two_rejections(tmp_path: Path) -> None:
    worker = start(tmp_path, Raising(MeshRejected("empty")), TRELLIS2_MAX_QUEUED_JOBS="0")
    handle(worker, QUICK)
    with worker.admission.slot():
        assert handle(worker, QUICK)["code"] == "worker_busy"
    assert handle(worker, QUICK)["refresh_worker"] is True


def test_a_draining_worker_takes_no_job(tmp_path: Path) -> None:
    gate = Admission(JobLimits(min_free_disk_gb=0), tmp_path)
    gate.open()
    gate.drain()
    with pytest.raises(WorkerStopping, match="draining"), gate.slot():
        pass


def test_draining_ends_the_poll_after_the_jobs_in_hand() -> None:
    order: list[str] = []
    seen: list[str] = []

    async def loop() -> None:
        drain = Drain(lambda: 1, 30.0, lambda: order.append("no other job is taken"))
        go_on = asyncio.Event()

        async def job() -> None:
            drain.track()
            await go_on.wait()
            order.append("delivered")

        async def poll() -> None:
            drain.concurrency(1)
            try:
                await asyncio.sleep(20)
            except asyncio.CancelledError:
                order.append("poll cancelled")

        tasks = [asyncio.create_task(job()), asyncio.create_task(poll())]
        await asyncio.sleep(0.05)
        drain.begin()
        drain.begin()  # a second signal changes nothing
        await asyncio.sleep(0.05)
        go_on.set()
        await asyncio.wait(tasks, timeout=5)
        seen.extend(order)
        for task in tasks:
            task.cancel()

    asyncio.run(loop())
    assert seen == ["no other job is taken", "delivered", "poll cancelled"]


# --- delivery ---------------------------------------------------------------------------------


def losing_store(size: int, data: bytes) -> Reply:
    """A store that takes everything, and then says that it holds something else."""
    taken: list[str] = []

    def reply(handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.command == "HEAD" and taken:
            handler.send_response(200)
            handler.send_header("Content-Length", str(size))
            handler.send_header("x-amz-meta-sha256", hashlib.sha256(data).hexdigest())
            handler.end_headers()
            return
        if handler.command == "PUT":
            taken.append(handler.path)
        body(b"", 200 if taken else 404)(handler)

    return reply


@pytest.mark.parametrize(
    ("size", "data", "words"),
    [(5, b"whole model", "holds 5 bytes"), (11, b"other model", "another model.glb")],
    ids=["size", "checksum"],
)
def test_what_a_bucket_holds_is_verified(
    tmp_path: Path, size: int, data: bytes, words: str
) -> None:
    with http_server(losing_store(size, data)) as url, pytest.raises(StorageFailed, match=words):
        variables = {
            "BUCKET_ENDPOINT_URL": url, "BUCKET_ACCESS_KEY_ID": "id",
            "BUCKET_SECRET_ACCESS_KEY": "secret", "BUCKET_NAME": "bucket",
        }  # fmt: skip
        bucket = Settings.from_env(environment(tmp_path, **variables)).bucket
        store = s3.operators_store(bucket, "lossy")
        store.put("model.glb", b"whole model", "model/gltf-binary", JobScope("lossy"))


def test_a_file_that_cannot_be_finished_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fails when the bytes are flushed: what was there before is still whole."""
    store, scope = LocalStore(tmp_path, "j"), JobScope("j")
    store.put("model.glb", b"first, whole", "model/gltf-binary", scope)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trellis_runtime.delivery.storage.os.fsync", full)
    with pytest.raises(StorageFailed, match="No space left"):
        store.put("model.glb", b"second", "model/gltf-binary", scope)
    assert (tmp_path / "j/model.glb").read_bytes() == b"first, whole"


def test_a_job_whose_answer_is_refused_leaves_no_file(tmp_path: Path) -> None:
    worker = start(tmp_path, TRELLIS2_MAX_ANSWER_BYTES="10000")
    tight = worker.settings.delivery.model_copy(update={"max_answer_bytes": 100})
    worker.settings = worker.settings.model_copy(update={"delivery": tight})
    answer = handle(worker, QUICK)
    assert answer["code"] == "answer_too_large"
    assert not (tmp_path / "output/j1").exists()


def test_an_answer_over_the_platforms_size_is_refused() -> None:
    assert require_answer_fits({"a": 1}, 8) == b'{"a": 1}'
    with pytest.raises(AnswerTooLarge, match="has 8 bytes; the platform takes 7"):
        require_answer_fits({"a": 1}, 7)


# --- the contract -----------------------------------------------------------------------------


def test_a_stopped_scope_raises_at_its_next_check() -> None:
    scope = JobScope("j")
    with scope.stage(Stage.SHAPE):
        scope.step(1, 2)
        scope.cancel()
        with pytest.raises(JobCancelled, match="during shape"):
            scope.step(2, 2)


def test_progress_of_all_stages_is_one_job() -> None:
    """Every stage has a share of the whole; they end at 1 and never go back."""
    seen: list[float] = []
    scope = JobScope("j", progress=lambda _stage, done: seen.append(done))
    for stage in Stage:
        with scope.stage(stage):
            scope.step(1, 1)
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1.0)
    assert len(set(seen)) == len(Stage) + 1
    assert set(ENGINE_STAGES) <= set(Stage)


# --- the server -------------------------------------------------------------------------------


def client(tmp_path: Path, token: str | None = None, **variables: str) -> TestClient:
    app = create_app(Settings.from_env(environment(tmp_path, **variables)), token)
    return TestClient(app, base_url="http://localhost")


def test_a_wrong_token_is_refused(tmp_path: Path) -> None:
    with client(tmp_path, "right") as browser:
        given = {"Authorization": "Bearer wrong"}
        assert browser.get("/metrics", headers=given).status_code == 401
        given = {"Authorization": "Bearer right"}
        assert browser.get("/metrics", headers=given).status_code == 200


def test_a_body_over_the_limit_is_refused(tmp_path: Path) -> None:
    with client(tmp_path, TRELLIS2_MAX_IMAGE_BYTES="1024") as browser:
        answer = browser.post("/generate", json={"image": "A" * 200_000})
        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
