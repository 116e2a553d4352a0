"""Jobs that came by HTTP: started, followed, cancelled, and remembered on this machine's disk.

Long because a job's whole life, here or on an endpoint, is one class's state.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from trellis_runtime.contract.files import ANSWER, file_called, files_told
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import Stage
from trellis_runtime.delivery.fetch import fetch
from trellis_runtime.delivery.storage import LocalStore, folder_of
from trellis_runtime.errors import EndpointFailed, InternalError, WorkerBusy, WorkerError
from trellis_runtime.logs import logger
from trellis_runtime.server.endpoint import Endpoint
from trellis_runtime.worker.worker import Worker

Answer = dict[str, Any] | None
Task = asyncio.Task[Answer]
_T = TypeVar("_T")
State = Literal["running", "done", "failed", "cancelled"]

REMOTE_ROOM = 8  # jobs on endpoints at a time
_CANCEL_TRIES = 3
_KEPT = 200
_REQUEST_NAME = "request.json"
_HISTORY = 60
_KEEP_ALIVE_S = 15.0
_POLL_S = 1.0
_LARGEST_MODEL = 500_000_000  # bytes


@dataclass(slots=True)
class Job:
    """One job; `request` is what was asked, its picture left out."""

    id: str
    request: dict[str, Any]
    created: float = field(default_factory=time.time)
    state: State = "running"
    stage: str = "queued"
    progress: float = 0.0
    answer: dict[str, Any] | None = None
    version: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    task: Task | None = None

    def view(self) -> dict[str, Any]:
        """Return what the page and the API show of it."""
        return {
            "id": self.id,
            "state": self.state,
            "stage": self.stage,
            "progress": round(self.progress, 3),
            "created": round(self.created, 3),
            "request": self.request,
            "answer": self.answer,
        }


class Jobs:
    """The jobs of one worker. Finished ones can be found again after a restart."""

    def __init__(
        self, worker: Worker, root: Path, observe: Callable[[dict[str, Any] | None], None]
    ) -> None:
        """`observe` hears each job's answer, None for one that was cancelled."""
        self._worker = worker
        self._observe = observe
        self._root = root
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._remote: set[Task] = set()
        # Of their own: an endpoint that is slow must not hold the threads of local jobs.
        self._remote_threads = ThreadPoolExecutor(REMOTE_ROOM, thread_name_prefix="endpoint")

    def submit(
        self, payload: dict[str, Any], endpoint: Endpoint | None = None, *, keep: bool = True
    ) -> tuple[Job, Task]:
        """Start a job here, or on an endpoint, and return it and its task; nothing is awaited.

        The task returns the whole answer of a job that ran here. What is remembered of an inline
        one is without its files, which go to this machine's folder where `keep` says so.
        """
        # An address may carry a credential in its query string.
        shown = _without_secrets(payload)
        job = Job(f"web-{uuid.uuid4().hex[:12]}", shown)
        self._jobs[job.id] = job
        while len(self._jobs) > _KEPT:
            self._jobs.popitem(last=False)
        work = (
            self._run(job, payload, keep)
            if endpoint is None
            else self._send(job, payload, endpoint)
        )
        job.task = asyncio.create_task(work)
        job.task.add_done_callback(lambda _task: self._observe(job.answer))
        if endpoint is not None:
            self._remote.add(job.task)
            job.task.add_done_callback(self._remote.discard)
        return job, job.task

    def require_remote_room(self) -> None:
        """Raise `WorkerBusy` where as many jobs are on endpoints as may be."""
        if len(self._remote) >= REMOTE_ROOM:
            raise WorkerBusy(f"{REMOTE_ROOM} jobs are on endpoints; wait until one has ended")

    def stop_all(self) -> None:
        """Cancel every job that runs, here and on endpoints."""
        for task in self._running():
            task.cancel()

    async def late_after(self, seconds: float) -> bool:
        """Wait for the jobs that run; returns whether one has not ended in time."""
        tasks = self._running()
        return bool(tasks and (await asyncio.wait(tasks, timeout=seconds))[1])

    def _running(self) -> list[Task]:
        return [j.task for j in self._jobs.values() if j.task is not None and not j.task.done()]

    def find(self, job_id: str) -> dict[str, Any] | None:
        """Return a job's view, from memory or from its folder; None when there is none."""
        if job := self._jobs.get(job_id):
            return job.view()
        return self._remembered(self._root / folder_of(job_id))

    def folder(self, job_id: str) -> Path:
        return self._root / folder_of(job_id)

    async def cancel(self, job_id: str) -> bool:
        """Stop a running job and wait until it has left; returns whether there was one."""
        job = self._jobs.get(job_id)
        if job is None or job.task is None or job.state != "running":
            return False
        job.task.cancel()
        with suppress(asyncio.CancelledError):
            await job.task
        return True

    def history(self) -> list[dict[str, Any]]:
        """Return this machine's jobs, newest first."""
        found = {job.id: job.view() for job in self._jobs.values()}
        answers = sorted(
            self._root.glob(f"*/{ANSWER.name}"), key=lambda p: p.stat().st_mtime, reverse=True
        )
        for path in answers[:_HISTORY]:
            if path.parent.name not in found and (view := self._remembered(path.parent)):
                found[view["id"]] = view
        return sorted(found.values(), key=lambda view: -view["created"])[:_HISTORY]

    async def follow(self, job_id: str) -> AsyncIterator[dict[str, Any] | None]:
        """Yield a job's view whenever it changes, its last one last; None keeps a line alive."""
        job = self._jobs.get(job_id)
        while job is not None:
            seen = job.version
            yield job.view()
            if job.state != "running":
                return
            try:
                await asyncio.wait_for(_newer(job, seen), _KEEP_ALIVE_S)
            except TimeoutError:
                yield None

    async def _run(self, job: Job, payload: dict[str, Any], keep: bool) -> Answer:
        loop = asyncio.get_running_loop()

        def notify(update: dict[str, Any]) -> None:
            asyncio.run_coroutine_threadsafe(_advance(job, update), loop)

        try:
            answer = await self._worker.handle({"id": job.id, "input": payload}, notify)
            kept = _without_files(answer)
            if keep and kept != answer:
                await asyncio.to_thread(self._bring, job, copy.deepcopy(answer))
        except asyncio.CancelledError:
            await _finish(job, "cancelled", None)
            raise
        except (WorkerError, OSError) as err:  # its files cannot be written here
            answer = kept = _reported(err).to_wire(job.id)
        await _finish(job, "failed" if "error" in answer else "done", kept)
        if job.state == "done":
            await asyncio.to_thread(self._remember, job)
        return answer

    async def _send(self, job: Job, payload: dict[str, Any], endpoint: Endpoint) -> Answer:
        """Run a job on an endpoint and bring its files here; it ends within a bound."""
        submitting = asyncio.ensure_future(self._on_thread(endpoint.run, payload))
        try:
            async with asyncio.timeout(self._worker.settings.remote.timeout_s):
                remote_id = await asyncio.shield(submitting)
                view = await self._until_ended(job, endpoint, remote_id)
            if view["state"] == "done":
                await self._on_thread(self._bring, job, view["answer"])
            await _finish(job, view["state"], view["answer"])
        except asyncio.CancelledError:
            await self._withdraw(endpoint, submitting)
            await _finish(job, "cancelled", None)
            raise
        except Exception as err:  # noqa: BLE001 - whatever an endpoint sends, the job ends
            await self._withdraw(endpoint, submitting)
            await _finish(job, "failed", _reported(err).to_wire(job.id))
        return job.answer

    async def _until_ended(self, job: Job, endpoint: Endpoint, remote_id: str) -> dict[str, Any]:
        """Poll until the job has ended there; raises `EndpointFailed` after too long a silence."""
        heard = time.monotonic()
        while True:
            try:
                view = await self._on_thread(endpoint.status, remote_id)
            except EndpointFailed:  # a proxy's 502, say: the job runs on, and costs
                if time.monotonic() - heard > self._worker.settings.remote.silence_s:
                    raise
            else:
                heard = time.monotonic()
                if view["state"] != "running":
                    return view
                await _advance(job, view)
            await asyncio.sleep(_POLL_S)

    async def _withdraw(self, endpoint: Endpoint, submitting: asyncio.Future[str]) -> None:
        """Cancel there what was submitted, or is just being: it would run on at a cost."""
        with suppress(WorkerError):
            remote_id = await submitting
            for _ in range(_CANCEL_TRIES):
                with suppress(EndpointFailed):
                    await self._on_thread(endpoint.cancel, remote_id)
                    return
                await asyncio.sleep(_POLL_S)
            logger().warning("endpoint_cancel_failed", remote_id=remote_id)

    async def _on_thread(self, work: Callable[..., _T], *arguments: Any) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._remote_threads, work, *arguments)

    def _bring(self, job: Job, answer: dict[str, Any]) -> None:
        """Put an answer's files into this machine's folder; what was inline leaves the answer."""
        limits = self._worker.settings.fetch
        store = LocalStore(self._root, job.id)
        scope = JobScope(job.id)
        for name, artifact in files_told(answer):
            if file_called(name) is None:
                raise EndpointFailed("the endpoint's answer has a file with a name of another kind")
            if artifact.get("base64"):
                data = base64.b64decode(artifact.pop("base64"))
            else:
                data = fetch(artifact["url"], _LARGEST_MODEL, limits, scope)
            store.put(name, data, artifact["content_type"], scope)
        answer["job_id"] = job.id
        store.put(ANSWER.name, json.dumps(answer).encode(), ANSWER.content_type, scope)

    def _remember(self, job: Job) -> None:
        folder = self.folder(job.id)
        if folder.is_dir():
            content = {"created": job.created, "request": job.request}
            (folder / _REQUEST_NAME).write_text(json.dumps(content))

    def _remembered(self, folder: Path) -> dict[str, Any] | None:
        try:
            answer = json.loads((folder / ANSWER.name).read_bytes())
            created = (folder / ANSWER.name).stat().st_mtime
        except (OSError, ValueError):
            return None
        request: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            kept = json.loads((folder / _REQUEST_NAME).read_bytes())
            request, created = kept["request"], kept["created"]
        job = Job(
            str(answer.get("job_id", folder.name)), request, created, "done", Stage.STORE, 1.0
        )
        job.answer = answer
        return job.view()


