"""The finishes of a job: more files of one sampling, each baked, written and checked on its own.

    finish ─► order (nothing open) ─► bake again, unless an asset is as wanted ─► place ─► write
              out of memory: one rung down, this bake again ──┘

A finish that fails leaves an entry with its error, and the others are made; only a stopped job, its
deadline, or an engine that cannot be trusted ends them all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from trellis_runtime.assets.formats import write_file
from trellis_runtime.assets.hulls import convex_hulls, encode_hulls
from trellis_runtime.assets.mesh import inspect_mesh, require_mesh
from trellis_runtime.assets.placement import extents_m, place
from trellis_runtime.assets.warnings import result_warnings
from trellis_runtime.contract.answer import (
    AnswerWarning,
    FinishedFile,
    FinishError,
    MeshReport,
    TextureReport,
)
from trellis_runtime.contract.engine import Asset, Generation
from trellis_runtime.contract.files import (
    ResultFile,
    finished_file,
)
from trellis_runtime.contract.ladder import LadderState, Plan, Shortage
from trellis_runtime.contract.quality import require_quality
from trellis_runtime.contract.request import (
    GenerationRequest,
)
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import Stage
from trellis_runtime.delivery.storage import Store
from trellis_runtime.errors import (
    DeadlineExceeded,
    InternalError,
    JobCancelled,
    OutOfVram,
    WorkerError,
)
from trellis_runtime.logs import logger
from trellis_runtime.worker.export import encode_checked
from trellis_runtime.worker.orders import Order, settle

Recipe = Callable[[LadderState, Asset], dict[str, Any]]
"""Returns the extras of a GLB of an asset that was made on a way down the ladder."""


@dataclass(slots=True)
class Finished:
    """A finish that was made, or the error that it met; `told` lacks the artifact alone."""

    file: ResultFile
    told: FinishedFile
    data: bytes | None = None

    def stored(self, store: Store, scope: JobScope) -> FinishedFile:
        """Put the file, if there is one, into `store`; returns the answer's entry."""
        if self.data is None:
            return self.told
        artifact = store.put(self.file.name, self.data, self.file.content_type, scope)
        return self.told.model_copy(update={"artifact": artifact})


