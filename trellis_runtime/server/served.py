"""What the routes share: the worker, once it is there, its jobs and its metrics."""

from __future__ import annotations

import asyncio
import os
import threading
import time

from trellis_runtime.contract.engine import Engine
from trellis_runtime.delivery.s3 import require_bucket, require_bucket_alive
from trellis_runtime.errors import (
    JobCancelled,
    SetupFailed,
    WorkerError,
    WorkerStarting,
    WorkerStopping,
)
from trellis_runtime.logs import logger
from trellis_runtime.server.jobs import Jobs
from trellis_runtime.server.metrics import Metrics
from trellis_runtime.settings import Settings
from trellis_runtime.worker.worker import Worker

STOP_S = 5.0  # for a job to leave once it is told to
_BUCKET_S = 30.0  # between looks at the bucket


class Served:
    """What the routes share: the worker, once it is there, its jobs and its metrics."""

    def __init__(self, settings: Settings, token: str | None, hosts: frozenset[str] | None) -> None:
        self.settings, self.token, self.hosts = settings, token, hosts
        self.is_stopping = False
        self.loop: asyncio.AbstractEventLoop | None = None
        self.reading = 0  # bodies on their way
        self.dead_bucket: str | None = None
        self.bucket_worked = False
        self.metrics = Metrics()
        self.worker: Worker | None = None
        self.jobs: Jobs | None = None
        self.failure: str | None = None
        # A picture in base64 and the rest of a request; in lines of 76 characters, each with a
        # break that JSON writes as two.
        self.max_body = int(settings.image.max_bytes * 4 / 3 * 1.05) + 65_536

    def start(self, engine: Engine | None) -> None:
        try:
            worker = Worker.start(self.settings, engine)
        except SetupFailed as err:
            self.failure = err.message
            logger().error("serve_failed", reason=err.message)
            return
        except Exception:  # noqa: BLE001 - whatever an engine raises, this process cannot serve
            self.failure = "the engine could not be loaded; see this server's log"
            logger().exception("serve_failed")
            return
        if self.settings.bucket.is_configured:
            self._look_at_bucket()
            threading.Thread(target=self._watch_bucket, name="bucket", daemon=True).start()
        self.jobs = Jobs(worker, self.settings.delivery.output_dir, self.metrics.observe)
        self.worker = worker

    def ready(self) -> tuple[Worker, Jobs]:
        if self.worker is None or self.jobs is None:
            if self.failure is not None:
                raise SetupFailed(self.failure)
            raise WorkerStarting("the worker is starting")
        return self.worker, self.jobs

    def unhealthy(self) -> str | None:
        """Return why no job may be sent here now, None where they may."""
        if self.failure is not None or self.worker is None:
            return self.failure
        admission = self.worker.admission
        if self.is_stopping or admission.defunct_reason is not None:
            return f"this worker is {admission.state}"
        return admission.disk_shortage() or self.dead_bucket

    def stopped(self) -> WorkerError:
        """Return what a caller is told whose job was stopped."""
        if self.is_stopping:
            return WorkerStopping("this server stops, and the job's time of grace is over")
        return JobCancelled("the job was stopped")

    def drain(self) -> None:
        """Take no further job; those in hand are stopped when their grace is over."""
        if self.is_stopping or self.worker is None:
            return
        self.is_stopping = True
        self.worker.admission.drain()
        timer = threading.Timer(self.settings.jobs.grace_s, self._stop_jobs)
        timer.daemon = True
        timer.start()

    async def leave(self) -> None:
        """Wait for the jobs in hand; a job that cannot be stopped ends with the process."""
        self.drain()
        if self.worker is None or self.jobs is None:
            return
        if await self.jobs.late_after(self.settings.jobs.grace_s + STOP_S):
            logger().error("grace_period_over")
            os._exit(1)
        await asyncio.to_thread(self.worker.close)

    def _stop_jobs(self) -> None:
        if self.jobs is not None and self.loop is not None and self.loop.is_running():
            self.loop.call_soon_threadsafe(self.jobs.stop_all)

    def _watch_bucket(self) -> None:
        while True:
            time.sleep(_BUCKET_S)
            self._look_at_bucket()

    def _look_at_bucket(self) -> None:
        try:
            # once all works, links included, a look writes one object, always the same
            look = require_bucket_alive if self.bucket_worked else require_bucket
            look(self.settings.bucket)
            self.bucket_worked, self.dead_bucket = True, None
        except WorkerError as err:
            self.dead_bucket = err.message
