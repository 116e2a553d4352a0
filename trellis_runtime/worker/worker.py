"""The job boundary: a job's dict in, an answer's dict out, and nothing else ever escapes.

The platform's event loop is never blocked: generations run on threads of their own, as many as
may run side by side (one by default: it owns the GPU). A stopped job is told to stop and its slot
stays closed until its thread has really left; only then does the cancellation go on.

Long because slots, threads and the ways in which they end are one class's state.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from trellis_runtime import __version__
from trellis_runtime.assets.decoder import DECODER
from trellis_runtime.contract.answer import Answer, GenerationResult, Variant, VariantsResult
from trellis_runtime.contract.engine import CutOut, Engine, Rgba
from trellis_runtime.contract.reports import Disk, FreeVram, Health, HealthTimeout, Queue
from trellis_runtime.contract.request import MAX_SEED, GenerationRequest, parse_request
from trellis_runtime.contract.scope import Deadline, JobScope, Progress
from trellis_runtime.delivery.choose import LOCAL_IDS, require_answer_fits
from trellis_runtime.delivery.latents import FOLDER as LATENTS_FOLDER
from trellis_runtime.delivery.latents import sweep_latents
from trellis_runtime.delivery.s3 import require_bucket
from trellis_runtime.delivery.storage import free_bytes, sweep_partial
from trellis_runtime.errors import (
    InternalError,
    InvalidInput,
    MeshRejected,
    NotFinite,
    SetupFailed,
    WorkerError,
)
from trellis_runtime.logs import configure_logging, logger
from trellis_runtime.settings import Settings
from trellis_runtime.worker.admission import Admission
from trellis_runtime.worker.cutout import engine_cutout
from trellis_runtime.worker.pipeline import Pipeline, load_image
from trellis_runtime.worker.progress import Notify, ProgressSender
from trellis_runtime.worker.repeats import delivered_earlier, delivery_of
from trellis_runtime.worker.startup import (
    build_engine,
    process_age,
    read_ahead,
    require_side_by_side,
)
from trellis_runtime.worker.warmup import warm_up
from trellis_runtime.worker.watchdog import wait_until_thread_exits

HEALTH_TIMEOUT_S = 10.0


@dataclass(slots=True)
class Worker:
    """One process's worker: an engine, a gate, and the threads that run jobs."""

    settings: Settings
    engine: Engine
    startup_seconds: dict[str, float]
    admission: Admission
    _threads: ThreadPoolExecutor
    _loading: threading.Lock = field(default_factory=threading.Lock)
    _loaded: bool = False
    has_stuck_thread: bool = False
    """Whether a generation was given up whose thread may never return."""
    _on_defunct: list[Callable[[], None]] = field(default_factory=list)

    @classmethod
    def start(cls, settings: Settings | None = None, engine: Engine | None = None) -> Worker:
        """Build a worker that is ready for jobs; raises `SetupFailed` when it cannot serve.

        `engine` is the one that the settings ask for, unless the caller brings another.
        """
        settings = settings or Settings.from_env()
        configure_logging(settings.logging.level, settings.logging.format)
        init = {"imports": process_age()}
        output = settings.delivery.output_dir
        swept = sweep_partial(output) + sweep_partial(output / LATENTS_FOLDER)
        swept += sweep_latents(settings.delivery)
        reading = read_ahead(settings)
        DECODER.warm_up()
        engine = engine or build_engine(settings)
        require_side_by_side(engine, settings.jobs)
        admission = Admission(settings.jobs, settings.delivery.output_dir)
        threads = ThreadPoolExecutor(settings.jobs.max_concurrent, thread_name_prefix="generate")
        worker = cls(settings, engine, init, admission, threads)
        if settings.start.preload:
            worker._ensure_loaded()
        if reading is not None:
            init |= {"read": round(reading.seconds, 3), "read_gb": round(reading.bytes / 1e9, 3)}
        init["ready"] = process_age()
        admission.open()
        logger().info(
            "worker_ready",
            engine=engine.info().name,
            worker_version=__version__,
            preloaded=settings.start.preload,
            swept_files=swept,
            **{f"init_{phase}_s": seconds for phase, seconds in init.items()},
        )
        return worker

    def _ensure_loaded(self) -> None:
        """Load the engine, and warm it up when asked to, unless that is done."""
        with self._loading:
            if self._loaded:
                return
            try:
                self._load()
            except Exception:  # whatever an engine raises, this process cannot serve
                self.admission.mark_defunct("the engine could not be loaded")
                raise
            self._loaded = True
        if self.concurrency < self.settings.jobs.max_concurrent:
            reason = "MAX_CONCURRENT_GENERATIONS asks for more than the card has room for"
            logger().warning("fewer_at_a_time", at_a_time=self.concurrency, reason=reason)

    def _load(self) -> None:
        self.engine.load(self._note_phase)
        if self.settings.start.warm_up != "off":
            started = time.perf_counter()
            warm_up(self.engine, int(self.settings.start.warm_up))
            self._note_phase("warm_up", time.perf_counter() - started)

    def _note_phase(self, phase: str, seconds: float) -> None:
        self.startup_seconds[phase] = round(seconds, 3)

    @property
    def concurrency(self) -> int:
        """How many jobs to ask for at once: as many as are wished, and the engine has room for."""
        wished, most = self.settings.jobs.max_concurrent, self.engine.most_side_by_side
        return wished if most is None else min(wished, most)

    def require_ready(self) -> None:
        """The start-up check: raises `SetupFailed` for a worker that must not take jobs."""
        if shortage := self.admission.disk_shortage():
            raise SetupFailed(shortage)
        if self.settings.bucket.is_configured:
            require_bucket(self.settings.bucket)

    async def handle(
        self,
        job: dict[str, Any],
        notify: Notify | None = None,
        watch: Progress | None = None,
    ) -> dict[str, Any]:
        """Answer one job; the only exception that leaves is the platform's own cancellation.

        `notify` hears of its progress at the platform's pace. `watch`, in its place, hears every
        step as it happens, on the job's own thread, and must not block.
        """
        job_id = str(job.get("id") or "").encode("utf-8", "replace").decode()
        try:
            payload = job.get("input")
            if isinstance(payload, dict) and payload.get("type") == "health":
                return await self.health()
            answer = await self._generate(job, job_id, payload, notify, watch)
        except WorkerError as err:
            answer = self._failure(job_id, err)
        except Exception:  # noqa: BLE001 - the one place where anything at all becomes an answer
            logger().exception("unexpected_failure", job_id=job_id)
            answer = self._failure(job_id, InternalError("the worker failed; see its log"))
        if self.admission.defunct_reason is not None:
            answer["refresh_worker"] = True
            self._tell_defunct()
        return answer

    def on_defunct(self, hook: Callable[[], None]) -> None:
        """Call `hook` on the event loop when this worker must be replaced."""
        self._on_defunct.append(hook)

    async def health(self) -> dict[str, Any]:
        """Answer what this worker is and has, within `HEALTH_TIMEOUT_S`, also while jobs run."""
        report: Future[dict[str, Any]] = Future()

        def gather() -> None:
            facts = self._facts().model_dump(mode="json")
            with suppress(InvalidStateError):  # the answer was already a timeout
                report.set_result(facts)

        # A daemon thread: a driver that hangs would otherwise keep the process from ending.
        threading.Thread(target=gather, name="health", daemon=True).start()
        try:
            return await asyncio.wait_for(asyncio.wrap_future(report), HEALTH_TIMEOUT_S)
        except TimeoutError:
            return HealthTimeout(timeout_s=HEALTH_TIMEOUT_S).model_dump(mode="json")

    def close(self) -> None:
        """Let the threads end; those in hand finish first, except one that was given up."""
        self._threads.shutdown(wait=not self.has_stuck_thread, cancel_futures=True)

    async def _generate(
        self,
        job: dict[str, Any],
        job_id: str,
        payload: object,
        notify: Notify | None,
        watch: Progress | None,
    ) -> dict[str, Any]:
        request = parse_request(payload)
        with ExitStack() as held:
            try:
                held.enter_context(self.admission.slot())
            except WorkerError:
                earlier = await asyncio.to_thread(
                    delivered_earlier, self.settings, job, job_id, request
                )
                if earlier is None:
                    raise
                return earlier
            return await self._generate_held(job, job_id, request, notify, watch)

    async def _generate_held(
        self,
        job: dict[str, Any],
        job_id: str,
        request: GenerationRequest,
        notify: Notify | None,
        watch: Progress | None,
    ) -> dict[str, Any]:
        """Run a job that has its place; what is started for it here has ended on return."""
        progress = ProgressSender(notify) if notify else None
        deadline = Deadline.after(_job_seconds(job, self.settings.jobs.timeout_s))
        scope = JobScope(job_id, deadline, progress.update if progress else watch)
        running = self._threads.submit(self._run, job, request, scope)
        try:
            grace_s = self.settings.jobs.stuck_grace_s
            return await wait_until_thread_exits(running, scope, grace_s, self._note_stuck)
        finally:
            if progress:
                await asyncio.to_thread(progress.close)

    async def cut_out(self, payload: dict[str, Any]) -> tuple[Rgba, CutOut]:
        """Return the picture that a job names, and what of it would be modelled.

        It takes a place among the jobs and waits its turn, as it needs what they need. Raises a
        `WorkerError`.
        """
        request = parse_request(payload)
        if request.finish_of is not None:
            raise InvalidInput("finish_of has no picture to cut out", field="finish_of")
        scope = JobScope("cutout", Deadline.after(self.settings.jobs.timeout_s))
        with self.admission.slot(counted=False):
            running = self._threads.submit(self._cut_out, request, scope)
            grace_s = self.settings.jobs.stuck_grace_s
            return await wait_until_thread_exits(running, scope, grace_s, self._note_stuck)

    def _cut_out(self, request: GenerationRequest, scope: JobScope) -> tuple[Rgba, CutOut]:
        self._ensure_loaded()
        try:
            image, _ = load_image(request, self.settings.image, self.settings.fetch, scope)
            return image, engine_cutout(self.engine, image, request, scope)
        except WorkerError as err:
            self.admission.note_failure(err)
            raise

    def _note_stuck(self, reason: str) -> None:
        """A thread was given up: no job can be run beside it, and only the process can end it."""
        self.has_stuck_thread = True
        self.admission.mark_defunct(reason)
        self._tell_defunct()

    def _tell_defunct(self) -> None:
        for hook in self._on_defunct:
            hook()

    def _run(
        self, job: dict[str, Any], request: GenerationRequest, scope: JobScope
    ) -> dict[str, Any]:
        """Run one generation on its thread, and tell the log how it ended."""
        started = time.perf_counter()
        self._ensure_loaded()
        delivery = delivery_of(self.settings, job, scope.job_id, request)
        pipeline = Pipeline(
            self.engine, self.settings.image, self.settings.fetch, self.startup_seconds
        )
        seed = request.seed if request.seed is not None else draw_seed(scope.job_id)
        try:
            result = pipeline.generate(request, seed, delivery, scope, self._encode)
        except WorkerError as err:
            if isinstance(err, (MeshRejected, NotFinite)) and request.names_its_seeds:
                err.retryable = False  # the same seed makes the same values
            self.admission.note_failure(err)
            logger().warning(
                "generation_failed",
                job_id=scope.job_id,
                code=err.code,
                fault=err.fault,
                reason=err.message,
                elapsed_seconds=round(time.perf_counter() - started, 3),
                worker_version=__version__,
            )
            raise
        self.admission.note_success()
        _log_complete(result, request, time.perf_counter() - started)
        return result.model_dump(mode="json")

    def _encode(self, result: Answer) -> bytes:
        limit = self.settings.delivery.max_answer_bytes
        return require_answer_fits(result.model_dump(mode="json"), limit)

    def _failure(self, job_id: str, err: WorkerError) -> dict[str, Any]:
        # Names and values of the caller's are in there: a lone surrogate is no UTF-8, and the SDK
        # would fail to post it.
        text = json.dumps(err.to_wire(job_id), default=str, ensure_ascii=False)
        return json.loads(text.encode("utf-8", "replace"))

    def _facts(self) -> Health:
        memory, limits = self.engine.memory(), self.settings.jobs
        return Health(
            status="ok" if self.admission.defunct_reason is None else "defunct",
            state=self.admission.state.value,
            engine=self.engine.info(),
            worker_version=__version__,
            disk=Disk(
                free_bytes=free_bytes(self.settings.delivery.output_dir),
                required_bytes=limits.min_free_disk_bytes,
            ),
            vram=FreeVram(free_bytes=memory.free, total_bytes=memory.total) if memory else None,
            queue=Queue(
                in_hand=self.admission.in_hand,
                max_concurrent=self.concurrency,
                max_queued=limits.max_queued,
                served=self.admission.served,
            ),
            init=dict(self.startup_seconds),
        )


