"""The HTTP application: the page, RunPod's load-balancing form, jobs with progress, metrics."""

from __future__ import annotations

import asyncio
import hmac
import io
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, FastAPI, Query, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.routing import Match

from trellis_runtime import __version__
from trellis_runtime.assets.glb_writer import read_glb
from trellis_runtime.contract.engine import Engine
from trellis_runtime.contract.request import GenerationRequest
from trellis_runtime.contract.scope import logger
from trellis_runtime.errors import Fault, InvalidInput, SetupFailed, WorkerError
from trellis_runtime.server.endpoint import Endpoint
from trellis_runtime.server.jobs import Jobs
from trellis_runtime.server.metrics import Metrics
from trellis_runtime.settings import Settings
from trellis_runtime.worker.worker import Worker

STATIC = Path(__file__).parent / "static"
RETRY_AFTER_S = 5

_FILES = {"model.glb", "preview.png", "thumbnail.webp", "turntable.webp", "answer.json"}
_MAPS = {"base_color": None, "metallic": 2, "roughness": 1}  # channels of glTF's packed map
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
_ERROR = {
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
_ENDPOINT_ID = r"^[A-Za-z0-9_-]{1,64}$"
JobId = Annotated[str, InPath(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class _Served:
    """What the routes share: the worker, once it is there, its jobs and its metrics."""

    def __init__(self, settings: Settings, token: str | None) -> None:
        self.settings, self.token = settings, token
        self.metrics = Metrics()
        self.worker: Worker | None = None
        self.jobs: Jobs | None = None
        self.failure: str | None = None
        # A picture in base64, and the rest of a request.
        self.max_body = settings.image.max_bytes * 4 // 3 + 65_536

    def start(self, engine: Engine | None) -> None:
        try:
            worker = Worker.start(self.settings, engine)
        except SetupFailed as err:
            self.failure = err.message
            logger().error("serve_failed", reason=err.message)
            return
        self.jobs = Jobs(worker, self.settings.delivery.output_dir, self.metrics.observe)
        self.worker = worker

    def ready(self) -> tuple[Worker, Jobs]:
        if self.worker is None or self.jobs is None:
            raise HTTPException(503, self.failure or "the worker is starting")
        return self.worker, self.jobs


def create_app(
    settings: Settings, token: str | None = None, engine: Engine | None = None
) -> FastAPI:
    """Return the application; the worker starts beside it, and `/ping` says when it is ready.

    With `token`, all but `/ping` and the page's own files want `Authorization: Bearer TOKEN`.
    """
    served = _Served(settings, token)

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
        responses={400: _ERROR, 401: _ERROR, 503: _ERROR},
    )
    _add_guards(app, served)
    _add_platform(app, served)
    _add_jobs(app, served)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    return app


def _add_guards(app: FastAPI, served: _Served) -> None:  # noqa: C901 - four small handlers
    @app.middleware("http")
    async def guard(request: Request, proceed: Any) -> Response:
        path = request.url.path
        if served.token and path != "/" and not path.startswith(_OPEN_PATHS):
            given = request.headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {served.token}".encode()):
                return _error(401, "unauthorized", "a token is needed: Authorization: Bearer ...")
        if "transfer-encoding" in request.headers:  # a body of no stated length has no bound
            return _error(411, "length_required", "the body must come with its Content-Length")
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length) > served.max_body:
            return _error(413, "body_too_large", f"the body has {length} bytes; the limit is "
                          f"{served.max_body}")  # fmt: skip
        response: Response = await proceed(request)
        response.headers.update(_HEADERS)
        return response

    @app.exception_handler(HTTPException)
    async def refused(request: Request, err: HTTPException) -> Response:
        headers = err.headers
        if err.status_code == 405:  # Starlette names the methods of one route of a path only
            headers = {"Allow": ", ".join(sorted(_methods(app, request)))}
        return _error(err.status_code, f"http_{err.status_code}", str(err.detail), headers)

    @app.exception_handler(WorkerError)
    async def failed(_request: Request, err: WorkerError) -> Response:
        return _answer(err.to_wire(""))

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, err: RequestValidationError) -> Response:
        first = err.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "the body"
        return _error(400, "invalid_input", f"{where}: {first['msg']}")


