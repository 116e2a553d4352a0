"""The local server: a real process on a real port, driven over HTTP."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from fastapi.testclient import TestClient
from PIL import Image, ImageDraw

from tests import processes
from tests.plane import Plane, WorkerProcess
from trellis_runtime.assets.glb_reader import require_glb
from trellis_runtime.engines.embedded import EmbeddedEngine
from trellis_runtime.server import create_app
from trellis_runtime.settings import Settings
from trellis_runtime.worker import worker as worker_module

QUICK = {"preset": "fast", "texture_size": 1024, "decimation_target": 5000, "seed": 3}


def picture(side: int = 160) -> bytes:
    image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse([20, 30, side - 20, side - 30], fill=(200, 90, 40, 255))
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def body(**more: Any) -> dict[str, Any]:
    return QUICK | {"image": base64.b64encode(picture()).decode()} | more


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until_ready(url: str) -> None:
    """Wait for a server that takes jobs; raises `TimeoutError`."""
    for _ in range(600):
        try:
            if requests.get(f"{url}/ping", timeout=5).status_code == 200:
                return
        except requests.RequestException:
            pass
        time.sleep(0.1)
    raise TimeoutError(url)


@contextmanager
def serving(out: Path, *arguments: str, **variables: str) -> Iterator[str]:
    port = free_port()
    environment = os.environ | {
        "TRELLIS2_ENGINE": "embedded", "TRELLIS2_OUTPUT_DIR": str(out),
        "TRELLIS2_MIN_FREE_DISK_GB": "0", **variables,
    }  # fmt: skip
    command = [sys.executable, "-m", "trellis_runtime", "serve", "--port", str(port), *arguments]
    process = processes.start(command, env=environment, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        until_ready(url)
        yield url
    finally:
        processes.stop(process, grace_s=30)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def url(out: Path) -> Iterator[str]:
    with serving(out) as url:
        yield url


def events(url: str, job_id: str) -> list[dict[str, Any]]:
    found = []
    with requests.get(f"{url}/jobs/{job_id}/events", stream=True, timeout=120) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line.startswith(b"data: "):
                found.append(json.loads(line[6:]))
    return found


def test_generate_answers_with_the_model(url: str) -> None:
    answer = requests.post(f"{url}/generate", json=body(), timeout=120)
    assert answer.status_code == 200, answer.text
    made = answer.json()
    assert made["engine"]["name"] == "embedded"
    glb = requests.get(f"{url}/jobs/{made['job_id']}/files/model.glb", timeout=30)
    assert glb.headers["content-type"] == "model/gltf-binary"
    require_glb(glb.content)
    small = requests.get(f"{url}/jobs/{made['job_id']}/files/thumbnail.webp", timeout=30)
    assert Image.open(io.BytesIO(small.content)).size == (256, 256)


def test_a_job_is_followed_to_its_end_and_remembered(url: str, out: Path) -> None:
    wanted = body(preset="balanced", decimation_target=60_000, output={"turntable": True})
    submitted = requests.post(f"{url}/jobs", json=wanted, timeout=30)
    assert submitted.status_code == 202
    job_id = submitted.json()["id"]
    seen = events(url, job_id)
    assert seen[-1]["state"] == "done"
    assert len({view["stage"] for view in seen}) >= 2
    assert [v["progress"] for v in seen] == sorted(v["progress"] for v in seen)
    assert "image" not in seen[-1]["request"]
    turn = requests.get(f"{url}/jobs/{job_id}/files/turntable.webp", timeout=30).content
    assert Image.open(io.BytesIO(turn)).n_frames >= 24
    for name in ("base_color", "metallic", "roughness"):
        shown = requests.get(f"{url}/jobs/{job_id}/maps/{name}", timeout=30)
        assert Image.open(io.BytesIO(shown.content)).width >= 256
    with serving(out) as again:  # another process finds it on the disk
        assert requests.get(f"{again}/jobs/{job_id}", timeout=30).json()["state"] == "done"
        assert job_id in [job["id"] for job in requests.get(f"{again}/jobs", timeout=30).json()]
        assert events(again, job_id)[-1]["answer"]["job_id"] == job_id


def test_faults_are_told_with_their_field_and_status(url: str) -> None:
    def post(content: Any) -> requests.Response:
        return requests.post(f"{url}/generate", json=content, timeout=60)

    bad = post(body(image=base64.b64encode(b"no picture at all, only words").decode()))
    assert (bad.status_code, bad.json()["code"]) == (400, "image_rejected")
    assert post(body(resolution=700)).status_code == 400
    assert "resolution" in post(body(resolution=700)).json()["error"]
    assert post([1, 2]).status_code == 400
    assert requests.post(f"{url}/generate", data=b"{", timeout=9).status_code == 400
    for path in ("/jobs/none", "/jobs/none/events", "/jobs/none/files/model.glb", "/nowhere"):
        answer = requests.get(url + path, timeout=9)
        assert answer.status_code == 404
        assert answer.json()["error"]
    outside = requests.get(f"{url}/jobs/..%2F..%2Fetc/files/passwd", timeout=9)
    assert outside.status_code in (400, 404)


def test_a_job_can_be_cancelled_and_leaves_nothing(url: str, out: Path) -> None:
    slow = body(preset="game_asset", decimation_target=800_000, texture_size=4096)
    job_id = requests.post(f"{url}/jobs", json=slow, timeout=30).json()["id"]
    time.sleep(0.3)
    assert requests.post(f"{url}/jobs/{job_id}/cancel", timeout=60).json()["state"] == "cancelled"
    assert events(url, job_id)[-1]["state"] == "cancelled"
    assert not (out / job_id / "model.glb").exists()
    assert requests.post(f"{url}/jobs/{job_id}/cancel", timeout=60).status_code == 409


def test_requests_past_the_limit_are_told_when_to_come_back(tmp_path: Path) -> None:
    slow = body(preset="game_asset", decimation_target=800_000)
    with serving(tmp_path, TRELLIS2_MAX_QUEUED_JOBS="0") as url:
        first = requests.post(f"{url}/jobs", json=slow, timeout=30).json()["id"]
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            refused = requests.post(f"{url}/jobs", json=slow, timeout=30)
            if refused.status_code == 429:
                break
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) > 0
        requests.post(f"{url}/jobs/{first}/cancel", timeout=60)


def test_a_token_guards_everything_but_ping_and_the_page(tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("s3cret-token\n")
    with serving(tmp_path / "out", "--token-file", str(secret)) as url:
        assert requests.get(f"{url}/ping", timeout=9).status_code == 200
        assert requests.get(url, timeout=9).status_code == 200
        for path in ("/docs", "/openapi.json"):  # as published
            assert requests.get(url + path, timeout=9).status_code == 200
        for path in ("/jobs", "/health", "/metrics"):
            assert requests.get(url + path, timeout=9).status_code == 401
        wrong = {"Authorization": "Bearer s3cret-toke"}
        assert requests.get(f"{url}/jobs", headers=wrong, timeout=9).status_code == 401
        for scheme in ("Bearer", "bearer", "BEARER"):
            right = {"Authorization": f"{scheme} s3cret-token"}
            assert requests.get(f"{url}/jobs", headers=right, timeout=9).status_code == 200
        assert requests.head(f"{url}/ping", timeout=9).status_code == 200


def test_an_open_address_without_a_token_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trellis_runtime", "serve", "--host", "0.0.0.0"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--token-file" in done.stderr


def test_a_body_past_the_limit_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path, TRELLIS2_MAX_IMAGE_BYTES="1024") as url:
        answer = requests.post(f"{url}/generate", json=body(image="A" * 200_000), timeout=30)
        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
        unstated = requests.post(f"{url}/generate", data=iter([b"A" * 1000] * 200), timeout=30)
        assert (unstated.status_code, unstated.json()["code"]) == (411, "length_required")


def app_settings(out: Path) -> Settings:
    return Settings.from_env({
        "TRELLIS2_ENGINE": "embedded", "TRELLIS2_OUTPUT_DIR": str(out),
        "TRELLIS2_MIN_FREE_DISK_GB": "0", "TRELLIS2_LOG_LEVEL": "error",
    })  # fmt: skip


class Slow(EmbeddedEngine):
    """Takes its time to load, and its driver hangs when asked for its memory."""

    def __init__(self) -> None:
        super().__init__(None)
        self.may_load, self.may_answer = threading.Event(), threading.Event()

    def load(self, note: Any) -> None:
        self.may_load.wait(30)

    def memory(self) -> Any:
        self.may_answer.wait(30)
        return super().memory()


def test_ping_is_204_while_starting_and_health_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "HEALTH_TIMEOUT_S", 0.2)
    engine = Slow()
    app = create_app(app_settings(tmp_path), engine=engine)
    with TestClient(app, base_url="http://localhost") as client:
        assert client.get("/ping").status_code == 204
        assert client.get("/health").status_code == 503
        engine.may_load.set()
        for _ in range(100):
            if client.get("/ping").status_code == 200:
                break
            time.sleep(0.05)
        hung = client.get("/health")
        assert (hung.status_code, hung.json()["status"]) == (503, "timeout")
        engine.may_answer.set()
        assert client.get("/health").json()["status"] == "ok"


def test_a_worker_that_cannot_start_says_why(tmp_path: Path) -> None:
    class Broken(EmbeddedEngine):
        def load(self, note: Any) -> None:
            from trellis_runtime.errors import SetupFailed

            raise SetupFailed("the model folder is not there")

    with TestClient(create_app(app_settings(tmp_path), engine=Broken(None))) as client:
        for _ in range(100):
            answer = client.get("/ping")
            if answer.status_code == 503:
                break
            time.sleep(0.02)
        assert "the model folder is not there" in answer.json()["error"]


def test_metrics_count_what_happened(url: str) -> None:
    requests.post(f"{url}/generate", json=body(), timeout=120)
    requests.post(f"{url}/generate", json=body(image="AAAA"), timeout=60)
    page = requests.get(f"{url}/metrics", timeout=9).text
    for line in (
        'trellis2_jobs_total{code="",outcome="done"}',
        'trellis2_jobs_total{code="image_rejected",outcome="failed"}',
        'trellis2_degradation_total{level="0",rung="as_asked"}',
        'trellis2_stage_seconds_bucket{le="+Inf",stage="bake"}',
        "trellis2_ready_seconds",
        "trellis2_disk_free_bytes",
        "trellis2_received_bytes_total",
        "trellis2_delivered_bytes_total",
    ):
        assert line in page, line


def test_every_metric_of_the_dashboard_and_the_alerts_exists(url: str) -> None:
    import re

    docs = Path(__file__).parent.parent / "docs"
    page = requests.get(f"{url}/metrics", timeout=9).text
    known = set(re.findall(r"^# TYPE (\S+)", page, re.MULTILINE))
    known |= {f"{name}{end}" for name in known for end in ("_bucket", "_count", "_sum")}
    for name in ("grafana-dashboard.json", "alerts.yml"):
        used = set(re.findall(r"trellis2_\w+", (docs / name).read_text()))
        assert used
        assert used <= known, f"{name}: {used - known}"
    json.loads((docs / "grafana-dashboard.json").read_text())


def test_the_openapi_description_holds(url: str, tmp_path: Path) -> None:
    # The schema makes addresses that nobody answers: 502 is then the right answer.
    config = tmp_path / "schemathesis.toml"
    allowed = '["2xx", "3xx", "4xx", "502"]'
    config.write_text(f"[checks.not_a_server_error]\nexpected-statuses = {allowed}\n")
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(config),
        "run", f"{url}/openapi.json",
        "--max-examples", "15", "--seed", "1", "--phases", "examples,coverage,fuzzing",
        # a JSON Schema cannot say that a string is a picture
        "--exclude-checks", "positive_data_acceptance",
        "--exclude-path-regex", "/events", "--request-timeout", "60", "--no-color",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-6000:]


def test_a_job_runs_on_an_endpoint_and_its_files_come_here(tmp_path: Path) -> None:
    small = body(texture_size=512, decimation_target=2000)
    key = {"RUNPOD_API_KEY": "rpa_very-secret-key"}
    with Plane() as plane, WorkerProcess(plane, tmp_path):
        variables = key | {"TRELLIS2_ENDPOINT_API": plane.url}
        with serving(tmp_path / "here", **variables) as url:
            submitted = requests.post(f"{url}/jobs?endpoint=ep", json=small, timeout=30)
            assert submitted.status_code == 202, submitted.text
            last = events(url, submitted.json()["id"])[-1]
            assert last["state"] == "done", last
            assert "base64" not in last["answer"]["artifact"]
            folder = f"{url}/jobs/{last['id']}"
            require_glb(requests.get(f"{folder}/files/model.glb", timeout=30).content)
            assert requests.get(f"{folder}/maps/base_color", timeout=30).status_code == 200
            assert key["RUNPOD_API_KEY"] not in json.dumps(last)
            bad = requests.post(
                f"{url}/jobs?endpoint=ep", json=small | {"image": "AAAA"}, timeout=30
            )
            failed = events(url, bad.json()["id"])[-1]
            assert (failed["state"], failed["answer"]["code"]) == ("failed", "image_rejected")


def test_without_a_key_no_endpoint_is_spoken_to(url: str) -> None:
    refused = requests.post(f"{url}/jobs?endpoint=ep", json=body(), timeout=30)
    assert refused.status_code == 400
    assert "RUNPOD_API_KEY" in refused.json()["error"]
    assert requests.post(f"{url}/jobs?endpoint=../x", json=body(), timeout=30).status_code == 400


def test_an_endpoint_that_cannot_be_reached_is_an_error_without_the_key(tmp_path: Path) -> None:
    nowhere = {
        "RUNPOD_API_KEY": "rpa_k",
        "TRELLIS2_ENDPOINT_API": f"http://127.0.0.1:{free_port()}",
    }
    with serving(tmp_path, **nowhere) as url:
        job = requests.post(f"{url}/jobs?endpoint=ep", json=body(), timeout=30).json()
        last = events(url, job["id"])[-1]
        assert last["answer"]["code"] == "endpoint_failed"
        assert "rpa_k" not in json.dumps(last)
