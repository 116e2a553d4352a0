"""Suite `jobs`: whole jobs up to their checked files, as the worker can run them.

One at a time with and without its options (geometry baked beside the texture's sampling, captured
passes), and two in flight. Every file is compared with the one that was made the plain way.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from numpy.typing import NDArray

from benchmarks import busy
from benchmarks.common import Bench, plan_for
from trellis_runtime.contract.ladder import Plan
from trellis_runtime.contract.request import TextureFormat
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import ENGINE_STAGES, Stage
from trellis_runtime.engines.trellis2.device import vram
from trellis_runtime.engines.trellis2.engine import Trellis2Engine
from trellis_runtime.engines.trellis2.models import graphs
from trellis_runtime.worker.export import export

_SIDE_BY_SIDE = 2

WAYS = {
    "in sequence": (False, False),
    "geometry beside texture": (True, False),
    "graphs": (False, True),
    "both": (True, True),
}
"""The options of a worker: is geometry baked beside the texture, are passes captured?"""


def whole_job(
    engine: Trellis2Engine, image: NDArray[Any], form: TextureFormat, plan: Plan
) -> tuple[str, JobScope]:
    """Run a job up to its checked file; returns the file's digest and what its scope was told."""
    scope = JobScope(f"bench-{plan.seed}")
    generation = engine.begin(image, plan)
    try:
        for stage in ENGINE_STAGES:
            with scope.stage(stage), busy.mark(stage):
                generation.run(stage, plan, scope)
        asset = generation.asset()
    finally:
        generation.close()
    with scope.stage(Stage.EXPORT):
        data = export(asset, form, {}).glb.data
    return hashlib.sha256(data).hexdigest(), scope


def ways(
    engine: Trellis2Engine,
    image: NDArray[Any],
    plan: Plan,
    form: TextureFormat = "webp",
    names: Sequence[str] = tuple(WAYS),
) -> Iterator[dict[str, Any]]:
    """Time one job each way that is named, stage by stage; compare its file with the first way's.

    It leaves the engine with the last way's options.
    """
    first, run = None, partial(whole_job, engine, image, form, plan)
    for name in names:
        engine.overlap, captured = WAYS[name]
        engine.use_graphs(graphs.for_device(engine.parts()[0].device, wished=captured))
        if captured or first is None:
            run()  # compiles, tunes and fills caches; times passes and captures them
        started = time.perf_counter()
        digest, scope = run()
        seconds = time.perf_counter() - started
        first = first or digest
        by_stage, busy_s = _busy(run)
        yield _row(f"{_case(plan)}, {name}", 1, seconds, busy_s) | {
            "difference": "the same bytes" if digest == first else "another file",
            "stages": {stage: round(s, 3) for stage, s in scope.timings.items()},
            "busy_stages": {stage: round(s, 3) for stage, s in by_stage.items()},
            "parts": {part: round(s, 3) for part, s in scope.parts.items()},
        }


def in_flight(
    engine: Trellis2Engine,
    image: NDArray[Any],
    plan: Plan,
    busy_s: float,
    jobs: int = 4,
    form: TextureFormat = "webp",
) -> Iterator[dict[str, Any]]:
    """Time `jobs` jobs of different seeds, alone and two in flight, and compare their files.

    busy_s: how long the card is busy with one.
    """
    plans = [replace(plan, seed=plan.seed + number) for number in range(jobs)]
    run = partial(whole_job, engine, image, form)
    case = _case(plan)
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
    waited = sum(sum(scope.waits.values()) for _, scope in together)
    yield row | {
        "difference": "the same bytes" if all(same) else f"{same.count(False)} files differ",
        "waited_s": round(waited, 3),
    }


def _busy(job: Callable[[], Any]) -> tuple[dict[str, float], float]:
    """Return how long a card is busy with a job: by stage, and in all."""
    return busy.measure(job)[1:] if vram.is_cuda() else ({}, 0.0)


def _case(plan: Plan) -> str:
    return f"{plan.resolution} job, {plan.decimation_target // 1000}k, {plan.texture_size}"


def _row(case: str, jobs: int, wall_s: float, busy_s: float) -> dict[str, Any]:
    """Describe a run of `jobs` jobs, each of which keeps the card busy for `busy_s`."""
    return {
        "case": case,
        "ours_s": round(wall_s, 3),
        "busy_s": round(jobs * busy_s, 3) or None,
        "wall_over_busy": busy.ratio(wall_s, jobs * busy_s),
        "jobs_per_hour": round(3600 * jobs / wall_s),
    }


def run(bench: Bench, cases: list[tuple[int, int, int]]) -> None:
    """Run the suite: each case is a resolution, a number of faces and a texture's size."""
    for resolution, faces, texture in cases:
        plan = plan_for(resolution, decimation_target=faces, texture_size=texture)
        began = len(bench.rows)
        bench.add(ways(bench.engine, bench.image, plan))
        busy_s = bench.rows[began]["busy_s"] or 0.0
        bench.add(in_flight(bench.engine, bench.image, plan, busy_s))
