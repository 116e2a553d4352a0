"""The plot of wall over busy time by a host's speed, which the benchmark's rows fill."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.host import loops_per_second
from builder.plot_benchmarks import DOCS, host_drawing, ratios, speed_rows
from tests.conftest import ROOT


def a_run(speed: float | None, ratio: float, suite: str = "speed") -> dict[str, Any]:
    rows = [
        {"case": "512 image to mesh", "wall_over_busy": ratio},
        {"case": "1024 job, 500k, 2048: 4 one at a time", "wall_over_busy": 2 * ratio},
        {"case": "1024 job, 500k, 2048: 4, two in flight", "wall_over_busy": None},
        {"case": "512 shape", "wall_over_busy": 9.0},
    ]
    known = {} if speed is None else {"host_loops_per_s": speed}
    return {"suite": suite, "rows": rows} | known


def test_each_case_has_a_point_for_each_host_in_order_of_speed() -> None:
    runs = [a_run(9.0, 1.1), a_run(4.0, 1.6), a_run(None, 7.0), a_run(5.0, 8.0, "memory")]
    assert ratios(runs) == {
        "512 to mesh": [(4.0, 1.6), (9.0, 1.1)],
        "1024 jobs": [(4.0, 3.2), (9.0, 2.2)],
    }


@pytest.mark.parametrize("runs", [[], [a_run(9.0, 1.1)], [a_run(9.0, 1.1), a_run(9.4, 1.2)]])
def test_one_host_alone_is_no_plot(runs: list[dict[str, Any]]) -> None:
    assert ratios(runs) == {}


def test_the_picture_has_a_line_for_each_case() -> None:
    picture = host_drawing(ratios([a_run(9.0, 1.1), a_run(4.0, 1.6)]))
    assert len(re.findall("<polyline", picture)) == 2
    assert "1024 jobs: 4, 3.2 x" in picture


def test_the_script_draws_what_the_runs_allow(tmp_path: Path) -> None:
    """The picture of costs in the documents is today's; the other is drawn with a second host."""
    kept = json.loads((DOCS / "benchmarks.json").read_text())
    for name, more in (("one", []), ("two", [a_run(9.0, 1.1), a_run(4.0, 1.6)])):
        (out := tmp_path / name).mkdir()
        runs = tmp_path / f"{name}.json"
        runs.write_text(json.dumps(kept + more))
        subprocess.run(
            [sys.executable, "builder/plot_benchmarks.py", "--runs", str(runs), "--out", str(out)],
            cwd=ROOT, check=True, timeout=60, capture_output=True,
        )  # fmt: skip
        assert (out / "cost.svg").read_text() == (DOCS / "images/cost.svg").read_text()
        assert (out / "host.svg").exists() == bool(ratios(kept + more))
    assert (tmp_path / "two/host.svg").exists()


def test_lines_of_cost_are_of_one_run() -> None:
    cases = [row["case"] for row in speed_rows(json.loads((DOCS / "benchmarks.json").read_text()))]
    assert len(cases) == len(set(cases))


def test_a_hosts_speed_is_a_positive_number() -> None:
    assert loops_per_second(runs=1) > 0
