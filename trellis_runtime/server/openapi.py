"""The description of the HTTP form: bodies, answers, errors, the token; and the page that shows it.

The routes read bodies themselves: FastAPI would read a body before a route can refuse it, and would
want a content type. The page is Swagger UI from this server's own files, under its own content
security policy: nothing is loaded from elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse
from pydantic.json_schema import models_json_schema

from trellis_runtime.contract.answer import GenerationResult, VariantsResult
from trellis_runtime.contract.reports import Failure, Health, failures
from trellis_runtime.contract.request import GenerationRequest

_REF = "#/components/schemas/{model}"
_STATIC = Path(__file__).parent / "static"
_REQUEST = {"$ref": _REF.format(model="GenerationRequest")}
_WRAPPED = {"type": "object", "required": ["input"], "properties": {"input": _REQUEST}}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


REQUEST_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A job's input, bare or as RunPod's `{\"input\": ...}`.",
        **_json({"anyOf": [_REQUEST, _WRAPPED]}),
    }
}
RESULT_RESPONSE = {
    "description": "The job's result.",
    **_json(
        {"anyOf": [{"$ref": _REF.format(model=m)} for m in ("GenerationResult", "VariantsResult")]}
    ),
}
HEALTH_RESPONSE = {
    "description": "What this worker is and has.",
    **_json({"$ref": _REF.format(model="Health")}),
}
JOB_RESPONSE = {
    "description": "A job as it is now.",
    **_json(
        {
            "type": "object",
            "required": ["id", "state", "stage", "progress", "created", "request", "answer"],
            "properties": {
                "id": {"type": "string"},
                "state": {"enum": ["running", "done", "failed", "cancelled"]},
                "stage": {"type": "string"},
                "progress": {"type": "number", "minimum": 0, "maximum": 1},
                "created": {"type": "number", "description": "Unix time, seconds."},
                "request": {"type": "object", "description": "Without picture and addresses."},
                "answer": {
                    "type": ["object", "null"],
                    "description": "null while it runs, and of a job that was cancelled.",
                },
            },
        }
    ),
}
ERROR_RESPONSE = {
    "description": "What went wrong, with its code and field.",
    **_json({"$ref": _REF.format(model="Failure")}),
}


def errors_with(*statuses: int) -> dict[int | str, Any]:
    """Return the descriptions of answers that are errors, each with the codes that it can have."""
    return {status: ERROR_RESPONSE | {"description": _codes(status)} for status in statuses}


def _codes(status: int) -> str:
    codes = sorted(leaf.code for leaf in failures() if leaf.status == status)
    return ", ".join(codes) + "." if codes else "An error."


def _without_fastapis_own(told: dict[str, Any]) -> None:
    """Remove the answer of FastAPI's own to a bad parameter: here it is 400, with our keys."""
    for methods in told["paths"].values():
        for route in methods.values():
            if "HTTPValidationError" in str(route["responses"].get("422", "")):
                del route["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        told.get("components", {}).get("schemas", {}).pop(name, None)


def describe(app: FastAPI) -> None:
    """Complete the application's description, and add the page that shows it."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        told = plain()
        _without_fastapis_own(told)
        models: list[Any] = [(GenerationRequest, "validation")]
        models += [(model, "serialization") for model in (GenerationResult, VariantsResult, Health)]
        models += [(Failure, "validation")]
        _, schemas = models_json_schema(models, ref_template=_REF)
        components = told.setdefault("components", {})
        components.setdefault("schemas", {}).update(schemas["$defs"])
        components["securitySchemes"] = {
            "token": {
                "type": "http",
                "scheme": "bearer",
                "description": "Wanted where the server was started with --token-file.",
            }
        }
        told["security"] = [{}, {"token": []}]
        return told

    app.openapi = described  # type: ignore[method-assign]

    @app.get("/docs", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_STATIC / "docs.html")
