"""What the local server bounds: bodies that are read, connections, memory; and its ports."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import uvicorn
from fastapi import FastAPI

from tests import processes
from tests.test_server import body, free_port
from trellis_runtime.engines.embedded import EmbeddedEngine
from trellis_runtime.server import create_app, guards, listen
from trellis_runtime.settings import Settings


@contextmanager
def listening(app: FastAPI) -> Iterator[int]:
    """Serve an application as `listen` does, in this process, on a thread; gives its port."""
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(app, port=port, http=listen.BoundedProtocol, log_level="warning")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: ping(port) == 200)
        yield port
    finally:
        server.should_exit = True
        thread.join()


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


def ping(port: int) -> int | None:
    """Return how `/ping` is answered, None where nothing listens yet."""
    try:
        return requests.get(f"http://127.0.0.1:{port}/ping", timeout=20).status_code
    except requests.ConnectionError:
        return None


def app_of(out: Path, token: str | None = None, engine: Any = None, **variables: str) -> FastAPI:
    given = {
        "TRELLIS2_ENGINE": "embedded", "TRELLIS2_OUTPUT_DIR": str(out),
        "TRELLIS2_MIN_FREE_DISK_GB": "0", "TRELLIS2_LOG_LEVEL": "error", **variables,
    }  # fmt: skip
    return create_app(Settings.from_env(given), token, engine)


def half_sent(port: int, path: str = "/generate") -> socket.socket:
    """Send a request's headers and the first byte of its body."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=60)
    sock.sendall(
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\n{{".encode()
    )
    return sock


def test_a_body_that_does_not_arrive_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert guards.BODY_S == 60
    monkeypatch.setattr(guards, "BODY_S", 0.3)
    with listening(app_of(tmp_path)) as port, half_sent(port) as slow:
        assert slow.recv(100).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(("path", "room"), [("/generate", 1), ("/jobs?endpoint=ep", 8)])
def test_a_body_that_is_read_counts_as_a_job(tmp_path: Path, path: str, room: int) -> None:
    app = app_of(
        tmp_path, TRELLIS2_MAX_QUEUED_JOBS="0", RUNPOD_API_KEY="k",
        TRELLIS2_ENDPOINT_API="http://127.0.0.1:9",
    )  # fmt: skip
    served = app.state.served
    with listening(app) as port:
        reading = [half_sent(port, path) for _ in range(room)]
        until(lambda: served.reading + served.reading_for_endpoints == room)
        more = requests.post(f"http://127.0.0.1:{port}{path}", json=body(), timeout=60)
        assert more.status_code == 429
        for sock in reading:
            sock.close()
        until(lambda: served.reading + served.reading_for_endpoints == 0)


def test_connections_have_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert listen.MAX_CONNECTIONS == 512
    monkeypatch.setattr(listen, "MAX_CONNECTIONS", 4)
    monkeypatch.setattr(listen, "HEADER_S", 600.0)
    with listening(app_of(tmp_path)) as port:
        held = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(4)]
        with socket.create_connection(("127.0.0.1", port), timeout=60) as beyond:
            assert beyond.recv(1) == b""
        held[0].sendall(b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert held[0].recv(100).startswith(b"HTTP/1.1 200")
        for sock in held:
            sock.close()


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_schemes_name_has_no_case(tmp_path: Path, scheme: str) -> None:
    from fastapi.testclient import TestClient

    with TestClient(app_of(tmp_path, token="t0ken"), base_url="http://localhost") as client:
        until(lambda: client.get("/ping").status_code == 200)
        right = client.get("/jobs", headers={"Authorization": f"{scheme} t0ken"})
        assert right.status_code == 200
        for wrong in ("Basic t0ken", f"{scheme} other", "t0ken"):
            assert client.get("/jobs", headers={"Authorization": wrong}).status_code == 401


def test_an_engine_that_fails_to_load_with_the_first_job_turns_ping_unhealthy(
    tmp_path: Path,
) -> None:
    class Broken(EmbeddedEngine):
        def load(self, *_: object) -> None:  # type: ignore[override]
            raise RuntimeError("no kernel image")

    app = app_of(tmp_path, engine=Broken(), TRELLIS2_PRELOAD="0")
    with listening(app) as port:
        url = f"http://127.0.0.1:{port}"
        failed = requests.post(f"{url}/generate", json=body(), timeout=60)
        assert failed.json()["code"] == "internal"
        told = requests.get(f"{url}/ping", timeout=60)
        assert (told.status_code, told.json()["error"]) == (
            503,
            "unhealthy: this worker is defunct",
        )


def test_the_platforms_ports_are_listened_to(tmp_path: Path) -> None:
    """PORT serves; PORT_HEALTH answers /ping from the start, when no engine is there yet."""
    port, health = free_port(), free_port()
    variables = {
        "TRELLIS2_ENGINE": "embedded", "TRELLIS2_OUTPUT_DIR": str(tmp_path),
        "TRELLIS2_MIN_FREE_DISK_GB": "0", "RUNPOD_ENDPOINT_ID": "ep",
        "PORT": str(port), "PORT_HEALTH": str(health),
    }  # fmt: skip
    process = processes.start(
        [sys.executable, "-m", "trellis_runtime", "serve"], env=os.environ | variables,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    seen = set()
    try:
        until(lambda: seen.add(ping(health)) or 200 in seen)  # type: ignore[func-returns-value]
        assert ping(port) == 200
        assert seen <= {None, 204, 200}
    finally:
        processes.stop(process, grace_s=30)


# --- memory ---


def peak_mib(pid: int) -> float:
    """Return the kernel's account of the most that a process has held."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+)", text)
    assert found is not None
    return int(found.group(1)) / 1024


def empty_is_answered(url: str, status: int) -> bool:
    """Whether a job without a picture is answered so: 400 where there is room to read it."""
    return requests.post(url, data="{}", timeout=60).status_code == status


@contextmanager
def own_process(out: Path, **variables: str) -> Iterator[tuple[int, int]]:
    """Run the server in a process of its own; gives its port and id."""
    port = free_port()
    given = {
        "TRELLIS2_ENGINE": "embedded", "TRELLIS2_OUTPUT_DIR": str(out),
        "TRELLIS2_MIN_FREE_DISK_GB": "0", "TRELLIS2_LOG_LEVEL": "error", **variables,
    }  # fmt: skip
    command = [sys.executable, "-m", "trellis_runtime", "serve", "--port", str(port)]
    process = processes.start(command, env=os.environ | given, stdout=subprocess.DEVNULL)
    try:
        until(lambda: ping(port) == 200)
        yield port, process.pid
    finally:
        processes.stop(process, grace_s=30)


def test_the_doors_keep_within_their_memory(tmp_path: Path) -> None:
    """A body of 27 MB, forty at once while no job may come, and 400 half-sent headers."""
    large = json.dumps({"image": "A" * 27_000_000}).encode()
    with own_process(tmp_path, TRELLIS2_MAX_QUEUED_JOBS="0") as (port, pid):
        url = f"http://127.0.0.1:{port}/jobs"
        base = peak_mib(pid)
        requests.post(url, data=large, timeout=60)
        one = peak_mib(pid)
        assert one < base + 160
        codes: list[int] = []

        def post() -> None:
            try:
                codes.append(requests.post(url, data=large, timeout=60).status_code)
            except requests.ConnectionError:  # refused before it was sent
                codes.append(429)

        until(lambda: empty_is_answered(url, 400))  # that job has ended: there is room
        with half_sent(port, "/jobs"):
            until(lambda: empty_is_answered(url, 429))
            callers = [threading.Thread(target=post) for _ in range(40)]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
        assert codes == [429] * 40
        half = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(400)]
        for sock in half:
            sock.sendall(b"GET /jobs HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 60_000)
        assert requests.get(f"http://127.0.0.1:{port}/ping", timeout=60).status_code == 200
        for sock in half:
            sock.close()
        assert peak_mib(pid) < one + 96
