"""How fast a host runs Python: what decides whether a card waits for its kernels to be issued."""

from __future__ import annotations

import time

_STEPS = 1_000_000


def loops_per_second(runs: int = 5) -> float:
    """Return how often a second this host runs a fixed loop of a million steps, in its best run.

    One core, integers alone: comparable between hosts of the same Python version.
    """
    return round(1 / min(_seconds() for _ in range(runs)), 2)


def _seconds() -> float:
    started, total = time.perf_counter(), 0
    for step in range(_STEPS):
        total = (total * 31 + step) & 0xFFFFFF
    return time.perf_counter() - started
