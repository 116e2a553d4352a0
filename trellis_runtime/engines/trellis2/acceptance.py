"""What has to hold with real weights on a real card: the checks of `acceptance`, one by one.

Each is a function from a loaded engine to outcomes; `cli/acceptance` runs them, catches what they
raise and draws the table. Limits are relative to upstream's distance from itself, where it has one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from trellis_runtime.contract.engine import Asset, Rgba, require_product
from trellis_runtime.contract.ladder import RUNGS, Plan, ladder
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import ENGINE_STAGES, Stage
from trellis_runtime.engines.trellis2.baking.decoded import Decoded
from trellis_runtime.engines.trellis2.comparison import COMPARED, Agreement, Comparison, compare
from trellis_runtime.engines.trellis2.device import vram
from trellis_runtime.engines.trellis2.engine import Trellis2Engine
from trellis_runtime.engines.trellis2.models.finite import largest_values
from trellis_runtime.engines.trellis2.upstream.decoders import layers_by_level
from trellis_runtime.errors import NotFinite

Verdict = Literal["passed", "failed", "not run"]

MOST_TIMES_ITSELF = 2.0
"""How often upstream's own distance from itself ours may be away from it."""

LEAST_ERROR, LEAST_DISTANCE_VOXELS, IOU_SLACK = 0.005, 0.05, 0.01
"""What is allowed where upstream is nearer to itself than that."""