def _add_platform(app: FastAPI, served: _Served) -> None:
    @app.get("/ping", responses={200: {}, 204: {"description": "starting"}})
    async def ping() -> Response:
        """Say whether this worker takes jobs: 200 ready, 204 starting, 503 not any more."""
        if served.failure is not None:
            return _error(503, "setup_failed", served.failure)
        if served.worker is None:
            return Response(status_code=204)
        state = served.worker.admission.state
        if served.worker.admission.defunct_reason is not None:
            return _error(503, "defunct", f"this worker is {state}")
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

    @app.post("/generate", responses={413: _ERROR, 422: _ERROR, 429: _ERROR,
                                      502: _ERROR, 504: _ERROR})  # fmt: skip
    async def generate(request: Request, body: Annotated[GenerationRequest, Body()]) -> Response:
        """Run one job and answer when it is done."""
        worker, jobs = served.ready()
        payload = await _payload(request, served)
        _require_room(worker)
        job, task = jobs.submit(payload)
        await asyncio.wait([task])
        return _answer(
            job.answer or {"error": "cancelled: the job was stopped", "code": "cancelled"}
        )


def _add_jobs(app: FastAPI, served: _Served) -> None:  # noqa: C901 - one small function a route
    @app.post("/jobs", status_code=202, responses={413: _ERROR, 429: _ERROR})
    async def submit(
        request: Request,
        body: Annotated[GenerationRequest, Body()],
        endpoint: Annotated[str | None, Query(pattern=_ENDPOINT_ID)] = None,
    ) -> Response:
        """Start a job here, or on a RunPod endpoint; follow it at /jobs/{id}/events."""
        worker, jobs = served.ready()
        payload = await _payload(request, served)
        remote = _remote(worker, endpoint)
        if remote is None:
            _require_room(worker)
        job, _ = jobs.submit(payload, remote)
        return JSONResponse(job.view(), status_code=202)

    @app.get("/jobs")
    async def history() -> Response:
        """List this machine's jobs, newest first."""
        _, jobs = served.ready()
        return JSONResponse(await asyncio.to_thread(jobs.history))

    @app.get("/jobs/{job_id}", responses={404: _ERROR})
    async def show(job_id: JobId) -> Response:
        """Answer what is known of a job."""
        _, jobs = served.ready()
        return JSONResponse(_found(jobs.find(job_id)))

    @app.get("/jobs/{job_id}/events", responses={404: _ERROR})
    async def events(job_id: JobId) -> Response:
        """Stream a job's progress as server-sent events; the last one holds its answer."""
        _, jobs = served.ready()
        _found(jobs.find(job_id))
        return StreamingResponse(_event_lines(jobs, job_id), media_type="text/event-stream",
                                 headers={"Cache-Control": "no-store"})  # fmt: skip

    @app.post("/jobs/{job_id}/cancel", responses={404: _ERROR, 409: _ERROR})
    async def cancel(job_id: JobId) -> Response:
        """Stop a running job; the answer comes once it has left the GPU."""
        _, jobs = served.ready()
        _found(jobs.find(job_id))
        if not await jobs.cancel(job_id):
            return _error(409, "not_running", f"job {job_id} is not running")
        return JSONResponse(_found(jobs.find(job_id)))

    @app.get("/jobs/{job_id}/files/{name}", responses={404: _ERROR}, response_class=FileResponse)
    async def file(job_id: JobId, name: str) -> Response:
        """Send one of a job's files."""
        _, jobs = served.ready()
        path = jobs.folder(job_id) / name
        if name not in _FILES or not path.is_file():
            raise HTTPException(404, f"job {job_id} has no file {name!r} here")
        kind = "model/gltf-binary" if name.endswith(".glb") else None
        return FileResponse(path, media_type=kind, filename=f"{job_id}-{name}",
                            content_disposition_type="inline")  # fmt: skip

    @app.get("/jobs/{job_id}/maps/{name}", responses={404: _ERROR}, response_class=Response)
    async def texture_map(job_id: JobId, name: str) -> Response:
        """Send a material's map as a picture: base_color, metallic or roughness."""
        _, jobs = served.ready()
        path = jobs.folder(job_id) / "model.glb"
        if name not in _MAPS or not path.is_file():
            raise HTTPException(404, f"job {job_id} has no map {name!r} here")
        picture = await asyncio.to_thread(_map_picture, path, name)
        if picture is None:
            raise HTTPException(404, f"the model of job {job_id} has no {name}")
        return Response(picture, media_type="image/webp")


