"""The cut-out of a picture without the rest of a job: an engine's first stage alone."""

from __future__ import annotations

from dataclasses import replace

from trellis_runtime.contract.engine import CutOut, Engine, Rgba
from trellis_runtime.contract.ladder import Plan
from trellis_runtime.contract.request import GenerationRequest
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import Stage


def engine_cutout(
    engine: Engine, image: Rgba, request: GenerationRequest, scope: JobScope
) -> CutOut:
    """Return what of `image` (height, width, 4) a job with `request` would model.

    Raises `ImageRejected` where there is no object, and what a stage of the engine raises.
    """
    plan = Plan.as_asked(request, 0)
    plan = replace(plan, offload=engine.wants_offload(plan))
    generation = engine.begin(image, plan)
    try:
        with scope.stage(Stage.CONDITION):
            generation.run(Stage.CONDITION, plan, scope)
        return generation.cutout()
    finally:
        generation.close()
