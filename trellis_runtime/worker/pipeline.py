"""The story: one request to one stored, validated GLB.

image ─► condition ─► structure ─► shape ─► texture ─► decode ─► bake ─► export ─► preview ─► store
         └──────────── the engine's stages, each repeatable alone ─────────┘
                       out of memory: one rung down, the failed stage again

Long because it is one story, read from top to bottom.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from trellis_runtime import __version__
from trellis_runtime.assets.decoder import DECODER
from trellis_runtime.assets.images import parse_base64
from trellis_runtime.assets.placement import Placement
from trellis_runtime.assets.warnings import result_warnings
from trellis_runtime.contract.answer import (
    AnswerWarning,
    Artifact,
    Attempt,
    Degradation,
    FinishedFile,
    GenerationResult,
    Overlap,
    SkippedRung,
    TextureReport,
    Vram,
)
from trellis_runtime.contract.engine import Asset, CutOut, Engine, Generation, Rgba
from trellis_runtime.contract.files import (
    ANSWER,
    CUTOUT,
    MODEL,
    PREVIEW,
    THUMBNAIL,
    TURNTABLE,
)
from trellis_runtime.contract.ladder import (
    LadderState,
    Plan,
    Rung,
    Shortage,
    earliest_restart,
)
from trellis_runtime.contract.levels import LOWEST_LEVEL
from trellis_runtime.contract.quality import (
    QualityCheck,
    RejectedSeed,
    failed_checks,
    require_quality,
    retry_seed,
)
from trellis_runtime.contract.request import (
    Compression,
    GenerationRequest,
    Output,
    TextureFormat,
)
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import ENGINE_STAGES, Stage
from trellis_runtime.delivery.choose import Delivery
from trellis_runtime.delivery.fetch import fetch
from trellis_runtime.delivery.storage import Store
from trellis_runtime.errors import InvalidInput, OutOfVram
from trellis_runtime.logs import logger
from trellis_runtime.settings import FetchLimits, ImageLimits
from trellis_runtime.worker.blame import library_errors
from trellis_runtime.worker.export import Exported, Picture, draw_pictures, export
from trellis_runtime.worker.finishes import Finished, Finisher, Recipe
from trellis_runtime.worker.fitting import fit, may_compress
from trellis_runtime.worker.orders import require_writable
from trellis_runtime.worker.recipe import recipe

Finish = Callable[[GenerationResult], bytes]
"""Turns a result into the JSON that is answered, or refuses it; called before it is stored."""


@dataclass(slots=True)
class _Delivered:
    store: Store
    model: Artifact
    pictures: dict[str, Artifact]
    files: list[FinishedFile]


@dataclass(slots=True)
class _EngineOutcome:
    """What the engine made, and how far down the ladder it had to go."""

    asset: Asset
    cutout: CutOut
    descent: LadderState
    attempts: list[Attempt] = field(default_factory=list)
    vram: Vram | None = None
    rejected: list[RejectedSeed] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    warnings: list[AnswerWarning] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Input:
    """A job's request, its picture, and the SHA-256 of the picture's file."""

    request: GenerationRequest
    image: Rgba
    sha256: str


@dataclass(frozen=True, slots=True)
class Pipeline:
    """One request to one stored, validated GLB."""

    engine: Engine
    image_limits: ImageLimits
    fetch_limits: FetchLimits
    init: dict[str, float]

    def generate(
        self,
        request: GenerationRequest,
        seed: int,
        delivery: Delivery,
        scope: JobScope,
        finish: Finish,
    ) -> GenerationResult:
        """Return the result of `request`, delivered; raises a `WorkerError` otherwise."""
        require_measured(request, self.engine)
        require_bakeable(request.output, self.engine)
        require_writable(request.output)
        delivery.require_possible(request.output, scope)
        if earlier := delivery.earlier_result(request.output, scope):
            finish(earlier)
            return earlier
        if not may_compress(request.output):  # else its size is not known by what was asked
            delivery.require_fits(request)
        scope.weights[Stage.FINISH] *= len(request.output.all_finishes)
        with scope.stage(Stage.IMAGE):
            given = load_image(request, self.image_limits, self.fetch_limits, scope)
        made = self._accepted(given, seed, scope)
        with scope.stage(Stage.EXPORT):
            exported = self._exported(made, given)
        pictures: list[Picture] = []
        if request.output.preview or request.output.turntable or request.output.cutout:
            with scope.stage(Stage.PREVIEW):
                content = exported.glb.content
                pictures = draw_pictures(content, made.cutout, request.output, scope)
        with scope.stage(Stage.STORE):
            others = [picture.data for picture in pictures]
            others += [finished.data for finished in made.finished if finished.data is not None]
            room = delivery.room_for_auto(request.output, sum(len(data) for data in others))
            again = partial(self._exported, made, given)
            exported, made.warnings = fit(exported, room, request.output, again)
            size = len(exported.data) + sum(len(data) for data in others)
            store = delivery.store_for(request.output, size)
            delivered = self._deliver(exported.data, pictures, made.finished, store, scope)
        with discard_on_error(delivered.store):
            result = self._result(scope, made, exported, delivered)
            encoded = finish(result)
            if delivered.model.base64 is None:
                delivered.store.put(ANSWER.name, encoded, ANSWER.content_type, scope)
            scope.check()
        return result

    def _exported(
        self,
        made: _EngineOutcome,
        given: _Input,
        texture_format: TextureFormat | None = None,
        compression: Compression | None = None,
    ) -> Exported:
        """Return the plain GLB, checked, as the request wants it, or in the form that is given."""
        output = given.request.output
        placement = Placement(output.size_m, output.size_axis, output.pivot)
        extras = self._recipe(given)(made.descent, made.asset)
        texture_format = texture_format or output.texture_format
        compression = compression or output.compression
        form = {"texture_format": texture_format, "compression": compression}
        extras["request"]["output"] |= form  # as this file has it, whatever was asked
        return export(made.asset, texture_format, extras, compression, placement)

    def _recipe(self, given: _Input) -> Recipe:
        return partial(recipe, self.engine.info(), given.request, given.sha256)

    @staticmethod
    def _deliver(
        glb: bytes,
        pictures: list[Picture],
        finishes: list[Finished],
        store: Store,
        scope: JobScope,
    ) -> _Delivered:
        """Store the pictures, the finishes, then the model: in place, it says that all is there."""
        shown, files = {}, []
        with discard_on_error(store):
            for picture in pictures:
                file = picture.file
                shown[file.field] = store.put(file.name, picture.data, file.content_type, scope)
                scope.check()
            for finished in finishes:
                files.append(finished.stored(store, scope))
                scope.check()
            model = store.put(MODEL.name, glb, MODEL.content_type, scope)
            scope.check()
        return _Delivered(store, model, shown, files)

    def _accepted(self, given: _Input, seed: int, scope: JobScope) -> _EngineOutcome:
        """Run the engine, with other seeds if need be, until its asset passes the strict checks.

        Raises `MeshRejected` where the last seed's asset fails one.
        """
        rejected: list[RejectedSeed] = []
        request = given.request
        for number in range(request.retry_seeds + 1):
            plan = Plan.as_asked(request, retry_seed(seed, number))
            made = self._make(given, plan, scope)
            made.rejected = rejected
            report, failed = made.asset.quality, _failed(made.asset, request)
            if report is None or not failed:
                return made
            logger().warning("seed_rejected", job_id=scope.job_id, seed=plan.seed, checks=failed)
            rejected.append(RejectedSeed(seed=plan.seed, checks=failed, quality=report))
        require_quality(rejected[-1].quality, request.strict)
        return made

    def _make(self, given: _Input, requested: Plan, scope: JobScope) -> _EngineOutcome:
        """Run the engine's stages, going down the ladder where memory runs out.

        The finishes are made here too, while the generation still holds what they are baked from.
        """
        offload = self.engine.wants_offload(requested)
        max_level = given.request.max_degradation_level
        descent = LadderState.begin(requested, max_level, offload=offload)
        attempts: list[Attempt] = []
        generation = self.engine.begin(given.image, requested)
        try:
            stage: Stage | None = ENGINE_STAGES[0]
            while stage is not None:
                stage = self._attempt(generation, stage, descent, attempts, scope)
            made = _EngineOutcome(generation.asset(), generation.cutout(), descent, attempts)
            if given.request.output.all_finishes and not _failed(made.asset, given.request):
                finisher = Finisher(
                    generation, descent, made.asset, given.request, self._recipe(given)
                )
                made.finished = finisher.make(scope)
            if memory := self.engine.memory():
                made.vram = Vram(peak_bytes=memory.peak, total_bytes=memory.total)
            return made
        finally:
            generation.close()

    def _attempt(
        self,
        generation: Generation,
        stage: Stage,
        descent: LadderState,
        attempts: list[Attempt],
        scope: JobScope,
    ) -> Stage | None:
        """Run one stage; return the next, or the one to repeat after a step down."""
        started = time.perf_counter()
        try:
            with scope.stage(stage), library_errors(stage, scope):
                generation.run(stage, descent.plan, scope)
            following = ENGINE_STAGES.index(stage) + 1
            return ENGINE_STAGES[following] if following < len(ENGINE_STAGES) else None
        except OutOfVram as err:
            # The traceback holds the stage's frames and, through them, its arrays.
            message, available = err.message, err.available_bytes
            err.__traceback__ = None
        memory = self.engine.memory()
        attempts.append(
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
        return self._restart(stage, rungs, descent, attempts, scope)

    @staticmethod
    def _restart(
        stage: Stage,
        rungs: list[Rung],
        descent: LadderState,
        attempts: list[Attempt],
        scope: JobScope,
    ) -> Stage:
        """Return the stage to run next, `rungs` lower; raises `OutOfVram` when there are none."""
        logger().warning(
            "rung_failed",
            job_id=scope.job_id,
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

    def _result(
        self,
        scope: JobScope,
        made: _EngineOutcome,
        exported: Exported,
        delivered: _Delivered,
    ) -> GenerationResult:
        descent = made.descent
        effective = {**descent.plan.quality(), **made.asset.effective}
        return GenerationResult(
            job_id=scope.job_id,
            glb_url=delivered.model.url,
            artifact=delivered.model,
            preview=delivered.pictures.get(PREVIEW.field),
            thumbnail=delivered.pictures.get(THUMBNAIL.field),
            turntable=delivered.pictures.get(TURNTABLE.field),
            cutout=delivered.pictures.get(CUTOUT.field),
            warnings=made.warnings + result_warnings(made.asset, exported.mesh, made.cutout),
            files=delivered.files,
            engine=self.engine.info(),
            worker_version=__version__,
            seed=descent.requested.seed,
            oom_quality_degradation_level=descent.rung.level,
            degradation=Degradation(
                level=descent.rung.level,
                lossless=descent.lossless,
                rung=descent.rung.name,
                requested=descent.requested.quality(),
                effective=effective,
                attempts=made.attempts,
                skipped=[SkippedRung(rung=rung, reason=why) for rung, why in descent.skipped],
            ),
            mesh=exported.mesh,
            texture=TextureReport(size=made.asset.texture_size, format=exported.texture_format),
            quality=made.asset.quality,
            rejected_seeds=made.rejected,
            timings=_rounded(scope.timings),
            overlap=_overlap(scope),
            vram=made.vram,
            init=self.init,
        )


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {str(name): round(value, 4) for name, value in seconds.items()}


def _overlap(scope: JobScope) -> Overlap | None:
    """Return what ran side by side, None where nothing did."""
    if not scope.waits and not scope.beside:
        return None
    return Overlap(waited=_rounded(scope.waits), beside=_rounded(scope.beside))


def require_measured(request: GenerationRequest, engine: Engine) -> None:
    """Raise `InvalidInput` where a job insists on checks that its engine does not make."""
    if request.strict and not engine.measures_quality:
        raise InvalidInput(
            f"strict is {list(request.strict)}; the {engine.info().name} engine measures nothing",
            field="strict",
        )


def require_bakeable(output: Output, engine: Engine) -> None:
    """Raise `InvalidInput` where a map is asked that the engine does not bake."""
    asked = [("output.maps", output.maps)]
    for number, finish in enumerate(output.finishes):
        asked.append((f"output.finishes.{number}.maps", finish.maps or ()))
    for name, maps in asked:
        if missing := sorted(set(maps) - set(engine.detail_maps)):
            raise InvalidInput(
                f"{name} has {missing[0]!r}; the {engine.info().name} engine bakes "
                f"{', '.join(engine.detail_maps) or 'no such map'}",
                field=name,
            )


@contextmanager
def discard_on_error(store: Store) -> Iterator[None]:
    """Leave nothing of a job behind that was stopped, or whose answer cannot be given."""
    try:
        yield
    except BaseException:
        store.discard()
        raise


def _failed(asset: Asset, request: GenerationRequest) -> list[QualityCheck]:
    """Return the checks that a job insists on and its asset fails."""
    return failed_checks(asset.quality, request.strict) if asset.quality else []


def load_image(
    request: GenerationRequest, limits: ImageLimits, fetch_limits: FetchLimits, scope: JobScope
) -> _Input:
    """Return the request with its picture: (height, width, 4) uint8, sRGB, straight alpha, upright.

    Raises `ImageRejected`, `UrlRefused` or `FetchFailed`.
    """
    if request.image_url is not None:
        encoded = fetch(request.image_url, limits.max_bytes, fetch_limits, scope)
    else:
        encoded = parse_base64(request.image or "", limits)
    field = "image_url" if request.image_url is not None else "image"
    image = DECODER.decode(encoded, limits, field, scope)
    return _Input(request, image, hashlib.sha256(encoded).hexdigest())
