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


def delivered_earlier(
    settings: Settings, job: dict[str, Any], job_id: str, request: GenerationRequest
) -> dict[str, Any] | None:
    """Return the answer that an earlier run of this job delivered, None where none is found.

    The platform may hand out a job again that is done, and keeps what is said last: a full disk or
    a full queue is no reason to take a result back. Nothing is computed, nor written.
    """
    scope = JobScope(job_id, Deadline.after(_LOOK_S))
    with suppress(WorkerError):  # the refusal stands
        delivery = Delivery.of_job(
            settings, job_id or "local", job.get("s3Config"), fingerprint(request)
        )
        if found := delivery.earlier_result(request.output, scope):
            return found.model_dump(mode="json")
    return None
