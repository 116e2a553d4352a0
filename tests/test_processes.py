"""No process outlives the tests that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from tests import processes
from tests.conftest import ROOT

SLEEP = [sys.executable, "-c", "import time; time.sleep(300)"]
PARENT = """
import sys, time
from tests import processes
print(processes.start([sys.executable, "-c", "import time; time.sleep(300)"]).pid, flush=True)
time.sleep(300)
"""


def test_a_process_dies_with_the_one_that_started_it() -> None:
    """Killed without a chance to clean up, as a time limit kills a test run."""
    parent = processes.start([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    child.wait(timeout=20)
    assert not child.is_running()


def test_what_a_session_leaves_is_found_and_ended() -> None:
    process = processes.start(SLEEP)
    assert process.pid in [p.pid for p in processes.left_behind()]
    processes.stop(process)
    assert processes.left_behind() == []
    forgotten = processes.start(SLEEP)
    told = processes.end_and_tell(processes.left_behind())
    forgotten.wait()
    assert len(told) == 1
    assert "time.sleep(300)" in told[0]
    assert processes.left_behind() == []


def test_children_end_with_their_leader(tmp_path: Path) -> None:
    leader = processes.start(["bash", "-c", "sleep 300 & wait"], cwd=tmp_path)
    group = psutil.Process(leader.pid)
    while not group.children():
        assert leader.poll() is None
    (child,) = group.children()
    processes.stop(leader, grace_s=0.2)
    child.wait(timeout=20)
    assert processes.left_behind() == []


def test_a_session_that_leaves_a_process_fails(tmp_path: Path) -> None:
    """The check itself, in a session of its own."""
    (tmp_path / "conftest.py").write_text("from tests.conftest import no_process_is_left\n")
    (tmp_path / "test_leak.py").write_text(
        "import sys\nfrom tests import processes\n"
        f"def test_leak(): processes.start({SLEEP!r})\n"
        "def test_nothing(): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--rootdir", str(tmp_path)], cwd=tmp_path, env=environment, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "left running" in done.stdout
    assert "2 passed, 1 error" in done.stdout
