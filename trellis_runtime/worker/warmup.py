"""One generation before the first job, its result thrown away: kernels compiled, pages touched."""

from __future__ import annotations

import numpy as np

from trellis_runtime.contract.engine import Engine, Rgba
from trellis_runtime.contract.ladder import Plan
from trellis_runtime.contract.request import parse_request
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import ENGINE_STAGES

_SIDE = 512


def warm_up(engine: Engine, resolution: int) -> None:
    """Run every stage once at `resolution`; raises what the engine raises."""
    plan = Plan.as_asked(parse_request({"image": "-", "resolution": resolution}), seed=0)
    scope = JobScope("warm-up")
    generation = engine.begin(picture(), plan)
    try:
        for stage in ENGINE_STAGES:
            with scope.stage(stage):
                generation.run(stage, plan, scope)
    finally:
        generation.close()


def picture() -> Rgba:
    """Return (512, 512, 4) uint8, a disc with alpha: it needs no background remover."""
    y, x = np.mgrid[:_SIDE, :_SIDE] - _SIDE / 2
    inside = x**2 + y**2 < (0.35 * _SIDE) ** 2
    picture = np.zeros((_SIDE, _SIDE, 4), np.uint8)
    picture[inside] = (190, 120, 60, 255)
    return picture