async def _payload(request: Request, served: _Served) -> dict[str, Any]:
    """Return the body as it was sent: the worker reads it itself, with its own words for faults."""
    raw = await request.body()
    served.metrics.received(len(raw))
    payload = json.loads(raw)
    if not isinstance(payload, dict):
        raise InvalidInput("the body must be a JSON object")
    return payload


def _remote(worker: Worker, endpoint: str | None) -> Endpoint | None:
    remote = worker.settings.remote
    if endpoint is None:
        return None
    if remote.api_key is None:
        raise InvalidInput("this server has no RUNPOD_API_KEY to reach an endpoint with",
                           field="endpoint")  # fmt: skip
    return Endpoint(remote.base_url, endpoint, remote.api_key.get_secret_value())


def _require_room(worker: Worker) -> None:
    limits = worker.settings.jobs
    if worker.admission.in_hand >= limits.max_concurrent + limits.max_queued:
        raise HTTPException(
            429,
            f"{worker.admission.in_hand} jobs are in hand; try again in {RETRY_AFTER_S} s",
            headers={"Retry-After": str(RETRY_AFTER_S)},
        )


async def _event_lines(jobs: Jobs, job_id: str) -> AsyncIterator[str]:
    seen = False
    async for view in jobs.follow(job_id):
        seen = True
        yield ": alive\n\n" if view is None else f"data: {json.dumps(view)}\n\n"
    if not seen:  # it ended in an earlier process
        yield f"data: {json.dumps(jobs.find(job_id))}\n\n"


def _map_picture(path: Path, name: str) -> bytes | None:
    content = read_glb(path.read_bytes())
    channel = _MAPS[name]
    image = content.base_color if channel is None else content.metallic_roughness
    if image is None:
        return None
    shown = image.convert("RGB")
    if channel is not None:
        shown = shown.getchannel(channel)
    shown.thumbnail((1024, 1024))
    buffer = io.BytesIO()
    shown.save(buffer, "WEBP", quality=90)
    return buffer.getvalue()


def _methods(app: FastAPI, request: Request) -> set[str]:
    found: set[str] = set()
    for route in app.routes:
        if route.matches(request.scope)[0] != Match.NONE:
            found |= set(getattr(route, "methods", None) or ())
    return found


def _found(view: dict[str, Any] | None) -> dict[str, Any]:
    if view is None:
        raise HTTPException(404, "there is no such job")
    return view


def _answer(answer: dict[str, Any]) -> Response:
    if "error" not in answer:
        return JSONResponse(answer)
    code = answer["code"]
    status = _STATUS.get(code) or _STATUS.get(_FAULTS.get(code, ""), 500)
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status == 429 else None
    return JSONResponse(answer, status_code=status, headers=headers)


def _error(status: int, code: str, message: str, headers: Any = None) -> Response:
    return JSONResponse(
        {"error": f"{code}: {message}", "code": code}, status_code=status, headers=headers
    )
