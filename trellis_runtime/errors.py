"""Every failure that the worker and its server report on purpose: the one table of codes.

Each leaf of `WorkerError` is a row: its `code` (stable, for programs), whose `fault` it is,
whether the same request can succeed when it is sent again (`retryable`), its HTTP `status`, its
meaning (the docstring) and its `remedy`. docs/api.md and the schema of errors are written from it,
and a test compares it with what is raised. Where one code stands for events that differ, `depends`
says when `retryable` is otherwise, and whoever raises it says so.

Messages are written for the caller: they name the field, the value and the limit, and never hold
a secret, image bytes, a query string or a path of this machine.

Long because it lists every failure beside what to do about it.
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

    `poisons_worker` leaves take the process out of service.
    """

    code: ClassVar[str]
    fault: ClassVar[Fault]
    status: ClassVar[int]
    remedy: ClassVar[str]
    depends: ClassVar[str] = ""
    poisons_worker: ClassVar[bool] = False
    retryable: bool
    """Whether the same request can succeed when it is sent again; an instance may differ."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for fact in ("code", "fault", "retryable", "status", "remedy"):
            if not hasattr(cls, fact):
                raise TypeError(f"{cls.__name__} must state {fact!r}")

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        details: dict[str, Any] | None = None,
        retryable: bool | None = None,
    ) -> None:
        if type(self) is WorkerError:
            raise TypeError("raise a leaf of WorkerError, not the base")
        super().__init__(message)
        self.message = message
        self.field = field
        self.details = details or {}
        if retryable is not None:
            self.retryable = retryable

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
    """The request is not one: a field is unknown, of the wrong kind or out of its range."""

    code, fault, retryable, status = "invalid_input", Fault.CALLER, False, 400
    remedy = "Change the field that `field` names; the message has the value and the limit."


class ImageRejected(WorkerError):
    """The picture cannot be read, is too large, or shows no object."""

    code, fault, retryable, status = "image_rejected", Fault.CALLER, False, 400
    remedy = "Send another picture, or with `background: keep` the whole of this one."


class UrlRefused(WorkerError):
    """The worker does not visit this address, or not any more: it is not public, it is no http(s)
    address, it redirects too often, its body is too large, or its signature has expired.
    """

    code, fault, retryable, status = "url_refused", Fault.CALLER, False, 400
    remedy = "Give a public address, newly signed where it is a signed one."


class FetchFailed(WorkerError):
    """The address of the picture did not give it."""

    code, fault, retryable, status = "fetch_failed", Fault.OUTSIDE, True, 502
    depends = "no for an answer of 4xx (408, 425 and 429 excepted) and for a bad certificate"
    remedy = "Look at the status in the message: an address that gives 403 or 404 does so again."


class WorkerBusy(WorkerError):
    """The queue of this worker is full."""

    code, fault, retryable, status = "worker_busy", Fault.WORKER, True, 429
    remedy = "Send it again after `Retry-After` seconds, or add workers."


class WorkerStarting(WorkerError):
    """This worker is not ready yet."""

    code, fault, retryable, status = "worker_starting", Fault.WORKER, True, 503
    remedy = "Wait until `/ping` answers 200."


class WorkerStopping(WorkerError):
    """This worker takes no further job: it is draining, or it must be replaced."""

    code, fault, retryable, status = "worker_stopping", Fault.WORKER, True, 503
    remedy = "Send it again: another worker takes it."


class Unhealthy(WorkerError):
    """The answer of `/ping` where no job may be sent here: stopping, a full disk, a dead bucket."""

    code, fault, retryable, status = "unhealthy", Fault.WORKER, True, 503
    remedy = "The message says what is wrong; a load balancer sends jobs elsewhere."


class DiskFull(WorkerError):
    """Too little disk is free to run a job safely."""

    code, fault, retryable, status = "disk_full", Fault.WORKER, True, 503
    remedy = "Give the worker more container disk, or empty its output folder."


class OutOfVram(WorkerError):
    """Memory ran out, and no rung of the ladder that the request accepts was enough."""

    code, fault, retryable, status = "out_of_vram", Fault.WORKER, True, 503
    remedy = "Raise `max_degradation_level`, ask for a smaller `resolution`, or use a larger card."

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
    """The model made a mesh that is not worth delivering, or that fails a `strict` check."""

    code, fault, retryable, status = "mesh_rejected", Fault.MODEL, True, 422
    depends = "no where the request names its `seed`, as the same mesh would come again"
    remedy = "Try another `seed` or picture, or allow `retry_seeds`."


class StageFailed(WorkerError):
    """A library could not work with what this picture led to; the log has its words."""

    code, fault, retryable, status = "stage_failed", Fault.MODEL, False, 422
    remedy = "Try another `seed`, `resolution` or picture."


class NotFinite(WorkerError):
    """A network's values are infinite or NaN; a decoder's wider retry may be off."""

    code, fault, retryable, status = "not_finite", Fault.MODEL, True, 422
    depends = "no where the request names its `seed`, as the same values would come again"
    remedy = "Try another `seed`; whoever runs the worker can set `TRELLIS2_DECODER_RETRY`."


class GlbRejected(WorkerError):
    """The file that was written does not pass its own inspection."""

    code, fault, retryable, status = "glb_rejected", Fault.WORKER, False, 500
    remedy = "Report it with the job's id: this is a fault of the worker."


class FileRejected(WorkerError):
    """A file of another format than GLB could not be written as it must be."""

    code, fault, retryable, status = "file_rejected", Fault.WORKER, False, 500
    remedy = "Ask for another format, or report it with the job's id."


class StorageFailed(WorkerError):
    """The result could not be delivered; the message has the store's own code."""

    code, fault, retryable, status = "storage_failed", Fault.OUTSIDE, True, 502
    depends = "no where the store refused it (4xx, 408, 425 and 429 excepted)"
    remedy = "Look at the store's code: rights, a signature, a bucket's name."
    answered: int = 0
    """The HTTP status that refused it, 0 where nothing was answered."""