DECODERS = ("sparse_structure_decoder", "shape_slat_decoder", "tex_slat_decoder")
_NAMES = {
    Stage.STRUCTURE: "structure",
    Stage.SHAPE: "shape latent",
    Stage.TEXTURE: "texture latent",
    Stage.DECODE: "surface",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one check ended, in words and in figures."""

    name: str
    verdict: Verdict
    detail: str
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Activation:
    """The largest magnitude of a decoder's level, and what its type can hold."""

    model: str
    level: str
    largest: float
    limit: float

    @property
    def share(self) -> float:
        """Of the limit; NaN where the largest is."""
        return self.largest / self.limit


# --- beside upstream ------------------------------------------------------------------------------


def beside_upstream(engine: Trellis2Engine, image: Rgba, plan: Plan) -> list[Outcome]:
    """Compare each stage with upstream's own code."""
    found = compare(engine, image, plan)
    return [_outcome(found, stage, plan.resolution) for stage in COMPARED]


def agrees(ours: Agreement, itself: Agreement) -> bool:
    """Whether ours is as near to upstream as upstream is to itself, within the limits above."""
    return (
        ours.iou >= itself.iou - IOU_SLACK
        and _near(ours.error, itself.error, LEAST_ERROR)
        and _near(ours.distance_voxels, itself.distance_voxels, LEAST_DISTANCE_VOXELS)
    )


def _near(ours: float | None, itself: float | None, least: float) -> bool:
    if ours is None or itself is None:
        return True
    return ours <= max(MOST_TIMES_ITSELF * itself, least)  # a NaN is not


def _outcome(found: Comparison, stage: Stage, resolution: int) -> Outcome:
    ours, itself = found.ours[stage], found.itself[stage]
    figures: dict[str, Any] = {"resolution": found.made.resolution}
    parts = []
    for name, label in (("iou", "IoU"), ("error", "error"), ("distance_voxels", "Chamfer, voxels")):
        mine, own = getattr(ours, name), getattr(itself, name)
        if mine is not None:
            figures[name] = {"ours": float(f"{mine:.4g}"), "itself": float(f"{own:.4g}")}
            parts.append(f"{label} {mine:.3g}, upstream with itself {own:.3g}")
    verdict: Verdict = "passed" if agrees(ours, itself) else "failed"
    return Outcome(f"{_NAMES[stage]} {resolution}", verdict, "; ".join(parts), figures)


# --- ours alone -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Job:
    """What a whole job left."""

    decoded: Decoded
    asset: Asset
    peak: int
    total: int


def run_job(engine: Trellis2Engine, image: Rgba, plan: Plan) -> Job:
    """Run every stage; values that are not finite are refused on the way (`NotFinite`)."""
    generation, scope = engine.begin(image, plan), JobScope("acceptance")
    try:
        for stage in ENGINE_STAGES:
            with scope.stage(stage):
                generation.run(stage, plan, scope)
        memory = engine.memory()
        decoded = require_product(generation.products.decoded).on_host()
        peak, total = (memory.peak, memory.total) if memory else (0, 0)
        return Job(decoded, generation.asset(), peak, total)
    finally:
        generation.close()


def peak_memory(engine: Trellis2Engine, job: Job, plan: Plan) -> Outcome:
    """Tell how much of the card a job took at its peak, with every model where it lies."""
    name = f"peak memory {plan.resolution}"
    if not vram.is_cuda(engine.parts()[0].device):
        return Outcome(name, "not run", "there is no card")
    offloaded = engine.wants_offload(plan)
    words = "models brought for their stage" if offloaded else "all models resident"
    gib = {"peak": round(job.peak / 2**30, 2), "total": round(job.total / 2**30, 2)}
    detail = f"{gib['peak']} of {gib['total']} GiB, {words}"
    return Outcome(name, "passed", detail, {**gib, "offload": offloaded})


def lossless_rungs(
    engine: Trellis2Engine, image: Rgba, plan: Plan, reference: Job
) -> list[Outcome]:
    """Run the job at each lossless rung; every bit of what it leaves must be the reference's."""
    lower = {rung.level: changed for rung, changed in ladder(plan)}
    outcomes = []
    for rung in RUNGS[1:]:
        name = f"rung {rung.level}, {rung.name}"
        if rung.lossless and rung.level in lower:
            outcomes.append(_same_bits(name, reference, run_job(engine, image, lower[rung.level])))
        elif rung.lossless:
            outcomes.append(Outcome(name, "not run", "the job already runs with it on this card"))
    return outcomes


def _same_bits(name: str, reference: Job, job: Job) -> Outcome:
    ours, theirs = _arrays(job), _arrays(reference)
    other = [key for key in theirs if not np.array_equal(ours[key], theirs[key], equal_nan=True)]
    if other:
        return Outcome(name, "failed", f"other bits in {', '.join(other)}", {"other": other})
    return Outcome(name, "passed", "the same bits, decoded and baked")


def _arrays(job: Job) -> dict[str, Any]:
    decoded = ("vertices", "faces", "coords", "attributes")
    baked = ("vertices", "faces", "normals", "uvs", "base_color", "metallic_roughness")
    found = {f"decoded {name}": getattr(job.decoded, name).numpy() for name in decoded}
    assets = {f"baked {name}": getattr(job.asset, name) for name in baked}
    return found | {name: np.asarray(array) for name, array in assets.items() if array is not None}


def background_removed(engine: Trellis2Engine, photo: Rgba, plan: Plan) -> Outcome:
    """Cut an opaque photograph out with the background remover."""
    name = "background remover"
    if not engine.parts()[0].removes_backgrounds:
        return Outcome(name, "not run", "no remover is loaded (TRELLIS2_REMBG_DIR)")
    plan = replace(plan, background="auto")
    generation = engine.begin(photo, plan)
    try:
        generation.run(Stage.CONDITION, plan, JobScope("acceptance"))
        cutout = generation.cutout()
    finally:
        generation.close()
    if cutout.source != "model":
        return Outcome(name, "not run", "the photograph has a background that is transparent")
    figures = {"share": round(cutout.share, 4), "uncertain": round(cutout.uncertain, 4)}
    sane = 0.005 < cutout.share < 0.995 and cutout.uncertain < 0.5
    words = f"{cutout.share:.1%} of the photograph is object, {cutout.uncertain:.1%} of it unsure"
    return Outcome(name, "passed" if sane else "failed", words, figures)


# --- activations ----------------------------------------------------------------------------------


def largest_activations(
    engine: Trellis2Engine, image: Rgba, plan: Plan
) -> tuple[list[Activation], str | None]:
    """Run a job up to its decoded surface; returns the largest value of each decoder's levels.

    Where values were not finite on the way: what was seen until then, and the error's words.
    """
    models = engine.parts()[0].modules
    layers = [
        (f"{name}/{label}", layer)
        for name in DECODERS
        for label, layer in layers_by_level(models[name])
    ]
    generation, scope, failure = engine.begin(image, plan), JobScope("check"), None
    try:
        with largest_values(layers) as found:
            for stage in ENGINE_STAGES[: ENGINE_STAGES.index(Stage.BAKE)]:
                generation.run(stage, plan, scope)
    except NotFinite as err:
        failure = err.message
    finally:
        generation.close()
    activations = []
    for at, largest in found.items():
        model, _, level = at.partition("/")
        activations.append(Activation(model, level, largest, _limit(models[model])))
    return activations, failure


def activations_outcome(found: Sequence[Activation], failure: str | None) -> Outcome:
    """Say how near the largest activation is to what its type holds."""
    worst = max(found, key=lambda a: math.inf if math.isnan(a.share) else a.share)
    figures = {f"{a.model} {a.level}": float(f"{a.largest:.4g}") for a in found}
    detail = (
        f"{worst.largest:.3g} in {worst.model}'s {worst.level}; its type ends at {worst.limit:g}"
    )
    if failure is not None:
        return Outcome("activations", "failed", f"{failure}; {detail}", figures)
    return Outcome("activations", "passed" if worst.share < 1 else "failed", detail, figures)


def _limit(model: Any) -> float:
    return float(torch.finfo(model.dtype).max)
