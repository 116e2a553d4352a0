"""What a process holds, and what a piece of work takes, by the kernel's account."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import psutil

from tests.conftest import ROOT

# VmHWM is of the process's own memory; ru_maxrss would begin with that of whoever started it.
_FRAME = """
import json, re, sys
import psutil
def peak():
    mine = psutil.Process()
    told = [open(f"/proc/{p.pid}/status").read() for p in [mine, *mine.children(recursive=True)]]
    return sum(int(re.search(r"VmHWM:\\s+(\\d+)", text).group(1)) for text in told)
arguments = sys.argv[1:]
PREPARE
before = peak()
WORK
print(json.dumps([before, peak()]))
"""


def grown_mib(prepare: str, work: str, *arguments: str, **variables: str) -> float:
    """Return the MiB by which the peak of resident memory grows while `work` runs.

    `prepare` runs before: imports, and what is there anyway. Both read `arguments`; children of the
    process count by their own peaks, those that are alive.
    """
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            _FRAME.replace("PREPARE", prepare).replace("WORK", work),
            *arguments,
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    before, after = json.loads(done.stdout.splitlines()[-1])
    return (after - before) / 1024


def footprint(pid: int) -> tuple[float, int, int]:
    """Return a process's resident MiB, threads and open files."""
    process = psutil.Process(pid)
    return process.memory_info().rss / 2**20, process.num_threads(), process.num_fds()