class LatentsGone(WorkerError):
    """Nothing is kept of the job that `finish_of` names, where this worker looks."""

    code, fault, retryable, status = "latents_gone", Fault.CALLER, False, 404
    remedy = "Look at the id (`kept.id`); send the same s3Config; or sample again with `keep`."


class LatentsExpired(WorkerError):
    """What was kept of that job is over its time."""

    code, fault, retryable, status = "latents_expired", Fault.CALLER, False, 410
    remedy = "Sample again with `keep`; whoever runs the worker can raise `TRELLIS2_KEEP_HOURS`."


class LatentsForeign(WorkerError):
    """What was kept is of another engine, or of other versions, than this worker's."""

    code, fault, retryable, status = "latents_foreign", Fault.CALLER, False, 409
    remedy = "Sample again with `keep`; the message says what differs."


class LatentsDamaged(WorkerError):
    """What was kept is not as it was written, by its checksum or its contents."""

    code, fault, retryable, status = "latents_damaged", Fault.OUTSIDE, False, 422
    remedy = "Sample again with `keep`."


class AnswerTooLarge(WorkerError):
    """The result is, or by what was asked will be, larger than an inline answer may be."""

    code, fault, retryable, status = "answer_too_large", Fault.CALLER, False, 422
    remedy = "Use a bucket or `output.upload_url`, or ask for fewer faces or a smaller texture."


class JobCancelled(WorkerError):
    """The platform or the caller stopped the job."""

    code, fault, retryable, status = "cancelled", Fault.CALLER, False, 409
    remedy = "Send it again if that was not meant."


class DeadlineExceeded(WorkerError):
    """The job's time is over."""

    code, fault, retryable, status = "deadline_exceeded", Fault.CALLER, False, 504
    remedy = "Raise the endpoint's execution timeout, or ask for less."


class SetupFailed(WorkerError):
    """The process cannot serve: a setting, a package, the models or the bucket are not in order."""

    code, fault, retryable, status = "setup_failed", Fault.WORKER, False, 503
    remedy = "Read the message, and `python -m trellis_runtime check` on that machine."


class EngineFault(WorkerError):
    """The engine's state can no longer be trusted (a sticky CUDA error, for one)."""

    code, fault, retryable, status = "engine_fault", Fault.WORKER, True, 503
    poisons_worker = True
    remedy = "Send it again: the worker is replaced."


class InternalError(WorkerError):
    """Nobody foresaw this; the log has the traceback, the caller has the job's id."""

    code, fault, retryable, status = "internal", Fault.WORKER, True, 500
    remedy = "Report it with the job's id: this is a fault of the worker."


class EndpointFailed(WorkerError):
    """An endpoint that the local server sent the job to ended it without the worker's answer."""

    code, fault, retryable, status = "endpoint_failed", Fault.OUTSIDE, True, 502
    remedy = "Look at the endpoint's workers and log in RunPod's console."


class Unauthorized(WorkerError):
    """The server wants a token, and the request has none or another."""

    code, fault, retryable, status = "unauthorized", Fault.CALLER, False, 401
    remedy = "Send `Authorization: Bearer TOKEN`."


class ForeignPage(WorkerError):
    """The request names a host that is none of the server's, or comes from another site's page."""

    code, fault, retryable, status = "foreign_page", Fault.CALLER, False, 403
    remedy = "Start the server with `--allow-host NAME`; pages of other origins go through yours."


class NotFound(WorkerError):
    """There is no such page, job, file or map."""

    code, fault, retryable, status = "not_found", Fault.CALLER, False, 404
    remedy = "Look at the address; the server remembers its last jobs only."


class MethodNotAllowed(WorkerError):
    """The address is there, and takes other methods."""

    code, fault, retryable, status = "method_not_allowed", Fault.CALLER, False, 405
    remedy = "The `Allow` header lists them."


class BodyLate(WorkerError):
    """The body did not arrive in time."""

    code, fault, retryable, status = "body_late", Fault.CALLER, True, 408
    remedy = "Send it again, or `image_url` instead of a large `image`."


class NotRunning(WorkerError):
    """The job that is to be stopped has ended."""

    code, fault, retryable, status = "not_running", Fault.CALLER, False, 409
    remedy = "Nothing: its answer is at `/jobs/{id}`."


class StillRunning(WorkerError):
    """The job that is to be deleted runs or waits."""

    code, fault, retryable, status = "still_running", Fault.CALLER, False, 409
    remedy = "Cancel it first: `POST /jobs/{id}/cancel`."


class LengthRequired(WorkerError):
    """The body came without its length."""

    code, fault, retryable, status = "length_required", Fault.CALLER, False, 411
    remedy = "Send `Content-Length`, not chunks."


class BodyTooLarge(WorkerError):
    """The body has more bytes than the server takes."""

    code, fault, retryable, status = "body_too_large", Fault.CALLER, False, 413
    remedy = "Send a smaller picture, or `image_url`."
