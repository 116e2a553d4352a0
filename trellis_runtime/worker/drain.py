"""Leave the platform's loop cleanly: the job in hand is delivered, no other is taken.

On SIGTERM the SDK stops its loops but leaves their long polls open, for up to 90 seconds: a job
that arrives on one is taken and never run. So this module remembers the task that polls (the SDK
asks for its concurrency from there) and those that run jobs (the handler is called from there, and
the result is posted there), and when the worker is to leave, waits for the latter and then cancels
the former, which ends the SDK's loop.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from trellis_runtime.logs import logger
from trellis_runtime.worker.watchdog import beat

_GRACE_EXIT_CODE = 1


class Drain:
    """Watches one SDK loop; all its methods run on that loop."""

    def __init__(
        self, concurrency: Callable[[], int], grace_s: float, on_drain: Callable[[], None]
    ) -> None:
        self._concurrency = concurrency
        self._grace_s = grace_s
        self._on_drain = on_drain
        self._polling: asyncio.Task[Any] | None = None
        self._jobs: set[asyncio.Task[Any]] = set()
        self._leaving: asyncio.Task[None] | None = None
        self._beating: asyncio.Task[None] | None = None

    def concurrency(self, _current: int) -> int:
        """The SDK's `concurrency_modifier`: called from its polling task before each poll.

        What is answered may change: how many jobs fit side by side is known once models are loaded.
        """
        if self._polling is None:
            self._polling = asyncio.current_task()
            self._beating = asyncio.get_running_loop().create_task(beat())
            self._catch_sigterm()
        return self._concurrency()

    def track(self) -> None:
        """Remember the task that runs a job and posts its result; called by the handler."""
        task = asyncio.current_task()
        if task is not None and task not in self._jobs:
            self._jobs.add(task)
            task.add_done_callback(self._jobs.discard)

    def begin(self) -> None:
        """Leave as soon as the jobs in hand are delivered."""
        if self._leaving is None:
            self._on_drain()
            self._leaving = asyncio.get_running_loop().create_task(self._leave())

    def _catch_sigterm(self) -> None:
        loop = asyncio.get_running_loop()
        previous = signal.getsignal(signal.SIGTERM)

        def on_sigterm() -> None:
            logger().info("draining", jobs_in_hand=len(self._jobs), grace_s=self._grace_s)
            self.begin()
            if callable(previous):
                no_frame: FrameType | None = None
                previous(signal.SIGTERM, no_frame)

        loop.add_signal_handler(signal.SIGTERM, on_sigterm)

    async def _leave(self) -> None:
        if self._jobs:
            _, late = await asyncio.wait(self._jobs, timeout=self._grace_s)
            if late:
                # A generation's thread cannot be ended from outside; the process can.
                logger().error("grace_period_over", jobs_in_hand=len(late))
                os._exit(_GRACE_EXIT_CODE)
        if self._polling is not None:
            self._polling.cancel()
