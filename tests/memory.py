"""How much memory a piece of work takes, in a process of its own, by the kernel's account."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.conftest import ROOT

_FRAME = """
import json, resource, sys
def peak():
    return max(
        resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
arguments = sys.argv[1:]
{prepare}
before = peak()
{work}
print(json.dumps([before, peak()]))
"""


def grown_mib(prepare: str, work: str, *arguments: str, **variables: str) -> float:
    """Return the MiB by which the peak of resident memory grows while `work` runs.

    `prepare` runs before: imports, and what is there anyway. Both read `arguments`; children of the
    process count once they have been waited for.
    """
    done = subprocess.run(
        [sys.executable, "-c", _FRAME.format(prepare=prepare, work=work), *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    before, after = json.loads(done.stdout.splitlines()[-1])
    return (after - before) / 1024
