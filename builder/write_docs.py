"""Write what in docs/ is made from code: schemas, OpenAPI, settings, tables of the API's page."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

sys.path.insert(0, str(Path(__file__).parent.parent))

from builder import api_page
from trellis_runtime.contract.answer import result_schema, variants_schema
from trellis_runtime.contract.reports import error_schema, health_schema
from trellis_runtime.contract.request import request_schema
from trellis_runtime.server import create_app
from trellis_runtime.settings import VARIABLES, Settings

DOCS = Path(__file__).parent.parent / "docs"
_HEAD = """\
# Settings

Every variable of the environment that the worker reads. A name that starts with `TRELLIS2_` or
`BUCKET_` and is not here stops the start: a typo must not be ignored. So does a value out of its
bounds, and a bucket that is half set. This page is written by `make docs`.

| variable | default | what it is |
| --- | --- | --- |
"""


def schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schemas of everything that crosses the wire, by name."""
    return {
        "request": request_schema(),
        "answer": result_schema(),
        "variants": variants_schema(),
        "error": error_schema(),
        "health": health_schema(),
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


def settings_page() -> str:
    """Return docs/settings.md."""
    rows = []
    for name, path in VARIABLES.items():
        field, default = _field(Settings, path)
        shown = "" if default is None or default == () else f"`{default}`"
        rows.append(f"| `{name}` | {shown} | {field.description} |")
    return _HEAD + "\n".join(rows) + "\n"


def _field(model: type[BaseModel], path: tuple[str, ...]) -> tuple[Any, Any]:
    field = model.model_fields[path[0]]
    if len(path) == 1:
        return field, field.default
    annotation = field.annotation
    assert isinstance(annotation, type)  # noqa: S101 - a slice of the settings
    return _field(annotation, path[1:])


def main() -> None:
    """Write all files."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    (DOCS / "schema").mkdir(parents=True, exist_ok=True)
    for name, schema in schemas().items():
        (DOCS / f"schema/{name}.schema.json").write_text(_json(schema))
    (DOCS / "openapi.json").write_text(_json(create_app(Settings.from_env({})).openapi()))
    (DOCS / "settings.md").write_text(settings_page())
    (DOCS / "api.md").write_text(api_page.rewritten((DOCS / "api.md").read_text()))


if __name__ == "__main__":
    main()
