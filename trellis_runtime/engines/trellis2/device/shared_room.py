"""The jobs in flight, admitted by the sum of the memory that they need at their peaks.

A job that is alone is always admitted: what it needs is an estimate, and the ladder is there for
it. Another joins it only where the estimates of both fit in what was free while no job was there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from trellis_runtime.engines.trellis2.device.baton import Check

_LOOK_S = 0.05


@dataclass(slots=True, eq=False)
class Seat:
    """One job's claim on memory."""

    need: int | None


@dataclass(slots=True)
class SharedRoom:
    """What is free for jobs, and which jobs have claims on it; `most` at once.

    `measure` tells the bytes that jobs could have; it is asked only while no job is in flight.
    """

    measure: Callable[[], int]
    most: int
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _seated: list[Seat] = field(default_factory=list)
    _queue: list[Seat] = field(default_factory=list)
    _room: int = 0

    @property
    def in_flight(self) -> int:
        """Jobs that have a seat."""
        return len(self._seated)

    def when_idle(self) -> int:
        """Return the bytes free for jobs, as they are or were while no job was in flight."""
        with self._changed:
            return self._room if self._seated else self.measure()

    def take(self, need: int | None, check: Check) -> Seat:
        """Wait for a seat, first come, first served; raises what `check` raises while waiting.

        need: bytes at the job's peak; None for a job that takes whatever there is, so is alone.
        """
        seat = Seat(need)
        with self._changed:
            self._queue.append(seat)
            try:
                while not (self._queue[0] is seat and self._admits(seat)):
                    check()
                    self._changed.wait(_LOOK_S)
                self._seated.append(seat)
            finally:
                self._queue.remove(seat)
                self._changed.notify_all()
        return seat

    def leave(self, seat: Seat) -> None:
        """Give a seat back; once more does no harm."""
        with self._changed:
            if seat in self._seated:
                self._seated.remove(seat)
            self._changed.notify_all()

    def _admits(self, seat: Seat) -> bool:
        if not self._seated:
            self._room = self.measure()
            return True
        needs = [each.need for each in (*self._seated, seat)]
        known = [need for need in needs if need is not None]
        fits = len(known) == len(needs) and sum(known) <= self._room
        return fits and len(self._seated) < self.most
