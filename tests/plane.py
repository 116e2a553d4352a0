"""RunPod's control plane on the loopback, as the real SDK speaks to it, and workers under it.

Worker's side: job-take (long poll), job-take-batch, job-stop (long poll), job-done, ping. Client's
side: run, status, cancel, health, for the real `runpod.Endpoint`. Faults are set per test.
"""

from __future__ import annotations

import http.server
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests import processes
from tests.conftest import ROOT, environment

HOLD_S = 1.0  # how long an empty poll is held; the platform holds up to 90 s
WAIT_S = 60.0
HANG = -1


@dataclass(slots=True)
class Record:
    """What the plane knows of a job."""

    job: dict[str, Any]
    state: str = "IN_QUEUE"
    takes: int = 0
    results: list[dict[str, Any]] = field(default_factory=list)
    refused_posts: int = 0
    open_updates: list[Callable[[], bool]] = field(default_factory=list)
    """For each update that is held, whether its client has left."""
    overtaken: bool = False
    """Whether the result came while an update was still under way: either may then be last."""
    events: list[dict[str, Any]] = field(default_factory=list)
    """Everything posted for the job, in the order of arrival; progress included."""

    @property
    def output(self) -> dict[str, Any]:
        return self.results[-1].get("output") or {}

    @property
    def progress(self) -> list[dict[str, Any]]:
        return [e["output"] for e in self.events if e.get("status") == "IN_PROGRESS"]


class Plane:
    """`with Plane() as plane:` serves one endpoint named `ep`."""

    def __init__(self) -> None:
        self.jobs: dict[str, Record] = {}
        self.done_statuses: deque[int] = deque()
        """How the next results are answered; 0 is a reset, `HANG` an answer that never comes."""
        self.updates_hang = False
        """Whether progress posts are held until the client leaves."""
        self.pings: list[dict[str, list[str]]] = []
        self.raw: list[bytes] = []
        self._queue: deque[str] = deque()
        self._stops: deque[str] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._server = _server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v2"

    def submit(self, payload: Any, job_id: str | None = None, **top: Any) -> str:
        """Queue a job; `top` are fields beside its input (policy, s3Config, ...)."""
        job_id = job_id or f"job-{uuid.uuid4().hex[:10]}"
        with self._changed:
            self.jobs[job_id] = Record({"id": job_id, "input": payload, **top})
            self._queue.append(job_id)
            self._changed.notify_all()
        return job_id

    def submit_raw(self, job: Any) -> None:
        """Queue something that is perhaps no job at all."""
        key = f"raw-{uuid.uuid4().hex[:6]}"
        with self._changed:
            self.jobs[key] = Record(job)
            self._queue.append(key)
            self._changed.notify_all()

    def stop(self, *job_ids: str) -> None:
        """Tell the worker to stop jobs."""
        with self._changed:
            self._stops.extend(job_ids)
            self._changed.notify_all()

    def until(self, condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
        """Wait for what the plane sees."""
        with self._changed:
            if not self._changed.wait_for(condition, timeout_s):
                raise TimeoutError(
                    f"not seen: {[(r.state, r.events[-2:]) for r in self.jobs.values()]}"
                )

    def result(self, job_id: str, timeout_s: float = WAIT_S) -> Record:
        record = self.jobs[job_id]
        self.until(lambda: bool(record.results), timeout_s)
        return record

    def ask(self, payload: Any, **top: Any) -> Record:
        return self.result(self.submit(payload, **top))

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Plane:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    # --- what requests do ---

    def take(self, count: int) -> list[dict[str, Any]]:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._queue) or self._closing, HOLD_S)
            taken = []
            while self._queue and len(taken) < count:
                record = self.jobs[self._queue.popleft()]
                record.state, record.takes = "IN_PROGRESS", record.takes + 1
                taken.append(record.job)
            self._changed.notify_all()
            return taken

    def stops(self) -> list[str]:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._stops) or self._closing, HOLD_S)
            taken, self._stops = list(self._stops), deque()
            return taken

    def done(self, job_id: str, body: bytes, left: Callable[[], bool]) -> int:
        """Take what was posted for a job; `left` tells whether its client is gone."""
        event = json.loads(body)
        is_progress = event.get("status") == "IN_PROGRESS"
        if is_progress and self.updates_hang:
            self._hold_update(job_id, left)
        with self._changed:
            self.raw.append(body)
            record = self.jobs.get(job_id)
            status = 200 if is_progress or not self.done_statuses else self.done_statuses.popleft()
            if record is not None:
                if status != 200:
                    record.refused_posts += 1
                else:
                    record.events.append(event)
                    if not is_progress:
                        record.overtaken |= not all(left() for left in record.open_updates)
                        record.results.append(event)
                        record.state = "FAILED" if "error" in event else "COMPLETED"
            self._changed.notify_all()
            return status

    def _hold_update(self, job_id: str, left: Callable[[], bool]) -> None:
        record = self.jobs[job_id]
        record.open_updates.append(left)
        while not left() and not self._closing:
            time.sleep(0.05)
        record.open_updates.remove(left)

    def status(self, job_id: str) -> dict[str, Any]:
        record = self.jobs[job_id]
        answer: dict[str, Any] = {"id": job_id, "status": record.state}
        if record.results:
            answer |= record.results[-1]
        return answer

    def cancel(self, job_id: str) -> dict[str, Any]:
        self.jobs[job_id].state = "CANCELLED"
        self.stop(job_id)
        return {"id": job_id, "status": "CANCELLED"}


