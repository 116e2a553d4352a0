"""checks/: what `make check` and CI measure, on small cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from checks import coverage_floor, sizes
from checks.coverage_floor import Floors
from tests.conftest import ROOT

ENGINE = "trellis_runtime/engines/trellis2/"
FLOORS = Floors(85, ENGINE, 80, {f"{ENGINE}card.py": "talks to the driver"})


def report(total: float, **parts: float) -> dict[str, Any]:
    files = {
        f"{ENGINE}{name}.py": {"summary": {"percent_covered": part, "num_statements": 10}}
        for name, part in parts.items()
    }
    return {"files": files, "totals": {"percent_covered": total}}


def test_coverage_on_its_floor_is_enough() -> None:
    assert list(coverage_floor.problems(report(85, flow=80, card=10), FLOORS)) == []


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (report(84.9, flow=80, card=10), "in all: 84.9 %"),
        (report(90, flow=79.9, card=10), "flow.py: 79.9 %"),
        (report(90, flow=80, card=80), "needs no excuse any more"),
        (report(90, flow=80), "excused from the floor and does not exist"),
        ({"files": {}, "totals": {"percent_covered": 90}}, "no file of"),
    ],
)
def test_coverage_under_its_floor_is_told(measured: dict[str, Any], words: str) -> None:
    assert any(words in line for line in coverage_floor.problems(measured, FLOORS))


def test_the_projects_floors_are_those_that_were_agreed() -> None:
    floors = Floors.from_project((ROOT / "pyproject.toml").read_text())
    assert (floors.total, floors.engine, floors.engine_file) == (85, ENGINE, 80)
    assert all(reason for reason in floors.needs_gpu.values())


def test_long_functions_and_files_are_told() -> None:
    at = Path("trellis_runtime/x.py")
    body = "def f():\n" + "    x = 1\n" * 49
    assert list(sizes.problems(at, body)) == []
    assert "f has 51 lines" in next(sizes.problems(at, body + "    x = 1\n"))
    long = "x = 1\n" * 301
    assert "over 300" in next(sizes.problems(at, long))
    assert list(sizes.problems(at, '"""Facts.\n\nLong because they are many.\n"""\n' + long)) == []
    assert list(sizes.problems(Path("tests/test_x.py"), long)) == []


def test_make_help_has_a_line_for_each_verb() -> None:
    lines = (ROOT / "Makefile").read_text().splitlines()
    (phony,) = (line for line in lines if line.startswith(".PHONY:"))
    helped = [line.split(":")[0] for line in lines if "## " in line and not line.startswith("\t")]
    assert sorted(phony.split()[1:]) == sorted(helped)


def test_the_workflow_calls_the_one_script_and_pins_what_it_uses() -> None:
    import re

    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    assert "- run: .ci/run\n" in workflow
    assert "permissions: {}" in workflow
    uses = re.findall(r"uses: (\S+)", workflow)
    assert uses
    assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action) for action in uses)


def test_the_hooks_run_what_make_check_runs() -> None:
    recipe = (ROOT / "Makefile").read_text().split("\ncheck:")[1].split("\n\n")[0]
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    for tool in ("ruff format", "ruff check", "mypy", "lint-imports --no-cache", "checks.sizes"):
        assert tool in recipe
        assert tool in hooks
    assert recipe.count("\n") == 5
