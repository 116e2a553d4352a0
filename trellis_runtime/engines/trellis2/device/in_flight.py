"""The jobs of one engine that are in flight: what they share, and how one of them gets it alone.

first stage ──► a seat, when the sum of needs fits  (`shared_room`)
each stage  ──► the baton                           (`baton`)
out of memory beside another job ──► the stage again, alone: others hold nothing on the device
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakKeyDictionary, finalize

from trellis_runtime.engines.trellis2.device.baton import Baton, Check
from trellis_runtime.engines.trellis2.device.shared_room import Seat, SharedRoom


class Member(Protocol):
    """A job in flight."""

    def park(self) -> None:
        """Take what waits between stages off the device; called while no other stage runs."""


@dataclass(slots=True)
class InFlight:
    """Up to `most` jobs; `measure` tells the bytes that jobs could have while there are none."""

    measure: Callable[[], int]
    most: int
    baton: Baton = field(default_factory=Baton)
    room: SharedRoom = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _seats: WeakKeyDictionary[Member, Seat] = field(default_factory=WeakKeyDictionary)

    def __post_init__(self) -> None:
        self.room = SharedRoom(self.measure, self.most)

    def join(self, member: Member, need: int | None, check: Check) -> None:
        """Wait for a seat, unless `member` has one; `need` as in `SharedRoom.take`."""
        if member not in self._seats:
            seat = self.room.take(need, check)
            finalize(member, self.room.leave, seat)  # a job that is dropped unclosed leaves too
            with self._lock:
                self._seats[member] = seat

    def leave(self, member: Member) -> None:
        """Give the seat back; a job that never had one may leave too."""
        with self._lock:
            seat = self._seats.pop(member, None)
        if seat is not None:
            self.room.leave(seat)

    def others(self, member: Member) -> list[Member]:
        """Return the other jobs in flight."""
        with self._lock:
            return [other for other in self._seats if other is not member]

    def park_others(self, member: Member) -> int:
        """Have the other jobs hold nothing on the device, and return how many there are.

        For a turn that is alone.
        """
        others = self.others(member)
        for other in others:
            other.park()
        return len(others)
