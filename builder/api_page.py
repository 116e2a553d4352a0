"""The parts of docs/api.md that are made from code: the request's fields, and the codes of errors.

A part stands between `<!-- made: NAME -->` and `<!-- /made -->`; the rest of the page is written by
hand and left alone.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from trellis_runtime.contract.reports import failures, retryable_words
from trellis_runtime.contract.request import request_schema

_PART = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- /made -->)", re.DOTALL)


def rewritten(page: str) -> str:
    """Return `page` with each made part as the code has it now."""
    return _PART.sub(lambda part: part[1] + _PARTS[part[2]]() + part[3], page)


def fields_table() -> str:
    """Return one row for each field of a request, objects by dotted names."""
    schema = request_schema()
    rows = ["| field | type and range | default | meaning |", "| --- | --- | --- | --- |"]
    for name, part, default in _fields(schema, schema["properties"], "", {}):
        shown = "" if default is None else f"`{json.dumps(default)}`"
        rows.append(
            f"| `{name}` | {_type(part)} | {shown} | {_cell(part.get('description', ''))} |"
        )
    return "\n".join(rows) + "\n"


def codes_table() -> str:
    """Return one row for each code, by status."""
    rows = [
        "| code | status | retryable | meaning | what to do |",
        "| --- | --- | --- | --- | --- |",
    ]
    for leaf in sorted(failures(), key=lambda leaf: (leaf.status, leaf.code)):
        meaning = " ".join((inspect.getdoc(leaf) or "").split())
        cells = (_cell(text) for text in (retryable_words(leaf), meaning, leaf.remedy))
        rows.append(f"| `{leaf.code}` | {leaf.status} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


_PARTS = {"fields": fields_table, "codes": codes_table}


def _fields(
    schema: dict[str, Any], properties: dict[str, Any], prefix: str, defaults: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any], Any]]:
    for name, part in properties.items():
        default = defaults.get(name, part.get("default"))
        reference = part.get("$ref")
        if reference is None:
            yield prefix + name, part, default
            if item := part.get("items", {}).get("$ref"):
                inner = schema["$defs"][item.rsplit("/", 1)[1]]
                yield from _fields(schema, inner["properties"], f"{prefix}{name}[].", {})
            continue
        inner = schema["$defs"][reference.rsplit("/", 1)[1]]
        yield from _fields(schema, inner["properties"], f"{prefix}{name}.", default or {})


def _type(part: dict[str, Any]) -> str:
    """Return a field's type and range in words."""
    if "anyOf" in part and "type" not in part:
        return _type(next(option for option in part["anyOf"] if option.get("type") != "null"))
    if "const" in part:
        return f"`{json.dumps(part['const'])}`"
    if "enum" in part:
        return ", ".join(f"`{json.dumps(value)}`" for value in part["enum"])
    return _WORDS.get(part["type"], _number)(part)


def _list(part: dict[str, Any]) -> str:
    if "prefixItems" in part:
        return f"{len(part['prefixItems'])} numbers, {_range(part['prefixItems'][0])}"
    most = f", at most {part['maxItems']}" if "maxItems" in part else ""
    item = (
        "objects"
        if "$ref" in part["items"]
        else _type(part["items"]).replace("number", "numbers", 1)
    )
    return f"list of {item}{most}"


def _text(part: dict[str, Any]) -> str:
    return f"text of at most {part['maxLength']} characters" if "maxLength" in part else "text"


def _number(part: dict[str, Any]) -> str:
    kind = "whole number" if part["type"] == "integer" else "number"
    return ", ".join(filter(None, (kind, _range(part))))


_WORDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "array": _list,
    "string": _text,
    "boolean": lambda _: "true, false",
    "object": lambda part: f"object of texts, at most {part['maxProperties']}",
}


def _range(part: dict[str, Any]) -> str:
    if "minimum" not in part:
        return ""
    return f"{part['minimum']:g} to {part['maximum']:,.10g}".replace(",", " ")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
