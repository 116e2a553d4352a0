"""How long a device was busy, stage by stage: what wall time is to be compared with on any host.

The profiler says when each kernel and copy ran. A device is busy while at least one of them does;
two at once count once. A stage ends only when the device has done what the stage gave it, so what
runs within a stage's time is the stage's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile, record_function

_MARK = "stage:"
Interval = tuple[float, float]
"""Begin and end, in microseconds on the profiler's clock."""


def covered(intervals: Iterable[Interval]) -> float:
    """Return the length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def within(intervals: Iterable[Interval], window: Interval) -> list[Interval]:
    """Return the parts of intervals that lie in a window."""
    first, last = window
    cut = [(max(begin, first), min(end, last)) for begin, end in intervals]
    return [(begin, end) for begin, end in cut if end > begin]


def busy_by_stage(
    kernels: list[Interval], windows: Mapping[str, list[Interval]]
) -> dict[str, float]:
    """Return the seconds that a device was busy within each stage's windows."""
    return {
        stage: sum(covered(within(kernels, window)) for window in spans) / 1e6
        for stage, spans in windows.items()
    }


def mark(stage: str) -> record_function:
    """Return a context that tells the profiler which stage runs."""
    return record_function(_MARK + stage)


def measure(work: Callable[[], Any]) -> tuple[Any, dict[str, float], float]:
    """Run `work` under the profiler.

    Returns what it returns, the busy seconds of each stage that it marked, and those of all of it.
    Profiling slows the host: take wall times from another run.
    """
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        made = work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    kernels, windows = _intervals(profiler.events() or [])
    return made, busy_by_stage(kernels, windows), covered(kernels) / 1e6


def _intervals(events: Iterable[Any]) -> tuple[list[Interval], dict[str, list[Interval]]]:
    """Return when kernels ran, and when each marked stage did."""
    kernels, windows = list[Interval](), dict[str, list[Interval]]()
    for event in events:
        span = float(event.time_range.start), float(event.time_range.end)
        if event.name.startswith(_MARK):
            if event.device_type == DeviceType.CPU:  # its echo on the device's side is no kernel
                windows.setdefault(event.name.removeprefix(_MARK), []).append(span)
        elif event.device_type == DeviceType.CUDA:
            kernels.append(span)
    return kernels, windows


def ratio(wall_s: float, busy_s: float | None) -> float | None:
    """Return wall time over busy time, None where the device did nothing that was seen."""
    return round(wall_s / busy_s, 2) if busy_s else None