@dataclass(slots=True)
class Finisher:
    """Makes the finishes of one job from a generation that is still open."""

    generation: Generation
    descent: LadderState
    asset: Asset
    request: GenerationRequest
    recipe: Recipe
    _made: list[tuple[Plan, Asset, LadderState]] = field(default_factory=list)

    def make(self, scope: JobScope) -> list[Finished]:
        """Return each finish, made or failed, in the request's order."""
        self._made = [(self.descent.requested, self.asset, self.descent)]
        finishes = self.request.output.all_finishes
        finished = []
        with scope.stage(Stage.FINISH):
            for number, finish in enumerate(finishes):
                with scope.portion(number, len(finishes)):
                    finished.append(self._one(settle(finish, self.request), scope))
        return finished

    def _one(self, order: Order, scope: JobScope) -> Finished:
        started = time.perf_counter()
        file = finished_file(order.name, order.format)
        told = FinishedFile(name=order.name, format=order.format, file_name=file.name)
        data = None
        try:
            data, facts = self._written(order, scope)
        except WorkerError as err:
            if ends_the_job(err):
                raise
            facts = {"error": _error(err)}
            logger().warning(
                "finish_failed", job_id=scope.job_id, format=order.format, code=err.code,
                reason=err.message,
            )  # fmt: skip
        except Exception:  # noqa: BLE001 - whatever a library does to one file, the others are made
            logger().exception("finish_crashed", job_id=scope.job_id, format=order.format)
            facts = {"error": _error(InternalError("this file failed; see the worker's log"))}
        seconds = round(time.perf_counter() - started, 4)
        told = told.model_copy(update={**facts, "seconds": seconds})
        return Finished(file, told, data)

    def _written(self, order: Order, scope: JobScope) -> tuple[bytes, dict[str, Any]]:
        """Return a finish's bytes, and what the answer says of it."""
        if order.format == "hulls":
            return self._hulls(order, scope)
        asset, descent = self._baked(order, scope)
        require_mesh(asset)
        if asset.quality is not None:
            require_quality(asset.quality, self.request.strict)
        mesh = inspect_mesh(asset)
        placed = place(asset, order.placement)
        scope.check()
        if order.format == "glb":
            extras = self.recipe(descent, asset) | {"finish": order.name}
            encoded = encode_checked(placed, order.texture_format, extras, order.compression)
            data, texture_format = encoded.data, encoded.texture_format
        else:
            data = write_file(placed, order.format, order.texture_format)
            texture_format = order.texture_format if asset.texture_size else "none"
        scope.check()
        return data, {
            "faces": mesh.faces,
            "mesh": mesh,
            "texture": TextureReport(size=asset.texture_size, format=texture_format),
            "quality": asset.quality,
            "size_m": extents_m(placed, order.placement),
            "unit": "millimetre" if order.facts.per_metre == 1000 else "metre",
            "up_axis": order.placement.up,
            "compression": order.compression if order.format == "glb" else None,
            "oom_quality_degradation_level": descent.rung.level,
            "warnings": _warnings(asset, mesh, order),
        }

    def _hulls(self, order: Order, scope: JobScope) -> tuple[bytes, dict[str, Any]]:
        """Return convex hulls of the plain GLB's mesh, where that has it, and what is said of them.

        Nothing is baked for them, and its own box places them: they fit the model.
        """
        require_mesh(self.asset)
        placed = place(self.asset, order.placement)
        hulls = convex_hulls(placed, order.hulls, scope)
        extras = self.recipe(self.descent, self.asset) | {"finish": order.name}
        return encode_hulls(hulls, extras), {
            "faces": sum(len(hull.faces) for hull in hulls),
            "hulls": len(hulls),
            "texture": TextureReport(size=0, format="none"),
            "size_m": extents_m(placed, order.placement),
            "unit": "metre",
            "up_axis": order.placement.up,
            "oom_quality_degradation_level": self.descent.rung.level,
        }

    def _baked(self, order: Order, scope: JobScope) -> tuple[Asset, LadderState]:
        """Return the asset that an order wants: one that is there, or one that is baked now."""
        plan = order.plan(self.descent.requested)
        for made, asset, descent in self._made:
            if made == plan:
                return asset, descent
        descent = self.descent.again(plan)
        asset = self._bake(descent, scope)
        self._made = [self._made[0], (plan, asset, descent)]  # no more than two in memory
        return asset, descent

    def _bake(self, descent: LadderState, scope: JobScope) -> Asset:
        """Bake again, going down the ladder where memory runs out; raises `OutOfVram`."""
        while True:
            try:
                self.generation.run(Stage.BAKE, descent.plan, scope)
                return self.generation.asset()
            except OutOfVram as err:
                # The traceback holds the stage's frames and, through them, its arrays.
                message, available = err.message, err.available_bytes
                err.__traceback__ = None
            shortage = None
            if available is not None:
                shortage = Shortage(partial(self.generation.need, Stage.BAKE), available)
            rungs = descent.step_down(Stage.BAKE, shortage)
            self.generation.reclaim()
            logger().warning(
                "finish_rung_failed", job_id=scope.job_id, next_rung=descent.rung.name,
                reason=message,
            )  # fmt: skip
            if not rungs:
                raise OutOfVram(
                    f"it did not fit at any rung up to level {descent.max_level}: {message}"
                )
            scope.check()


def ends_the_job(err: WorkerError) -> bool:
    """Whether `err` is of the whole job, not of the one file or variant that met it."""
    return isinstance(err, JobCancelled | DeadlineExceeded) or err.poisons_worker


def _error(err: WorkerError) -> FinishError:
    return FinishError(code=err.code, text=err.message, retryable=err.retryable)


def _warnings(asset: Asset, mesh: MeshReport, order: Order) -> list[AnswerWarning]:
    found = result_warnings(asset, mesh, None)
    open_edges = mesh.boundary_edges + mesh.nonmanifold_edges
    if order.facts.printed and open_edges:
        found.append(
            AnswerWarning(
                code="not_closed",
                text=f"{open_edges} edges have not exactly two faces; a slicer has to repair it",
            )
        )
    if order.format == "obj" and asset.has_occlusion:
        text = "occlusion.png is in the zip, but MTL has no word that names it"
        found.append(AnswerWarning(code="occlusion_not_linked", text=text))
    return found
