"""`make mutants` itself: what it calls killed, survived and an error."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.mutants.run import Verdict, apply, judge, part_of, tree_files
from tests.mutants.table import MUTANTS, Mutant

SOURCE = "def double(x):\n    return 2 * x\n"
TESTS = """
import time
from product import double

def test_three(): assert double(3) == 6
def test_zero(): assert double(0) == 0
def test_slow(): time.sleep(60 * (double(1) != 2))
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "product.py").write_text(SOURCE)
    (tmp_path / "test_product.py").write_text(TESTS)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def verdict(tree: Path, text: str, replacement: str, *tests: str, limit_s: float = 60) -> Verdict:
    nodes = tuple(f"test_product.py::{name}" for name in tests)
    mutant = Mutant("a rule", "product.py", text, replacement, nodes)
    return judge(mutant, tree, tree_files(tree), limit_s).verdict


def test_a_mutant_is_killed_when_every_named_test_fails(tree: Path) -> None:
    assert verdict(tree, "2 * x", "3 * x", "test_three") is Verdict.KILLED
    assert verdict(tree, "2 * x", "3 * x", "test_three", "test_zero") is Verdict.SURVIVED
    assert verdict(tree, "2 * x", "x + x", "test_three") is Verdict.SURVIVED
    assert (tree / "product.py").read_text() == SOURCE


def test_what_is_no_kill_is_an_error(tree: Path) -> None:
    assert verdict(tree, "3 * x", "x", "test_three") is Verdict.ERROR
    assert verdict(tree, "x", "y", "test_three") is Verdict.ERROR
    assert verdict(tree, "2 * x", "3 * x", "no_such_test") is Verdict.ERROR
    assert verdict(tree, "2 * x", "3 * x", "test_slow", limit_s=3) is Verdict.ERROR


def test_every_text_of_the_table_is_there_once_and_no_row_is_there_twice(tmp_path: Path) -> None:
    assert len(MUTANTS) >= 25
    assert len({(m.file, m.text, m.replacement) for m in MUTANTS}) == len(MUTANTS)
    assert len({m.rule for m in MUTANTS}) == len(MUTANTS)
    for number, mutant in enumerate(MUTANTS):
        copy = tmp_path / str(number) / mutant.file
        copy.parent.mkdir(parents=True)
        copy.write_text((ROOT / mutant.file).read_text())
        apply(mutant, tmp_path / str(number))
        if copy.suffix == ".py":
            compile(copy.read_text(), mutant.file, "exec")


def test_parts_take_each_row_once() -> None:
    parts = [part_of(MUTANTS, f"{number}/3") for number in range(40, 43)]
    taken = [row for part in parts for row in part]
    assert sorted(row.rule for row in taken) == sorted(row.rule for row in MUTANTS)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
