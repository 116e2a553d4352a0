"""`make chaos`: run a seed's plan, one job at a time and four at a time, and tell how it ended."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections.abc import Sequence

from tests.chaos.judge import Verdict, judge
from tests.chaos.plan import ROUND, plan
from tests.chaos.run import scene


def chaos(seed: int, jobs: int, side_by_side: int, often: float = 1.0) -> Verdict:
    """Run `jobs` jobs, `side_by_side` at a time, and judge."""
    with scene(seed, side_by_side) as of:
        of.learn()
        started = time.monotonic()
        for number, part in enumerate(plan(seed, jobs, often)):
            of.play(part)
            sample = of.samples[-1] if of.samples else None
            minutes = (time.monotonic() - started) / 60
            print(f"{(number + 1) * ROUND} jobs in {minutes:.1f} min, {sample}", flush=True)
        verdict = judge(of, seed, side_by_side)
        if not verdict.is_clean:
            print(of.worker.log[-20_000:], file=sys.stderr)
        return verdict


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 where nothing was lost, mixed, half, different or left."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--side-by-side", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--seed", type=int, default=None, help="drawn and printed where not given")
    wanted = parser.parse_args(arguments)
    seed = secrets.randbelow(1_000_000) if wanted.seed is None else wanted.seed
    print(f"seed {seed}", flush=True)
    verdicts = [chaos(seed, wanted.jobs, number) for number in wanted.side_by_side]
    for verdict in verdicts:
        print(f"\n{verdict.table()}\n{verdict.line()}", flush=True)
    return 0 if all(verdict.is_clean for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
