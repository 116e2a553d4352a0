"""What `/metrics` tells Prometheus."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from trellis_runtime.contract.files import files_told, models_told
from trellis_runtime.contract.levels import TEXTURE_LEVELS
from trellis_runtime.delivery.storage import free_bytes
from trellis_runtime.worker.worker import Worker

_STAGE_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)
_JOB_BUCKETS = (1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
_COUNT_BUCKETS = (1e3, 1e4, 5e4, 1e5, 2e5, 5e5, 1e6, 2e6)


class Metrics:
    """One registry for one worker."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self._jobs = Counter("trellis2_jobs", "Jobs that ended", ["outcome", "code"], **own)
        self._levels = Counter(
            "trellis2_degradation", "Jobs by the rung they ended on", ["level", "rung"], **own
        )
        self._texture = Counter(
            "trellis2_texture_degraded", "Jobs whose texture is worse than asked", **own
        )
        self._retries = Counter(
            "trellis2_oom_retries", "Stages repeated after they ran out of memory", **own
        )
        self._seconds = Histogram(
            "trellis2_job_seconds", "Seconds of a job", buckets=_JOB_BUCKETS, **own
        )
        self._stages = Histogram(
            "trellis2_stage_seconds", "Seconds of a stage", ["stage"], buckets=_STAGE_BUCKETS, **own
        )
        self._vertices = Histogram(
            "trellis2_mesh_vertices", "Vertices of a mesh", buckets=_COUNT_BUCKETS, **own
        )
        self._faces = Histogram(
            "trellis2_mesh_faces", "Faces of a mesh", buckets=_COUNT_BUCKETS, **own
        )
        self._peak = Gauge("trellis2_vram_peak_bytes", "Peak of the card in the last job", **own)
        self._ready = Gauge("trellis2_ready_seconds", "Seconds from process start to ready", **own)
        self._disk = Gauge("trellis2_disk_free_bytes", "Free bytes where results go", **own)
        self._queue = Gauge("trellis2_jobs_in_hand", "Jobs running or waiting", **own)
        self._received = Counter("trellis2_received_bytes", "Bytes of requests", **own)
        self._delivered = Counter("trellis2_delivered_bytes", "Bytes of delivered files", **own)

    def received(self, size: int) -> None:
        self._received.inc(size)

    def observe(self, answer: dict[str, Any] | None) -> None:
        """Count a job by its answer, None for one that was cancelled."""
        if answer is None:
            self._jobs.labels("cancelled", "cancelled").inc()
            return
        if "error" in answer:
            self._jobs.labels("failed", answer.get("code", "internal")).inc()
            return
        self._jobs.labels("done", "").inc()
        for model in models_told(answer):
            self._observe_model(model)
        self._seconds.observe(sum(answer["timings"].values()))
        for stage, seconds in answer["timings"].items():
            self._stages.labels(stage).observe(seconds)
        self._delivered.inc(sum(told["bytes"] for _, told in files_told(answer)))

    def _observe_model(self, model: dict[str, Any]) -> None:
        given = model["degradation"]
        self._levels.labels(given["level"], given["rung"]).inc()
        self._texture.inc(given["level"] in TEXTURE_LEVELS)
        self._retries.inc(len(given["attempts"]))
        self._vertices.observe(model["mesh"]["vertices"])
        self._faces.observe(model["mesh"]["faces"])
        if model["vram"]:
            self._peak.set(model["vram"]["peak_bytes"])

    def page(self, worker: Worker | None) -> bytes:
        """Return the exposition, with the gauges as they are now."""
        if worker is not None:
            self._ready.set(worker.startup_seconds.get("ready", 0.0))
            self._disk.set(free_bytes(worker.settings.delivery.output_dir))
            self._queue.set(worker.admission.in_hand)
        return generate_latest(self.registry)
