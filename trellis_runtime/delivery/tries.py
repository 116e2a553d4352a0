"""A small number of tries, where the same call may succeed in a moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from trellis_runtime.contract.scope import Deadline, JobScope
from trellis_runtime.errors import FetchFailed, StorageFailed

ATTEMPTS = 3
"""Tries of a download, and of a presigned PUT."""

_TRANSIENT = (408, 425, 429)
T = TypeVar("T")


def is_transient(status: int) -> bool:
    """Whether the same request may be answered otherwise in a moment."""
    return status >= 500 or status in _TRANSIENT


def retried(
    call: Callable[[], T], attempts: int, scope: JobScope, within: Deadline | None = None
) -> T:
    """Return what `call` returns, tried again after a failure outside that may pass.

    Waits 1, 2, 4 ... 8 seconds in between, no longer than the job has, and not when it is stopped;
    with `within`, no try begins that would come after it.
    """
    for attempt in range(1, attempts + 1):
        pause = min(8.0, 2.0 ** (attempt - 1))
        try:
            return call()
        except (StorageFailed, FetchFailed) as err:
            too_late = within is not None and within.remaining() <= pause
            if attempt == attempts or not err.retryable or too_late:
                raise
        _pause(pause, scope)
    raise AssertionError  # the last attempt returns or raises


def _pause(seconds: float, scope: JobScope) -> None:
    until = Deadline.after(min(seconds, scope.deadline.remaining()))
    while not until.passed:
        scope.check()
        time.sleep(min(0.1, until.remaining()))
    scope.check()