class _Handler(http.server.BaseHTTPRequestHandler):
    plane: Plane
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        verb, *rest = parts.path.removeprefix("/v2/ep/").split("/")
        query = parse_qs(parts.query)
        if verb == "job-take":
            jobs = self.plane.take(1)
            self.answer(200 if jobs else 204, jobs[0] if jobs else None)
        elif verb == "job-take-batch":
            jobs = self.plane.take(int(query["batch_size"][0]))
            self.answer(200 if jobs else 204, jobs or None)
        elif verb == "job-stop":
            stops = self.plane.stops()
            self.answer(200 if stops else 204, {"jobsToStop": stops} if stops else None)
        elif verb == "ping":
            self.plane.pings.append(query)
            self.answer(200, {})
        elif verb == "status":
            self.answer(200, self.plane.status(rest[0]))
        elif verb == "health":
            states = [r.state for r in self.plane.jobs.values()]
            self.answer(200, {"jobs": {s: states.count(s) for s in set(states)}})
        else:
            self.answer(404, {})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        verb, *rest = urlsplit(self.path).path.removeprefix("/v2/ep/").split("/")
        if verb == "job-done":
            status = self.plane.done(rest[1], body, self._client_left)
            while status == HANG and not self._client_left():
                time.sleep(0.05)
            if status > 0:
                self.answer(status, {})
            else:
                self._reset()
        elif verb == "run":
            job = json.loads(body)
            job_id = self.plane.submit(job.pop("input"), **job)
            self.answer(200, {"id": job_id, "status": "IN_QUEUE"})
        elif verb == "runsync":
            job = json.loads(body)
            job_id = self.plane.submit(job.pop("input"), **job)
            self.plane.result(job_id)
            self.answer(200, self.plane.status(job_id))
        elif verb == "cancel":
            self.answer(200, self.plane.cancel(rest[0]))
        else:
            self.answer(404, {})

    def _client_left(self) -> bool:
        readable = select.select([self.connection], [], [], 0)[0]
        try:
            return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def answer(self, status: int, body: Any) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Quiet(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # killed workers leave their polls behind


def _server(plane: Plane) -> http.server.ThreadingHTTPServer:
    return _Quiet(("127.0.0.1", 0), type("Handler", (_Handler,), {"plane": plane}))


class WorkerProcess:
    """`handler.py`, or another script that serves, as its own process under a plane."""

    def __init__(
        self,
        plane: Plane,
        tmp_path: Path,
        script: str = "handler.py",
        *,
        local: bool = False,
        **env: str,
    ) -> None:
        self.output = tmp_path / "output"
        self._log = tmp_path / "worker.log"
        variables = environment(tmp_path, TRELLIS2_LOG_LEVEL="info", TRELLIS2_LOG_FORMAT="json")
        base = plane.url + "/ep"
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=x",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=x",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID?gpu=x",
            "RUNPOD_POD_ID": "w1",
            "RUNPOD_AI_API_KEY": "plane-key",
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
            **variables,
            "TRELLIS2_FETCH_ALLOW_NETWORKS": "127.0.0.1/32",
            **env,
        }
        if local:  # the SDK then runs test_input.json of the working folder, once
            del self._environment["RUNPOD_WEBHOOK_GET_JOB"]
        self._script = ROOT / script
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return processes.start(
                [sys.executable, str(self._script)],
                env=self._environment,
                cwd=self._log.parent,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def restart(self) -> None:
        """Start again; what the killed process left goes with its group (the SDK's ping process)."""
        processes.stop(self.process)
        self.process = self._start()

    @property
    def log(self) -> str:
        return self._log.read_text()

    def events(self, name: str) -> list[dict[str, Any]]:
        """The worker's own log lines of one event."""
        found = []
        for line in self.log.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and entry.get("event") == name:
                found.append(entry)
        return found

    def until_event(self, name: str, timeout_s: float = WAIT_S, **fields: Any) -> None:
        """Wait until the worker has logged an event with these fields."""
        limit = time.monotonic() + timeout_s
        while time.monotonic() < limit:
            if any(fields.items() <= e.items() for e in self.events(name)):
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise TimeoutError(f"{name} was not logged:\n{self.log[-3000:]}")

    def send(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def wait(self, timeout_s: float = WAIT_S) -> int:
        return self.process.wait(timeout_s)

    def files(self) -> list[str]:
        """Everything left on disk, relative to the output folder."""
        if not self.output.exists():
            return []
        return sorted(
            str(p.relative_to(self.output)) for p in self.output.rglob("*") if p.is_file()
        )

    def close(self) -> None:
        processes.stop(self.process)

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()
