"""Draw what docs/benchmarks.json says: how cost grows, and what a slower host makes of it.

    python builder/plot_benchmarks.py

cost.svg has upstream beside ours. host.svg has wall time over the card's busy time by the host's
speed; it is drawn once runs of two hosts of different speed are there.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"
_WIDTH, _HEIGHT, _PAD = 360, 240, 50
_COLORS = {"upstream": "#b279a2", "ours": "#4c78a8"}
_MORE_COLORS = ("#4c78a8", "#f58518", "#54a24b", "#e45756")
_OTHER_HOST = 1.1  # times as fast: less is what one host differs by from hour to hour
_RATIO_CASES = {
    "512 to mesh": r"512 image to mesh",
    "1024 to mesh": r"1024 image to mesh",
    "1024 jobs": r"1024 job, .* one at a time",
    "two in flight": r"1024 job, .* two in flight",
}

Points = list[tuple[float, float]]


def speed_rows(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the fullest run of suite `speed`: cards are not mixed in one line."""
    found: list[list[dict[str, Any]]] = [run["rows"] for run in runs if run["suite"] == "speed"]
    return max(found, key=len)


def series(rows: Sequence[dict[str, Any]], pattern: str, scale: float) -> dict[str, Points]:
    """Return upstream's and our points: the number that `pattern` finds, and seconds x scale."""
    found: dict[str, Points] = {"upstream": [], "ours": []}
    for row in rows:
        if match := re.fullmatch(pattern, row["case"]):
            at = float(match.group(1))
            found["upstream"].append((at, row["upstream_s"] * scale))
            found["ours"].append((at, row["ours_s"] * scale))
    return {name: sorted(points) for name, points in found.items()}


def ratios(runs: Sequence[dict[str, Any]]) -> dict[str, Points]:
    """Return each case's points: the host's speed in loops a second, and wall over busy time.

    Nothing where the hosts that have both are all of about one speed.
    """
    found: dict[str, Points] = {}
    for run in runs:
        if run["suite"] != "speed" or "host_loops_per_s" not in run:
            continue
        for name, pattern in _RATIO_CASES.items():
            for row in run["rows"]:
                if row.get("wall_over_busy") and re.fullmatch(pattern, row["case"]):
                    point = float(run["host_loops_per_s"]), float(row["wall_over_busy"])
                    found.setdefault(name, []).append(point)
    hosts = [speed for points in found.values() for speed, _ in points]
    if not hosts or max(hosts) < _OTHER_HOST * min(hosts):
        return {}
    return {name: sorted(points) for name, points in found.items()}


def panel(left: int, title: str, unit: str, lines: dict[str, Points]) -> str:
    """Return one plot as SVG, both axes from zero."""
    points = [p for line in lines.values() for p in line]
    widest, highest = max(x for x, _ in points), max(y for _, y in points)

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + _PAD + x / widest * (_WIDTH - 2 * _PAD)
        return round(across, 1), round(_HEIGHT - _PAD - y / highest * (_HEIGHT - 2 * _PAD), 1)

    parts = [f'<text x="{left + _WIDTH / 2}" y="20" text-anchor="middle">{title}</text>']
    (x0, y0), (x1, _), (_, y1) = place(0, 0), place(widest, 0), place(0, highest)
    parts.append(f'<path d="M{x0} {y1}V{y0}H{x1}" fill="none" stroke="#888"/>')
    parts.append(f'<text x="{x0 - 4}" y="{y1 + 4}" text-anchor="end">{highest:.3g} {unit}</text>')
    for number, (name, line) in enumerate(lines.items()):
        path = " ".join(f"{x},{y}" for x, y in (place(*p) for p in line))
        color = _COLORS.get(name, _MORE_COLORS[number % len(_MORE_COLORS)])
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        for point in line:
            x, y = place(*point)
            label = f"{name}: {point[0]:,.0f}, {point[1]:.3g} {unit}"
            parts.append(
                f'<circle cx="{x}" cy="{y}" r="3.5" fill="{color}"><title>{label}</title></circle>'
            )
        x, y = place(*line[-1])
        parts.append(f'<text x="{x + 5}" y="{y + 4}" fill="{color}">{name}</text>')
    for value in sorted({x for x, _ in points}):
        x, y = place(value, 0)
        parts.append(f'<text x="{x}" y="{y + 16}" text-anchor="middle">{value:,.0f}</text>')
    return "".join(parts)


def drawing(rows: Sequence[dict[str, Any]]) -> str:
    """Return the whole SVG: a flow pass by tokens, image to mesh by resolution, GLB by texture."""
    panels = (
        ("guided flow pass by tokens", "ms", r"flow pass, (\d+) tokens, guided", 1000.0),
        ("image to mesh by resolution", "s", r"(\d+) image to mesh", 1.0),
        ("1024 mesh to GLB by texture (0.5, 1 M faces)", "s", r"1024 mesh .* texture (\d+)", 1.0),
    )
    body = "".join(
        panel(number * (_WIDTH + 50), title, unit, series(rows, pattern, scale))
        for number, (title, unit, pattern, scale) in enumerate(panels)
    )
    return _svg(_WIDTH * 3 + 150, body)


def host_drawing(lines: dict[str, Points]) -> str:
    """Return the SVG of `ratios`."""
    title = "wall over busy time by the host's speed (loops a second)"
    return _svg(_WIDTH + 120, panel(0, title, "x", lines))


def _svg(width: int, body: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_HEIGHT}" '
        'font-family="system-ui" font-size="11">'
        f'<rect width="100%" height="100%" fill="#fff"/>{body}</svg>\n'
    )


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=DOCS / "benchmarks.json")
    parser.add_argument("--out", type=Path, default=DOCS / "images", help="folder of the pictures")
    args = parser.parse_args()
    runs = json.loads(args.runs.read_text())
    (args.out / "cost.svg").write_text(drawing(speed_rows(runs)))
    if lines := ratios(runs):
        (args.out / "host.svg").write_text(host_drawing(lines))
    else:
        print("host.svg is not drawn: runs with host_loops_per_s are of less than two hosts")


if __name__ == "__main__":
    main()
