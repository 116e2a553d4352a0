"""An endpoint that misbehaves: its jobs end here, and what was submitted is cancelled there."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.test_server import body, serving


class Endpoint(ThreadingHTTPServer):
    """Answers `status` with what `answers` holds, its last one for ever."""

    daemon_threads = True

    def __init__(self, answers: list[tuple[int, bytes]], submit_s: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers, self.submit_s = answers, submit_s
        self.cancelled: list[str] = []
        self.submitted = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        if "/cancel/" in self.path:
            self.server.cancelled.append(self.path.rsplit("/", 1)[1])
        else:
            self.server.submitted.set()
            time.sleep(self.server.submit_s)
        self._answer(200, b'{"id": "far-1", "status": "IN_QUEUE"}')

    def do_GET(self) -> None:
        answers = self.server.answers
        self._answer(*(answers.pop(0) if len(answers) > 1 else answers[0]))

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def beside(endpoint: Endpoint, out: Path) -> Iterator[str]:
    threading.Thread(target=endpoint.serve_forever, daemon=True).start()
    variables = {
        "TRELLIS2_ENDPOINT_API": f"http://127.0.0.1:{endpoint.server_port}",
        "RUNPOD_API_KEY": "k", "TRELLIS2_ENDPOINT_SILENCE_S": "4",
    }  # fmt: skip
    try:
        with serving(out, **variables) as url:
            yield url
    finally:
        endpoint.shutdown()
        endpoint.server_close()


def submit(url: str) -> str:
    answer = requests.post(f"{url}/jobs?endpoint=ep", json=body(), timeout=30)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def ended(url: str, job_id: str) -> dict[str, Any]:
    for _ in range(300):
        view: dict[str, Any] = requests.get(f"{url}/jobs/{job_id}", timeout=9).json()
        if view["state"] != "running":
            return view
        time.sleep(0.1)
    raise AssertionError("it never ended")


RUNNING = (200, b'{"status": "IN_PROGRESS"}')
FAILED = (200, json.dumps({"status": "FAILED", "error": "as it should"}).encode())


def test_a_502_while_polling_is_lived_through(tmp_path: Path) -> None:
    endpoint = Endpoint([RUNNING, (502, b"bad gateway"), (200, b"<html>"), FAILED])
    with beside(endpoint, tmp_path) as url:
        assert ended(url, submit(url))["answer"]["error"] == "endpoint_failed: as it should"
    assert endpoint.cancelled == []


@pytest.mark.parametrize("answer", [(502, b""), (200, b"<html>")])
def test_a_long_silence_ends_the_job_here_and_there(
    tmp_path: Path, answer: tuple[int, bytes]
) -> None:
    endpoint = Endpoint([answer])
    with beside(endpoint, tmp_path) as url:
        assert ended(url, submit(url))["answer"]["code"] == "endpoint_failed"
    assert endpoint.cancelled == ["far-1"]


def test_completed_without_a_result_is_a_failure(tmp_path: Path) -> None:
    with beside(Endpoint([(200, b'{"status": "COMPLETED"}')]), tmp_path) as url:
        assert ended(url, submit(url))["state"] == "failed"


def test_a_cancel_during_submit_is_carried_there(tmp_path: Path) -> None:
    endpoint = Endpoint([RUNNING], submit_s=2.0)
    with beside(endpoint, tmp_path) as url:
        job_id = submit(url)
        assert endpoint.submitted.wait(20)
        cancelled = requests.post(f"{url}/jobs/{job_id}/cancel", timeout=30)
        assert cancelled.json()["state"] == "cancelled"
    assert endpoint.cancelled == ["far-1"]


def test_jobs_on_endpoints_are_bounded_and_leave_local_ones_alone(tmp_path: Path) -> None:
    with beside(Endpoint([RUNNING], submit_s=5.0), tmp_path) as url:
        for _ in range(8):
            submit(url)
        more = requests.post(f"{url}/jobs?endpoint=ep", json=body(), timeout=30)
        assert (more.status_code, more.json()["code"]) == (429, "worker_busy")
        assert requests.post(f"{url}/generate", json=body(), timeout=120).status_code == 200
