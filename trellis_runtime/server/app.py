"""The HTTP application: the page, RunPod's load-balancing form, jobs with progress, metrics."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import Body, FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles

from trellis_runtime import __version__
from trellis_runtime.contract.engine import Engine
from trellis_runtime.contract.request import GenerationRequest
from trellis_runtime.server.guards import (
    ERROR_RESPONSE,
    add_guards,
    answer_response,
    error_response,
    read_payload,
    require_room,
)
from trellis_runtime.server.routes_jobs import add_job_routes
from trellis_runtime.server.served import Served
from trellis_runtime.settings import Settings

STATIC = Path(__file__).parent / "static"


def create_app(
    settings: Settings, token: str | None = None, engine: Engine | None = None
) -> FastAPI:
    """Return the application; the worker starts beside it, and `/ping` says when it is ready.

    With `token`, all but `/ping` and the page's own files want `Authorization: Bearer TOKEN`.
    """
    served = Served(settings, token)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        thread = threading.Thread(target=served.start, args=(engine,), name="start", daemon=True)
        thread.start()
        yield
        if served.worker is not None:
            served.worker.admission.drain()
            await asyncio.to_thread(served.worker.close)

    app = FastAPI(
        title="trellis-runtime",
        version=__version__,
        description="One image in, one textured PBR GLB out.",
        lifespan=lifespan,
        responses={400: ERROR_RESPONSE, 401: ERROR_RESPONSE, 503: ERROR_RESPONSE},
    )
    add_guards(app, served)
    _add_platform(app, served)
    add_job_routes(app, served)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    return app


def _add_platform(app: FastAPI, served: Served) -> None:
    @app.get("/ping", responses={200: {}, 204: {"description": "starting"}})
    async def ping() -> Response:
        """Say whether this worker takes jobs: 200 ready, 204 starting, 503 not any more."""
        if served.failure is not None:
            return error_response(503, "setup_failed", served.failure)
        if served.worker is None:
            return Response(status_code=204)
        state = served.worker.admission.state
        if served.worker.admission.defunct_reason is not None:
            return error_response(503, "defunct", f"this worker is {state}")
        return JSONResponse({"status": "ready"})

    @app.get("/health")
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

    @app.post("/generate", responses={413: ERROR_RESPONSE, 422: ERROR_RESPONSE, 429: ERROR_RESPONSE,
                                      502: ERROR_RESPONSE, 504: ERROR_RESPONSE})  # fmt: skip
    async def generate(request: Request, body: Annotated[GenerationRequest, Body()]) -> Response:
        """Run one job and answer when it is done."""
        worker, jobs = served.ready()
        payload = await read_payload(request, served)
        require_room(worker)
        job, task = jobs.submit(payload)
        await asyncio.wait([task])
        return answer_response(
            job.answer or {"error": "cancelled: the job was stopped", "code": "cancelled"}
        )
