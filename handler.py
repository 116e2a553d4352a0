"""RunPod's entry point: build the worker, register the start-up check, start the SDK's loop."""

from __future__ import annotations

import asyncio
import os
import platform
import sys
from types import ModuleType
from typing import Any, NoReturn

os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")  # the SDK's DEBUG prints whole jobs

from trellis_runtime.errors import SetupFailed
from trellis_runtime.worker.drain import Drain
from trellis_runtime.worker.last_word import Poster
from trellis_runtime.worker.worker import Worker


def import_sdk() -> ModuleType:
    """Import the SDK without its search for the processor's name, which takes more than a second.

    It is asked for when a module of the SDK is imported, and shown by the SDK's debugger alone.
    """
    try:
        import cpuinfo
    except ImportError:  # an SDK that no longer asks
        import runpod

        return runpod
    search = cpuinfo.get_cpu_info
    cpuinfo.get_cpu_info = lambda: {"brand_raw": platform.machine()}
    try:
        import runpod
    finally:
        cpuinfo.get_cpu_info = search
    return runpod


def serve(worker: Worker) -> int:
    """Serve jobs until the platform ends the process; returns its exit code."""
    runpod = import_sdk()
    from runpod.serverless.modules import rp_http
    from runpod.serverless.modules.rp_progress import _thread_target as send_update

    rp_http._transmit = Poster().transmit  # the SDK's own drops a result on a reset, 408 or 429

    jobs = worker.settings.jobs
    drain = Drain(lambda: worker.concurrency, jobs.grace_s, worker.admission.drain)
    worker.on_defunct(drain.begin)
    runpod.serverless.register_fitness_check(worker.require_ready)

    async def handle(job: dict[str, Any]) -> dict[str, Any]:
        drain.track()
        # The SDK's progress_update starts a thread an update and lets them race; ours is serial.
        remote = worker.settings.platform.is_worker
        return await worker.handle(job, (lambda u: send_update(job, u)) if remote else None)

    config = {"handler": handle, "concurrency_modifier": drain.concurrency}
    try:
        runpod.serverless.start(config)
    except asyncio.CancelledError:
        return 1 if worker.admission.defunct_reason else 0
    return 0


def leave(worker: Worker, code: int) -> NoReturn:
    """End the process; a thread that does not return cannot be waited for, as Python would."""
    if worker.has_stuck_thread:
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    try:
        ready = Worker.start()
    except SetupFailed as err:
        sys.exit(f"{err.code}: {err.message}")
    leave(ready, serve(ready))
