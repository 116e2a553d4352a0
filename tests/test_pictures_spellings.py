"""One value in its usual spellings; the published schema and the code give one verdict."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from math import ceil, floor
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import encoded, picture
from trellis_runtime.contract.request import parse_request, request_schema
from trellis_runtime.errors import InvalidInput
from trellis_runtime.settings import Settings
from trellis_runtime.worker.worker import Worker

SCHEMA = request_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
URL = "https://a.example/cat.png?x=1"
DATA_URI = "data:image/png;base64,AAAA"


@pytest.mark.parametrize(
    ("sent", "image", "image_url"),
    [
        ({"image": "AAAA"}, "AAAA", None),
        ({"image": DATA_URI}, DATA_URI, None),
        ({"image_url": DATA_URI}, DATA_URI, None),
        ({"image_url": f"\n {DATA_URI}", "image": None}, f"\n {DATA_URI}", None),
        ({"image_url": "DATA:;base64," + "A" * 20_000}, "DATA:;base64," + "A" * 20_000, None),
        ({"image_url": URL}, None, URL),
        ({"image_url": f"  {URL}\n"}, None, URL),
        ({"image": URL}, None, URL),
        ({"image": f" {URL}\r\n", "image_url": None}, None, URL),
        ({"image": "HTTPS://a.example/x"}, None, "HTTPS://a.example/x"),
    ],
)
def test_a_picture_is_found_in_either_field(
    sent: dict[str, Any], image: str | None, image_url: str | None
) -> None:
    request = parse_request(sent)
    assert (request.image, request.image_url) == (image, image_url)
    assert VALIDATOR.is_valid(sent)


def test_an_upload_address_may_have_blanks_around_it() -> None:
    output = {"delivery": "upload", "upload_url": f" {URL}\n"}
    assert parse_request({"image": "x", "output": output}).output.upload_url == URL


@pytest.mark.parametrize(
    ("text", "seed"),
    [("7.0", 7), ("1e5", 100_000), ("0.0", 0), ("-0.0", 0), ("2147483647.0", 2**31 - 1)],
)
def test_whole_numbers_may_be_written_as_json_has_them(text: str, seed: int) -> None:
    payload = json.loads(f'{{"image": "x", "seed": {text}}}')
    request = parse_request(payload)
    assert request.seed == seed
    assert isinstance(request.seed, int)
    assert VALIDATOR.is_valid(payload)


def test_whole_numbers_in_every_integer_field() -> None:
    payload = {
        "image": "x",
        "resolution": 512.0,
        "texture_size": 1024.0,
        "decimation_target": 1e5,
        "remesh_band": 2.0,
        "max_degradation_level": 12.0,
        "sampler": {"shape": {"steps": 20.0, "guidance_strength": 7}},
    }
    request = parse_request(payload)
    plain = parse_request(json.loads(json.dumps(payload).replace(".0", "")))
    assert request == plain
    assert VALIDATOR.is_valid(payload)


@pytest.mark.parametrize("value", [7.5, "7", True, 1e12, -1.0, [7]])
def test_what_is_no_whole_number_is_refused_by_both(value: object) -> None:
    payload = {"image": "x", "seed": value}
    with pytest.raises(InvalidInput, match="seed"):
        parse_request(payload)
    assert not VALIDATOR.is_valid(payload)


JUNK = st.sampled_from(
    [None, True, False, 0, 1, -1, 1.5, 12.0, 1e5, "", "x", URL, DATA_URI, [], {}]
)


def from_schema(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a schema takes, for the keywords that ours uses, now and then one that it may not."""
    if "$ref" in schema:
        part = SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[1]]
        return st.deferred(lambda: from_schema(part))  # shown by name: the whole is too long
    if "anyOf" in schema and "type" not in schema:
        return st.one_of([from_schema(option) for option in schema["anyOf"]])
    if "enum" in schema:
        values = st.sampled_from(schema["enum"])
        return values | values.map(lambda v: float(v) if isinstance(v, int) else v)
    return _TYPES[schema["type"]](schema)


def _integers(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    values = st.integers(schema["minimum"] - 1, schema["maximum"] + 1)
    return values | values.map(float)


def _numbers(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    low, high = schema["minimum"], schema["maximum"]
    return st.floats(low - 0.1, high + 0.1) | st.integers(floor(low) - 1, ceil(high) + 1)


def _strings(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    long = URL + "y" * 8192
    return st.sampled_from(
        [
            URL,
            f" {URL} ",
            long,
            DATA_URI,
            DATA_URI + "A" * 9000,
            "AAAA",
            "",
            "ftp://a/b",
            "a-name",
            "model",
        ]
    )


_HEADERS = st.dictionaries(
    st.sampled_from(["Content-Type", "x-amz-acl", "no name", ""]),
    st.sampled_from(["image/png", " x", "", "a\nb"]) | JUNK,
    max_size=2,
)


def _objects(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    if "properties" not in schema:
        return _HEADERS
    known = {name: from_schema(part) | JUNK for name, part in schema["properties"].items()}
    good = {name: from_schema(part) for name, part in schema["properties"].items()}
    return st.fixed_dictionaries({}, optional=good) | st.fixed_dictionaries(
        {}, optional=known | {"nonsense": JUNK}
    )


def _arrays(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    if "prefixItems" not in schema:
        return st.lists(from_schema(schema["items"]) | JUNK, max_size=3)
    pair = st.tuples(*(from_schema(part) for part in schema["prefixItems"]))
    return pair.map(list) | st.just([0.5])


_TYPES: dict[str, Callable[[dict[str, Any]], st.SearchStrategy[Any]]] = {
    "object": _objects,
    "integer": _integers,
    "number": _numbers,
    "string": _strings,
    "array": _arrays,
    "boolean": lambda _: st.booleans(),
    "null": lambda _: st.none(),
}

# What JSON Schema cannot say, or says only at length.
_CODE_ALONE = (
    "0 <= a <= b <= 1",
    "address with a host",
    "is given twice",
    "are made",
    "fewer faces",
)


@given(from_schema(SCHEMA))
@settings(max_examples=600, deadline=None)
def test_the_schema_and_the_code_agree(payload: dict[str, Any]) -> None:
    payload = json.loads(json.dumps(payload))
    by_schema = VALIDATOR.is_valid(payload)
    try:
        parse_request(payload)
    except InvalidInput as err:
        assert not by_schema or any(words in err.message for words in _CODE_ALONE), err.message
    else:
        assert by_schema, jsonschema.exceptions.best_match(VALIDATOR.iter_errors(payload))


def test_a_job_runs_from_any_spelling(make_worker: Callable[..., Worker]) -> None:
    data = encoded(picture(64))
    text = base64.urlsafe_b64encode(data).decode().rstrip("=")
    few = {"resolution": 512.0, "texture_size": 512, "decimation_target": 1e3, "seed": 7.0}
    worker = make_worker()
    for field, value in (("image", f" {text}\n"), ("image_url", f"data:image/png; base64,{text}")):
        job = {"id": "spelt", "input": few | {field: value, "output": {"preview": False}}}
        answer = asyncio.run(worker.handle(job))
        assert answer.get("seed") == 7, answer


def test_wrapped_base64_of_the_largest_picture_passes_the_door() -> None:
    from trellis_runtime.server.served import Served

    limits = Settings().image
    text = base64.encodebytes(bytes(limits.max_bytes - 100_000)).decode()  # a break every 76
    body = json.dumps({"input": {"image": text}})
    assert len(body) <= Served(Settings(), None, None).max_body
