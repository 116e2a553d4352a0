"""What the operators need from the worker's JSON log lines, in constant memory.

Lines are read one by one and summed up in counters and histograms of fixed size, so a million of
them cost seconds and no memory. Lines of other programs are counted and passed over, and so are
lines of ours that were cut off.
"""

from __future__ import annotations

import html
import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from trellis_runtime.cli.console import print_table
from trellis_runtime.contract.ladder import RUNGS
from trellis_runtime.contract.levels import TEXTURE_LEVELS

_MOST_PERIODS = 240
_MARKS = (b'"generation_complete"', b'"generation_failed"', b'"worker_ready"', b'"rung_failed"')


class Histogram:
    """Quantiles of positive numbers within 1 %, in a bounded number of buckets.

    Bucket i holds what lies in [1.02^i, 1.02^(i+1)); a quantile is its bucket's geometric middle.
    """

    _GROWTH = math.log(1.02)

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.largest = 0.0
        self._buckets: Counter[int] = Counter()

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        self.largest = max(self.largest, value)
        clamped = min(max(value, 1e-6), 1e15)
        self._buckets[math.floor(math.log(clamped) / self._GROWTH)] += 1

    def quantile(self, share: float) -> float:
        """Return the value below which `share` (0..1) of all lie; 0 when there is none."""
        wanted, seen = share * self.count, 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= wanted:
                return min(math.exp((bucket + 0.5) * self._GROWTH), self.largest)
        return 0.0

    def summary(self) -> dict[str, float]:
        mean = self.total / self.count if self.count else 0.0
        named = {"p50": self.quantile(0.5), "p95": self.quantile(0.95), "max": self.largest}
        return {"count": self.count, "mean": round(mean, 4)} | {
            name: round(value, 4) for name, value in named.items()
        }


@dataclass(slots=True)
class Stats:
    """Everything that is counted."""

    lines: int = 0
    broken: int = 0
    others: int = 0
    completed: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    levels: Counter[int] = field(default_factory=Counter)
    rungs_failed: Counter[str] = field(default_factory=Counter)
    engines: Counter[str] = field(default_factory=Counter)
    seconds: Histogram = field(default_factory=Histogram)
    stages: dict[str, Histogram] = field(default_factory=dict)
    oom_retries: Histogram = field(default_factory=Histogram)
    ready: Histogram = field(default_factory=Histogram)
    vram_peak: Histogram = field(default_factory=Histogram)
    faces: Histogram = field(default_factory=Histogram)
    vertices: Histogram = field(default_factory=Histogram)
    faces_by_hour: dict[str, list[float]] = field(default_factory=dict)

    def read(self, lines: Iterable[bytes]) -> None:
        """Count `lines`; what is broken is counted as such."""
        for line in lines:
            self.lines += 1
            if not any(mark in line for mark in _MARKS):
                # Most lines are stages, or other programs' own words, the SDK's for one.
                self.broken += _is_cut(line)
                self.others += not line.lstrip().startswith(b"{")
                continue
            try:
                self._count(json.loads(line))
            except (
                ValueError,
                TypeError,
                AttributeError,
                LookupError,
                ArithmeticError,
                RecursionError,
            ):
                self.broken += 1

    def _count(self, event: dict[str, Any]) -> None:
        name = event.get("event")
        if name == "generation_complete":
            self._completed(event)
        elif name == "generation_failed":
            self.failed[str(event.get("code"))[:40]] += 1
        elif name == "rung_failed":
            self.rungs_failed[str(event.get("rung"))[:40]] += 1
        elif name == "worker_ready":
            self.ready.add(float(event.get("init_ready_s") or 0.0))
            self.engines[str(event.get("engine"))[:40]] += 1

    def _completed(self, event: dict[str, Any]) -> None:
        faces, level = float(event["faces"]), int(event["degradation_level"])
        seconds = float(event["elapsed_seconds"])
        stages = {str(s)[:40]: float(v) for s, v in dict(event.get("stage_seconds") or {}).items()}
        hour = datetime.fromisoformat(event["timestamp"]).strftime("%Y-%m-%d %H:00")
        # All of it is read before any is counted: half an event would skew the rest.
        self.completed += 1
        self.levels[level] += 1
        self.seconds.add(seconds)
        self.faces.add(faces)
        self.vertices.add(float(event.get("vertices") or 0))
        self.oom_retries.add(float(event.get("oom_retries") or 0))
        if event.get("vram_peak_bytes"):
            self.vram_peak.add(float(event["vram_peak_bytes"]))
        for stage, value in stages.items():
            if stage in self.stages or len(self.stages) < 40:
                self.stages.setdefault(stage, Histogram()).add(value)
        self._note_hour(hour, faces)

    def _note_hour(self, hour: str, faces: float) -> None:
        if hour not in self.faces_by_hour and len(self.faces_by_hour) >= _MOST_PERIODS:
            del self.faces_by_hour[min(self.faces_by_hour)]  # the oldest
        cell = self.faces_by_hour.setdefault(hour, [0.0, 0.0])
        cell[0] += 1
        cell[1] += faces

    def report(self) -> dict[str, Any]:
        """Return all figures as plain JSON."""
        jobs = self.completed + sum(self.failed.values())
        degraded = {n: c for n, c in self.levels.items() if n > 0}
        worst = max(degraded, key=lambda n: degraded[n]) if degraded else None
        texture = sum(c for n, c in self.levels.items() if n in TEXTURE_LEVELS)
        known = worst is not None and worst < len(RUNGS)
        return {
            "lines": self.lines,
            "broken_lines": self.broken,
            "lines_of_others": self.others,
            "jobs": jobs,
            "success_rate": round(self.completed / jobs, 4) if jobs else None,
            "failures": dict(self.failed.most_common()),
            "levels": {str(n): self.levels[n] for n in sorted(self.levels)},
            "most_common_rung": RUNGS[worst].name if known and worst is not None else None,
            "texture_degraded_share": round(texture / self.completed, 4)
            if self.completed
            else None,
            "rungs_out_of_memory": dict(self.rungs_failed.most_common()),
            "oom_retries_per_job": self.oom_retries.summary(),
            "seconds": self.seconds.summary(),
            "stage_seconds": {s: h.summary() for s, h in self.stages.items()},
            "seconds_to_ready": self.ready.summary(),
            "vram_peak_bytes": self.vram_peak.summary(),
            "faces": self.faces.summary(),
            "vertices": self.vertices.summary(),
            "mean_faces_by_hour": {
                hour: round(total / count)
                for hour, (count, total) in sorted(self.faces_by_hour.items())
            },
            "engines": dict(self.engines),
        }


