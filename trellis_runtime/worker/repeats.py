"""A job that this worker refuses may be done already: then its result is the answer."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from trellis_runtime.contract.request import GenerationRequest
from trellis_runtime.contract.scope import Deadline, JobScope
from trellis_runtime.delivery.choose import Delivery
from trellis_runtime.delivery.earlier import fingerprint
from trellis_runtime.errors import WorkerError
from trellis_runtime.settings import Settings

_LOOK_S = 10.0


def delivery_of(
    settings: Settings, job: dict[str, Any], job_id: str, request: GenerationRequest
) -> Delivery:
    """Return where the result of a job (as the platform hands it out) goes."""
    return Delivery.of_job(settings, job_id or "local", job.get("s3Config"), fingerprint(request))


def delivered_earlier(
    settings: Settings, job: dict[str, Any], job_id: str, request: GenerationRequest
) -> dict[str, Any] | None:
    """Return the answer that an earlier run of this job delivered, None where none is found.

    The platform may hand out a job again that is done, and keeps what is said last: a full disk or
    a full queue is no reason to take a result back. Nothing is computed, nor written.
    """
    scope = JobScope(job_id, Deadline.after(_LOOK_S))
    with suppress(WorkerError):  # the refusal stands
        if found := delivery_of(settings, job, job_id, request).earlier_result(
            request.output, scope
        ):
            return found.model_dump(mode="json")
    return None
