"""The job boundary, in process: a dict in, a dict out, and nothing else ever escapes."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import encoded, environment, picture
from tests.seaweed import bucket_variables
from trellis_runtime import errors
from trellis_runtime.contract.answer import GenerationResult
from trellis_runtime.contract.engine import Engine
from trellis_runtime.engines.embedded import EmbeddedEngine
from trellis_runtime.errors import SetupFailed, WorkerError
from trellis_runtime.settings import Settings
from trellis_runtime.worker.worker import Worker, draw_seed

MakeWorker = Callable[..., Worker]
PHOTO = base64.b64encode(encoded(picture())).decode()
QUICK = {
    "image": PHOTO,
    "seed": 3,
    "resolution": 512,
    "texture_size": 512,
    "decimation_target": 5000,
}
FILES = ["answer.json", "model.glb", "preview.png", "thumbnail.webp"]


def leaves(base: type[WorkerError] = WorkerError) -> Iterator[type[WorkerError]]:
    for leaf in base.__subclasses__():
        yield leaf
        yield from leaves(leaf)


class Raising(EmbeddedEngine):
    """An engine that raises what it is told to, at its first stage."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def begin(self, image: Any, plan: Any) -> Any:
        raise self._error


class Slow(EmbeddedEngine):
    """An engine whose first stage waits until it is let go, without a check."""

    def __init__(self) -> None:
        super().__init__()
        self.started, self.go_on, self.left = (
            threading.Event(),
            threading.Event(),
            threading.Event(),
        )
        self.running = self.most = 0

    def begin(self, image: Any, plan: Any) -> Any:
        self.running += 1
        self.most = max(self.most, self.running)
        self.started.set()
        self.go_on.wait(20)
        self.running -= 1
        self.left.set()
        return super().begin(image, plan)


def start(tmp_path: Path, engine: Engine | None = None, **variables: str) -> Worker:
    return Worker.start(Settings.from_env(environment(tmp_path, **variables)), engine)


def handle(worker: Worker, payload: Any, job_id: str = "j1", **top: Any) -> dict[str, Any]:
    return asyncio.run(worker.handle({"id": job_id, "input": payload, **top}))


def test_a_job_is_answered_as_the_contract_has_it(
    tmp_path: Path, khronos: Callable[[bytes], None]
) -> None:
    answer = handle(start(tmp_path), QUICK)
    GenerationResult.model_validate_json(json.dumps(answer))
    folder = tmp_path / "output/j1"
    assert sorted(p.name for p in folder.iterdir()) == FILES
    glb = (folder / "model.glb").read_bytes()
    khronos(glb)
    assert answer["artifact"]["bytes"] == len(glb)
    assert answer["glb_url"] == (folder / "model.glb").as_uri()
    assert answer["engine"]["name"] == "embedded"
    assert answer["seed"] == 3
    assert json.loads((folder / "answer.json").read_bytes()) == answer
    assert list(answer["timings"])[:3] == ["image", "condition", "structure"]
    assert answer["init"]["ready"] > 0
    assert answer["vram"] is None


@pytest.mark.parametrize("leaf", list(leaves()), ids=lambda leaf: leaf.code)
def test_every_error_is_answered_with_its_facts(leaf: type[WorkerError], tmp_path: Path) -> None:
    any_seed = QUICK | {"seed": None}  # with one of its own, a rejected mesh would come again
    answer = handle(start(tmp_path, Raising(leaf("what happened"))), any_seed)
    assert answer["error"] == f"{leaf.code}: what happened"
    assert (answer["code"], answer["retryable"], answer["job_id"]) == (
        leaf.code,
        leaf.retryable,
        "j1",
    )
    assert answer.get("refresh_worker", False) == leaf.poisons_worker
    assert not (tmp_path / "output/j1").exists()


def test_codes_are_unique_and_the_base_cannot_be_raised() -> None:
    codes = [leaf.code for leaf in leaves()]
    assert len(codes) == len(set(codes))
    with pytest.raises(TypeError, match="leaf"):
        WorkerError("x")
    with pytest.raises(TypeError, match="must state 'code'"):
        type("Nameless", (WorkerError,), {})


