"""Jobs that came by HTTP: started, followed, cancelled, and remembered on this machine's disk.

Long because a job's whole life, here or on an endpoint, is one class's state.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import itertools
import json
import re
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from trellis_runtime.assets.images import parse_base64
from trellis_runtime.contract.files import ANSWER, file_called, files_told
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.delivery.fetch import fetch
from trellis_runtime.delivery.latents import forget_latents
from trellis_runtime.delivery.storage import LocalStore, folder_of
from trellis_runtime.errors import EndpointFailed, InternalError, WorkerBusy, WorkerError
from trellis_runtime.logs import logger
from trellis_runtime.server import kept
from trellis_runtime.server.endpoint import Endpoint
from trellis_runtime.server.expectation import Expectations
from trellis_runtime.server.job import Answer, Job, Task, advance, finish, newer, touch
from trellis_runtime.worker.worker import Worker

_T = TypeVar("_T")

REMOTE_ROOM = 8  # jobs on endpoints at a time
_CANCEL_TRIES = 3
_KEPT = 200
_KEEP_ALIVE_S = 15.0
_POLL_S = 1.0
_LARGEST_MODEL = 500_000_000  # bytes
_PICTURES_BYTES = 64_000_000  # of jobs that left no folder: the oldest are dropped
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,64}")


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
        self._told: set[asyncio.Task[None]] = set()
        # Of their own: an endpoint that is slow must not hold the threads of local jobs.
        self._remote_threads = ThreadPoolExecutor(REMOTE_ROOM, thread_name_prefix="endpoint")
        self.expectations = Expectations()
        for path in reversed(self._answers()):
            if (job := kept.remembered(path.parent)) and job.request and job.answer:
                self.expectations.learn(job.endpoint, job.request, job.answer)

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
        job.endpoint = endpoint.endpoint_id if endpoint else None
        job.expected = self.expectations.expect(job.endpoint, shown)
        self._jobs[job.id] = job
        self._forget_oldest()
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

    def require_remote_room(self, reading: int = 0) -> None:
        """Raise `WorkerBusy` where as many jobs are on endpoints as may be, bodies that are read
        counted.
        """
        if len(self._remote) + reading >= REMOTE_ROOM:
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
        job = self._jobs.get(job_id) or kept.remembered(self.folder(job_id))
        return None if job is None else job.view() | self._place(job)

    def _place(self, job: Job) -> dict[str, Any]:
        """Return where a job's pictures and files are, and how many jobs it waits for."""
        folder, path = self.folder(job.id), f"/jobs/{job.id}"
        has_input = job.picture is not None or kept.has_input(folder)
        has_thumbnail = kept.thumbnail_of(folder) is not None
        return {
            "queue_place": self._queue_place(job),
            "thumbnail": f"{path}/thumbnail" if has_thumbnail else None,
            "input": f"{path}/input" if has_input else None,
            "files": [f | {"url": f"{path}/files/{f['name']}"} for f in kept.files_of(folder)],
        }

    def _queue_place(self, job: Job) -> int | None:
        """Return how many jobs run or wait here before `job`, 0 once it runs, None elsewhere."""
        if job.state != "running" or job.endpoint is not None:
            return None
        if job.started is not None:
            return 0
        before = itertools.takewhile(lambda other: other is not job, list(self._jobs.values()))
        return sum(other.state == "running" and other.endpoint is None for other in before)

    def picture(self, job_id: str) -> tuple[bytes, str] | None:
        """Return the picture that a job was given, and its type; None where it is not kept."""
        job = self._jobs.get(job_id)
        return (job.picture if job else None) or kept.input_of(self.folder(job_id))

    async def delete(self, job_id: str) -> None:
        """Forget a job that has ended, and remove its files from this machine."""
        job = self._jobs.pop(job_id, None)
        if job is not None and job.task is not None:  # it may still write what it was asked
            await asyncio.wait([job.task])
        await asyncio.to_thread(kept.delete, self.folder(job_id))
        await asyncio.to_thread(forget_latents, self._root, job_id)

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

    def history(self, limit: int, before: str | None = None) -> tuple[list[dict[str, Any]], bool]:
        """Return a page of jobs, newest first, and whether there are more.

        `before` is the last job of the page that came before. Of jobs that only their folders
        remember, the newest 200 are listed.
        """
        jobs = dict(self._jobs)
        for folder in (path.parent for path in self._answers()):
            known = folder.name in jobs or not _PLAIN.fullmatch(folder.name)
            if not known and (job := kept.remembered(folder)):
                jobs[job.id] = job
        ordered = sorted(jobs.values(), key=lambda job: (-job.created, job.id))
        ids = [job.id for job in ordered]
        first = ids.index(before) + 1 if before in ids else 0
        page = ordered[first : first + limit]
        return [_line(job, self._place(job)) for job in page], first + limit < len(ordered)

    def _answers(self) -> list[Path]:
        """Return the answers on this machine's disk, newest first."""
        found = self._root.glob(f"*/{ANSWER.name}")
        return sorted(found, key=_written, reverse=True)[:_KEPT]

    def _forget_oldest(self) -> None:
        while len(self._jobs) > _KEPT:
            self._jobs.popitem(last=False)
        held = 0
        for job in reversed(self._jobs.values()):
            held += len(job.picture[0]) if job.picture else 0
            if held > _PICTURES_BYTES:
                job.picture = None

    async def follow(self, job_id: str) -> AsyncIterator[dict[str, Any] | None]:
        """Yield a job's view whenever it changes, its last one last; None keeps a line alive."""
        job = self._jobs.get(job_id)
        while job is not None:
            seen = job.version
            view = job.view() | self._place(job)
            yield view
            if view["state"] != "running":  # the job's own may have changed while it was sent
                return
            try:
                await asyncio.wait_for(newer(job, seen), _KEEP_ALIVE_S)
            except TimeoutError:
                yield None

    async def _run(self, job: Job, payload: dict[str, Any], keep: bool) -> Answer:
        loop = asyncio.get_running_loop()

        def watch(stage: str, fraction: float) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody is left to hear of it
                asyncio.run_coroutine_threadsafe(advance(job, stage, fraction), loop)

        try:
            if keep:
                job.picture = await asyncio.to_thread(self._picture_sent, payload)
            answer = await self._worker.handle({"id": job.id, "input": payload}, watch=watch)
            shown = _without_files(answer)
            if keep and shown != answer:
                shown = copy.deepcopy(answer)
                await asyncio.to_thread(self._bring, job, shown)
        except asyncio.CancelledError:
            await finish(job, "cancelled", None)
            raise
        except (WorkerError, OSError) as err:  # its files cannot be written here
            answer = shown = _reported(err).to_wire(job.id)
        finally:
            self._tell_waiting()
        await finish(job, "failed" if "error" in answer else "done", shown)
        if job.state == "done":
            await asyncio.to_thread(self._note, job, shown)
        return answer

    def _tell_waiting(self) -> None:
        """Have the followers of jobs in the queue see that it has moved."""
        for job in self._jobs.values():
            if job.state == "running" and job.started is None:
                task = asyncio.ensure_future(touch(job))
                self._told.add(task)
                task.add_done_callback(self._told.discard)

    def _picture_sent(self, payload: dict[str, Any]) -> tuple[bytes, str] | None:
        """Return the picture in a request, where it is one that a browser shows."""
        image = payload.get("image")
        if not isinstance(image, str) or re.match(r"\s*https?:", image[:64], re.IGNORECASE):
            return None
        try:
            data = parse_base64(image, self._worker.settings.image)
        except WorkerError:
            return None
        kind = kept.picture_type(data)
        return (data, kind) if kind else None

    def _note(self, job: Job, answer: dict[str, Any]) -> None:
        """Keep what a finished job was asked beside its result, and learn from its times."""
        self.expectations.learn(job.endpoint, job.request, answer)
        with suppress(OSError):
            kept.remember(self.folder(job.id), job)
        if kept.has_input(self.folder(job.id)):
            job.picture = None

    async def _send(self, job: Job, payload: dict[str, Any], endpoint: Endpoint) -> Answer:
        """Run a job on an endpoint and bring its files here; it ends within a bound."""
        submitting = asyncio.ensure_future(self._on_thread(endpoint.run, payload))
        try:
            job.picture = await self._on_thread(self._picture_sent, payload)
            async with asyncio.timeout(self._worker.settings.remote.timeout_s):
                remote_id = await asyncio.shield(submitting)
                view = await self._until_ended(job, endpoint, remote_id)
            if view["state"] == "done":
                await self._on_thread(self._bring, job, view["answer"])
            await finish(job, view["state"], view["answer"])
        except asyncio.CancelledError:
            await self._withdraw(endpoint, submitting)
            await finish(job, "cancelled", None)
            raise
        except Exception as err:  # noqa: BLE001 - whatever an endpoint sends, the job ends
            await self._withdraw(endpoint, submitting)
            await finish(job, "failed", _reported(err).to_wire(job.id))
        if job.state == "done" and job.answer:
            await self._on_thread(self._note, job, job.answer)
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
                await advance(job, view["stage"], view["progress"])
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
            put = store.put(name, data, artifact["content_type"], scope)
            artifact["url"] = artifact.get("url") or put.url
        answer["job_id"] = job.id
        store.put(ANSWER.name, json.dumps(answer).encode(), ANSWER.content_type, scope)


def _written(path: Path) -> float:
    """Return when a file was written, 0 for one that has been deleted meanwhile."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _line(job: Job, place: dict[str, Any]) -> dict[str, Any]:
    return job.line() | {k: v for k, v in place.items() if k != "files"}


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
