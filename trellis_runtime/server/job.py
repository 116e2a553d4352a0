"""One job that came by HTTP, and the two ways in which it is shown: whole, and as a line."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from trellis_runtime.contract.files import models_told

Answer = dict[str, Any] | None
Task = asyncio.Task[Answer]
State = Literal["running", "done", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class Expected:
    """What past jobs of the same settings took: medians, over `jobs` of them."""

    seconds: float
    bytes: int
    jobs: int
    stages: dict[str, float]

    def to_wire(self) -> dict[str, Any]:
        return {"seconds": round(self.seconds, 2), "bytes": self.bytes, "jobs": self.jobs,
                "stages": {name: round(s, 3) for name, s in self.stages.items()}}  # fmt: skip


@dataclass(slots=True)
class Job:
    """One job; `request` is what was asked, its picture left out.

    endpoint  the RunPod endpoint that it runs on, None where that is this machine
    started   when it left the queue, in seconds since 1970; None while it waits
    picture   what was sent, where a browser can show it, and its content type
    """

    id: str
    request: dict[str, Any]
    created: float = field(default_factory=time.time)
    state: State = "running"
    stage: str = "queued"
    progress: float = 0.0
    answer: dict[str, Any] | None = None
    version: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    task: Task | None = None
    endpoint: str | None = None
    started: float | None = None
    ended: float | None = None
    picture: tuple[bytes, str] | None = None
    expected: Expected | None = None

    def view(self) -> dict[str, Any]:
        """Return what the page and the API show of it."""
        return self._head() | {
            "expected": self.expected.to_wire() if self.expected else None,
            "request": self.request,
            "answer": self.answer,
        }

    def line(self) -> dict[str, Any]:
        """Return what a list of jobs shows of it: nothing that grows with the result."""
        return self._head() | {
            "preset": self.request.get("preset"),
            "expected_seconds": round(self.expected.seconds, 2) if self.expected else None,
            "summary": _summary(self.answer),
        }

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "state": self.state,
            "stage": self.stage,
            "progress": round(self.progress, 3),
            "created": round(self.created, 3),
            "endpoint": self.endpoint,
            "elapsed_seconds": self._elapsed(),
        }

    def _elapsed(self) -> float | None:
        if self.started is None:
            return None
        return round((self.ended or time.time()) - self.started, 3)


def _summary(answer: Answer) -> dict[str, Any] | None:
    """Return the numbers of a job's model, of variants the first; each that failed is a warning."""
    if answer is None:
        return None
    if "error" in answer:
        return {"error": answer["error"], "code": answer.get("code")}
    models = models_told(answer)
    failed = len(answer.get("variants", models)) - len(models)
    first = next(iter(models), answer)
    return {
        "faces": first.get("mesh", {}).get("faces"),
        "bytes": first.get("artifact", {}).get("bytes"),
        "seed": first.get("seed"),
        "level": first.get("degradation", {}).get("level"),
        "warnings": failed + sum(len(model.get("warnings", [])) for model in models),
    }


async def newer(job: Job, seen: int) -> None:
    """Wait until a job has changed since version `seen`, which may be already."""
    async with job.changed:
        await job.changed.wait_for(lambda: job.version != seen)


async def touch(job: Job) -> None:
    """Have a job's followers look at it again."""
    async with job.changed:
        job.version += 1
        job.changed.notify_all()


async def advance(job: Job, stage: str, progress: float) -> None:
    """Note how far a running job has come."""
    async with job.changed:
        if job.state == "running":
            job.stage, job.progress = stage, progress
            job.started = job.started or time.time()
            job.version += 1
            job.changed.notify_all()


async def finish(job: Job, state: State, answer: Answer) -> None:
    """Note how a job has ended."""
    async with job.changed:
        job.state, job.answer, job.ended = state, answer, time.time()
        job.progress = 1.0 if state == "done" else job.progress
        job.version += 1
        job.changed.notify_all()
