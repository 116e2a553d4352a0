"""The HTTP application: the page, RunPod's load-balancing form, jobs with progress, metrics."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles

from trellis_runtime import __version__
from trellis_runtime.contract.engine import Engine
from trellis_runtime.errors import SetupFailed, Unhealthy
from trellis_runtime.server.addresses import files_address, with_http_addresses
from trellis_runtime.server.guards import (
    add_guards,
    answer_response,
    error_response,
    held_room,
    read_payload,
)
from trellis_runtime.server.openapi import (
    HEALTH_RESPONSE,
    REQUEST_BODY,
    RESULT_RESPONSE,
    describe,
    errors_with,
)
from trellis_runtime.server.routes_jobs import add_job_routes
from trellis_runtime.server.routes_page import add_page_routes
from trellis_runtime.server.served import Served
from trellis_runtime.settings import Settings

STATIC = Path(__file__).parent / "static"


def create_app(
    settings: Settings,
    token: str | None = None,
    engine: Engine | None = None,
    hosts: frozenset[str] = frozenset(),
) -> FastAPI:
    """Return the application; the worker starts beside it, and `/ping` says when it is ready.

    `hosts` are names that it answers to beside localhost and numbers; behind the platform's proxy,
    every name. With `token`, all but `/ping` and the page's own files want
    `Authorization: Bearer TOKEN`.
    """
    behind_proxy = settings.platform.endpoint_id is not None
    served = Served(settings, token, None if behind_proxy else hosts)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        thread = threading.Thread(target=served.start, args=(engine,), name="start", daemon=True)
        thread.start()
        served.loop = asyncio.get_running_loop()
        yield
        await served.leave()

    app = FastAPI(
        title="trellis-runtime",
        version=__version__,
        description="One image in, one textured PBR GLB out.",
        lifespan=lifespan,
        responses=errors_with(400, 401, 403, 503),
        docs_url=None,  # FastAPI's own pages load theirs from elsewhere
        redoc_url=None,
    )
    describe(app)
    add_guards(app, served)
    _add_platform(app, served)
    add_job_routes(app, served)
    add_page_routes(app, served)
    app.state.served = served
    app.mount("/static", StaticFiles(directory=STATIC), name="static")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    return app


def _add_platform(app: FastAPI, served: Served) -> None:
    @app.head("/ping", include_in_schema=False)
    @app.get("/ping", responses={200: {}, 204: {"description": "starting"}})
    async def ping() -> Response:
        """Say whether this worker takes jobs: 200 ready, 204 starting, 503 not any more."""
        if reason := served.unhealthy():
            leaf = SetupFailed if served.failure is not None else Unhealthy
            return error_response(leaf(reason))
        if served.worker is None:
            return Response(status_code=204)
        return JSONResponse({"status": "ready"})

    @app.get("/health", responses={200: HEALTH_RESPONSE})
    async def health() -> Response:
        """Answer what this worker is and has, within ten seconds."""
        worker, _ = served.ready()
        report = await worker.health()
        return JSONResponse(report, status_code=503 if report["status"] == "timeout" else 200)

    text = {"content": {"text/plain": {"schema": {"type": "string"}}}}

    @app.get("/metrics", response_class=Response, responses={200: text})
    async def metrics() -> Response:
        """Answer Prometheus."""
        return Response(served.metrics.page(served.worker), media_type="text/plain; version=0.0.4")

    told = errors_with(404, 408, 409, 410, 411, 413, 422, 429, 500, 502, 504) | {
        200: RESULT_RESPONSE
    }

    @app.post("/generate", openapi_extra=REQUEST_BODY, responses=told)
    async def generate(request: Request) -> Response:
        """Run one job and answer when it is done."""
        worker, jobs = served.ready()
        with held_room(worker, served):
            payload = await read_payload(request, served)
        job, task = jobs.submit(payload, keep=False)
        # After the body, all that can still be received is that the caller has left.
        left = asyncio.ensure_future(request.receive())
        await asyncio.wait([task, left], return_when=asyncio.FIRST_COMPLETED)
        left.cancel()
        if not task.done():
            await jobs.cancel(job.id)
        answer = None if task.cancelled() else task.result()
        told = answer or served.stopped().to_wire(job.id)
        address = files_address(str(request.base_url), job.id)
        return answer_response(with_http_addresses(told, address))
