"""Measure the GPU engine beside upstream: a table for people, last line one JSON object.

    python -m benchmarks.gpu speed jobs memory lossless --models CKPT --out OUT
    python -m benchmarks.gpu memory --models CKPT --cases 1024:2048:8 1536:2048:10:upstream

Suites named together share one process and its loaded models. CKPT is a synthetic checkpoint
(builder/make_checkpoint.py). Needs a CUDA GPU, and upstream's packages importable.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from benchmarks import jobs, memory, speed, steady
from benchmarks.common import Bench
from trellis_runtime.contract.request import Resolution
from trellis_runtime.engines.trellis2.upstream.rehearsal_shapes import SHAPES

SUITES = ("speed", "jobs", "memory", "lossless", "repeat")
DENSE_TOO = ("speed", "jobs", "memory")
"""Suites that run on every shape: what two smooth surfaces allow, a plant may not."""


def main() -> None:
    """Run the suites that are named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "suites", nargs="+", choices=SUITES, metavar="suite", help=", ".join(SUITES)
    )
    parser.add_argument("--models", type=Path, required=True, help="a synthetic checkpoint")
    parser.add_argument("--out", type=Path, default=Path("output/bench-gpu"))
    parser.add_argument("--resolutions", type=int, nargs="+", default=list(get_args(Resolution)))
    parser.add_argument(
        "--shapes",
        nargs="+",
        choices=tuple(SHAPES),
        default=list(SHAPES),
        help="what speed, jobs and memory decode; the other suites take the first",
    )
    parser.add_argument("--lossless-at", type=int, default=1024, metavar="RESOLUTION")
    parser.add_argument("--repeat-at", type=int, default=512, metavar="RESOLUTION")
    parser.add_argument(
        "--glb",
        nargs="*",
        default=["1024:500000:2048", "1024:1000000:4096"],
        metavar="RESOLUTION:FACES:TEXTURE",
        help="meshes to turn into GLBs in suite speed, and jobs of suite jobs",
    )
    parser.add_argument("--cold", action="store_true", help="no warm-up runs")
    parser.add_argument(
        "--cases",
        nargs="*",
        default=memory.DEFAULT_CASES,
        metavar="RESOLUTION:TEXTURE:GB[:upstream|:grow=STAGE]",
        help="jobs and card sizes of suite memory; grow: the card fills up in mid-stage",
    )
    args = parser.parse_args()
    faulthandler.enable()
    bench = Bench.start(args.models, args.out)
    bench.warm = not args.cold
    reports = []
    for suite, shape in runs(args.suites, args.shapes):
        bench.begin(suite, shape)
        _run(bench, args)
        reports.append(bench.report())
    print(json.dumps(reports[0] if len(reports) == 1 else {"runs": reports}))


def runs(suites: Sequence[str], shapes: Sequence[str]) -> list[tuple[str, str]]:
    """Return which suite runs on which shape, in order."""
    return [
        (suite, shape)
        for suite in suites
        for shape in (shapes if suite in DENSE_TOO else shapes[:1])
    ]


def _run(bench: Bench, args: argparse.Namespace) -> None:
    glbs: Any = [tuple(int(part) for part in text.split(":")) for text in args.glb]
    if bench.suite == "speed":
        speed.run(bench, args.resolutions, glbs)
    elif bench.suite == "jobs":
        jobs.run(bench, glbs)
    elif bench.suite == "memory":
        memory.run(bench, args.cases)
    elif bench.suite == "lossless":
        steady.run_lossless(bench, args.lossless_at)
    else:
        steady.run_repeat(bench, args.repeat_at)


if __name__ == "__main__":
    main()
