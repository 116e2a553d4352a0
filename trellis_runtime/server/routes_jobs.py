"""The routes under /jobs: start, follow, cancel, list, delete, files, pictures and maps."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi import Path as InPath
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse

from trellis_runtime.assets.glb_reader import read_textures
from trellis_runtime.contract.files import (
    MODEL,
    THUMBNAIL,
    VARIANT_NAME,
    file_called,
    in_variant,
)
from trellis_runtime.errors import InvalidInput, NotFound, NotRunning, StillRunning
from trellis_runtime.server import kept
from trellis_runtime.server.addresses import files_address, with_http_addresses
from trellis_runtime.server.endpoint import Endpoint
from trellis_runtime.server.guards import (
    held_remote_room,
    held_room,
    read_payload,
)
from trellis_runtime.server.jobs import Jobs
from trellis_runtime.server.openapi import JOB_RESPONSE, REQUEST_BODY, errors_with
from trellis_runtime.server.served import Served
from trellis_runtime.worker.worker import Worker

_MAPS = {"base_color": None, "metallic": 2, "roughness": 1}  # channels of glTF's packed map
_ENDPOINT_ID = r"^[A-Za-z0-9_-]{1,64}$"
JobId = Annotated[str, InPath(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


def add_job_routes(app: FastAPI, served: Served) -> None:
    """Add the routes under /jobs."""
    _add_lifecycle(app, served)
    _add_views(app, served)
    _add_files(app, served)
    _add_pictures(app, served)


def _add_lifecycle(app: FastAPI, served: Served) -> None:
    """Add: submit and cancel."""

    @app.post(
        "/jobs",
        status_code=202,
        openapi_extra=REQUEST_BODY,
        responses=errors_with(408, 411, 413, 429, 502) | {202: JOB_RESPONSE},
    )
    async def submit(
        request: Request,
        endpoint: Annotated[str | None, Query(pattern=_ENDPOINT_ID)] = None,
    ) -> Response:
        """Start a job here, or on a RunPod endpoint; follow it at /jobs/{id}/events."""
        worker, jobs = served.ready()
        remote = _remote(worker, endpoint)
        if remote is None:
            with held_room(worker, served):
                payload = await read_payload(request, served)
        else:
            with held_remote_room(jobs, served):
                payload = await read_payload(request, served)
        job, _ = jobs.submit(payload, remote)
        return JSONResponse(_found(jobs.find(job.id), request), status_code=202)

    @app.post("/jobs/{job_id}/cancel", responses=errors_with(404, 409) | {200: JOB_RESPONSE})
    async def cancel(request: Request, job_id: JobId) -> Response:
        """Stop a running job; the answer comes once it has left the GPU."""
        _, jobs = served.ready()
        _found(jobs.find(job_id))
        if not await jobs.cancel(job_id):
            raise NotRunning(f"job {job_id} is not running")
        return JSONResponse(_found(jobs.find(job_id), request))

    @app.delete("/jobs/{job_id}", status_code=204, responses=errors_with(404, 409))
    async def delete(job_id: JobId) -> Response:
        """Forget a job that has ended, and remove its files from this machine."""
        _, jobs = served.ready()
        if _found(jobs.find(job_id))["state"] == "running":
            raise StillRunning(f"job {job_id} is running; cancel it first")
        await jobs.delete(job_id)
        return Response(status_code=204)


def _add_views(app: FastAPI, served: Served) -> None:
    """Add: list, show, follow."""

    @app.get("/jobs")
    async def history(
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        before: Annotated[str | None, Query(pattern=_ENDPOINT_ID)] = None,
    ) -> Response:
        """List this machine's jobs, newest first, without their results; `Link` names the rest.

        `before` is the id of the last job of the page before.
        """
        _, jobs = served.ready()
        lines, more = await asyncio.to_thread(jobs.history, limit, before)
        following = f'</jobs?limit={limit}&before={lines[-1]["id"]}>; rel="next"' if more else None
        return JSONResponse(lines, headers={"Link": following} if following else None)

    @app.get("/jobs/{job_id}", responses=errors_with(404) | {200: JOB_RESPONSE})
    async def show(request: Request, job_id: JobId) -> Response:
        """Answer what is known of a job."""
        _, jobs = served.ready()
        return JSONResponse(_found(jobs.find(job_id), request))

    @app.get("/jobs/{job_id}/events", responses=errors_with(404))
    async def events(request: Request, job_id: JobId) -> Response:
        """Stream a job's progress as server-sent events; the last one holds its answer."""
        _, jobs = served.ready()
        _found(jobs.find(job_id))
        lines = _event_lines(jobs, job_id, request)
        return StreamingResponse(lines, media_type="text/event-stream",
                                 headers={"Cache-Control": "no-store"})  # fmt: skip


