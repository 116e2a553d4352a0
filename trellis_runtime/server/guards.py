"""What stands between a request and its route: size, token, errors in one form, headers."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from trellis_runtime.contract.request import parse_request
from trellis_runtime.errors import Fault, InvalidInput, WorkerError
from trellis_runtime.server.served import Served
from trellis_runtime.worker.worker import Worker

RETRY_AFTER_S = 5
BODY_S = 60.0

_RETRYABLE = (408, 429, 503)
_OPEN_PATHS = ("/ping", "/static/")
_STATUS = {
    "worker_busy": 429,
    "deadline_exceeded": 504,
    "cancelled": 409,
    Fault.CALLER: 400,
    Fault.MODEL: 422,
    Fault.OUTSIDE: 502,
    Fault.WORKER: 503,
}
_FAULTS = {leaf.code: leaf.fault for leaf in WorkerError.__subclasses__()}
_HEADERS = {
    # Nothing is loaded from elsewhere; model-viewer draws on a canvas and reads blobs of its own.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self' blob: data:; style-src 'self' 'unsafe-inline'; worker-src 'self' blob:; "
    "script-src 'self' 'wasm-unsafe-eval'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
ERROR_RESPONSE = {
    "description": "What went wrong, with its code and field",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error", "code", "retryable", "job_id", "field"],
                "properties": {
                    "error": {"type": "string"},
                    "code": {"type": "string"},
                    "retryable": {"type": "boolean"},
                    "job_id": {"type": "string"},
                    "field": {"type": ["string", "null"]},
                },
            }
        }
    },
}


def add_guards(app: FastAPI, served: Served) -> None:  # noqa: C901 - four small handlers
    """Check size and token of every request, and give every refusal one form."""

    @app.middleware("http")
    async def guard(request: Request, proceed: Any) -> Response:
        path = request.scope["path"]  # not request.url, which is made of the Host header
        if path != "/ping" and (refusal := foreign(request, served.hosts)):
            return error_response(403, "foreign_page", refusal)
        guarded = served.token and path != "/" and not path.startswith(_OPEN_PATHS)
        if guarded and not _has_token(request, served.token):
            message = "a token is needed: Authorization: Bearer ..."
            return error_response(401, "unauthorized", message)
        if "transfer-encoding" in request.headers:  # a body of no stated length has no bound
            return error_response(
                411, "length_required", "the body must come with its Content-Length"
            )
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length) > served.max_body:
            message = f"the body has {length} bytes; the limit is {served.max_body}"
            return error_response(413, "body_too_large", message)
        response: Response = await proceed(request)
        response.headers.update(_HEADERS)
        return response

    @app.exception_handler(HTTPException)
    async def refused(request: Request, err: HTTPException) -> Response:
        headers = err.headers
        if err.status_code == 405:  # Starlette names the methods of one route of a path only
            headers = {"Allow": ", ".join(sorted(_methods(app, request)))}
        return error_response(err.status_code, f"http_{err.status_code}", str(err.detail), headers)

    @app.exception_handler(WorkerError)
    async def failed(_request: Request, err: WorkerError) -> Response:
        return answer_response(err.to_wire(""))

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, err: RequestValidationError) -> Response:
        first = err.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:])
        message = f"{field or 'the body'}: {first['msg']}"
        return error_response(400, "invalid_input", message, field=field or None)


async def read_payload(request: Request, served: Served) -> dict[str, Any]:
    """Return a job's input as it was sent, bare or as RunPod's `{"input": ...}`.

    Raises `InvalidInput`, with the worker's own words for what is wrong in it.
    """
    try:
        raw = await asyncio.wait_for(request.body(), BODY_S)
    except TimeoutError:
        raise HTTPException(408, f"the body did not arrive within {BODY_S:g} s") from None
    served.metrics.received(len(raw))
    try:
        payload = json.loads(raw)
    except (ValueError, RecursionError):
        raise InvalidInput("the body must be JSON") from None
    if isinstance(payload, dict) and isinstance(payload.get("input"), dict):
        payload = payload["input"]
    parse_request(payload)
    return dict(payload)


@contextmanager
def held_room(worker: Worker, served: Served) -> Iterator[None]:
    """Count a body that is being read as a job, so that only so many are in memory at once."""
    require_room(worker, served.reading)
    served.reading += 1
    try:
        yield
    finally:
        served.reading -= 1


def require_room(worker: Worker, reading: int = 0) -> None:
    """Raise 429 where the worker and its queue are full, bodies that are read counted."""
    if worker.admission.in_hand + reading >= worker.settings.jobs.room:
        raise HTTPException(
            429,
            f"{worker.admission.in_hand} jobs are in hand; try again in {RETRY_AFTER_S} s",
            headers={"Retry-After": str(RETRY_AFTER_S)},
        )


def _methods(app: FastAPI, request: Request) -> set[str]:
    found: set[str] = set()
    for route in app.routes:
        if route.matches(request.scope)[0] != Match.NONE:
            found |= set(getattr(route, "methods", None) or ())
    return found


def answer_response(answer: dict[str, Any]) -> Response:
    """Return the worker's answer with the status that its code stands for."""
    if "error" not in answer:
        return JSONResponse(answer)
    code = answer["code"]
    status = _STATUS.get(code) or _STATUS.get(_FAULTS.get(code, ""), 500)
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status == 429 else None
    return JSONResponse(answer, status_code=status, headers=headers)


def error_response(
    status: int, code: str, message: str, headers: Any = None, field: str | None = None
) -> Response:
    """Return a refusal of the server's own, with the keys that the worker's have."""
    told = {
        "error": f"{code}: {message}",
        "code": code,
        "retryable": status in _RETRYABLE,
        "job_id": "",
        "field": field,
    }
    return JSONResponse(told, status_code=status, headers=headers)


def foreign(request: Request, hosts: frozenset[str] | None) -> str | None:
    """Return why a request comes from another page, None where it does not.

    A page whose name was re-bound to this machine sends its own name as Host; numbers cannot be
    re-bound. `hosts` None takes every name: the platform's proxy stands in front.
    """
    host = request.headers.get("host", "")
    if hosts is not None and not _is_own(_name_of(f"//{host}"), hosts):
        return f"{host!r} is no name of this server (serve --allow-host NAME)"
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        return "a page of another origin may not call this server"
    return None


def _name_of(address: str) -> str:
    try:
        return (urlsplit(address).hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_own(name: str, hosts: frozenset[str]) -> bool:
    if name == "localhost" or name in hosts:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _has_token(request: Request, token: str | None) -> bool:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    right = hmac.compare_digest(given.strip().encode(), (token or "").encode())
    return right and scheme.lower() == "bearer"  # RFC 9110, 11.1: schemes have no case
