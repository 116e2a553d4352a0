"""Whose turn on the device it is: one stage of one job at a time, first come, first served.

    hold ──► the stage runs ──► let_go ──► work on the host ──► hold again ──► the stage ends
                                   └── another job's stage runs here

A stage that has let go has not ended: its tensors are still on the device. A turn that is asked for
`alone` is given only when no other stage is on its way, so that what other jobs hold can be moved.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

_LOOK_S = 0.05  # how often a waiting job looks whether it has been stopped

Check = Callable[[], None]
"""Raises when the job that waits has been stopped or its time is over."""

HostWork = Callable[[], AbstractContextManager[None]]
"""Entered around work that leaves the device idle: another job may have it meanwhile."""


@dataclass(slots=True, eq=False)
class Turn:
    """One stage's claim on the device."""

    check: Check
    alone: bool
    begun: bool = False
    """Whether the stage has had the device: then it holds tensors there, and comes before others
    that wait to be alone."""
    waited: float = 0.0
    """Seconds spent waiting so far."""


@dataclass(slots=True)
class Baton:
    """Held by the one stage that may use the device; given back whatever happens to the stage."""

    _changed: threading.Condition = field(default_factory=threading.Condition)
    _holder: Turn | None = None
    _queue: list[Turn] = field(default_factory=list)
    _on_their_way: int = 0
    """Stages that have had a turn and not ended, the holder's included."""

    @contextmanager
    def hold(self, check: Check, *, alone: bool = False) -> Iterator[Turn]:
        """Have the device while the context lasts; raises what `check` raises while waiting."""
        turn = Turn(check, alone)
        self._take(turn)
        try:
            yield turn
        finally:
            with self._changed:
                if self._holder is turn:
                    self._holder = None
                self._on_their_way -= 1
                self._changed.notify_all()

    @contextmanager
    def let_go(self, turn: Turn) -> Iterator[None]:
        """Let others have the device while the context lasts, then have it again.

        Raises what `turn.check` raises while it waits for that; the stage ends then.
        """
        with self._changed:
            self._holder = None
            self._changed.notify_all()
        try:
            yield
        finally:
            self._take(turn)

    def _take(self, turn: Turn) -> None:
        started = time.perf_counter()
        with self._changed:
            self._queue.append(turn)
            try:
                while self._next() is not turn:
                    turn.check()
                    self._changed.wait(_LOOK_S)
                self._holder = turn
                if not turn.begun:
                    self._on_their_way += 1
                turn.begun = True
            finally:
                self._queue.remove(turn)
                self._changed.notify_all()
                turn.waited += time.perf_counter() - started

    def _next(self) -> Turn | None:
        """Return who may have the device now."""
        if self._holder is not None:
            return None
        someone_waits_to_be_alone = False
        for turn in self._queue:
            if turn.begun:
                return turn
            if someone_waits_to_be_alone:
                continue
            if turn.alone and self._on_their_way:
                someone_waits_to_be_alone = True
                continue
            return turn
        return None
