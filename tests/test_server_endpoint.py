"""An endpoint that misbehaves: its jobs end here, and what was submitted is cancelled there."""

from __future__ import annotations

import gzip
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

from tests.loopback import Authority, http_server
from tests.loopback import body as plain_body
from tests.test_server import body, serving
from trellis_runtime.errors import EndpointFailed
from trellis_runtime.server import endpoint as far_module


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


def told(output: Any, **beside: Any) -> tuple[int, bytes]:
    return 200, json.dumps({"status": "COMPLETED", "output": output} | beside).encode()


DEEP = b'{"status": "COMPLETED", "output": ' + b'{"a": ' * 900 + b"1" + b"}" * 901
ODD: dict[str, Any] = {
    "no variants": lambda answer: told(answer | {"variants": 0}),
    "a number for variants": lambda answer: told(answer | {"variants": 5}),
    "a number for the mesh": lambda answer: told(answer | {"mesh": 5}),
    "a file without an address": lambda answer: told(answer | {"artifact": {"bytes": 1}}),
    "nothing for the degradation": lambda answer: told(answer | {"degradation": None}),
    "words for warnings": lambda answer: told(answer | {"warnings": "none"}),
    "no number": lambda answer: told(answer | {"note": float("nan")}),
    "nothing at all": lambda _: told({}),
    "nesting": lambda _: (200, DEEP),
    "a list for the error": lambda _: told({"error": ["a"], "code": [1], "retryable": "no"}),
    "half a character": lambda _: told({"error": "\ud800", "code": "\ud800"}),
    "an object beside": lambda _: (200, b'{"status": "FAILED", "error": {"error_type": "x"}}'),
    "junk of a cancelled job": lambda _: told({"mesh": 5}, status="CANCELLED"),
}  # fmt: skip


def test_an_answer_of_another_kind_ends_its_job_and_every_job_can_still_be_seen(
    tmp_path: Path,
) -> None:
    endpoint = Endpoint([RUNNING])
    with beside(endpoint, tmp_path) as url:
        good = requests.post(f"{url}/generate", json=body(), timeout=120).json()
        for name, odd in ODD.items():
            endpoint.answers = [odd(good)]
            view = ended(url, submit(url))
            assert view["state"] == ("cancelled" if "cancelled" in name else "failed"), name
            assert isinstance((view["answer"] or {"error": ""})["error"], str), name
            assert requests.get(f"{url}/jobs", timeout=9).status_code == 200, name
        assert len(requests.get(f"{url}/jobs", timeout=9).json()) == len(ODD) + 1
        assert requests.get(f"{url}/metrics", timeout=9).status_code == 200


def test_a_newer_workers_answer_is_taken_with_what_it_has_more(tmp_path: Path) -> None:
    endpoint = Endpoint([RUNNING])
    with beside(endpoint, tmp_path) as url:
        asked = body(output={"delivery": "inline"})
        good = requests.post(f"{url}/generate", json=asked, timeout=120).json()
        endpoint.answers = [told(good | {"of_tomorrow": 1})]
        view = ended(url, submit(url))
        assert (view["state"], view["answer"]["of_tomorrow"]) == ("done", 1)


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


@pytest.mark.parametrize("tls", [False, True])
def test_an_endpoint_that_drips_or_pours_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tls: bool
) -> None:
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.bundle))
    quick = far_module._LIMITS.model_copy(update={"timeout_s": 1.0})
    monkeypatch.setattr(far_module, "_LIMITS", quick)
    stop = threading.Event()

    def reply(handler: BaseHTTPRequestHandler) -> None:
        if "status" in handler.path:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while not stop.wait(0.05):
                handler.wfile.write(b" ")
        else:
            plain_body(gzip.compress(b" " * 64_000_000), encoding="gzip")(handler)

    with http_server(reply, authority.context if tls else None) as url:
        far = far_module.Endpoint(url, "ep", "k")
        with pytest.raises(EndpointFailed, match="took too long"):
            far.status("job")
        with pytest.raises(EndpointFailed, match="more than 32000000 bytes"):
            far.run({})
        stop.set()
