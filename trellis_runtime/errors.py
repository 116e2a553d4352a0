"""Every failure that the worker reports on purpose.

WorkerError
├── InvalidInput        caller's   the job's JSON
├── ImageRejected       caller's   the picture itself
├── UrlRefused          caller's   an address that the worker does not visit
├── FetchFailed         outside    the address did not answer as it should
├── WorkerBusy          worker's   the queue is full
├── WorkerStopping      worker's   no further job is taken
├── DiskFull            worker's   too little room for a job
├── OutOfVram           worker's   no accepted rung of the ladder fits
├── MeshRejected        model's    another seed may help
├── GlbRejected         worker's   we encoded an invalid file
├── FileRejected        worker's   we wrote an invalid file of another format
├── StorageFailed       outside    the result could not be delivered
├── AnswerTooLarge      worker's   the platform would drop the answer
├── JobCancelled        caller's   the platform stopped the job
├── DeadlineExceeded    caller's   the job's time is over
├── SetupFailed         worker's   the process cannot serve
├── EngineFault         worker's   the GPU context is poisoned
└── InternalError       worker's   anything that nobody foresaw

Messages are written for the caller: they name the field, the value and the limit, and never hold
a secret, image bytes, a query string or a path of this machine.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar


class Fault(StrEnum):
    """Who has to change something so that the job succeeds."""

    CALLER = "caller"
    WORKER = "worker"
    MODEL = "model"
    OUTSIDE = "outside"


class WorkerError(Exception):
    """Base of all reported failures; it cannot be raised itself.

    Each leaf states its `code` (stable, for programs), whose `fault` it is, whether the same job
    can succeed when it is sent again (`retryable`) and whether the process may serve further jobs
    (`poisons_worker`).
    """

    code: ClassVar[str]
    fault: ClassVar[Fault]
    retryable: ClassVar[bool]
    poisons_worker: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for fact in ("code", "fault", "retryable"):
            if not hasattr(cls, fact):
                raise TypeError(f"{cls.__name__} must state {fact!r}")

    def __init__(
        self, message: str, *, field: str | None = None, details: dict[str, Any] | None = None
    ) -> None:
        if type(self) is WorkerError:
            raise TypeError("raise a leaf of WorkerError, not the base")
        super().__init__(message)
        self.message = message
        self.field = field
        self.details = details or {}

    def to_wire(self, job_id: str) -> dict[str, Any]:
        """Return the answer that a job with this failure gets."""
        wire = {
            "error": f"{self.code}: {self.message}",
            "code": self.code,
            "retryable": self.retryable,
            "job_id": job_id,
            "field": self.field,
        }
        return wire | self.details


class InvalidInput(WorkerError):
    """The job's JSON is not a request."""

    code, fault, retryable = "invalid_input", Fault.CALLER, False


class ImageRejected(WorkerError):
    """The picture cannot be used."""

    code, fault, retryable = "image_rejected", Fault.CALLER, False


class UrlRefused(WorkerError):
    """The worker does not visit this address."""

    code, fault, retryable = "url_refused", Fault.CALLER, False


class FetchFailed(WorkerError):
    """The address was visited and gave no picture."""

    code, fault, retryable = "fetch_failed", Fault.OUTSIDE, True


class WorkerBusy(WorkerError):
    """The queue of this worker is full."""

    code, fault, retryable = "worker_busy", Fault.WORKER, True


class WorkerStopping(WorkerError):
    """This worker takes no further job: it is draining, or it is defunct."""

    code, fault, retryable = "worker_stopping", Fault.WORKER, True


class DiskFull(WorkerError):
    """Too little disk is free to run a job safely."""

    code, fault, retryable = "disk_full", Fault.WORKER, True


class OutOfVram(WorkerError):
    """Memory ran out: raised per attempt, and to the caller after the last accepted rung."""

    code, fault, retryable = "out_of_vram", Fault.WORKER, True

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        details: dict[str, Any] | None = None,
        needed_bytes: int | None = None,
        available_bytes: int | None = None,
    ) -> None:
        super().__init__(message, field=field, details=details)
        # Where the engine knows: what was asked for, and what the job can have in all, with what
        # it holds itself.
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes


class MeshRejected(WorkerError):
    """The model made a mesh that is not worth delivering."""

    code, fault, retryable = "mesh_rejected", Fault.MODEL, True


class GlbRejected(WorkerError):
    """The encoded file does not pass its own inspection."""

    code, fault, retryable = "glb_rejected", Fault.WORKER, False


class FileRejected(WorkerError):
    """A file of another format than GLB could not be written as it must be."""

    code, fault, retryable = "file_rejected", Fault.WORKER, False


class StorageFailed(WorkerError):
    """The result exists and could not be delivered."""

    code, fault, retryable = "storage_failed", Fault.OUTSIDE, True
    status: int = 0
    """The HTTP status that refused it, 0 where nothing was answered."""


class AnswerTooLarge(WorkerError):
    """The platform would drop an answer of this size without a word."""

    code, fault, retryable = "answer_too_large", Fault.WORKER, False


class JobCancelled(WorkerError):
    """The platform or the caller stopped the job."""

    code, fault, retryable = "cancelled", Fault.CALLER, False


class DeadlineExceeded(WorkerError):
    """The job's time is over."""

    code, fault, retryable = "deadline_exceeded", Fault.CALLER, False


class SetupFailed(WorkerError):
    """The process cannot serve; it must not start to take jobs."""

    code, fault, retryable = "setup_failed", Fault.WORKER, False


class EngineFault(WorkerError):
    """The engine's state can no longer be trusted (a sticky CUDA error, for one)."""

    code, fault, retryable, poisons_worker = "engine_fault", Fault.WORKER, True, True


class InternalError(WorkerError):
    """Nobody foresaw this; the log has the traceback, the caller has the job's id."""

    code, fault, retryable = "internal", Fault.WORKER, True
