"""The wire contract's rest: what a failed job and a question after health are answered."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, TypeAdapter

from trellis_runtime.contract.answer import Attempt, EngineInfo, FailedVariant
from trellis_runtime.contract.wire import WireModel
from trellis_runtime.errors import WorkerError


class Disk(WireModel):
    """The disk that results go to."""

    free_bytes: int
    required_bytes: int = Field(description="A job is refused below this (disk_full).")


class FreeVram(WireModel):
    """The card's memory now, as its driver sees it."""

    free_bytes: int
    total_bytes: int


class Queue(WireModel):
    """The jobs of this process."""

    in_hand: int = Field(description="Jobs that run or wait.")
    max_concurrent: int
    max_queued: int
    served: int = Field(description="Jobs that were taken and have ended, well or not.")


class Health(WireModel):
    """What a worker is and has, also while a job runs."""

    status: Literal["ok", "defunct"] = Field(
        description="defunct: this process takes no job any more and asks to be replaced."
    )
    state: Literal["starting", "ready", "busy", "draining", "defunct"]
    engine: EngineInfo
    worker_version: str
    disk: Disk
    vram: FreeVram | None = Field(description="null: the engine uses no card.")
    queue: Queue
    init: dict[str, float] = Field(description="Seconds of each phase of the start.")


class HealthTimeout(WireModel):
    """The answer when the device's driver did not answer in time."""

    status: Literal["timeout"] = "timeout"
    timeout_s: float


class Failure(WireModel):
    """The answer to a job that failed."""

    error: str = Field(
        description="The code, a colon, and what happened: the field, the value and the limit; "
        "never a secret, image bytes, a query string or a path of the worker's machine."
    )
    code: str
    retryable: bool = Field(description="Whether the same job can succeed when sent again.")
    job_id: str
    field: str | None = Field(description="The part of the request that is at fault, dotted.")
    attempts: list[Attempt] | None = Field(
        None, description="With out_of_vram alone: every stage that ran out of memory."
    )
    variants: list[FailedVariant] | None = Field(
        None, description="With variants or seeds of which none was made: why, one by one."
    )
    refresh_worker: bool = Field(
        False, description="Present and true when this worker must be replaced."
    )


def failures(base: type[WorkerError] = WorkerError) -> Iterator[type[WorkerError]]:
    """Yield every failure that is reported on purpose, as its class."""
    for leaf in base.__subclasses__():
        yield leaf
        yield from failures(leaf)


def retryable_words(leaf: type[WorkerError]) -> str:
    """Return "yes" or "no", and when it is otherwise."""
    word = "yes" if leaf.retryable else "no"
    return f"{word}; {leaf.depends}" if leaf.depends else word


def error_schema() -> dict[str, Any]:
    """Return the JSON Schema of the answer to a job that failed, every code explained."""
    schema = Failure.model_json_schema(mode="validation")
    codes = [
        {
            "const": leaf.code,
            "description": f"{inspect.getdoc(leaf)} Fault: {leaf.fault}. "
            f"Retryable: {retryable_words(leaf)}. {leaf.remedy}",
        }
        for leaf in sorted(failures(), key=lambda leaf: leaf.code)
    ]
    schema["properties"]["code"] = {"title": "Code", "type": "string", "oneOf": codes}
    return schema


def health_schema() -> dict[str, Any]:
    """Return the JSON Schema of the answer to `{"type": "health"}`."""
    schema = TypeAdapter(Health | HealthTimeout).json_schema(mode="serialization")
    return {"title": "HealthAnswer"} | schema
