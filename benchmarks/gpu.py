"""Measure the GPU engine beside upstream: a table for people, last line one JSON object.

    python -m benchmarks.gpu speed   --models CKPT --out OUT
    python -m benchmarks.gpu memory  --models CKPT --out OUT
    python -m benchmarks.gpu lossless --models CKPT --resolutions 512
    python -m benchmarks.gpu repeat   --models CKPT --resolutions 512

CKPT is a synthetic checkpoint (builder/make_checkpoint.py). Needs a CUDA GPU, and upstream's
packages importable.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
from pathlib import Path

from benchmarks import memory, speed, steady
from benchmarks.common import Bench


def main() -> None:
    """Run one suite."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite", choices=("speed", "memory", "lossless", "repeat"))
    parser.add_argument("--models", type=Path, required=True, help="a synthetic checkpoint")
    parser.add_argument("--out", type=Path, default=Path("output/bench-gpu"))
    parser.add_argument("--resolutions", type=int, nargs="+", default=[512, 1024, 1536])
    parser.add_argument(
        "--glb",
        nargs="*",
        default=["1024:500000:2048", "1024:1000000:4096"],
        metavar="RESOLUTION:FACES:TEXTURE",
        help="meshes to turn into GLBs",
    )
    parser.add_argument("--cold", action="store_true", help="no warm-up runs")
    parser.add_argument(
        "--cases",
        nargs="*",
        default=memory.DEFAULT_CASES,
        metavar="RESOLUTION:TEXTURE:GB[:upstream]",
        help="jobs and card sizes of suite memory",
    )
    args = parser.parse_args()
    faulthandler.enable()
    bench = Bench.start(args.suite, args.models, args.out)
    if args.suite == "speed":
        bench.warm = not args.cold
        glbs = [tuple(int(part) for part in text.split(":")) for text in args.glb]
        speed.run(bench, args.resolutions, glbs)  # type: ignore[arg-type]
    elif args.suite == "memory":
        memory.run(bench, args.cases)
    elif args.suite == "lossless":
        steady.run_lossless(bench, args.resolutions[0])
    else:
        steady.run_repeat(bench, args.resolutions[0])
    print(json.dumps(bench.report()))


if __name__ == "__main__":
    main()
