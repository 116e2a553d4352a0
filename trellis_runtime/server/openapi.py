"""The description of a job's body, which the routes read themselves.

FastAPI would read a body before a route can refuse it, and would want a content type.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from trellis_runtime.contract.request import GenerationRequest

_REF = "#/components/schemas/{model}"
REQUEST_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": _REF.format(model="GenerationRequest")}}
        },
    }
}


def describe_request(app: FastAPI) -> None:
    """Add the request's schema to the components of the application's description."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        told = plain()
        _, schemas = models_json_schema([(GenerationRequest, "validation")], ref_template=_REF)
        told.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
        return told

    app.openapi = described  # type: ignore[method-assign]