def print_report(console: Console, report: dict[str, Any]) -> None:
    """Print the figures as tables for people."""
    rate = report["success_rate"]
    console.print(
        f"{report['jobs']:,} jobs, {'-' if rate is None else f'{rate:.1%}'} succeeded; "
        f"{report['lines']:,} lines read, {report['broken_lines']:,} of them broken, "
        f"{report['lines_of_others']:,} of other programs",
        highlight=False,
        soft_wrap=True,
    )
    table = Table("figure", "count", "mean", "p50", "p95", "max")
    rows = {"a job, s": report["seconds"]}
    rows |= {f"{stage}, s": s for stage, s in report["stage_seconds"].items()}
    rows |= {
        "to ready, s": report["seconds_to_ready"],
        "retries after out of memory": report["oom_retries_per_job"],
        "VRAM peak, bytes": report["vram_peak_bytes"],
        "faces": report["faces"],
    }
    for name, s in rows.items():
        figures = (_figure(name, s[k]) for k in ("mean", "p50", "p95", "max"))
        table.add_row(name, f"{s['count']:,.0f}", *figures)
    print_table(console, table)
    counts = Table("what", "jobs")
    for level, jobs in report["levels"].items():
        counts.add_row(f"level {level} ({_rung_name(int(level))})", f"{jobs:,}")
    for code, jobs in report["failures"].items():
        counts.add_row(f"failed: {code}", f"{jobs:,}")
    print_table(console, counts)
    share = report["texture_degraded_share"]
    console.print(
        f"most common rung below the top: {report['most_common_rung'] or '-'}; texture lowered in "
        f"{'-' if share is None else f'{share:.1%}'} of the jobs",
        highlight=False,
        soft_wrap=True,
    )


def html_report(report: dict[str, Any]) -> str:
    """Return the figures as one page with plots, which loads nothing from anywhere."""
    levels = {f"{n} {_rung_name(int(n))}": c for n, c in report["levels"].items()}
    medians = {stage: s["p50"] for stage, s in report["stage_seconds"].items()}
    slow = {stage: s["p95"] for stage, s in report["stage_seconds"].items()}
    rate = report["success_rate"]
    head = f"{report['jobs']:,} jobs, {'-' if rate is None else f'{rate:.1%}'} succeeded"
    plots = [
        _bars("Jobs by degradation level", levels),
        _bars("Failures by code", report["failures"]),
        _bars("Seconds by stage, median", medians),
        _bars("Seconds by stage, 95th percentile", slow),
        _bars("Mean faces by hour", report["mean_faces_by_hour"]),
    ]
    figures = html.escape(json.dumps(report, indent=1))
    return _PAGE.format(head=head, plots="\n".join(plots), figures=figures)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>trellis-runtime: statistics</title>
<style>:root {{ color-scheme: light dark }}
body {{ font: 15px system-ui; max-width: 56rem; margin: 2rem auto; padding: 0 1rem }}
svg {{ width: 100% }} text {{ fill: currentColor; font: 12px system-ui }} rect {{ fill: #4c78a8 }}
</style></head><body><h1>{head}</h1>
{plots}
<details><summary>All figures</summary><pre>{figures}</pre></details></body></html>
"""


def _bars(title: str, values: dict[str, float]) -> str:
    """Return a heading and a bar chart as inline SVG."""
    if not values:
        return f"<h2>{html.escape(title)}</h2><p>none</p>"
    most = max(values.values()) or 1
    rows = []
    for i, (name, value) in enumerate(values.items()):
        y, width = i * 22, 480 * value / most
        rows.append(
            f'<text x="0" y="{y + 14}">{html.escape(name)}</text>'
            f'<rect x="200" y="{y + 3}" width="{width:.1f}" height="14"></rect>'
            f'<text x="{206 + width:.1f}" y="{y + 14}">{_bar_figure(value)}</text>'
        )
    height = 22 * len(values)
    label = html.escape(title)
    return (
        f'<h2>{label}</h2><svg role="img" aria-label="{label}" viewBox="0 0 760 {height}">'
        f"{''.join(rows)}</svg>"
    )


def _bar_figure(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) or value >= 1000 else f"{value:,.4g}"


def _rung_name(level: int) -> str:
    return RUNGS[level].name if 0 <= level < len(RUNGS) else "?"


def _is_cut(line: bytes) -> bool:
    """Whether a line begins as one of ours and does not end."""
    stripped = line.strip()
    return stripped.startswith(b"{") and not stripped.endswith(b"}")


def _figure(name: str, value: float) -> str:
    """Seconds to four digits; what is counted as a whole number."""
    if name.endswith(", s"):
        return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"
    whole = value == int(value) or value >= 100
    return f"{value:,.0f}" if whole else f"{value:,.2f}"
