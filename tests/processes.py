"""Processes that tests start, none of which outlives them.

Each is the leader of its own group, so that its children end with it; the kernel kills it when the
tests' own process dies, however that happens (Linux: prctl(2), PR_SET_PDEATHSIG); and all that a
test session starts inherit a mark in their environment, by which the session's end finds what is
left. Tests start processes here, or with `subprocess.run`, which waits.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import psutil

MARK = "TESTS_SESSION"
SESSION = uuid.uuid4().hex
os.environ[MARK] = SESSION  # what is started with this process's environment inherits it

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def start(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[bytes]:
    """Start a process that dies with this one; call from the main thread, and `stop` it."""
    environment = dict(os.environ if env is None else env) | {MARK: SESSION}
    return subprocess.Popen(
        list(command),
        env=environment,
        start_new_session=True,
        preexec_fn=_die_with_parent,
        **options,
    )


def stop(process: subprocess.Popen[bytes], *, grace_s: float = 0.0) -> None:
    """End a process and its children: politely for `grace_s` seconds, then by force."""
    if grace_s and process.poll() is None:
        process.terminate()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            pass  # by force, then
    try:
        os.killpg(process.pid, signal.SIGKILL)  # children may outlive their leader
    except ProcessLookupError:
        pass  # nothing of the group is left
    process.wait()


def left_behind() -> list[psutil.Process]:
    """Return the processes of this session that are still alive, this one excepted."""
    own = psutil.Process()
    children = {child.pid for child in own.children(recursive=True)}
    return [p for p in psutil.process_iter() if p.pid != own.pid and _is_ours(p, children)]


def _is_ours(process: psutil.Process, children: set[int]) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return process.pid in children or process.environ().get(MARK) == SESSION
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def end_and_tell(processes: Sequence[psutil.Process]) -> list[str]:
    """Kill what is left and return what it was."""
    told = []
    for process in processes:
        try:
            told.append(f"{process.pid}: {' '.join(process.cmdline())[:200]}")
            process.kill()
        except psutil.NoSuchProcess:
            continue
    return told
