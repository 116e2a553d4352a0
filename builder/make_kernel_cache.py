"""Compile and tune the kernels for this machine's card, for an image or a network volume.

    TRELLIS2_MODEL_DIR=models/ python builder/make_kernel_cache.py caches/

Runs one generation per resolution (about a minute for the first) and leaves a folder per card and
set of versions; give it to workers as TRELLIS2_KERNEL_SEED_DIR. A synthetic checkpoint will do,
with TRELLIS2_REHEARSAL=1: kernels do not depend on values. Needs a CUDA GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import get_args

from trellis_runtime.contract.request import Resolution


def main() -> int:
    """Make the cache; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="where the folder for this card goes")
    parser.add_argument("--resolutions", type=int, nargs="+", default=list(get_args(Resolution)))
    parser.add_argument("--dry-run", action="store_true", help="only say what would be run")
    args = parser.parse_args()
    if args.dry_run:
        print(f"one generation at each of {args.resolutions} into {args.out}")
        return 0
    os.environ["TRELLIS2_KERNEL_CACHE_DIR"] = str(args.out.resolve())
    os.environ.setdefault("TRELLIS2_ENGINE", "trellis2")
    from trellis_runtime.errors import WorkerError
    from trellis_runtime.worker.warmup import warm_up
    from trellis_runtime.worker.worker import Worker

    try:
        worker = Worker.start()
        for number, resolution in enumerate(args.resolutions, 1):
            started = time.perf_counter()
            warm_up(worker.engine, resolution)
            seconds = time.perf_counter() - started
            print(f"[{number}/{len(args.resolutions)}] {resolution}: {seconds:.1f} s", flush=True)
    except WorkerError as err:
        sys.exit(f"{err.code}: {err.message}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
