"""A memory budget in real bytes, so that running out of memory can be seen on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from trellis_runtime.engine import MemorySnapshot
from trellis_runtime.errors import OutOfVram

_UNBOUNDED = 2**63 - 1


class Budget:
    """Counts the bytes of arrays that the engine holds, and refuses what exceeds the total.

    `hold` is for arrays that outlive a stage, `working` for those that do not. Sizes are those of
    the arrays really allocated, stated just before they are.
    """

    def __init__(self, total: int | None) -> None:
        self._total = _UNBOUNDED if total is None else total
        self._held: dict[str, int] = {}
        self._working = 0
        self._peak = 0

    @property
    def free(self) -> int:
        return self._total - self._working - sum(self._held.values())

    def hold(self, name: str, size: int) -> None:
        """Count `size` bytes under `name` until `drop`; raises `OutOfVram`."""
        self.drop(name)
        self._require(name, size)
        self._held[name] = size
        self._note_peak()

    def drop(self, *names: str) -> None:
        """Stop counting `names`, or everything held when none is named."""
        for name in names or tuple(self._held):
            self._held.pop(name, None)

    @contextmanager
    def working(self, name: str, size: int) -> Iterator[None]:
        """Count `size` bytes while the block runs; raises `OutOfVram` before it starts."""
        self._require(name, size)
        self._working += size
        self._note_peak()
        try:
            yield
        finally:
            self._working -= size

    def snapshot(self) -> MemorySnapshot | None:
        """Return the budget as a device's memory, None when there is no bound."""
        if self._total == _UNBOUNDED:
            return None
        return MemorySnapshot(free=self.free, total=self._total, peak=self._peak)

    def reset_peak(self) -> None:
        self._peak = 0
        self._note_peak()

    def _note_peak(self) -> None:
        self._peak = max(self._peak, self._total - self.free)

    def _require(self, name: str, size: int) -> None:
        if size > self.free:
            raise OutOfVram(
                f"{name} needs {size / 2**20:.1f} MiB; {self.free / 2**20:.1f} of "
                f"{self._total / 2**20:.1f} MiB are free"
            )