def test_what_nobody_foresaw_is_answered_without_its_secrets(tmp_path: Path) -> None:
    answer = handle(start(tmp_path, Raising(KeyError("/root/.secret"))), QUICK)
    assert answer["code"] == "internal"
    assert "secret" not in json.dumps(answer)
    assert "Traceback" not in json.dumps(answer)


@pytest.mark.parametrize(
    "payload",
    [None, [], "x", 5, {}, {"image": 5}, {"image": "x", "webhook": 1}, {"image": "x", "\ud800": 1}],
)
def test_a_malformed_input_is_refused_and_costs_the_next_job_nothing(
    payload: Any, tmp_path: Path
) -> None:
    worker = start(tmp_path)
    refused = handle(worker, payload)
    assert refused["code"] == "invalid_input"
    json.dumps(refused, ensure_ascii=False).encode()  # as the SDK posts it
    assert "error" not in handle(worker, QUICK)


def test_a_job_id_that_is_no_utf8_is_answered(tmp_path: Path) -> None:
    """Found by `make fuzz`: a lone surrogate is JSON, and cannot be encoded."""
    answer = handle(start(tmp_path), QUICK, "\ud800")
    assert "glb_url" in answer
    json.dumps(answer, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "job", [{}, {"id": None}, {"id": 7, "input": QUICK}, {"id": "../../x", "input": QUICK}]
)
def test_an_odd_job_stays_inside_its_folder(job: dict[str, Any], tmp_path: Path) -> None:
    asyncio.run(start(tmp_path).handle(job))
    outside = [
        p for p in tmp_path.rglob("*") if p.is_file() and tmp_path / "output" not in p.parents
    ]
    assert outside == []


def test_a_seed_is_drawn_from_the_jobs_id_so_that_a_retry_is_the_same_truth() -> None:
    assert draw_seed("abc-u1") == draw_seed("abc-u1") != draw_seed("abd-u1")
    assert len({draw_seed("local_test") for _ in range(5)}) > 1
    assert all(0 <= draw_seed(f"job{i}") < 2**31 for i in range(200))


def test_the_same_job_twice_ends_in_one_folder_with_one_truth(tmp_path: Path) -> None:
    worker = start(tmp_path)
    unseeded = {k: v for k, v in QUICK.items() if k != "seed"}
    first, second = handle(worker, unseeded), handle(worker, unseeded)
    assert first["artifact"] == second["artifact"]
    assert sorted(p.name for p in (tmp_path / "output/j1").iterdir()) == FILES


def test_fifty_at_once_are_bounded_and_the_rest_told_to_come_again(tmp_path: Path) -> None:
    engine = Slow()
    worker = start(tmp_path, engine, TRELLIS2_MAX_QUEUED_JOBS="3")

    async def crowd() -> list[dict[str, Any]]:
        tasks = [
            asyncio.create_task(worker.handle({"id": f"j{i}", "input": QUICK})) for i in range(50)
        ]
        await asyncio.sleep(0.1)
        engine.go_on.set()
        return await asyncio.gather(*tasks)

    answers = asyncio.run(crowd())
    refused = [a for a in answers if a.get("code") == "worker_busy"]
    assert len(refused) == 46
    assert all(a["retryable"] for a in refused)
    assert sum("glb_url" in a for a in answers) == 4
    assert engine.most == 1


def test_two_generations_run_side_by_side_when_asked(tmp_path: Path) -> None:
    engine = Slow()
    worker = start(tmp_path, engine, MAX_CONCURRENT_GENERATIONS="2")

    async def both() -> list[dict[str, Any]]:
        tasks = [
            asyncio.create_task(worker.handle({"id": f"j{i}", "input": QUICK})) for i in range(2)
        ]
        while engine.running < 2:
            await asyncio.sleep(0.01)
        engine.go_on.set()
        return await asyncio.gather(*tasks)

    assert all("glb_url" in a for a in asyncio.run(both()))
    assert engine.most == 2


