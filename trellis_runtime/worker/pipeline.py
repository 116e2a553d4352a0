"""The story: one request to stored, validated GLBs.

image ─► condition ─► structure ─► shape ─► texture ─► decode ─► bake ─► export ─► preview ─► store
         └──────── `making`: the engine's stages, one seed, or several of one picture ────────┘

A job with variants goes through what is behind condition once for each seed (`variants`).

Long because it is one story, read from top to bottom.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from trellis_runtime import __version__
from trellis_runtime.assets.decoder import DECODER
from trellis_runtime.assets.images import parse_base64
from trellis_runtime.assets.placement import Placement
from trellis_runtime.assets.warnings import result_warnings
from trellis_runtime.contract.answer import (
    Answer,
    Artifact,
    Degradation,
    FinishedFile,
    GenerationResult,
    Kept,
    Overlap,
    SkippedRung,
    TextureReport,
    Variant,
    VariantsResult,
)
from trellis_runtime.contract.engine import Engine, Rgba
from trellis_runtime.contract.files import (
    ANSWER,
    CUTOUT,
    MODEL,
    PREVIEW,
    THUMBNAIL,
    TURNTABLE,
    in_variant,
)
from trellis_runtime.contract.request import (
    Compression,
    GenerationRequest,
    Output,
    TextureFormat,
)
from trellis_runtime.contract.scope import Deadline, JobScope
from trellis_runtime.contract.stages import ENGINE_STAGES, Stage
from trellis_runtime.delivery.choose import Delivery
from trellis_runtime.delivery.fetch import fetch
from trellis_runtime.delivery.storage import SETTLE_S, Store, VariantStore
from trellis_runtime.errors import InvalidInput
from trellis_runtime.logs import logger
from trellis_runtime.settings import FetchLimits, ImageLimits
from trellis_runtime.worker.export import Exported, Picture, draw_pictures, export
from trellis_runtime.worker.finishes import Finished
from trellis_runtime.worker.fitting import fit, may_compress
from trellis_runtime.worker.latents import keep, open_kept, read, require_keepable
from trellis_runtime.worker.making import Given, Made, Maker
from trellis_runtime.worker.orders import require_writable
from trellis_runtime.worker.recipe import recipe
from trellis_runtime.worker.variants import make_variants

Finish = Callable[[Answer], bytes]
"""Turns a result into the JSON that is answered, or refuses it; called before it is stored."""


class Discardable(Protocol):
    """A place that can take back what was put there."""

    def discard(self, scope: JobScope) -> None:
        """Remove what was put."""


@dataclass(slots=True)
class _Delivered:
    store: Store
    model: Artifact
    pictures: dict[str, Artifact]
    files: list[FinishedFile]
    exported: Exported
    kept: Kept | None
    stores: list[Discardable]
    """All that a job which fails later has to take back."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """One request to stored, validated GLBs."""

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
    ) -> Answer:
        """Return the result of `request`, delivered; raises a `WorkerError` otherwise."""
        self._require_makeable(request)
        require_keepable(request, delivery)
        delivery.require_possible(request.output, scope, keeps=request.keep is not None)
        if earlier := delivery.earlier_result(request.output, scope):
            finish(earlier)
            return earlier
        _weigh(request, self.engine, scope)
        if request.finish_of is not None:
            return self._finished(request, request.finish_of, delivery, scope, finish)
        seeds = request.seeds_from(seed)
        scope.variants = delivery.shares = len(seeds)
        _require_room(request, delivery)
        with scope.stage(Stage.IMAGE):
            image, sha256 = load_image(request, self.image_limits, self.fetch_limits, scope)
        maker = Maker(self.engine, Given(request, image, sha256), scope)
        if request.is_several:
            return self._several(maker, seeds, delivery, finish)
        return self._one(maker, maker.accepted(seed), delivery, finish)

    def _require_makeable(self, request: GenerationRequest) -> None:
        """Raise `InvalidInput` where this worker cannot make what is asked."""
        require_measured(request, self.engine)
        require_bakeable(request.output, self.engine)
        require_writable(request.output)

    def _finished(
        self,
        request: GenerationRequest,
        kept_id: str,
        delivery: Delivery,
        scope: JobScope,
        finish: Finish,
    ) -> Answer:
        """Return the answer of a job that makes new files of what an earlier one sampled."""
        with scope.stage(Stage.LATENTS):
            opened = open_kept(request, kept_id, self.engine.info(), delivery, scope)
            self._require_makeable(opened.request)
            _require_room(opened.request, delivery)
            latents = read(opened, scope)
        facts = opened.facts
        maker = Maker(self.engine, Given(opened.request, None, facts.input_sha256), scope)
        made = maker.resumed(latents, facts.seed, facts.rungs)
        return self._one(maker, made, delivery, finish)

    def _one(self, maker: Maker, made: Made, delivery: Delivery, finish: Finish) -> Answer:
        """Return the answer of a job that made one model, all of it delivered."""
        scope = maker.scope
        delivered = self._delivered(made, maker.given, delivery, scope)
        with discard_on_error(delivered.stores):
            told = self._told(made, delivered, scope) | self._of_job(scope)
            result = GenerationResult(**told, finish_of=maker.given.request.finish_of)
            encoded = finish(result)
            if delivered.model.base64 is None:
                delivered.store.put(ANSWER.name, encoded, ANSWER.content_type, scope)
            scope.check()
        return result

    def _several(
        self, maker: Maker, seeds: tuple[int, ...], delivery: Delivery, finish: Finish
    ) -> Answer:
        """Return the answer of a job with variants, each delivered as soon as it is made."""
        scope, stores, lasting = maker.scope, list[Discardable](), list[Store]()

        def deliver(name: str, made: Made, own: Given) -> Variant:
            delivered = self._delivered(made, own, delivery.of_variant(name), scope)
            stores.extend(delivered.stores)
            if delivered.model.base64 is None:
                lasting.append(delivered.store)
            told = self._told(made, delivered, scope)
            files = [_named_in(name, file) for file in delivered.files]
            return Variant(**told | {"name": name, "files": files})

        with discard_on_error(stores):
            variants = make_variants(maker, seeds, deliver)
            timings = _rounded(scope.timings)
            result = VariantsResult(variants=variants, timings=timings, **self._of_job(scope))
            encoded = finish(result)
            for store in lasting[:1]:
                whole = store.whole if isinstance(store, VariantStore) else store
                whole.put(ANSWER.name, encoded, ANSWER.content_type, scope)
            scope.check()
        return result

    def _delivered(
        self, made: Made, given: Given, delivery: Delivery, scope: JobScope
    ) -> _Delivered:
        """Write a model, its pictures and finishes, and store them all, the latents first."""
        output, stores = given.request.output, list[Discardable]()
        with discard_on_error(stores):
            with scope.stage(Stage.EXPORT):
                exported = self._exported(made, given)
            pictures: list[Picture] = []
            if output.preview or output.turntable or output.cutout:
                with scope.stage(Stage.PREVIEW):
                    pictures = draw_pictures(exported.glb.content, made.cutout, output, scope)
            kept = self._kept(made, given, delivery, stores, scope)
            with scope.stage(Stage.STORE):
                others = [picture.data for picture in pictures]
                others += [file.data for file in made.finished if file.data is not None]
                room = delivery.room_for_auto(output, sum(len(data) for data in others))
                again = partial(self._exported, made, given)
                exported, made.warnings = fit(exported, room, output, again)
                size = len(exported.data) + sum(len(data) for data in others)
                store = delivery.store_for(output, size)
                stores.append(store)
                model, shown, files = _stored(exported.data, pictures, made.finished, store, scope)
        return _Delivered(store, model, shown, files, exported, kept, stores)

    def _kept(
        self,
        made: Made,
        given: Given,
        delivery: Delivery,
        stores: list[Discardable],
        scope: JobScope,
    ) -> Kept | None:
        """Keep what was sampled, where that is asked."""
        if made.latents is None:
            return None
        with scope.stage(Stage.LATENTS):
            store = delivery.latents(delivery.kept_id)
            stores.append(store)
            info = self.engine.info()
            kept = keep(made, made.latents, given, info, delivery, store, scope)
            made.latents = None
            return kept

    def _exported(
        self,
        made: Made,
        given: Given,
        texture_format: TextureFormat | None = None,
        compression: Compression | None = None,
    ) -> Exported:
        """Return the plain GLB, checked, as the request wants it, or in the form that is given."""
        output = given.request.output
        placement = Placement(output.size_m, output.size_axis, output.pivot)
        extras = recipe(self.engine.info(), given.request, given.sha256, made.descent, made.asset)
        texture_format = texture_format or output.texture_format
        compression = compression or output.compression
        form = {"texture_format": texture_format, "compression": compression}
        extras["request"]["output"] |= form  # as this file has it, whatever was asked
        return export(made.asset, texture_format, extras, compression, placement)

    def _told(self, made: Made, delivered: _Delivered, scope: JobScope) -> dict[str, Any]:
        """Return what the answer tells of one model."""
        descent, exported = made.descent, delivered.exported
        effective = {**descent.plan.quality(), **made.asset.effective}
        return dict(
            glb_url=delivered.model.url,
            artifact=delivered.model,
            preview=delivered.pictures.get(PREVIEW.field),
            thumbnail=delivered.pictures.get(THUMBNAIL.field),
            turntable=delivered.pictures.get(TURNTABLE.field),
            cutout=delivered.pictures.get(CUTOUT.field),
            warnings=made.warnings + result_warnings(made.asset, exported.mesh, made.cutout),
            files=delivered.files,
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
            vram=made.vram,
            kept=delivered.kept,
        )

    def _of_job(self, scope: JobScope) -> dict[str, Any]:
        """Return what the answer tells of the job, whatever it made."""
        return dict(
            job_id=scope.job_id,
            engine=self.engine.info(),
            worker_version=__version__,
            overlap=_overlap(scope),
            init=self.init,
        )


def _weigh(request: GenerationRequest, engine: Engine, scope: JobScope) -> None:
    """Give the stages of a job their shares of its progress, none to those that it does not run."""
    scope.weights[Stage.FINISH] *= len(request.output.all_finishes)
    if request.keep is None and request.finish_of is None:
        scope.weights[Stage.LATENTS] = 0
    if request.finish_of is not None:
        sampled = ENGINE_STAGES[: ENGINE_STAGES.index(engine.resumes_at)]
        scope.weights |= dict.fromkeys((Stage.IMAGE, *sampled), 0.0)


def _named_in(variant: str, file: FinishedFile) -> FinishedFile:
    return file.model_copy(update={"file_name": in_variant(variant, file.file_name)})


def _require_room(request: GenerationRequest, delivery: Delivery) -> None:
    """Raise `AnswerTooLarge` where what is asked is known to be too large for the answer."""
    delivery.require_fits(request, may_compress=may_compress(request.output))


def _stored(
    glb: bytes,
    pictures: list[Picture],
    finishes: list[Finished],
    store: Store,
    scope: JobScope,
) -> tuple[Artifact, dict[str, Artifact], list[FinishedFile]]:
    """Store the pictures, the finishes, then the model: in place, it says that all is there."""
    shown, files = {}, []
    for picture in pictures:
        file = picture.file
        shown[file.field] = store.put(file.name, picture.data, file.content_type, scope)
        scope.check()
    for finished in finishes:
        files.append(finished.stored(store, scope))
        scope.check()
    model = store.put(MODEL.name, glb, MODEL.content_type, scope)
    scope.check()
    return model, shown, files


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
        if maps and (missing := sorted(set(maps) - set(engine.detail_maps))):
            raise InvalidInput(
                f"{name} has {missing[0]!r}; the {engine.info().name} engine bakes "
                f"{', '.join(engine.detail_maps) or 'no such map'}",
                field=name,
            )


@contextmanager
def discard_on_error(stores: list[Discardable]) -> Iterator[None]:
    """Leave nothing of a job behind that was stopped, or whose answer cannot be given.

    `stores` may grow while the context lasts.
    """
    try:
        yield
    except BaseException:
        scope = JobScope("discard", Deadline.after(SETTLE_S))  # one for all: a stop waits for it
        for store in stores:
            try:
                store.discard(scope)
            except Exception:  # noqa: BLE001 - the others are taken back, and the error is the job's
                logger().exception("discard_crashed")
        raise


def load_image(
    request: GenerationRequest, limits: ImageLimits, fetch_limits: FetchLimits, scope: JobScope
) -> tuple[Rgba, str]:
    """Return a request's picture, and the SHA-256 of its file.

    The picture is (height, width, 4) uint8, sRGB, straight alpha, upright.

    Raises `ImageRejected`, `UrlRefused` or `FetchFailed`.
    """
    if request.image_url is not None:
        encoded = fetch(request.image_url, limits.max_bytes, fetch_limits, scope)
    else:
        encoded = parse_base64(request.image or "", limits)
    field = "image_url" if request.image_url is not None else "image"
    image = DECODER.decode(encoded, limits, field, scope)
    return image, hashlib.sha256(encoded).hexdigest()