def draw_seed(job_id: str) -> int:
    """Return a seed for a job that names none.

    A job that the platform runs again (its worker died, say) has the same id and gets the same
    seed, so both runs make one truth. Ids that are not unique get fresh randomness.
    """
    source = os.urandom(8) if job_id in LOCAL_IDS else hashlib.sha256(job_id.encode()).digest()
    return int.from_bytes(source[:8], "big") & MAX_SEED


def _job_seconds(job: dict[str, Any], default: float) -> float:
    """Return the job's time: the platform's `policy.executionTimeout` (ms), where it is passed."""
    policy = job.get("policy")
    stated = policy.get("executionTimeout") if isinstance(policy, dict) else None
    usable = isinstance(stated, int | float) and not isinstance(stated, bool) and stated > 0
    return min(stated / 1000, default) if usable and stated is not None else default


def _log_complete(answer: Answer, request: GenerationRequest, seconds: float) -> None:
    if isinstance(answer, GenerationResult):
        _log_model(answer, answer, request, seconds)
        return
    for variant in answer.variants:
        if isinstance(variant, Variant):
            took = sum(variant.timings.values())
            _log_model(variant, answer, request, took, variant=variant.name)


def _log_model(
    result: GenerationResult | Variant,
    answer: GenerationResult | VariantsResult,
    request: GenerationRequest,
    seconds: float,
    **more: str,
) -> None:
    logger().info(
        "generation_complete",
        **more,
        job_id=answer.job_id,
        elapsed_seconds=round(seconds, 3),
        engine=answer.engine.name,
        pipeline_type=str(request.resolution),
        degradation_level=result.degradation.level,
        rung=result.degradation.rung,
        lossless=result.degradation.lossless,
        oom_retries=len(result.degradation.attempts),
        vertices=result.mesh.vertices,
        faces=result.mesh.faces,
        mesh_warnings=result.mesh.warnings,
        texture_size=result.texture.size,
        glb_bytes=result.artifact.bytes,
        stage_seconds=result.timings,
        vram_peak_bytes=result.vram.peak_bytes if result.vram else None,
        worker_version=__version__,
    )
