"""Statistics from the worker's own log lines."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_cli import run
from tests.test_worker import PHOTO, QUICK
from trellis_runtime.cli.stats import Histogram, Stats, html_report


def complete(level: int = 0, seconds: float = 2.0, hour: int = 1, **more: Any) -> bytes:
    event = {
        "event": "generation_complete", "elapsed_seconds": seconds, "degradation_level": level,
        "faces": 1000, "vertices": 500, "oom_retries": min(level, 3), "vram_peak_bytes": 2**30,
        "stage_seconds": {"shape": seconds / 2}, "timestamp": f"2026-11-21T{hour:02d}:30:00Z",
    }  # fmt: skip
    return json.dumps(event | more).encode() + b"\n"


def test_figures_are_those_of_the_lines() -> None:
    stats = Stats()
    stats.read(
        [
            *[complete() for _ in range(6)], complete(4), complete(4), complete(10, hour=2), complete(12, seconds=9),
            b'{"event": "generation_failed", "code": "out_of_vram"}\n',
            b'{"event": "rung_failed", "rung": "offload"}\n',
            b'{"event": "worker_ready", "engine": "embedded", "init_ready_s": 1.5}\n',
            b'{"event": "stage_finished", "stage": "shape"}\n',
            b"Traceback (most recent call last):\n",
            b'{"event": "generation_complete", "faces": "many"\n',
        ]
    )  # fmt: skip
    report = stats.report()
    assert report["jobs"] == 11
    assert report["success_rate"] == pytest.approx(10 / 11, abs=1e-3)
    assert report["levels"] == {"0": 6, "4": 2, "10": 1, "12": 1}
    assert report["most_common_rung"] == "chunk_bake"
    assert report["texture_degraded_share"] == 0.2
    assert report["failures"] == {"out_of_vram": 1}
    assert report["rungs_out_of_memory"] == {"offload": 1}
    assert (report["broken_lines"], report["lines_of_others"]) == (1, 1)
    assert report["seconds"]["p50"] == pytest.approx(2.0, rel=0.02)
    assert report["seconds"]["max"] == 9
    assert report["mean_faces_by_hour"] == {"2026-11-21 01:00": 1000, "2026-11-21 02:00": 1000}
    assert report["seconds_to_ready"]["count"] == 1


@given(st.lists(st.floats(0.001, 1e9), min_size=1, max_size=300))
def test_quantiles_are_within_two_percent(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    for share in (0.5, 0.95, 1.0):
        rank = max(1, -(-int(share * len(values) * 1000) // 1000))
        exact = sorted(values)[rank - 1]
        assert histogram.quantile(share) >= exact * 0.98 or share < 1
    assert histogram.quantile(1.0) == pytest.approx(max(values), rel=0.02)


@given(st.lists(st.binary(max_size=80) | st.just(b'{"event":"generation_complete"}')))
def test_any_lines_are_survived(lines: list[bytes]) -> None:
    stats = Stats()
    stats.read(lines)
    assert stats.lines == len(lines)
    html_report(stats.report())


def test_memory_is_level() -> None:
    rng = random.Random(1)

    def lines(count: int) -> Any:
        for i in range(count):
            yield complete(
                rng.randrange(13), rng.uniform(1, 90), i % 24, faces=rng.randrange(10**6)
            )

    stats = Stats()
    stats.read(lines(20_000))
    tracemalloc.start()
    stats.read(lines(20_000))
    ours = [tracemalloc.Filter(True, f"*/{part}/*") for part in ("trellis_runtime", "json")]
    kept = tracemalloc.take_snapshot().filter_traces(ours)  # other threads allocate too
    tracemalloc.stop()
    assert sum(trace.size for trace in kept.traces) < 200_000


def test_hostile_names_do_not_reach_the_page() -> None:
    stats = Stats()
    stats.read([b'{"event": "generation_failed", "code": "<script>alert(1)</script>"}'])
    assert "<script>" not in html_report(stats.report())


def test_the_command_reads_a_workers_own_log(tmp_path: Path) -> None:
    (tmp_path / "test_input.json").write_text(json.dumps({"input": QUICK}))
    from tests.conftest import ROOT

    done = run(
        tmp_path, str(ROOT / "handler.py"), TRELLIS2_LOG_LEVEL="info", TRELLIS2_LOG_FORMAT="json"
    )
    assert PHOTO[:50] not in done.stderr
    log = tmp_path / "worker.log"
    log.write_text(done.stderr)
    shown = run(tmp_path, "-m", "trellis_runtime", "stats", str(log), "--html", "report.html")
    assert shown.returncode == 0, shown.stderr
    assert "1 jobs, 100.0% succeeded" in shown.stdout
    assert "<svg" in (tmp_path / "report.html").read_text()
    as_json = run(tmp_path, "-m", "trellis_runtime", "stats", str(log), "--json")
    assert json.loads(as_json.stdout)["levels"] == {"0": 1}
