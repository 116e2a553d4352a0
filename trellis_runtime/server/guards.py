"""What stands between a request and its route: size, token, errors in one form, headers."""

from __future__ import annotations

import hmac
import json
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from trellis_runtime.errors import Fault, InvalidInput, WorkerError
from trellis_runtime.server.served import Served
from trellis_runtime.worker.worker import Worker

RETRY_AFTER_S = 5

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
                "required": ["error", "code"],
                "properties": {"error": {"type": "string"}, "code": {"type": "string"}},
            }
        }
    },
}


def add_guards(app: FastAPI, served: Served) -> None:  # noqa: C901 - four small handlers
    """Check size and token of every request, and give every refusal one form."""

    @app.middleware("http")
    async def guard(request: Request, proceed: Any) -> Response:
        path = request.url.path
        if served.token and path != "/" and not path.startswith(_OPEN_PATHS):
            given = request.headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {served.token}".encode()):
                return error_response(
                    401, "unauthorized", "a token is needed: Authorization: Bearer ..."
                )
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
        where = ".".join(str(part) for part in first["loc"][1:]) or "the body"
        return error_response(400, "invalid_input", f"{where}: {first['msg']}")


async def read_payload(request: Request, served: Served) -> dict[str, Any]:
    """Return the body as it was sent: the worker reads it itself, with its own words for faults."""
    raw = await request.body()
    served.metrics.received(len(raw))
    payload = json.loads(raw)
    if not isinstance(payload, dict):
        raise InvalidInput("the body must be a JSON object")
    return payload


def require_room(worker: Worker) -> None:
    """Raise 429 where the worker and its queue are full."""
    if worker.admission.is_full:
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


def error_response(status: int, code: str, message: str, headers: Any = None) -> Response:
    """Return a refusal of the server's own, in the form of the worker's."""
    return JSONResponse(
        {"error": f"{code}: {message}", "code": code}, status_code=status, headers=headers
    )
