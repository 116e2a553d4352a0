"""One generation before the first job, its result thrown away: kernels compiled, pages touched.

Its picture has alpha and needs no background remover, so a photograph comes before it: the remover
runs once too, and what is wrong with it stops the start rather than a customer's job.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from trellis_runtime.contract.engine import Engine, Rgba
from trellis_runtime.contract.ladder import Plan
from trellis_runtime.contract.request import parse_request
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import ENGINE_STAGES, Stage
from trellis_runtime.errors import ImageRejected
from trellis_runtime.logs import logger

_SIDE = 512


def warm_up(engine: Engine, resolution: int) -> None:
    """Cut out a photograph, then run every stage once at `resolution`, offloaded as a job would be.

    Raises what the engine raises; that no object was found in the photograph is no reason to stop.
    """
    plan = Plan.as_asked(parse_request({"image": "-", "resolution": resolution}), seed=0)
    plan = replace(plan, offload=engine.wants_offload(plan))
    try:
        _run(engine, photograph(), plan, ENGINE_STAGES[:1])
    except ImageRejected as err:
        logger().warning("warm_up_photograph_rejected", reason=err.message)
    _run(engine, picture(), plan, ENGINE_STAGES)


def _run(engine: Engine, image: Rgba, plan: Plan, stages: Iterable[Stage]) -> None:
    scope = JobScope("warm-up")
    generation = engine.begin(image, plan)
    try:
        for stage in stages:
            with scope.stage(stage):
                generation.run(stage, plan, scope)
    finally:
        generation.close()


def picture() -> Rgba:
    """Return (512, 512, 4) uint8, a disc with alpha: it needs no background remover."""
    made = np.zeros((_SIDE, _SIDE, 4), np.uint8)
    made[_disc()] = (190, 120, 60, 255)
    return made


def photograph() -> Rgba:
    """Return (512, 512, 4) uint8, the disc as a shaded ball before a wall: opaque throughout."""
    y, x = np.mgrid[:_SIDE, :_SIDE] / _SIDE
    wall = 205 + 30 * y
    light = 0.55 + 0.45 * np.clip(1 - 2 * np.hypot(x - 0.4, y - 0.35), 0, 1)
    ball = np.array([190, 120, 60]) * light[..., None]
    made = np.full((_SIDE, _SIDE, 4), 255, np.uint8)
    made[..., :3] = np.where(_disc()[..., None], ball, wall[..., None])
    return made


def _disc() -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    y, x = np.mgrid[:_SIDE, :_SIDE] - _SIDE / 2
    return np.asarray(x**2 + y**2 < (0.35 * _SIDE) ** 2)
