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

from trellis_runtime.contract.refusals import words_of
from trellis_runtime.contract.reports import failures
from trellis_runtime.contract.request import parse_request
from trellis_runtime.errors import (
    BodyLate,
    BodyTooLarge,
    EndpointFailed,
    ForeignPage,
    InvalidInput,
    LengthRequired,
    MethodNotAllowed,
    NotFound,
    Unauthorized,
    WorkerBusy,
    WorkerError,
    WorkerStarting,
)
from trellis_runtime.server.served import Served
from trellis_runtime.worker.worker import Worker

RETRY_AFTER_S = 5
BODY_S = 60.0

_OPEN_PATHS = ("/ping", "/static/", "/docs", "/openapi.json")  # these tell nothing of a job
_LEAVES = {leaf.code: leaf for leaf in failures()}
_BY_STATUS: dict[int, type[WorkerError]] = {
    404: NotFound,
    405: MethodNotAllowed,
    408: BodyLate,
    413: BodyTooLarge,
    429: WorkerBusy,
    503: WorkerStarting,
}
"""What Starlette raises by its status alone."""

_HEADERS = {
    # Nothing is loaded from elsewhere; model-viewer draws on a canvas and reads blobs of its own.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self' blob: data:; style-src 'self' 'unsafe-inline'; worker-src 'self' blob:; "
    "script-src 'self' 'wasm-unsafe-eval'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def add_guards(app: FastAPI, served: Served) -> None:  # noqa: C901 - four small handlers
    """Check size and token of every request, and give every refusal one form."""

    @app.middleware("http")
    async def guard(request: Request, proceed: Any) -> Response:
        path = request.scope["path"]  # not request.url, which is made of the Host header
        if path != "/ping" and (refusal := foreign(request, served.hosts)):
            return error_response(ForeignPage(refusal))
        guarded = served.token and path != "/" and not path.startswith(_OPEN_PATHS)
        if guarded and not _has_token(request, served.token):
            needed = Unauthorized("a token is needed: Authorization: Bearer ...")
            return error_response(needed, headers={"WWW-Authenticate": "Bearer"})
        if "transfer-encoding" in request.headers:  # a body of no stated length has no bound
            return error_response(LengthRequired("the body must come with its Content-Length"))
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length) > served.max_body:
            message = f"the body has {length} bytes; the limit is {served.max_body}"
            return error_response(BodyTooLarge(message))
        response: Response = await proceed(request)
        response.headers.update(_HEADERS)
        return response

    @app.exception_handler(HTTPException)
    async def refused(request: Request, err: HTTPException) -> Response:
        headers = err.headers
        if err.status_code == 405:  # Starlette names the methods of one route of a path only
            headers = {"Allow": ", ".join(sorted(_methods(app, request)))}
        leaf = _BY_STATUS.get(err.status_code, InvalidInput)
        return error_response(leaf(str(err.detail)), status=err.status_code, headers=headers)

    @app.exception_handler(WorkerError)
    async def failed(_request: Request, err: WorkerError) -> Response:
        return error_response(err)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, err: RequestValidationError) -> Response:
        first = err.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:])
        message = f"{field or 'the body'} {words_of(first)}"
        return error_response(InvalidInput(message, field=field or None))


async def read_payload(request: Request, served: Served) -> dict[str, Any]:
    """Return a job's input as it was sent, bare or as RunPod's `{"input": ...}`.

    Raises `InvalidInput`, with the worker's own words for what is wrong in it.
    """
    try:
        raw = await asyncio.wait_for(request.body(), BODY_S)
    except TimeoutError:
        raise BodyLate(f"the body did not arrive within {BODY_S:g} s") from None
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
        raise WorkerBusy(
            f"{worker.admission.in_hand} jobs are in hand; try again in {RETRY_AFTER_S} s"
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
    leaf = _LEAVES.get(str(answer.get("code")), EndpointFailed)
    return JSONResponse(answer, status_code=leaf.status, headers=_headers_of(leaf))


def error_response(err: WorkerError, *, status: int | None = None, headers: Any = None) -> Response:
    """Return a refusal of the server's own, with the keys that the worker's have."""
    told = dict(headers or {}) | _headers_of(type(err))
    return JSONResponse(err.to_wire(""), status_code=status or err.status, headers=told)


def _headers_of(leaf: type[WorkerError]) -> dict[str, str]:
    return {"Retry-After": str(RETRY_AFTER_S)} if leaf.status == WorkerBusy.status else {}


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
