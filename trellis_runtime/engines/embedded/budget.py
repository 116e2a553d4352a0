"""A memory budget in real bytes, so that running out of memory can be seen on a CPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from trellis_runtime.contract.engine import MemorySnapshot
from trellis_runtime.errors import OutOfVram

_UNBOUNDED = 2**63 - 1


class Budget:
    """Counts the bytes of arrays that the engine's jobs hold, and refuses what exceeds the total.

    Sizes are those of the arrays really allocated, stated just before they are.
    """

    def __init__(self, total: int | None) -> None:
        self._total = _UNBOUNDED if total is None else total
        self._used = 0
        self._peak = 0
        self._lock = threading.Lock()

    def share(self) -> Share:
        """Return the part of one job."""
        with self._lock:
            self._peak = self._used
        return Share(self)

    def take(self, name: str, size: int, held: int) -> None:
        """Count `size` more bytes for a job that holds `held`; raises `OutOfVram` without them."""
        with self._lock:
            free = self._total - self._used
            if size > free:
                raise OutOfVram(
                    f"{name} needs {size / 2**20:.1f} MiB; {free / 2**20:.1f} of "
                    f"{self._total / 2**20:.1f} MiB are free",
                    needed_bytes=size,
                    available_bytes=free + held,
                )
            self._used += size
            self._peak = max(self._peak, self._used)

    def give(self, size: int) -> None:
        with self._lock:
            self._used -= size

    def snapshot(self) -> MemorySnapshot | None:
        """Return the budget as a device's memory, None when there is no bound."""
        if self._total == _UNBOUNDED:
            return None
        with self._lock:
            return MemorySnapshot(self._total - self._used, self._total, self._peak)


class Share:
    """One job's part of the budget: `hold` outlives a stage, `working` does not."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._held: dict[str, int] = {}

    def _total(self) -> int:
        return sum(self._held.values())

    def hold(self, name: str, size: int) -> None:
        """Count `size` bytes under `name` until `drop`; raises `OutOfVram`."""
        self.drop(name)
        self._budget.take(name, size, self._total())
        self._held[name] = size

    def drop(self, *names: str) -> None:
        """Stop counting `names`, or everything held when none is named."""
        for name in names or tuple(self._held):
            self._budget.give(self._held.pop(name, 0))

    @contextmanager
    def working(self, name: str, size: int) -> Iterator[None]:
        """Count `size` bytes while the block runs; raises `OutOfVram` before it starts."""
        self._budget.take(name, size, self._total())
        try:
            yield
        finally:
            self._budget.give(size)
