"""The real SDK loop in a real process, under a control plane of our own.

For each fault: what was delivered, what the plane saw, what was left on disk.
"""

from __future__ import annotations

import base64
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import runpod

from tests.plane import Plane, WorkerProcess
from tests.test_worker import FILES, PHOTO, QUICK
from trellis_runtime.assets.glb_reader import inspect_glb

FAULTY = "tests/faulty_handler.py"
INLINE = QUICK | {"output": {"delivery": "inline", "preview": False}}


@pytest.fixture
def plane() -> Iterator[Plane]:
    with Plane() as running:
        yield running


def model(record: Any) -> bytes:
    return base64.b64decode(record.output["artifact"]["base64"])


def test_jobs_come_back_through_the_real_client(plane: Plane, tmp_path: Path) -> None:
    runpod.endpoint_url_base = plane.url
    with WorkerProcess(plane, tmp_path):
        endpoint = runpod.Endpoint("ep", api_key="plane-key")
        run = endpoint.run({"input": INLINE})
        output = run.output(timeout=60)
        assert run.status() == "COMPLETED"
        assert base64.b64decode(output["artifact"]["base64"])[:4] == b"glTF"
        assert output["engine"]["name"] == "embedded"
        bad = endpoint.run({"input": {"image": "x", "seed": -1}})
        while bad.status() not in ("FAILED", "COMPLETED"):
            time.sleep(0.1)
        assert bad.status() == "FAILED"
        assert endpoint.health()["jobs"] == {"COMPLETED": 1, "FAILED": 1}


def test_an_error_names_its_code_beside_the_message(plane: Plane, tmp_path: Path) -> None:
    with WorkerProcess(plane, tmp_path):
        record = plane.ask({"image": "x", "texture_size": 1000})
    result = record.results[0]
    assert result["error"].startswith("invalid_input: texture_size is 1000")
    assert result["output"]["code"] == "invalid_input"
    assert result["output"]["field"] == "texture_size"


def test_malformed_jobs_cost_the_others_nothing(plane: Plane, tmp_path: Path) -> None:
    with WorkerProcess(plane, tmp_path) as worker:
        for job in ({"id": "a"}, {"input": {}}, "text"):
            plane.submit_raw(job)
        for payload in (
            None,
            [],
            {"image": None},
            {"image": "\ud800"},
            {"image": PHOTO, "output": 5},
        ):
            assert "error" in plane.ask(payload).results[0]
        assert len(model(plane.ask(INLINE))) > 1024
        assert worker.process.poll() is None


def test_a_result_survives_a_plane_that_errs_and_one_that_refuses(
    plane: Plane, tmp_path: Path
) -> None:
    """5xx is tried again by the SDK; after a 400 the answer beside the model still tells all."""
    with WorkerProcess(plane, tmp_path, RUNPOD_LOG_LEVEL="ERROR") as worker:
        plane.done_statuses.append(500)
        record = plane.ask(INLINE)
        assert record.refused_posts == 1
        assert len(record.results) == 1
        plane.done_statuses.append(400)
        lost = plane.submit(INLINE)
        plane.until(lambda: plane.jobs[lost].refused_posts == 1)
        assert len(plane.ask(INLINE).results) == 1  # the worker goes on
        assert len(worker.events("generation_complete")) == 3


def test_an_answer_too_large_for_the_platform_is_an_error_that_says_what_to_do(
    plane: Plane, tmp_path: Path
) -> None:
    with WorkerProcess(plane, tmp_path, TRELLIS2_MAX_ANSWER_BYTES="100000"):
        result = plane.ask(INLINE).results[0]
    assert result["error"].startswith("answer_too_large")
    assert "BUCKET_ENDPOINT_URL" in result["error"]
    assert all(len(body) < 100_000 for body in plane.raw)


def test_every_post_is_valid_json_without_nan(plane: Plane, tmp_path: Path) -> None:
    with WorkerProcess(plane, tmp_path, FAULTY, FAULT="broken"):
        record = plane.ask(INLINE)
    assert record.results[0]["output"]["code"] == "mesh_rejected"
    for body in plane.raw:
        json.loads(body, parse_constant=lambda name: pytest.fail(f"{name} in {body[:80]!r}"))


