"""A request that is none, in words for whoever sent it: the field, the value and the limit.

The checks are pydantic's; its words are about Python's types, and do not leave this file.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from trellis_runtime.errors import InvalidInput

_MOST_PROBLEMS = 8
_SECRET_FIELDS = {"image", "image_url", "upload_url", "upload_headers"}
_WORDS = {
    "missing": "is missing",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "must be a smaller whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be a text",
    "string_unicode": "must be valid Unicode",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "has characters that may not be there",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "too_long": "must have at most {max_length} entries",
    "too_short": "must have at least {min_length} entries",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
}


def refusal(err: ValidationError) -> InvalidInput:
    """Return the caller's error for what pydantic found."""
    problems = err.errors(include_url=False)
    fields = [".".join(str(part) for part in p["loc"])[:120] or "input" for p in problems]
    lines = [_text(f, p) for f, p in zip(fields, problems, strict=True)][:_MOST_PROBLEMS]
    return InvalidInput("; ".join(lines), field=fields[0])


def words_of(problem: Any) -> str:
    """Return what is wrong, without the value: "must be at most 50"."""
    if problem["type"] == "value_error":
        return str(problem["msg"]).removeprefix("Value error, ")
    words = _WORDS.get(problem["type"], "is not usable")
    return words.format(**problem.get("ctx", {}))


def _text(field: str, problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        return f"{field} is not a field of a request"
    words, value = words_of(problem), problem["input"]
    if problem["type"] == "missing":
        return f"{field} {words}"
    # What stands where an object should may be anything, an address with its signature for one.
    hidden = _SECRET_FIELDS & set(field.split(".")) or words == "must be an object"
    if hidden or isinstance(value, dict | list):
        return words if field == "input" else f"{field}: {words}"
    return f"{field} is {_shown(value)}: {words}"


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
