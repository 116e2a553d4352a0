"""Suite `memory`: whole jobs on a card that a ballast makes small, upstream's `low_vram` beside.

A case is RESOLUTION:TEXTURE:GB, with `:upstream` behind it to run upstream on that card too, or
`:grow=STAGE` to let the ballast grow in the middle of that stage. A card of GB leaves half a
gigabyte less than that to torch and the libraries: the CUDA context's share.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.common import Bench, as_base64
from benchmarks.upstream_side import image_to_mesh, mesh_to_glb, upstream_as_it_is
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.engines.trellis2.device.vram import PeakWatch, reclaim

_CONTEXT_BYTES = 2**29
DEFAULT_CASES = [
    *(f"1024:2048:{gb}" for gb in (80, 48, 24, 16, 12, 10, 8, 6)),
    *(f"1024:4096:{gb}" for gb in (24, 8, 6)),
    *(f"512:{case}" for case in ("2048:24", "2048:6", "4096:6")),
    *(f"1536:2048:{gb}" for gb in (80, 24, 16, 12, 10, 8, 6)),
    *(f"1536:4096:{gb}" for gb in (24, 10, 6)),
    *(f"1024:2048:24:grow={s}" for s in ("structure", "shape", "texture", "decode", "bake")),
    "1024:2048:24",  # the next job is at full quality and speed
    *(f"1024:2048:{gb}:upstream" for gb in (12, 8)),  # on 6 GB it takes the process with it
    *(f"1536:2048:{gb}:upstream" for gb in (12, 10)),
]


def run(bench: Bench, cases: list[str]) -> None:
    """Run the cases in order; each row is kept before the next one begins."""
    for number, case in enumerate(cases):
        resolution, texture, card, *more = case.split(":")
        card_gb = float(card)
        if more == ["upstream"]:
            bench.add(_upstream(bench, int(resolution), int(texture), card_gb))
            continue
        grow = more[0].partition("=")[2] if more else None
        bench.add(_ours(bench, int(resolution), int(texture), card_gb, number, grow))


@contextmanager
def ballast(bench: Bench, card_gb: float) -> Iterator[None]:
    """Leave only so much of the card."""
    _, residency, _ = bench.engine.parts()
    residency.evict()
    reclaim()
    free, _ = torch.cuda.mem_get_info()
    spare = int(free - card_gb * 2**30 + _CONTEXT_BYTES)
    weight = torch.empty(max(0, spare), dtype=torch.uint8, device="cuda")
    try:
        yield
    finally:
        del weight
        gc.collect()
        torch.cuda.empty_cache()


def _ours(
    bench: Bench, resolution: int, texture: int, card_gb: float, number: int, grow: str | None
) -> Iterator[dict[str, Any]]:
    job = {
        "id": f"case-{number}",
        "input": {
            "image": as_base64(bench.picture),
            "seed": 1,
            "resolution": resolution,
            "texture_size": texture,
            "output": {"preview": False},
        },
    }
    with ballast(bench, card_gb), _growing(grow):
        base = torch.cuda.mem_get_info()
        started = time.perf_counter()
        answer = asyncio.run(bench.worker.handle(job))
        seconds = time.perf_counter() - started
    degradation = answer.get("degradation", {})
    attempts = failed_attempts(answer)
    vram = answer.get("vram") or {}
    used_before = base[1] - base[0]
    yield {
        "case": f"{resolution}, texture {texture}" + (f", ballast grows in {grow}" if grow else ""),
        "card_gb": card_gb,
        "ok": "error" not in answer,
        "level": answer.get("oom_quality_degradation_level"),
        "lossless": degradation.get("lossless"),
        "attempts": len(attempts),
        "failed": [f"{a['stage']} at {a['rung']}" for a in attempts],
        "seconds": round(seconds, 1),
        "peak_gb": round((vram.get("peak_bytes", used_before) - used_before) / 2**30, 2),
        "upstream_ok": None,
        "error": answer.get("error"),
        "faces": answer.get("mesh", {}).get("faces"),
        "timings": answer.get("timings"),
    }


def failed_attempts(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the stages that ran out of memory, of a job that succeeded or of one that failed."""
    told = answer if "error" in answer else answer["degradation"]
    attempts: list[dict[str, Any]] = told.get("attempts", [])
    return attempts


@contextmanager
def _growing(stage: str | None) -> Iterator[None]:
    """Let the ballast take nearly all that is left when `stage` first tells of a step."""
    if stage is None:
        yield
        return
    held: list[torch.Tensor] = []
    step = JobScope.step

    def squeeze(self: JobScope, done: int, total: int) -> None:
        step(self, done, total)
        if self.current == stage and not held:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            free, _ = torch.cuda.mem_get_info()
            held.append(torch.empty(int(free - 2**28), dtype=torch.uint8, device="cuda"))

    JobScope.step = squeeze  # type: ignore[method-assign]
    try:
        yield
    finally:
        JobScope.step = step  # type: ignore[method-assign]
        held.clear()


def _upstream(
    bench: Bench, resolution: int, texture: int, card_gb: float
) -> Iterator[dict[str, Any]]:
    watch = PeakWatch()
    seconds, error = 0.0, None
    with upstream_as_it_is(bench.engine, low_vram=True) as inner, ballast(bench, card_gb):
        free, total = torch.cuda.mem_get_info()
        watch.start()
        started = time.perf_counter()
        try:
            mesh, _ = image_to_mesh(inner, bench.picture, resolution)
            mesh_to_glb(mesh, 500_000, texture)
        except Exception as err:  # noqa: BLE001 - whatever upstream fails with is the finding
            error = f"{type(err).__name__}: {str(err)[:160]}"
        seconds = time.perf_counter() - started
        watch.stop()
        mesh = None
    yield {
        "case": f"upstream low_vram, {resolution}, texture {texture}",
        "card_gb": card_gb,
        "ok": None,
        "level": None,
        "lossless": None,
        "attempts": None,
        "seconds": round(seconds, 1),
        "peak_gb": round((watch.peak - (total - free)) / 2**30, 2),
        "upstream_ok": error is None,
        "error": error,
    }
