"""Jobs on one card one after another, and two in flight: what a second job in flight brings."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from numpy.typing import NDArray

from benchmarks import busy
from trellis_runtime.contract.ladder import Plan
from trellis_runtime.contract.request import TextureFormat
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import ENGINE_STAGES
from trellis_runtime.engines.trellis2.engine import Trellis2Engine
from trellis_runtime.worker.export import export

_SIDE_BY_SIDE = 2


def whole_job(
    engine: Trellis2Engine, image: NDArray[Any], form: TextureFormat, plan: Plan
) -> tuple[str, dict[str, float]]:
    """Run a job up to its checked file; returns the file's digest and seconds waited by stage."""
    scope = JobScope(f"bench-{plan.seed}")
    generation = engine.begin(image, plan)
    try:
        for stage in ENGINE_STAGES:
            with scope.stage(stage), busy.mark(stage):
                generation.run(stage, plan, scope)
        asset = generation.asset()
    finally:
        generation.close()
    return hashlib.sha256(export(asset, form, {}).glb.data).hexdigest(), dict(scope.waits)


def rows(
    engine: Trellis2Engine,
    image: NDArray[Any],
    plan: Plan,
    jobs: int = 4,
    form: TextureFormat = "webp",
) -> Iterator[dict[str, Any]]:
    """Time `jobs` jobs of different seeds, alone and two in flight, and compare their files."""
    plans = [replace(plan, seed=plan.seed + number) for number in range(jobs)]
    run = partial(whole_job, engine, image, form)
    run(plans[0])  # compiles, tunes, fills caches
    _, _, busy_s = busy.measure(lambda: run(plans[0]))
    case = f"{plan.resolution} job, {plan.decimation_target // 1000}k, {plan.texture_size}"
    started = time.perf_counter()
    alone = [run(one) for one in plans]
    yield _row(f"{case}: {jobs} one at a time", jobs, time.perf_counter() - started, busy_s)
    if (engine.most_side_by_side or jobs) < _SIDE_BY_SIDE:
        return  # there is no room for two on this card
    started = time.perf_counter()
    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        together = list(pool.map(run, plans))
    row = _row(f"{case}: {jobs}, two in flight", jobs, time.perf_counter() - started, busy_s)
    same = [one[0] == other[0] for one, other in zip(alone, together, strict=True)]
    waited = sum(sum(waits.values()) for _, waits in together)
    yield row | {
        "difference": "the same bytes" if all(same) else f"{same.count(False)} files differ",
        "waited_s": round(waited, 3),
    }


def _row(case: str, jobs: int, wall_s: float, busy_s: float) -> dict[str, Any]:
    """Describe a run of `jobs` jobs, each of which keeps the card busy for `busy_s`."""
    return {
        "case": case,
        "ours_s": round(wall_s, 3),
        "busy_s": round(jobs * busy_s, 3) or None,
        "wall_over_busy": busy.ratio(wall_s, jobs * busy_s),
        "jobs_per_hour": round(3600 * jobs / wall_s),
    }
