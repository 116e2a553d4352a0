"""Suites `lossless` and `repeat`: does a lossless rung change the result, and do twenty jobs?"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from benchmarks import quality
from benchmarks.common import Bench, plan_for
from trellis_runtime.contract.engine import require_product
from trellis_runtime.contract.ladder import Plan, ladder
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import ENGINE_STAGES
from trellis_runtime.engines.trellis2.baking.quality import Baked


@dataclass(slots=True)
class Outcome:
    """What one job left."""

    baked: Baked
    decoded: Any
    latents: str
    seconds: float


def run_lossless(bench: Bench, resolution: int) -> None:
    """Run rung 0 twice, then each lossless rung, and compare each with the first run."""
    asked = plan_for(resolution)
    first = _job(bench, asked)
    bench.add([_compared("rung 0, run again", first, _job(bench, asked))])
    for rung, plan in ladder(asked)[1:]:
        if rung.lossless:
            bench.add([_compared(f"rung {rung.level}, {rung.name}", first, _job(bench, plan))])


def run_repeat(bench: Bench, resolution: int, jobs: int = 20) -> None:
    """Run one job again and again in this process, with one seed."""
    bench.add(_repeated(bench, plan_for(resolution), jobs))


def _repeated(bench: Bench, plan: Plan, jobs: int) -> Iterator[dict[str, Any]]:
    first = _job(bench, plan)
    for number in range(1, jobs + 1):
        outcome = _job(bench, plan)
        free, total = torch.cuda.mem_get_info()
        row = _compared(f"job {number + 1}", first, outcome)
        yield row | {
            "used_gb": round((total - free) / 2**30, 3),
            "rss_mib": psutil.Process().memory_info().rss >> 20,
        }


def _job(bench: Bench, plan: Plan) -> Outcome:
    scope = JobScope("bench")
    started = time.perf_counter()
    generation = bench.engine.begin(bench.image, plan)
    try:
        for stage in ENGINE_STAGES:
            with scope.stage(stage):
                generation.run(stage, plan, scope)
        made = generation.products
        feats = [require_product(latent).rows.feats for latent in (made.shape, made.texture)]
        digest = hashlib.sha256(b"".join(f.numpy().tobytes() for f in feats)).hexdigest()
        baked = quality.from_asset(generation.asset())
        return Outcome(baked, made.decoded, digest[:12], time.perf_counter() - started)
    finally:
        generation.close()


def _compared(case: str, first: Outcome, other: Outcome) -> dict[str, Any]:
    sampler = quality.voxel_sampler(first.decoded)
    return {
        "case": case,
        "latents": "the same bits" if first.latents == other.latents else "other bits",
        "decoded_faces": len(other.decoded.faces) - len(first.decoded.faces),
        "voxels": len(other.decoded.coords) - len(first.decoded.coords),
        "faces": len(other.baked.faces),
        "faces_rung_0": len(first.baked.faces),
        "chamfer": float(f"{quality.chamfer(first.baked, other.baked):.2e}"),
        "psnr_db": quality.report(other.baked, sampler)["psnr_db"],
        "psnr_db_rung_0": quality.report(first.baked, sampler)["psnr_db"],
        "seconds": round(other.seconds, 2),
    }