def test_a_cancelled_jobs_slot_stays_closed_until_its_thread_has_left(tmp_path: Path) -> None:
    engine = Slow()
    worker = start(tmp_path, engine, TRELLIS2_MAX_QUEUED_JOBS="0")

    async def cancel_twice() -> dict[str, Any]:
        task = asyncio.create_task(worker.handle({"id": "j1", "input": QUICK}))
        await asyncio.to_thread(engine.started.wait)
        task.cancel()
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.sleep(0.05)
        assert not task.done()
        meanwhile = await worker.handle({"id": "j2", "input": QUICK})
        engine.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert engine.left.is_set()
        return meanwhile

    assert asyncio.run(cancel_twice())["code"] == "worker_busy"
    assert not (tmp_path / "output/j1").exists()
    assert "glb_url" in handle(worker, QUICK)


def test_the_event_loop_is_never_blocked(tmp_path: Path) -> None:
    worker = start(tmp_path)
    gaps: list[float] = []

    async def beat(task: asyncio.Task[Any]) -> None:
        last = time.monotonic()
        while not task.done():
            await asyncio.sleep(0.01)
            gaps.append(time.monotonic() - last)
            last = time.monotonic()

    async def both() -> None:
        task = asyncio.create_task(worker.handle({"id": "j", "input": QUICK}))
        await asyncio.gather(task, beat(task))

    asyncio.run(both())
    assert len(gaps) > 10


def test_a_poisoned_worker_never_becomes_ready_again(tmp_path: Path) -> None:
    worker = start(tmp_path, Raising(errors.EngineFault("illegal memory access")))
    assert handle(worker, QUICK)["refresh_worker"] is True
    for _ in range(2):
        later = handle(worker, QUICK)
        assert (later["code"], later["retryable"], later["refresh_worker"]) == (
            "worker_stopping",
            True,
            True,
        )
    assert handle(worker, {"type": "health"})["state"] == "defunct"


def test_two_rejected_results_in_a_row_recycle_the_worker(tmp_path: Path) -> None:
    worker = start(tmp_path, Raising(errors.MeshRejected("empty")))
    assert "refresh_worker" not in handle(worker, QUICK)
    assert handle(worker, QUICK)["refresh_worker"] is True


def test_the_worker_is_recycled_after_as_many_jobs_as_set(tmp_path: Path) -> None:
    worker = start(tmp_path, TRELLIS2_JOBS_PER_PROCESS="2")
    assert "refresh_worker" not in handle(worker, QUICK)
    last = handle(worker, QUICK, "j2")
    assert last["refresh_worker"] is True
    assert "glb_url" in last


def test_a_full_disk_refuses_the_job_before_it_starts(tmp_path: Path) -> None:
    answer = handle(start(tmp_path, TRELLIS2_MIN_FREE_DISK_GB="1000000"), QUICK)
    assert (answer["code"], answer["retryable"]) == ("disk_full", True)
    assert "1e+06" in answer["error"]


def test_a_disk_that_fails_in_the_middle_leaves_nothing_half_done(tmp_path: Path) -> None:
    worker = start(tmp_path)
    (tmp_path / "output").mkdir()
    (tmp_path / "output/j1").write_text("a file where the folder should be")
    answer = handle(worker, QUICK)
    assert answer["code"] == "storage_failed"
    assert list((tmp_path / "output/.partial").iterdir()) == []


def test_a_jobs_deadline_is_the_platforms_where_it_is_passed(tmp_path: Path) -> None:
    worker = start(tmp_path)
    assert handle(worker, QUICK, policy={"executionTimeout": 1})["code"] == "deadline_exceeded"
    for odd in ({"executionTimeout": "soon"}, {"executionTimeout": -5}, "x", None):
        assert "glb_url" in handle(worker, QUICK, policy=odd)
    short = start(tmp_path, TRELLIS2_JOB_TIMEOUT_S="0.001")
    assert handle(short, QUICK)["code"] == "deadline_exceeded"