async def _newer(job: Job, seen: int) -> None:
    """Wait until a job has changed since version `seen`, which may be already."""
    async with job.changed:
        await job.changed.wait_for(lambda: job.version != seen)


async def _advance(job: Job, update: dict[str, Any]) -> None:
    async with job.changed:
        if job.state == "running":
            job.stage, job.progress = update["stage"], update["progress"]
            job.version += 1
            job.changed.notify_all()


async def _finish(job: Job, state: State, answer: dict[str, Any] | None) -> None:
    async with job.changed:
        job.state, job.answer = state, answer
        job.progress = 1.0 if state == "done" else job.progress
        job.version += 1
        job.changed.notify_all()


def _reported(err: Exception) -> WorkerError:
    if isinstance(err, WorkerError):
        return err
    if isinstance(err, TimeoutError):
        return EndpointFailed(
            "the endpoint did not end the job in time (TRELLIS2_ENDPOINT_TIMEOUT_S)"
        )
    logger().error("endpoint_failed", exc_info=err)
    return InternalError("the endpoint's answer cannot be used; see this server's log")


def _without_files(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer without the files that are inline: they are not kept in memory."""
    kept: dict[str, Any] = copy.deepcopy(answer)
    for _, artifact in files_told(kept):
        if artifact.get("base64"):
            del artifact["base64"]
    return kept


def _without_secrets(payload: dict[str, Any]) -> dict[str, Any]:
    """Return a request as it may be shown: no picture, and no address that may hold a signature."""
    shown = {k: v for k, v in payload.items() if k not in ("image", "image_url")}
    if isinstance(output := shown.get("output"), dict):
        shown["output"] = {k: v for k, v in output.items() if not k.startswith("upload")}
    return shown
