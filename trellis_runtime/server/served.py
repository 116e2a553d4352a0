"""What the routes share: the worker, once it is there, its jobs and its metrics."""

from __future__ import annotations

from starlette.exceptions import HTTPException

from trellis_runtime.contract.engine import Engine
from trellis_runtime.errors import SetupFailed
from trellis_runtime.logs import logger
from trellis_runtime.server.jobs import Jobs
from trellis_runtime.server.metrics import Metrics
from trellis_runtime.settings import Settings
from trellis_runtime.worker.worker import Worker


class Served:
    """What the routes share: the worker, once it is there, its jobs and its metrics."""

    def __init__(self, settings: Settings, token: str | None) -> None:
        self.settings, self.token = settings, token
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
        self.jobs = Jobs(worker, self.settings.delivery.output_dir, self.metrics.observe)
        self.worker = worker

    def ready(self) -> tuple[Worker, Jobs]:
        if self.worker is None or self.jobs is None:
            raise HTTPException(503, self.failure or "the worker is starting")
        return self.worker, self.jobs
