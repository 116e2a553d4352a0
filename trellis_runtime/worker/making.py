"""One asset from an engine: its stages in order, each repeatable alone, down the ladder.

condition ─► structure ─► shape ─► texture ─► decode ─► bake ─► finishes
└───────── out of memory: one rung down, the failed stage again ─────────┘

Three ways in: a picture and a seed, with other seeds where strict checks fail (`accepted`); a
picture that is conditioned already, and one more seed (`variant`); what an earlier job sampled
(`resumed`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from trellis_runtime.contract.answer import AnswerWarning, Attempt, Vram
from trellis_runtime.contract.engine import Asset, CutOut, Engine, Generation, Latents, Rgba
from trellis_runtime.contract.ladder import LadderState, Plan, Rung, Shortage, earliest_restart
from trellis_runtime.contract.levels import LOWEST_LEVEL
from trellis_runtime.contract.quality import (
    QualityCheck,
    RejectedSeed,
    failed_checks,
    require_quality,
    retry_seed,
)
from trellis_runtime.contract.request import GenerationRequest
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import ENGINE_STAGES, Stage
from trellis_runtime.errors import OutOfVram
from trellis_runtime.logs import logger
from trellis_runtime.worker.blame import library_errors
from trellis_runtime.worker.finishes import Finished, Finisher
from trellis_runtime.worker.recipe import recipe


@dataclass(frozen=True, slots=True)
class Given:
    """What a job starts from: its request, its picture, and the SHA-256 of the picture's file.

    A job that finishes another one's latents has no picture; its request is that one's, with what
    it states itself.
    """

    request: GenerationRequest
    image: Rgba | None
    sha256: str


@dataclass(slots=True)
class Made:
    """What the engine made, and how far down the ladder it had to go."""

    asset: Asset
    cutout: CutOut | None
    descent: LadderState
    attempts: list[Attempt] = field(default_factory=list)
    vram: Vram | None = None
    rejected: list[RejectedSeed] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    warnings: list[AnswerWarning] = field(default_factory=list)
    latents: Latents | None = None


@dataclass(slots=True)
class Begun:
    """A generation whose picture is conditioned, for one seed after another."""

    generation: Generation
    descent: LadderState
    attempts: list[Attempt]


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes the assets of one job."""

    engine: Engine
    given: Given
    scope: JobScope

    def accepted(self, seed: int) -> Made:
        """Run the engine, with other seeds if need be, until its asset passes the strict checks.

        Raises `MeshRejected` where the last seed's asset fails one.
        """
        rejected: list[RejectedSeed] = []
        request = self.given.request
        for number in range(request.retry_seeds + 1):
            made = self._sampled(Plan.as_asked(request, retry_seed(seed, number)))
            made.rejected = rejected
            report, failed = made.asset.quality, self._failed(made.asset)
            if report is None or not failed:
                return made
            seed_tried = made.descent.requested.seed
            logger().warning(
                "seed_rejected", job_id=self.scope.job_id, seed=seed_tried, checks=failed
            )
            rejected.append(RejectedSeed(seed=seed_tried, checks=failed, quality=report))
        require_quality(rejected[-1].quality, request.strict)
        return made

    @contextmanager
    def conditioned(self, seed: int) -> Iterator[Begun]:
        """Have the picture conditioned once, for the variants that are made in the context."""
        requested = Plan.as_asked(self.given.request, seed)
        generation = self.engine.begin(_picture(self.given), requested)
        try:
            begun = Begun(generation, self._descent(requested), [])
            self._run(begun, ENGINE_STAGES[:1])
            yield begun
        finally:
            generation.close()

    def variant(self, begun: Begun, seed: int) -> Made:
        """Return the asset of `seed`, as a job of its own would have it.

        Raises `MeshRejected` where it fails a strict check.
        """
        begun.generation.reseed(seed)
        own = Begun(begun.generation, begun.descent.for_seed(seed), [*begun.attempts])
        self._run(own, ENGINE_STAGES[1:])
        return self._strictly(self._made(own, begun.generation.cutout()))

    def resumed(self, latents: Latents, seed: int, rungs: list[str]) -> Made:
        """Return the asset of what an earlier job sampled, on a way down that took `rungs`.

        Raises `MeshRejected` where it fails a strict check, `LatentsDamaged` where the engine
        cannot take the latents.
        """
        requested = Plan.as_asked(self.given.request, seed)
        first = self.engine.resumes_at
        descent = LadderState.resumed(
            requested, self.given.request.max_degradation_level, rungs, first,
            offload=self.engine.wants_offload(requested),
        )  # fmt: skip
        generation = self.engine.resume(latents, descent.plan)
        try:
            begun = Begun(generation, descent, [])
            self._run(begun, ENGINE_STAGES[ENGINE_STAGES.index(first) :])
            return self._strictly(self._made(begun, None))
        finally:
            generation.close()

    def _sampled(self, requested: Plan) -> Made:
        generation = self.engine.begin(_picture(self.given), requested)
        try:
            begun = Begun(generation, self._descent(requested), [])
            self._run(begun, ENGINE_STAGES)
            return self._made(begun, generation.cutout())
        finally:
            generation.close()

    def _descent(self, requested: Plan) -> LadderState:
        offload = self.engine.wants_offload(requested)
        return LadderState.begin(
            requested, self.given.request.max_degradation_level, offload=offload
        )

    def _made(self, begun: Begun, cutout: CutOut | None) -> Made:
        """Return what the stages made, with its finishes: the generation holds what they need."""
        request, generation = self.given.request, begun.generation
        made = Made(generation.asset(), cutout, begun.descent, begun.attempts)
        if request.keep is not None:
            made.latents = generation.latents()
        if request.output.all_finishes and not self._failed(made.asset):
            told = partial(recipe, self.engine.info(), request, self.given.sha256)
            finisher = Finisher(generation, begun.descent, made.asset, request, told)
            made.finished = finisher.make(self.scope)
        if memory := self.engine.memory():
            made.vram = Vram(peak_bytes=memory.peak, total_bytes=memory.total)
        return made

    def _failed(self, asset: Asset) -> list[QualityCheck]:
        """Return the checks that the job insists on and its asset fails."""
        return failed_checks(asset.quality, self.given.request.strict) if asset.quality else []

    def _strictly(self, made: Made) -> Made:
        if made.asset.quality is not None:
            require_quality(made.asset.quality, self.given.request.strict)
        return made

    def _run(self, begun: Begun, stages: tuple[Stage, ...]) -> None:
        """Run `stages`, the failed one again after each step down."""
        stage: Stage | None = stages[0]
        while stage is not None:
            stage = self._attempt(begun, stage, stages)

    def _attempt(self, begun: Begun, stage: Stage, stages: tuple[Stage, ...]) -> Stage | None:
        """Run one stage; return the next, or the one to repeat after a step down."""
        started = time.perf_counter()
        generation, descent = begun.generation, begun.descent
        try:
            with self.scope.stage(stage), library_errors(stage, self.scope):
                generation.run(stage, descent.plan, self.scope)
            following = stages.index(stage) + 1
            return stages[following] if following < len(stages) else None
        except OutOfVram as err:
            # The traceback holds the stage's frames and, through them, its arrays.
            message, available = err.message, err.available_bytes
            err.__traceback__ = None
        memory = self.engine.memory()
        begun.attempts.append(
            Attempt(
                stage=stage,
                rung=descent.rung.name,
                error=message,
                vram_free_bytes=memory.free if memory else None,
                seconds=round(time.perf_counter() - started, 4),
            )
        )
        shortage = None
        if available is not None:
            shortage = Shortage(partial(generation.need, stage), available)
        rungs = descent.step_down(stage, shortage)
        generation.reclaim()
        return self._restart(begun, stage, rungs)

    def _restart(self, begun: Begun, stage: Stage, rungs: list[Rung]) -> Stage:
        """Return the stage to run next, `rungs` lower; raises `OutOfVram` when there are none."""
        descent, attempts = begun.descent, begun.attempts
        logger().warning(
            "rung_failed",
            job_id=self.scope.job_id,
            stage=stage,
            rung=attempts[-1].rung,
            next_rung=descent.rung.name if rungs else None,
            reason=attempts[-1].error,
        )
        if not rungs:
            raise OutOfVram(
                f"{stage} did not fit at any rung up to level {descent.max_level}: "
                f"{attempts[-1].error}",
                field="max_degradation_level" if descent.max_level < LOWEST_LEVEL else None,
                details={"attempts": [a.model_dump(mode="json") for a in attempts]},
            )
        return earliest_restart(rungs, stage)


def _picture(given: Given) -> Rgba:
    if given.image is None:
        raise ValueError("a job without a picture can only be resumed")
    return given.image
