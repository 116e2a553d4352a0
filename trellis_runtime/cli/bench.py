"""Time whole jobs, stage by stage: a table for people, and one JSON object as the last line."""

from __future__ import annotations

import asyncio
import json
import platform
import statistics
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from trellis_runtime import __version__
from trellis_runtime.worker.worker import Worker


def run_bench(
    console: Console, worker: Worker, image: str, presets: list[str], runs: int
) -> dict[str, Any]:
    """Run each preset once to warm up and `runs` times to count; returns and prints medians.

    `image` is base64. Raises `RuntimeError` when a job fails.
    """
    rows = [_bench_preset(worker, image, preset, runs) for preset in presets]
    table = Table("stage", *presets, title=f"seconds, median of {runs}")
    for stage in rows[0]["stage_seconds"]:
        table.add_row(stage, *(f"{row['stage_seconds'][stage]:.3f}" for row in rows))
    table.add_row("in all", *(f"{row['seconds']:.3f}" for row in rows), style="bold")
    table.add_row("faces", *(f"{row['faces']:,}" for row in rows))
    table.add_row("GLB MB", *(f"{row['glb_bytes'] / 1e6:.1f}" for row in rows))
    console.print(table)
    report = {
        "suite": worker.engine.info().name,
        "versions": worker.engine.info().versions | {"trellis-runtime": __version__},
        "machine": platform.machine(),
        "init": worker.startup_seconds,
        "rows": rows,
    }
    console.print(json.dumps(report), soft_wrap=True, highlight=False, markup=False)
    return report


def _bench_preset(worker: Worker, image: str, preset: str, runs: int) -> dict[str, Any]:
    job = {"id": "bench", "input": {"image": image, "preset": preset, "seed": 1}}
    seconds, answers = [], []
    for number in range(runs + 1):
        started = time.perf_counter()
        answer = asyncio.run(worker.handle(dict(job)))
        if "error" in answer:
            raise RuntimeError(answer["error"])
        if number:
            seconds.append(time.perf_counter() - started)
            answers.append(answer)
    stages = answers[0]["timings"]
    return {
        "preset": preset,
        "seconds": round(statistics.median(seconds), 4),
        "stage_seconds": {
            stage: round(statistics.median(a["timings"][stage] for a in answers), 4)
            for stage in stages
        },
        "faces": answers[0]["mesh"]["faces"],
        "glb_bytes": answers[0]["artifact"]["bytes"],
        "level": answers[0]["oom_quality_degradation_level"],
    }