@pytest.mark.parametrize("stage", ["condition", "shape", "bake"])
def test_a_stopped_job_stops_within_its_stage_and_delivers_nothing(
    plane: Plane, tmp_path: Path, stage: str
) -> None:
    with WorkerProcess(plane, tmp_path, FAULTY, FAULT=f"slow:{stage}") as worker:
        job = plane.submit(INLINE)
        plane.until(lambda: any(p["stage"] == stage for p in plane.jobs[job].progress))
        plane.stop(job, job)  # two stops at once
        worker.until_event("generation_failed", code="cancelled")
        assert worker.events("stage_finished")[-1]["stage"] == stage
        assert worker.events("stage_finished")[-1]["seconds"] < 2.9  # of 3: inside, at a step
        following = plane.ask({"type": "health"})
        assert following.output["queue"]["in_hand"] == 0
        assert plane.jobs[job].results == []
        assert worker.files() == []


def test_a_job_stopped_in_a_stage_without_steps_stops_at_its_edge(
    plane: Plane, tmp_path: Path
) -> None:
    with WorkerProcess(plane, tmp_path, FAULTY, FAULT="stuck:decode") as worker:
        job = plane.submit(INLINE)
        worker.until_event("stage_finished", stage="texture")
        plane.stop(job)
        worker.until_event("generation_failed", code="cancelled")
        assert worker.events("stage_finished")[-1]["stage"] == "decode"
        next_job = plane.ask(INLINE)
        assert len(model(next_job)) > 1024
        failed, completed = worker.events("generation_failed"), worker.events("generation_complete")
        assert failed[0]["timestamp"] < completed[0]["timestamp"]


def test_stopping_a_job_that_waits_or_is_unknown_harms_nothing(
    plane: Plane, tmp_path: Path
) -> None:
    with WorkerProcess(plane, tmp_path):
        plane.stop("no-such-job")
        assert len(model(plane.ask(INLINE))) > 1024


def test_progress_comes_in_order_and_never_after_the_result(plane: Plane, tmp_path: Path) -> None:
    with WorkerProcess(plane, tmp_path, FAULTY, FAULT="slow:texture"):
        record = plane.ask(INLINE)
        time.sleep(0.5)
    assert "output" in record.events[-1]
    assert record.events[-1].get("status") is None
    fractions = [p["progress"] for p in record.progress]
    assert 2 <= len(fractions) <= 8
    assert fractions == sorted(fractions)


def test_sigterm_finishes_and_delivers_the_job_in_hand_and_takes_no_other(
    plane: Plane, tmp_path: Path
) -> None:
    with WorkerProcess(plane, tmp_path, FAULTY, FAULT="slow:shape") as worker:
        job = plane.submit(INLINE)
        worker.until_event("stage_finished", stage="structure")
        worker.send(signal.SIGTERM)
        time.sleep(0.1)
        waiting = plane.submit(INLINE)
        assert worker.wait() == 0
    assert len(model(plane.jobs[job])) > 1024
    assert plane.jobs[waiting].takes == 0


def test_sigterm_without_a_job_ends_at_once(plane: Plane, tmp_path: Path) -> None:
    with WorkerProcess(plane, tmp_path) as worker:
        plane.ask({"type": "health"})
        worker.send(signal.SIGTERM)
        assert worker.wait(20) == 0


def test_a_job_that_outlasts_the_grace_period_does_not_hold_the_process(
    plane: Plane, tmp_path: Path
) -> None:
    with WorkerProcess(
        plane, tmp_path, FAULTY, FAULT="slow:shape", TRELLIS2_SHUTDOWN_GRACE_S="0.3"
    ) as worker:
        job = plane.submit(INLINE)
        worker.until_event("stage_finished", stage="structure")
        worker.send(signal.SIGTERM)
        assert worker.wait(20) == 1
        assert worker.events("grace_period_over")
    assert plane.jobs[job].results == []


def test_sigkill_leaves_no_half_file_and_a_retry_ends_in_one_truth(
    plane: Plane, tmp_path: Path
) -> None:
    """The platform runs a dead worker's job again, with the same id."""
    with WorkerProcess(plane, tmp_path, FAULTY, FAULT="slow:bake") as worker:
        first = plane.submit(INLINE | {"seed": None}, job_id="same-id")
        worker.until_event("stage_finished", stage="decode")
        worker.send(signal.SIGKILL)
        worker.wait()
        assert worker.files() == []
        worker.restart()
        plane.submit(INLINE | {"seed": None}, job_id="same-id")
        record = plane.result("same-id")
        again = plane.submit(INLINE | {"seed": None}, job_id="same-id")
        plane.until(lambda: len(plane.jobs["same-id"].results) == 1)
        repeated = plane.result("same-id")
    assert first == again == "same-id"
    assert record.output["artifact"]["sha256"] == repeated.output["artifact"]["sha256"]


