"""Start worker after worker, each in a fresh process, and say where the seconds go.

Each child starts a worker, runs one job twice and prints what it measured as its last line. Works
for every engine and checkpoint that the environment's settings name.
"""

from __future__ import annotations

import asyncio
import base64
import html
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table

from trellis_runtime.settings import Settings
from trellis_runtime.worker.readahead import drop
from trellis_runtime.worker.warmup import picture
from trellis_runtime.worker.worker import Worker

_TIMEOUT_S = 900
_COLORS = (
    "#4c78a8",
    "#f58518",
    "#54a24b",
    "#e45756",
    "#72b7b2",
    "#b279a2",
    "#9d755d",
    "#ff9da6",
    "#bab0ac",
)
# Phases that follow one another; the rest of the time to ready is shown as "other".
_PHASES = ("imports", "cuda", "import_upstream", "remover", "load", "rehearsal", "place", "warm_up")


@dataclass(frozen=True, slots=True)
class Case:
    """One way to start: variables on top of the environment's, and which caches are empty."""

    name: str
    variables: dict[str, str]
    cold_pages: bool = False
    empty_cache: bool = False


def cases_for(settings: Settings) -> list[Case]:
    """Return the ways to start that differ for these settings."""
    cases = [Case("preload", {}), Case("lazy", {"TRELLIS2_PRELOAD": "0"})]
    if settings.trellis2.model_dir is not None:
        cases.insert(0, Case("preload, cold pages", {}, cold_pages=True))
        cases.append(Case("offload", {"TRELLIS2_PLACEMENT": "offload"}))
        cases.append(Case("no kernel cache", {}, empty_cache=True))
    return cases


def child(preset: str) -> dict[str, Any]:
    """Start a worker here, run a job twice, and return what was measured.

    The picture has alpha: a checkpoint without a background remover can be measured too.
    """
    worker = Worker.start()
    data = io.BytesIO()
    Image.fromarray(picture()).save(data, "PNG")
    image = base64.b64encode(data.getvalue()).decode()
    ready = dict(worker.startup_seconds)
    jobs = []
    for number in range(2):
        started = time.perf_counter()
        job = {"id": f"cold-{number}", "input": {"image": image, "preset": preset, "seed": 1}}
        answer = asyncio.run(worker.handle(job))
        if "error" in answer:
            raise RuntimeError(answer["error"])
        jobs.append(round(time.perf_counter() - started, 3))
    worker.close()
    loaded_later = {k: v for k, v in worker.startup_seconds.items() if k not in ready}
    return {
        "engine": answer["engine"],
        "init": ready,
        "loaded_with_first_job": loaded_later,
        "first_job_s": jobs[0],
        "second_job_s": jobs[1],
        "page_read_gb_s": _rate(ready),
    }


def run_cold_start(
    console: Console, cases: Sequence[Case], runs: int, preset: str, drawing: Path
) -> dict[str, Any]:
    """Run each case `runs` times; prints a table, writes a picture, returns medians.

    Raises `RuntimeError` with the child's last words when one fails.
    """
    settings = Settings.from_env()
    rows = []
    for case in cases:
        measured = []
        for number in range(runs):
            console.print(f"[dim]{case.name}: process {number + 1} of {runs}[/dim]")
            if case.cold_pages and settings.trellis2.model_dir is not None:
                drop(settings.trellis2.model_dir)
            measured.append(_run_child(case, preset))
        rows.append(_medians(case, measured))
    phases = [p for p in _PHASES if any(p in row["phases"] for row in rows)]
    table = Table("phase", *(case.name for case in cases), title=f"seconds, median of {runs}")
    for phase in phases:
        table.add_row(phase, *(_shown(row["phases"].get(phase)) for row in rows))
    table.add_row("ready", *(_shown(row["ours_s"]) for row in rows), style="bold")
    for name in ("read", "first_job_s", "second_job_s"):
        table.add_row(name, *(_shown(row["phases"].get(name)) for row in rows))
    console.print(table)
    drawing.parent.mkdir(parents=True, exist_ok=True)
    drawing.write_text(chart(rows, phases))
    console.print(f"picture: {drawing}", soft_wrap=True, highlight=False)
    return {"suite": "cold-start", "rows": rows}


def chart(rows: Sequence[dict[str, Any]], phases: Sequence[str]) -> str:
    """Return an SVG of stacked bars: each case's phases up to ready."""
    longest = max(row["ours_s"] for row in rows) or 1.0
    left, width, step = 150, 560, 44
    parts = []
    for line, row in enumerate(rows):
        y, x = 40 + line * step, float(left)
        shares = [(p, row["phases"].get(p, 0.0)) for p in phases]
        shares.append(("other", max(0.0, row["ours_s"] - sum(v for _, v in shares))))
        parts.append(f'<text x="{left - 8}" y="{y + 17}" text-anchor="end">'
                     f"{html.escape(row['case'])}</text>")  # fmt: skip
        for (name, value), color in zip(shares, _COLORS, strict=False):
            span = value / longest * width
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{span:.1f}" height="24" '
                         f'fill="{color}"><title>{name} {value:.2f} s</title></rect>')  # fmt: skip
            x += span
        parts.append(f'<text x="{x + 6:.1f}" y="{y + 17}">{row["ours_s"]:.1f} s</text>')
    for place, (name, color) in enumerate(zip([*phases, "other"], _COLORS, strict=False)):
        at = left + place * 118
        parts.append(f'<rect x="{at}" y="12" width="12" height="12" fill="{color}"/>'
                     f'<text x="{at + 16}" y="22">{name}</text>')  # fmt: skip
    height = 56 + len(rows) * step
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 280} {height}" '
        'font-family="system-ui" font-size="12">'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _run_child(case: Case, preset: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as empty:
        extra = {"TRELLIS2_KERNEL_CACHE_DIR": empty} if case.empty_cache else {}
        return _measured(case.name, case.variables | extra, preset)


def _measured(name: str, variables: dict[str, str], preset: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "trellis_runtime", "bench", "cold-start", "--child"]
    environment = os.environ | variables | {"TRELLIS2_LOG_LEVEL": "error"}
    done = subprocess.run(
        [*command, "--presets", preset],
        env=environment,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr.strip().splitlines()[-1:]}")
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def _medians(case: Case, measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    flat = [
        m["init"] | {"first_job_s": m["first_job_s"], "second_job_s": m["second_job_s"]}
        for m in measured
    ]
    names = [name for name in flat[0] if all(name in f for f in flat)]
    phases = {name: round(statistics.median(f[name] for f in flat), 3) for name in names}
    return {
        "case": case.name,
        "ours_s": phases.pop("ready"),
        "upstream_s": None,
        "floor_s": None,
        "phases": phases,
        "engine": measured[0]["engine"]["name"],
    }


def _rate(init: dict[str, float]) -> float | None:
    """Return how fast files were read, in GB/s: far above the disk's rate, pages were warm."""
    return round(init["read_gb"] / init["read"], 2) if init.get("read") else None


def _shown(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f}"
