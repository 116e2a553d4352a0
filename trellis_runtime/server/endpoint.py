"""A RunPod endpoint behind the local server, which keeps the API key to itself."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from trellis_runtime.contract.answer import parse_answer
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.delivery.fetch import exchange
from trellis_runtime.errors import EndpointFailed, InvalidInput, StorageFailed, UrlRefused
from trellis_runtime.settings import FetchLimits

_ENDPOINT = re.compile(r"[A-Za-z0-9_-]{1,64}")
_JOB = re.compile(r"[A-Za-z0-9_-]{1,128}")
_ANYWHERE = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))  # the operator names it
_LIMITS = FetchLimits(timeout_s=30.0, allow_networks=_ANYWHERE)
_MOST_READ = 32_000_000  # bytes; the platform takes 20 MB of a result
_LONGEST_NAME, _LONGEST_ERROR = 100, 4_000  # characters
_STATES = {"COMPLETED": "done", "FAILED": "failed", "TIMED_OUT": "failed", "CANCELLED": "cancelled"}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint's lifecycle API: `run`, `status`, `cancel`."""

    base_url: str
    endpoint_id: str
    api_key: str

    def __post_init__(self) -> None:
        if not _ENDPOINT.fullmatch(self.endpoint_id):
            raise InvalidInput(f"{self.endpoint_id!r} is no endpoint id", field="endpoint_id")

    def run(self, payload: dict[str, Any]) -> str:
        """Submit a job; returns the platform's id for it."""
        job_id = self._call("POST", "run", {"input": payload}).get("id")
        if not isinstance(job_id, str) or not _JOB.fullmatch(job_id):
            raise EndpointFailed("the endpoint took the job and named no id for it")
        return job_id

    def status(self, job_id: str) -> dict[str, Any]:
        """Return `state`, `stage`, `progress` and `answer` as a local job's view has them."""
        told = self._call("GET", f"status/{job_id}")
        output = told.get("output")
        state = _STATES.get(str(told.get("status")), "running")
        update = output if isinstance(output, dict) and state == "running" else {}
        answer = None
        if state in ("done", "failed"):
            state, answer = _ending(state, output, told.get("error"), job_id)
        return {
            "state": state,
            "stage": _text(update.get("stage", "queued"), _LONGEST_NAME),
            "progress": _fraction(update.get("progress")),
            "answer": answer,
        }

    def cancel(self, job_id: str) -> None:
        self._call("POST", f"cancel/{job_id}")

    def _call(self, method: str, path: str, content: Any = None) -> dict[str, Any]:
        url = f"{self.base_url}/{self.endpoint_id}/{path}"
        headers = {"Authorization": f"Bearer {self.api_key}", "Content-Type": "application/json"}
        try:
            answer = exchange(
                method,
                url,
                _LIMITS,
                JobScope(path),
                field="the endpoint",
                headers=headers,
                body=None if content is None else json.dumps(content).encode(),
                read=_MOST_READ,
            )
        except (StorageFailed, UrlRefused) as err:
            raise EndpointFailed(f"the endpoint cannot be reached: {err.message}") from None
        if answer.status != 200:
            raise EndpointFailed(f"the endpoint answered {answer.status}")
        if answer.more:
            raise EndpointFailed(f"the endpoint answered more than {_MOST_READ} bytes")
        try:
            told = json.loads(answer.body)
        except (ValueError, RecursionError):
            raise EndpointFailed("the endpoint answered no JSON") from None
        if not isinstance(told, dict):
            raise EndpointFailed("the endpoint answered no JSON object")
        return told


def _ending(state: str, output: Any, beside: Any, job_id: str) -> tuple[str, dict[str, Any]]:
    """Return how a job ended, and its answer; what is no answer of a worker is a failure.

    `beside` is where the platform moves the output's error to.
    """
    if state == "failed" or (isinstance(output, dict) and "error" in output):
        return "failed", _failure(output, beside, job_id)
    if not isinstance(output, dict):
        return "failed", _failure(None, "the job was completed without a result", job_id)
    try:
        return "done", parse_answer(json.dumps(output))
    except (ValueError, RecursionError):
        text = "the job was completed with what is no answer of this worker"
        return "failed", _failure(None, text, job_id)


def _failure(output: Any, beside: Any, job_id: str) -> dict[str, Any]:
    """Return an answer that says why a job failed, each field of the kind that ours has."""
    told = output if isinstance(output, dict) else {}
    text = _text(told.get("error") or beside or "the job failed", _LONGEST_ERROR)
    failure = EndpointFailed(text).to_wire(job_id)
    if told:  # a worker's own words, which begin with its own code
        failure["error"] = text
    for name in ("code", "field"):
        if isinstance(told.get(name), str):
            failure[name] = _text(told[name], _LONGEST_NAME)
    if isinstance(told.get("retryable"), bool):
        failure["retryable"] = told["retryable"]
    return failure


def _text(told: Any, longest: int) -> str:
    """Return what was told as text that UTF-8 can hold; half of a surrogate pair cannot."""
    text = told if isinstance(told, str) else json.dumps(told)
    return text[:longest].encode(errors="replace").decode()


def _fraction(told: Any) -> float:
    if isinstance(told, int | float) and 0.0 <= told <= 1.0:
        return float(told)
    return 0.0
