"""The floor of coverage: in all, and in each file of the GPU engine that a CPU can run.

    python -m checks.coverage_floor coverage.json

`[tool.coverage_floor]` in pyproject.toml has the floors, and the files that a CPU cannot run, each
with its reason. Prints every file under 90 %; exit code 1 when a floor is not reached, when a file
with a floor was not measured, or when an excuse is no longer needed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SHOWN_BELOW = 90.0


@dataclass(frozen=True, slots=True)
class Floors:
    """Least shares of lines that tests run, in percent."""

    total: float
    engine: str
    engine_file: float
    needs_gpu: Mapping[str, str]
    """Files of the engine without a floor of their own, each with its reason."""

    @classmethod
    def from_project(cls, text: str) -> Floors:
        table = tomllib.loads(text)["tool"]["coverage_floor"]
        return cls(table["total"], table["engine"], table["engine_file"], table["needs_gpu"])


def percentages(report: Mapping[str, Any]) -> dict[str, float]:
    """Return each measured file's share of lines that ran, in percent; empty files are left out."""
    return {
        name: float(file["summary"]["percent_covered"])
        for name, file in report["files"].items()
        if file["summary"]["num_statements"]
    }


def problems(report: Mapping[str, Any], floors: Floors) -> Iterator[str]:
    """Yield what is under its floor, and excuses that are not needed."""
    total = float(report["totals"]["percent_covered"])
    if total < floors.total:
        yield f"in all: {total:.1f} % of lines ran; the floor is {floors.total:g} %"
    measured = percentages(report)
    engine = {name: part for name, part in measured.items() if name.startswith(floors.engine)}
    if not engine:
        yield f"no file of {floors.engine} was measured"
    for name, part in engine.items():
        if part < floors.engine_file and name not in floors.needs_gpu:
            yield f"{name}: {part:.1f} % of lines ran; the floor is {floors.engine_file:g} %"
    for name in floors.needs_gpu:
        if name not in measured:
            yield f"{name} is excused from the floor and does not exist"
        elif measured[name] >= floors.engine_file:
            yield f"{name}: {measured[name]:.1f} % ran; it needs no excuse any more"


def main() -> int:
    """Print the table and what is wrong."""
    parser = argparse.ArgumentParser(description="Compare coverage with its floor.")
    parser.add_argument("report", type=Path, nargs="?", default=ROOT / "coverage.json")
    report = json.loads(parser.parse_args().report.read_text())
    floors = Floors.from_project((ROOT / "pyproject.toml").read_text())
    measured = percentages(report)
    for name, part in sorted(measured.items(), key=lambda item: item[1]):
        if part < SHOWN_BELOW:
            excuse = floors.needs_gpu.get(name, "")
            print(f"{part:6.1f} %  {name}{f'  ({excuse})' if excuse else ''}")
    count, total = len(measured), report["totals"]["percent_covered"]
    print(
        f"{total:6.1f} %  in all, of {count} files; those not shown have {SHOWN_BELOW:g} % or more"
    )
    found = list(problems(report, floors))
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