def _add_files(app: FastAPI, served: Served) -> None:
    """Add what sends a job's files, and its model's maps as pictures."""

    @app.get("/jobs/{job_id}/files/{name}", responses=errors_with(404), response_class=FileResponse)
    async def file(job_id: JobId, name: str) -> Response:
        """Send one of a job's files."""
        _, jobs = served.ready()
        path = jobs.folder(job_id) / name
        known = file_called(name)
        if known is None or not path.is_file():
            raise NotFound(f"job {job_id} has no file {name!r} here")
        return FileResponse(path, media_type=known.content_type, filename=f"{job_id}-{name}",
                            content_disposition_type="inline")  # fmt: skip

    @app.get("/jobs/{job_id}/maps/{name}", responses=errors_with(404), response_class=Response)
    async def texture_map(
        job_id: JobId,
        name: str,
        variant: Annotated[str | None, Query(pattern=VARIANT_NAME)] = None,
    ) -> Response:
        """Send a material's map as a picture: base_color, metallic or roughness."""
        _, jobs = served.ready()
        model = in_variant(variant, MODEL.name) if variant else MODEL.name
        path = jobs.folder(job_id) / model
        if name not in _MAPS or not path.is_file():
            raise NotFound(f"job {job_id} has no map {name!r} here")
        picture = await asyncio.to_thread(_map_picture, path, name)
        if picture is None:
            raise NotFound(f"the model of job {job_id} has no {name}")
        return Response(picture, media_type="image/webp")


def _add_pictures(app: FastAPI, served: Served) -> None:
    """Add what sends the small picture of a job's model, and the picture that it was given."""

    @app.get("/jobs/{job_id}/thumbnail", responses=errors_with(404), response_class=FileResponse)
    async def thumbnail(job_id: JobId) -> Response:
        """Send the small picture of a job's model, of variants the first one's."""
        _, jobs = served.ready()
        path = kept.thumbnail_of(jobs.folder(job_id))
        if path is None:
            raise NotFound(f"job {job_id} has no thumbnail here")
        return FileResponse(path, media_type=THUMBNAIL.content_type)

    @app.get("/jobs/{job_id}/input", responses=errors_with(404), response_class=Response)
    async def picture(job_id: JobId) -> Response:
        """Send the picture that a job was given, where it is one that browsers show."""
        _, jobs = served.ready()
        found = await asyncio.to_thread(jobs.picture, job_id)
        if found is None:
            raise NotFound(f"the picture of job {job_id} is not kept here")
        return Response(found[0], media_type=found[1])


def _remote(worker: Worker, endpoint: str | None) -> Endpoint | None:
    remote = worker.settings.remote
    if endpoint is None:
        return None
    if remote.api_key is None:
        raise InvalidInput("this server has no RUNPOD_API_KEY to reach an endpoint with",
                           field="endpoint")  # fmt: skip
    return Endpoint(remote.base_url, endpoint, remote.api_key.get_secret_value())


async def _event_lines(jobs: Jobs, job_id: str, request: Request) -> AsyncIterator[str]:
    seen = False
    async for view in jobs.follow(job_id):
        seen = True
        told = None if view is None else json.dumps(_found(view, request))
        yield f"data: {told}\n\n" if told else ": alive\n\n"
    if not seen:  # it ended in an earlier process
        yield f"data: {json.dumps(_found(jobs.find(job_id), request))}\n\n"


def _map_picture(path: Path, name: str) -> bytes | None:
    base_color, packed = read_textures(path.read_bytes())
    channel = _MAPS[name]
    image = base_color if channel is None else packed
    if image is None:
        return None
    shown = image.convert("RGB")
    if channel is not None:
        shown = shown.getchannel(channel)
    shown.thumbnail((1024, 1024))
    buffer = io.BytesIO()
    shown.save(buffer, "WEBP", quality=90)
    return buffer.getvalue()


def _found(view: dict[str, Any] | None, request: Request | None = None) -> dict[str, Any]:
    if view is None:
        raise NotFound("there is no such job")
    if request is None:
        return view
    return with_http_addresses(view, files_address(str(request.base_url), view["id"]))
