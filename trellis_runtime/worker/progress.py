"""A job's progress as it goes to the platform: few updates, in order, none behind the result."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from trellis_runtime.logs import logger

Notify = Callable[[dict[str, Any]], None]
"""Sends one progress update of a job; it may block, and is called from a thread of its own."""

_PROGRESS_INTERVAL_S = 1.0
_LAST_PROGRESS = 0.9
_SLOW_S = 4.0
_JOIN_S = 60.0


class ProgressSender:
    """Sends a job's progress: few updates, in order, the last one well before the result.

    The platform writes updates and the result to one place in the order in which they arrive, so
    one thread sends, one at a time, and `close` waits for it: an update under way has an end of
    its own (`last_word.PROGRESS_S`), well before `_JOIN_S`. After a slow one no
    other is sent.
    """

    def __init__(self, notify: Notify) -> None:
        self._notify = notify
        self._latest: dict[str, Any] | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._send, name="progress", daemon=True)
        self._thread.start()

    def update(self, stage: str, fraction: float) -> None:
        """Offer an update; only the newest is sent, at most one a second."""
        if fraction > _LAST_PROGRESS:
            return
        with self._changed:
            self._latest = {"stage": stage, "progress": round(fraction, 3)}
            self._changed.notify()

    def close(self) -> None:
        """Send nothing more, and return once nothing is under way."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(_JOIN_S)
        if self._thread.is_alive():
            logger().error("progress_post_left", seconds=_JOIN_S)

    def _send(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._latest is not None)
                if self._closed:
                    return
                update, self._latest = self._latest, None
            if update is not None:
                begun = time.monotonic()
                self._notify(update)
                if time.monotonic() - begun > _SLOW_S:
                    return  # the platform is in trouble: what matters now is the result
            with self._changed:
                self._changed.wait_for(lambda: self._closed, timeout=_PROGRESS_INTERVAL_S)
