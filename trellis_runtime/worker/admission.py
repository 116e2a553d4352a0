"""The gate: which jobs this process takes, and the states of its life.

STARTING ──► READY ◄──► BUSY
               │          │
               ▼          ▼
            DRAINING   DEFUNCT      neither leads back
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from trellis_runtime.delivery.storage import free_bytes
from trellis_runtime.errors import (
    DiskFull,
    GlbRejected,
    MeshRejected,
    NotFinite,
    WorkerBusy,
    WorkerError,
    WorkerStopping,
)
from trellis_runtime.logs import logger
from trellis_runtime.settings import JobLimits

_REJECTIONS_IN_A_ROW = 2


class State(StrEnum):
    """What the worker can do now."""

    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    DRAINING = "draining"
    DEFUNCT = "defunct"


class Admission:
    """Counts jobs in hand, refuses what exceeds the limits, and remembers what ends a worker.

    A defunct worker never becomes ready again: its answers carry `refresh_worker`, and every
    later job is refused with a retryable error.
    """

    def __init__(self, limits: JobLimits, disk: Path) -> None:
        self._limits = limits
        self._disk = disk
        self._lock = threading.Lock()
        self._in_hand = 0
        self._served = 0
        self._rejected_in_a_row = 0
        self._ready = False
        self._draining = False
        self._defunct_reason: str | None = None

    @property
    def state(self) -> State:
        if self._defunct_reason is not None:
            return State.DEFUNCT
        if self._draining:
            return State.DRAINING
        if not self._ready:
            return State.STARTING
        return State.BUSY if self._in_hand else State.READY

    @property
    def in_hand(self) -> int:
        """Jobs that run or wait."""
        return self._in_hand

    @property
    def is_full(self) -> bool:
        """Whether as many jobs are in hand as may be: the next one is refused."""
        return self._in_hand >= self._limits.room

    @property
    def served(self) -> int:
        """Jobs that were taken and have ended, well or not."""
        return self._served

    @property
    def defunct_reason(self) -> str | None:
        return self._defunct_reason

    def disk_shortage(self) -> str | None:
        """Return a message when too little disk is free for a job, None when there is enough."""
        free = free_bytes(self._disk)
        if free >= self._limits.min_free_disk_bytes:
            return None
        return (
            f"{free / 1024**3:.2f} GiB of disk are free; a job needs "
            f"{self._limits.min_free_disk_gb:g} (TRELLIS2_MIN_FREE_DISK_GB)"
        )

    def open(self) -> None:
        """Begin to take jobs."""
        self._ready = True

    def drain(self) -> None:
        """Take no further job; those in hand go on."""
        self._draining = True

    def mark_defunct(self, reason: str) -> None:
        """Take no further job, ever, and have the process replaced."""
        if self._defunct_reason is None:
            self._defunct_reason = reason
            logger().error("worker_defunct", reason=reason)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold a place for one job; raises `WorkerStopping`, `WorkerBusy` or `DiskFull`."""
        self._enter()
        try:
            yield
        finally:
            with self._lock:
                self._in_hand -= 1
                self._served += 1
                spent = 0 < self._limits.jobs_per_process <= self._served
            if spent:
                self.mark_defunct(f"{self._served} jobs served (TRELLIS2_JOBS_PER_PROCESS)")

    def note_success(self) -> None:
        self._rejected_in_a_row = 0

    def note_failure(self, err: WorkerError) -> None:
        """Mark the worker defunct: a poisoned engine, or results that fail validation in a row."""
        if err.poisons_worker:
            self.mark_defunct(err.message)
        if isinstance(err, MeshRejected | NotFinite | GlbRejected):
            self._rejected_in_a_row += 1
            if self._rejected_in_a_row >= _REJECTIONS_IN_A_ROW:
                self.mark_defunct(f"{self._rejected_in_a_row} results in a row failed validation")
        elif not isinstance(err, WorkerBusy | WorkerStopping):
            self._rejected_in_a_row = 0

    def _enter(self) -> None:
        state = self.state
        if state in (State.DRAINING, State.DEFUNCT, State.STARTING):
            raise WorkerStopping(f"this worker is {state} and takes no job")
        if shortage := self.disk_shortage():
            raise DiskFull(shortage)
        with self._lock:
            if self.is_full:
                raise WorkerBusy(
                    f"{self._in_hand} jobs are in hand; this worker runs "
                    f"{self._limits.max_concurrent} and queues {self._limits.max_queued}"
                )
            self._in_hand += 1
