"""A bound on what a child process may allocate, where the system can hold it to that."""

from __future__ import annotations

import resource
from pathlib import Path


def bound_address_space(more: int) -> None:
    """Let this process's address space grow by `more` bytes and no further.

    Elsewhere than on Linux nothing is bounded: the parent still ends what takes too long.
    """
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        size = pages * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
    except (OSError, ValueError):
        return
