"""A generation's thread, seen from the event loop: awaited, stopped, and given up.

Threads cannot be ended from outside. One that has not left `grace_s` after its job's time was over,
or after the job was stopped, will perhaps never: its job is answered, the worker is marked
defunct, and the process leaves (`handler.py`) without waiting for it.
"""

from __future__ import annotations

import asyncio
import faulthandler
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from trellis_runtime.contract.scope import Deadline, JobScope
from trellis_runtime.errors import DeadlineExceeded

T = TypeVar("T")

_BEAT_S = 5.0
LOOP_FROZEN_S = 300.0
"""Seconds after which a process whose event loop does not run is ended, without an answer."""


async def wait_until_thread_exits(
    running: Future[T],
    scope: JobScope,
    grace_s: float,
    on_stuck: Callable[[str], None],
) -> T:
    """Await a generation; when cancelled, stop it and wait until its thread has left.

    However often the cancellation is repeated: leaving early would let the next job meet a GPU
    that is still in use. A thread that is given up is told to `on_stuck`; `DeadlineExceeded` is
    raised then, or the cancellation goes on.
    """
    waiting = asyncio.wrap_future(running)
    cancelled: asyncio.CancelledError | None = None
    end = Deadline.after(scope.deadline.remaining() + grace_s)
    while not running.done() and not end.passed:
        try:
            await asyncio.wait([waiting], timeout=end.remaining())
        except asyncio.CancelledError as err:
            end = min(end, Deadline.after(grace_s), key=Deadline.remaining)
            scope.cancel()
            cancelled = err
    if not running.done():
        return _give_up(running, scope, grace_s, on_stuck, cancelled)
    if cancelled is not None:
        waiting.cancel()
        if not running.cancelled():
            running.exception()  # retrieved, so that nothing is logged at random later
        raise cancelled
    return await waiting


def _give_up(
    running: Future[T],
    scope: JobScope,
    grace_s: float,
    on_stuck: Callable[[str], None],
    cancelled: asyncio.CancelledError | None,
) -> T:
    scope.cancel()  # should it wake up all the same, it must not deliver
    where = f"{scope.current} did not return" if scope.current else "the job did not begin"
    if not running.cancel():  # it waits for a thread no more, or it never had one
        on_stuck(f"{where} within {grace_s:g} s of its end")
    if cancelled is not None:
        raise cancelled
    raise DeadlineExceeded(f"the job's time was over, and {where} within {grace_s:g} s more")


async def beat() -> None:
    """Keep the process alive for as long as its event loop runs; await it for ever.

    Code that holds the interpreter's lock freezes the loop, and with it every other promise. The
    timer is C's and needs no lock: it writes where each thread is, and ends the process.
    """
    try:
        while True:
            faulthandler.dump_traceback_later(LOOP_FROZEN_S, exit=True)
            await asyncio.sleep(_BEAT_S)
    finally:
        faulthandler.cancel_dump_traceback_later()
