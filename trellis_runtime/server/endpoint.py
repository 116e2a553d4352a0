"""A RunPod endpoint behind the local server, which keeps the API key to itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import requests

from trellis_runtime.errors import EndpointFailed, InvalidInput

_ENDPOINT = re.compile(r"[A-Za-z0-9_-]{1,64}")
_JOB = re.compile(r"[A-Za-z0-9_-]{1,128}")
_TIMEOUT_S = 30
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
        if state == "failed" and not isinstance(output, dict):
            output = EndpointFailed(str(told.get("error") or "the job failed")).to_wire(job_id)
        if (
            state == "failed" and isinstance(output, dict) and "error" not in output
        ):  # the platform moves it out of the output
            output = output | {"error": str(told.get("error") or "the job failed")}
        if state == "done" and not isinstance(output, dict):
            output = EndpointFailed("the job was completed without a result").to_wire(job_id)
        if state == "done" and isinstance(output, dict) and "error" in output:
            state = "failed"
        return {
            "state": state,
            "stage": str(update.get("stage", "queued")),
            "progress": _fraction(update.get("progress")),
            "answer": None if state == "running" else output,
        }

    def cancel(self, job_id: str) -> None:
        self._call("POST", f"cancel/{job_id}")

    def _call(self, method: str, path: str, content: Any = None) -> dict[str, Any]:
        url = f"{self.base_url}/{self.endpoint_id}/{path}"
        headers = {"Authorization": f"Bearer {self.api_key}"}
        try:
            answer = requests.request(
                method,
                url,
                json=content,
                headers=headers,
                timeout=_TIMEOUT_S,
                allow_redirects=False,
            )
        except requests.RequestException as err:
            raise EndpointFailed(f"the endpoint cannot be reached ({type(err).__name__})") from None
        if answer.status_code != 200:
            raise EndpointFailed(f"the endpoint answered {answer.status_code}")
        try:
            told = answer.json()
        except ValueError:
            raise EndpointFailed("the endpoint answered no JSON") from None
        if not isinstance(told, dict):
            raise EndpointFailed("the endpoint answered no JSON object")
        return told


def _fraction(told: Any) -> float:
    if isinstance(told, int | float) and 0.0 <= told <= 1.0:
        return float(told)
    return 0.0