def test_health_is_answered_while_a_job_runs(tmp_path: Path) -> None:
    engine = Slow()
    worker = start(tmp_path, engine)

    async def ask() -> dict[str, Any]:
        task = asyncio.create_task(worker.handle({"id": "j", "input": QUICK}))
        await asyncio.to_thread(engine.started.wait)
        health = await worker.handle({"id": "h", "input": {"type": "health"}})
        engine.go_on.set()
        await task
        return health

    health = asyncio.run(ask())
    assert health["state"] == "busy"
    assert health["queue"]["in_hand"] == 1
    assert health["disk"]["free_bytes"] > 0
    assert health["engine"]["name"] == "embedded"


def test_health_that_hangs_is_a_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging(EmbeddedEngine):
        def memory(self) -> None:
            time.sleep(60)

    monkeypatch.setattr("trellis_runtime.worker.worker.HEALTH_TIMEOUT_S", 0.2)
    assert handle(start(tmp_path, Hanging()), {"type": "health"})["status"] == "timeout"


def test_progress_is_few_ordered_and_over_before_the_answer(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    worker = start(tmp_path)

    def notify(update: dict[str, Any]) -> None:
        time.sleep(0.05)
        seen.append(update)

    asyncio.run(worker.handle({"id": "j", "input": QUICK}, notify))
    count = len(seen)
    time.sleep(0.2)
    assert 1 <= count == len(seen) <= 12
    fractions = [u["progress"] for u in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] <= 0.9


def test_inline_is_answered_under_the_ceiling_and_refused_above(tmp_path: Path) -> None:
    worker = start(tmp_path, TRELLIS2_MAX_ANSWER_BYTES="3000000")
    inline = QUICK | {"output": {"delivery": "inline"}}
    answer = handle(worker, inline)
    assert answer["glb_url"] is None
    assert base64.b64decode(answer["artifact"]["base64"])[:4] == b"glTF"
    assert len(json.dumps(answer)) <= 3_000_000
    assert not (tmp_path / "output/j1").exists()
    large = handle(worker, inline | {"resolution": 1024, "decimation_target": 200_000})
    assert large["code"] == "answer_too_large"
    for advice in ("BUCKET_ENDPOINT_URL", "upload_url", "texture_size"):
        assert advice in large["error"]


def test_a_worker_without_a_bucket_delivers_inline_not_to_its_disk(tmp_path: Path) -> None:
    worker = start(tmp_path, RUNPOD_WEBHOOK_GET_JOB="http://plane/job-take/")
    answer = handle(worker, QUICK)
    assert answer["artifact"]["base64"]
    refused = handle(worker, QUICK | {"output": {"delivery": "url"}})
    assert refused["code"] == "invalid_input"
    assert "bucket" in refused["error"]


def test_a_worker_never_falls_back_to_the_embedded_engine() -> None:
    settings = Settings.from_env({"RUNPOD_WEBHOOK_GET_JOB": "http://plane/job-take/"})
    with pytest.raises(SetupFailed, match="trellis2"):
        Worker.start(settings)


def test_the_start_up_check_refuses_a_full_disk_and_a_dead_bucket(tmp_path: Path) -> None:
    with pytest.raises(SetupFailed, match="disk"):
        start(tmp_path, TRELLIS2_MIN_FREE_DISK_GB="1000000").require_ready()
    dead = bucket_variables("http://127.0.0.1:9", BUCKET_MAX_ATTEMPTS="1")
    with pytest.raises(SetupFailed, match="ConnectionRefusedError"):
        start(tmp_path, **dead).require_ready()


def test_what_a_crashed_process_left_is_swept_at_start(tmp_path: Path) -> None:
    partial = tmp_path / "output/.partial"
    partial.mkdir(parents=True)
    (partial / "999999999-j-model.glb").write_bytes(b"half")
    (partial / "1-j-model.glb").write_bytes(b"another running process's")
    start(tmp_path)
    assert [p.name for p in partial.iterdir()] == ["1-j-model.glb"]