def test_sigkill_while_files_are_written_leaves_whole_files_or_none(tmp_path: Path) -> None:
    """Local delivery, killed at many moments: a file under its final name is always whole."""
    job = {"id": "killed", "input": QUICK | {"output": {"delivery": "url"}}}
    (tmp_path / "test_input.json").write_text(json.dumps(job))
    seen_some = False
    with Plane() as plane:
        for delay in (0.0, 0.005, 0.02, 0.05, 0.2):
            with WorkerProcess(plane, tmp_path, local=True) as worker:
                worker.until_event("stage_finished", stage="preview")
                time.sleep(delay)
            Path(tmp_path / "worker.log").unlink()
            final = [f for f in worker.files() if not f.startswith(".partial")]
            seen_some |= "killed/model.glb" in final
            if "killed/model.glb" in final:
                assert inspect_glb((worker.output / "killed/model.glb").read_bytes()).errors == []
            if "killed/answer.json" in final:
                json.loads((worker.output / "killed/answer.json").read_bytes())
        with WorkerProcess(plane, tmp_path, local=True) as worker:
            assert worker.wait() == 0
        assert worker.files() == [f"killed/{name}" for name in FILES]
    assert seen_some


@pytest.mark.parametrize("fault", ["poison:shape", "poison:bake"])
def test_a_poisoned_worker_answers_asks_to_be_replaced_and_takes_no_further_job(
    plane: Plane, tmp_path: Path, fault: str
) -> None:
    with WorkerProcess(plane, tmp_path, FAULTY, FAULT=fault) as worker:
        job = plane.submit(INLINE)
        waiting = plane.submit(INLINE)
        record = plane.result(job)
        assert worker.wait(20) == 1
    assert record.results[0]["stopPod"] is True
    assert record.results[0]["output"]["code"] == "engine_fault"
    assert record.results[0]["output"]["retryable"] is True
    assert plane.jobs[waiting].takes == 0


def test_an_unforeseen_exception_is_answered_without_traceback_host_or_path(
    plane: Plane, tmp_path: Path
) -> None:
    with WorkerProcess(plane, tmp_path, FAULTY, FAULT="crash:texture") as worker:
        result = plane.ask(INLINE).results[0]
        assert "KeyError" in worker.log  # the operator sees it
    assert result["output"]["code"] == "internal"
    for secret in ("secret", "Traceback", "KeyError", "w1"):
        assert secret not in json.dumps(result)


def test_health_through_the_plane_is_bounded_even_when_the_driver_hangs(
    plane: Plane, tmp_path: Path
) -> None:
    with WorkerProcess(plane, tmp_path, FAULTY, FAULT="hang"):
        assert plane.ask({"type": "health"}).output["status"] == "timeout"


@pytest.mark.parametrize(
    "broken",
    [
        {"TRELLIS2_MIN_FREE_DISK_GB": "1000000"},
        {"BUCKET_ENDPOINT_URL": "http://127.0.0.1:9"},
        {"TRELLIS2_ENGINE": "trellis2"},
        {"TRELLIS2_NO_SUCH_THING": "1"},
    ],
    ids=lambda broken: next(iter(broken)),
)
def test_a_worker_that_cannot_serve_never_takes_a_job(
    plane: Plane, tmp_path: Path, broken: dict[str, str]
) -> None:
    job = plane.submit(INLINE)
    with WorkerProcess(plane, tmp_path, **broken) as worker:
        assert worker.wait(30) != 0
    assert plane.jobs[job].takes == 0


def test_neither_image_nor_key_nor_query_reaches_the_log(plane: Plane, tmp_path: Path) -> None:
    with WorkerProcess(plane, tmp_path) as worker:
        plane.ask(INLINE)
        plane.ask({"image_url": "http://127.0.0.1:9/x.png?token=QUERYSECRET"})
        plane.ask({"image": "notbase64-IMAGESECRET"})
        log = worker.log
    for secret in ("QUERYSECRET", "IMAGESECRET", PHOTO[:40], "plane-key"):
        assert secret not in log
    assert "QUERYSECRET" not in json.dumps([r.events for r in plane.jobs.values()])
