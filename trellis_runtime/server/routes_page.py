"""What the page asks for beside jobs: what this server takes, and a picture's cut-out."""

from __future__ import annotations

import asyncio
import base64
import io
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from PIL import Image
from pydantic import Field

from trellis_runtime.assets.cutout import cutout_png
from trellis_runtime.assets.formats import are_installed
from trellis_runtime.assets.images import FORMATS, within_side
from trellis_runtime.assets.warnings import cutout_warnings
from trellis_runtime.contract.answer import AnswerWarning, EngineInfo
from trellis_runtime.contract.engine import CutOut, Rgba
from trellis_runtime.contract.files import FORMATS as FILE_FORMATS
from trellis_runtime.contract.request import PRESETS
from trellis_runtime.contract.wire import WireModel
from trellis_runtime.server.guards import held_room, read_payload
from trellis_runtime.server.openapi import REQUEST_BODY, errors_with
from trellis_runtime.server.served import Served

_SHOWN_PX = 1600
_ENDPOINT_ID = r"^[A-Za-z0-9_-]{1,64}$"


class Picture(WireModel):
    """A picture within JSON."""

    base64: str
    content_type: str
    width: int
    height: int


class CutoutAnswer(WireModel):
    """What of a picture would be modelled."""

    cutout: Picture = Field(description="The object as a PNG with alpha.")
    box: list[float] = Field(
        description="What it shows of the upright picture: left, top, right and bottom as shares "
        "of its sides; a margin may lie outside 0 to 1."
    )
    source: Literal["alpha", "model", "keep"] = Field(
        description="alpha: the picture's own channel; model: a background remover; keep: all."
    )
    share: float = Field(description="Of the picture's pixels that are object, 0 to 1.")
    uncertain: float = Field(description="Of the object's pixels that are a guess, 0 to 1.")
    longer_px: int = Field(description="The object's longer side, in pixels of the picture.")
    warnings: list[AnswerWarning]
    picture: Picture | None = Field(
        None, description="With ?picture=true: the picture itself, for one that browsers cannot."
    )


class PictureLimits(WireModel):
    """What pictures are taken."""

    formats: list[str]
    max_bytes: int
    max_pixels: int
    min_side_px: int
    useful_side_px: int = Field(description="Beyond this, a longer side brings no more detail.")


class Capabilities(WireModel):
    """What this server takes, and what past jobs lead to expect."""

    engine: EngineInfo
    ignored_fields: list[str] = Field(
        description="Fields of a request that this engine ignores or refuses."
    )
    picture: PictureLimits
    formats: list[str] = Field(description="Formats of finishes that this server can write.")
    presets: dict[str, dict[str, Any]] = Field(description="The fields that each preset sets.")
    expected: dict[str, dict[str, Any] | None] = Field(
        description="What a job with each preset should take; null where none has run yet."
    )
    expected_files: dict[str, dict[str, float]] = Field(
        description="Seconds that a finish of each format adds, by preset; those that are known."
    )
    endpoint_possible: bool = Field(description="Whether jobs can be sent to a RunPod endpoint.")


def add_page_routes(app: FastAPI, served: Served) -> None:
    """Add /capabilities and /cutout."""

    @app.get("/capabilities", response_model=Capabilities)
    async def capabilities(
        endpoint: Annotated[str | None, Query(pattern=_ENDPOINT_ID)] = None,
    ) -> Response:
        """Answer what this server takes, and what jobs (on `endpoint`, say) should take."""
        served.ready()
        told = await asyncio.to_thread(_capabilities, served, endpoint)
        return JSONResponse(told.model_dump(mode="json"))

    @app.post(
        "/cutout",
        openapi_extra=REQUEST_BODY,
        responses=errors_with(413, 422, 429, 502, 504),
        response_model=CutoutAnswer,
    )
    async def cutout(request: Request, picture: bool = False) -> Response:
        """Answer what of a picture a job would model; only `image` and `background` matter."""
        worker, _ = served.ready()
        with held_room(worker, served):
            payload = await read_payload(request, served)
        image, made = await worker.cut_out(payload)
        told = await asyncio.to_thread(_cutout_answer, image, made, picture)
        return Response(told.model_dump_json(), media_type="application/json")


def _capabilities(served: Served, endpoint: str | None) -> Capabilities:
    worker, jobs = served.ready()
    limits, engine = worker.settings.image, worker.engine
    return Capabilities(
        engine=engine.info(),
        ignored_fields=[*engine.ignored_fields, *(() if engine.detail_maps else ("output.maps",))],
        picture=PictureLimits(
            formats=list(FORMATS),
            max_bytes=limits.max_bytes,
            max_pixels=limits.max_pixels,
            min_side_px=limits.min_side_px,
            useful_side_px=min(engine.useful_side_px, limits.max_side_px),
        ),
        formats=[name for name, facts in FILE_FORMATS.items() if are_installed(facts.packages)],
        presets=PRESETS,
        expected=jobs.expectations.presets(endpoint),
        expected_files=jobs.expectations.files(endpoint),
        endpoint_possible=worker.settings.remote.api_key is not None,
    )


def _cutout_answer(image: Rgba, made: CutOut, picture: bool) -> CutoutAnswer:
    return CutoutAnswer(
        cutout=_in_json(cutout_png(made), "image/png", made.rgba.shape),
        box=[round(share, 5) for share in made.box],
        source=made.source,
        share=made.share,
        uncertain=made.uncertain,
        longer_px=made.longer_px,
        warnings=cutout_warnings(made),
        picture=_webp(within_side(image, _SHOWN_PX)) if picture else None,
    )


def _webp(pixels: Rgba) -> Picture:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=90)
    return _in_json(buffer.getvalue(), "image/webp", pixels.shape)


def _in_json(data: bytes, content_type: str, shape: tuple[int, ...]) -> Picture:
    text = base64.b64encode(data).decode()
    return Picture(base64=text, content_type=content_type, width=shape[1], height=shape[0])
