"""What the routes share: the worker, once it is there, its jobs and its metrics."""

from __future__ import annotations

import threading
import time

from starlette.exceptions import HTTPException

from trellis_runtime.contract.engine import Engine
from trellis_runtime.delivery.s3 import require_bucket
from trellis_runtime.errors import SetupFailed, WorkerError
from trellis_runtime.logs import logger
from trellis_runtime.server.jobs import Jobs
from trellis_runtime.server.metrics import Metrics
from trellis_runtime.settings import Settings
from trellis_runtime.worker.worker import Worker

_BUCKET_S = 30.0  # between looks at the bucket


class Served:
    """What the routes share: the worker, once it is there, its jobs and its metrics."""

    def __init__(self, settings: Settings, token: str | None, hosts: frozenset[str] | None) -> None:
        self.settings, self.token, self.hosts = settings, token, hosts
        self.reading = 0  # bodies on their way
        self.dead_bucket: str | None = None
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
            raise HTTPException(503, self.failure or "the worker is starting")
        return self.worker, self.jobs

    def unhealthy(self) -> str | None:
        """Return why no job may be sent here now, None where they may."""
        if self.failure is not None or self.worker is None:
            return self.failure
        admission = self.worker.admission
        if admission.defunct_reason is not None:
            return f"this worker is {admission.state}"
        return admission.disk_shortage() or self.dead_bucket

    def _watch_bucket(self) -> None:
        while True:
            time.sleep(_BUCKET_S)
            self._look_at_bucket()

    def _look_at_bucket(self) -> None:
        try:
            require_bucket(self.settings.bucket)
            self.dead_bucket = None
        except WorkerError as err:
            self.dead_bucket = err.message
