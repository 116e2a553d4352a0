"""`make mutants`: break one rule at a time, and see that the tests which guard it fail.

    table.py ──► a copy of the tree ──► one text replaced ──► the named tests alone ──► all fail?

Each row of the table gets a fresh copy of the tree in a temporary folder, so nothing of the checkout
changes. A row is killed when every test that it names fails; a text that does not occur exactly
once, a test that fails without the breakage, and a run over its time limit are errors, not kills.
Exit code 0: all killed; 1: a survivor or an error.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tests.mutants.table import MUTANTS, Mutant

ROOT = Path(__file__).parent.parent.parent
TIME_LIMIT_S = 180.0
WORKERS = 2


class Verdict(StrEnum):
    """How a row ended; only `KILLED` is good."""

    KILLED = "killed"
    SURVIVED = "SURVIVED"
    ERROR = "ERROR"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One row's verdict, its reason where it is not good, and its seconds."""

    mutant: Mutant
    verdict: Verdict
    reason: str
    seconds: float


def tree_files(root: Path) -> list[str]:
    """Return the files of a checkout that git tracks or would track."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=root, capture_output=True, check=True,
    )  # fmt: skip
    names = listed.stdout.decode().split("\0")
    return [name for name in names if name and (root / name).is_file()]


def copy_tree(root: Path, files: Iterable[str], target: Path) -> None:
    """Copy `files` (relative to `root`) to `target`."""
    for name in files:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, path)


def apply(mutant: Mutant, tree: Path) -> None:
    """Replace the mutant's text in `tree`; raises `LookupError` unless it occurs exactly once."""
    path = tree / mutant.file
    source = path.read_text() if path.is_file() else ""
    if (count := source.count(mutant.text)) != 1:
        raise LookupError(f"the text occurs {count} times in {mutant.file}")
    path.write_text(source.replace(mutant.text, mutant.replacement))


def run_tests(tree: Path, tests: Sequence[str], limit_s: float) -> tuple[int, str]:
    """Run the tests in `tree`; return pytest's exit code and its output.

    Raises `TimeoutError` after `limit_s` seconds, when nothing of the run is left alive.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=line", "--color=no",
               "-p", "no:cacheprovider", "-p", "no:xdist", *tests]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "400"}
    environment.pop("COVERAGE_PROCESS_START", None)
    with subprocess.Popen(
        command, cwd=tree, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise TimeoutError(f"the tests took more than {limit_s:g} s") from None
    return process.returncode, output


def failed_tests(output: str) -> list[str]:
    """Return the node ids that pytest's short summary calls failed; an error in set-up is none."""
    lines = [line.split(" ") for line in output.splitlines() if line.startswith("FAILED ")]
    return [words[1] for words in lines]


def judge(mutant: Mutant, root: Path, files: Iterable[str], limit_s: float) -> Outcome:
    """Break one rule in a copy of the tree and say whether every named test fails."""
    started = time.monotonic()

    def outcome(verdict: Verdict, reason: str = "") -> Outcome:
        return Outcome(mutant, verdict, reason, time.monotonic() - started)

    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        tree = Path(folder)
        copy_tree(root, files, tree)
        try:
            apply(mutant, tree)
            code, output = run_tests(tree, mutant.tests, limit_s)
        except (LookupError, TimeoutError) as err:
            return outcome(Verdict.ERROR, str(err))
    if code not in (0, 1):
        return outcome(Verdict.ERROR, f"pytest ended with {code}: {output[-300:]}")
    failed = failed_tests(output)
    deaf = [test for test in mutant.tests if not any(_is_of(node, test) for node in failed)]
    if deaf:
        return outcome(Verdict.SURVIVED, f"passed: {', '.join(deaf)}")
    return outcome(Verdict.KILLED)


def _is_of(node: str, test: str) -> bool:
    """Whether a failed node is the named test, or one of its parametrized forms."""
    return node == test or node.startswith(f"{test}[")


def baseline(root: Path, files: Iterable[str], tests: Sequence[str]) -> str | None:
    """Run the named tests on the tree as it is; return what is wrong, None when all pass."""
    with tempfile.TemporaryDirectory(prefix="baseline-") as folder:
        copy_tree(root, files, Path(folder))
        try:
            code, output = run_tests(Path(folder), tests, TIME_LIMIT_S * 3)
        except TimeoutError as err:
            return str(err)
    return None if code == 0 else output[-3000:]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the table, or the rows whose file or rule contains a given word."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("word", nargs="?", default="", help="only rows with this in file or rule")
    parser.add_argument("--workers", type=int, default=WORKERS, help="rows side by side")
    parser.add_argument(
        "--no-baseline", action="store_true", help="the tests were just seen to pass: begin at once"
    )
    parser.add_argument(
        "--part", default="0/1", metavar="K/N", help="only every Nth row, the Kth of each N"
    )
    wanted = parser.parse_args(arguments)
    rows = part_of(
        [m for m in MUTANTS if wanted.word in m.file or wanted.word in m.rule], wanted.part
    )
    files = tree_files(ROOT)
    tests = list(dict.fromkeys(test for row in rows for test in row.tests))
    if not wanted.no_baseline and (wrong := _failing_unbroken(files, tests)):
        print("The named tests do not pass on the tree as it is:\n", *wrong, sep="\n")
        return 1
    with ThreadPoolExecutor(wanted.workers) as pool:
        outcomes = list(pool.map(lambda m: _shown(judge(m, ROOT, files, TIME_LIMIT_S)), rows))
    killed = sum(outcome.verdict is Verdict.KILLED for outcome in outcomes)
    print(f"{killed} of {len(outcomes)} mutants were killed by {len(tests)} named tests")
    return 0 if killed == len(outcomes) else 1


def part_of(rows: Sequence[Mutant], part: str) -> Sequence[Mutant]:
    """Return every Nth of `rows` for a `part` "K/N"; N runs with K one apart take each row once."""
    number, count = (int(word) for word in part.split("/"))
    return rows[number % count :: count]


def _failing_unbroken(files: Sequence[str], tests: Sequence[str]) -> list[str]:
    """Return what is wrong with the named tests on the tree as it is, run in two halves."""
    halves = [half for half in (tests[::2], tests[1::2]) if half]
    with ThreadPoolExecutor(len(halves)) as pool:
        checked = pool.map(lambda half: baseline(ROOT, files, half), halves)
        return [text for text in checked if text]


def _shown(outcome: Outcome) -> Outcome:
    mutant = outcome.mutant
    line = f"{outcome.verdict:9} {outcome.seconds:6.1f} s  {mutant.file:48} {mutant.rule}"
    print(line + (f"\n          {outcome.reason}" if outcome.reason else ""), flush=True)
    return outcome


if __name__ == "__main__":
    sys.exit(main())
