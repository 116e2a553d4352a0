"""The wire contract."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT
from trellis_runtime.contract.reports import error_schema, failures, health_schema
from trellis_runtime.contract.request import GenerationRequest, parse_request, request_schema
from trellis_runtime.errors import InvalidInput

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
known_fields = st.sampled_from([*GenerationRequest.model_fields, "nonsense"])


@given(json_values | st.dictionaries(known_fields, json_values))
def test_any_json_is_a_request_or_a_clear_refusal(payload: object) -> None:
    try:
        request = parse_request(payload)
    except InvalidInput as err:
        assert err.message
        assert err.field
    else:
        sources = (request.image, request.image_url, request.finish_of)
        assert sum(source is not None for source in sources) == 1


def test_defaults_are_upstreams() -> None:
    request = parse_request({"image": "x"})
    assert request.resolution == 1024
    sampler = request.sampler
    assert [
        s.guidance_strength for s in (sampler.sparse_structure, sampler.shape, sampler.texture)
    ] == [7.5, 7.5, 1.0]
    assert [
        s.guidance_rescale for s in (sampler.sparse_structure, sampler.shape, sampler.texture)
    ] == [0.7, 0.5, 0.0]
    assert [s.rescale_t for s in (sampler.sparse_structure, sampler.shape, sampler.texture)] == [
        5.0,
        3.0,
        3.0,
    ]
    assert sampler.texture.guidance_interval == (0.6, 0.9)


def test_the_game_asset_preset_is_issue_92() -> None:
    request = parse_request({"image": "x", "preset": "game_asset"})
    assert (request.resolution, request.texture_size, request.decimation_target) == (
        1536,
        4096,
        800_000,
    )
    steps = request.sampler.sparse_structure, request.sampler.shape, request.sampler.texture
    assert [(s.steps, s.guidance_strength) for s in steps] == [(12, 7.5), (24, 6.5), (36, 3.0)]


def test_explicit_fields_win_over_the_preset_field_by_field() -> None:
    request = parse_request(
        {
            "image": "x",
            "preset": "game_asset",
            "texture_size": 1024,
            "sampler": {"shape": {"steps": 3}},
        }
    )
    assert request.texture_size == 1024
    assert request.sampler.shape.steps == 3
    assert request.sampler.shape.guidance_strength == 6.5


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"seed": -1}, "seed", "-1"),
        ({"seed": 2**31}, "seed", "2147483647"),
        ({"seed": 1.5}, "seed", "1.5"),
        ({"seed": True}, "seed", "true"),
        ({"resolution": 2048}, "resolution", "512, 1024 or 1536"),
        ({"texture_size": 1000}, "texture_size", "512, 1024, 2048, 4096 or 8192"),
        ({"decimation_target": 999}, "decimation_target", "1000"),
        ({"remesh_band": 5}, "remesh_band", "4"),
        ({"preset": "best"}, "preset", "game_asset"),
        ({"sampler": {"shape": {"steps": 51}}}, "sampler.shape.steps", "50"),
        ({"sampler": {"shape": {"rescale_t": float("nan")}}}, "sampler.shape.rescale_t", "finite"),
        ({"sampler": {"shape": {"guidance_interval": [0.9, 0.1]}}}, "sampler.shape.guidance_interval", "a <= b"),
        ({"max_degradation_level": 13}, "max_degradation_level", "12"),
        ({"output": {"delivery": "upload"}}, "output", "upload_url"),
        ({"output": {"upload_url": "ftp://x/y"}}, "output", "http"),
        ({"texturesize": 512}, "texturesize", "not a field"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_field_the_value_and_the_limit(
    change: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_request({"image": "x", **change})
    assert caught.value.field == field
    assert field in caught.value.message
    assert words in caught.value.message


@pytest.mark.parametrize("images", [{}, {"image": "x", "image_url": "https://a.b/c"}])
def test_exactly_one_image_is_needed(images: dict[str, str]) -> None:
    with pytest.raises(InvalidInput, match="exactly one of image and image_url"):
        parse_request(images)


def test_a_refusal_shows_neither_image_nor_query() -> None:
    secret = "SECRET" * 5
    for payload in (
        {"image": secret, "image_url": f"https://a.b/?{secret}"},
        {"image_url": f"ftp://a.b/?token={secret}"},
        {"image": 5, "image_url": f"https://a.b/?{secret}", "seed": -1},
        {"image": "x", "output": {"upload_url": f"nope?{secret}"}},
        {"image": [secret]},
        {"image_url": [f"https://a.b/?{secret}"]},
        {"image": "x", "output": {"upload_url": [secret]}},
        {"image": "x", "output": {"upload_url": f"https://a.b/?{secret}" + "x" * 8192}},
        {
            "image": "x",
            "output": {"upload_url": "https://a.b/", "upload_headers": {"A": f"{secret}é"}},
        },
        {"image": "x", "output": {"upload_url": "https://a.b/", "upload_headers": secret}},
        {"image": "x", "output": f"https://a.b/?{secret}"},
        {"image": "x", "sampler": {"shape": secret}},
    ):
        with pytest.raises(InvalidInput) as caught:
            parse_request(payload)
        assert "SECRET" not in caught.value.message


def test_the_schema_files_are_those_of_the_code() -> None:
    """`make docs` writes them."""
    from builder.write_docs import schemas

    assert set(schemas()) == {p.name.split(".")[0] for p in (ROOT / "docs/schema").iterdir()}
    for name, schema in schemas().items():
        kept = json.loads((ROOT / f"docs/schema/{name}.schema.json").read_text())
        assert kept == schema


def test_the_openapi_file_is_that_of_the_code() -> None:
    from trellis_runtime.server import create_app
    from trellis_runtime.settings import Settings

    kept = json.loads((ROOT / "docs/openapi.json").read_text())
    assert kept == create_app(Settings.from_env({})).openapi()


def test_every_failure_and_health_is_as_its_schema_has_it(tmp_path: Path) -> None:
    import jsonschema

    from tests.test_worker import QUICK, Raising, handle, start

    judge = jsonschema.Draft202012Validator(error_schema())
    for leaf in failures():
        answer = handle(start(tmp_path, Raising(leaf("what happened"))), QUICK)
        judge.validate(answer)
    assert not judge.is_valid(answer | {"code": "no_such_code"})
    assert not judge.is_valid({k: v for k, v in answer.items() if k != "job_id"})
    starved = start(tmp_path, TRELLIS2_EMBEDDED_MEMORY_MB="1")
    failed = handle(starved, QUICK)
    assert failed["attempts"]
    judge.validate(failed)
    for worker in (starved, start(tmp_path)):
        healthy = handle(worker, {"type": "health"})
        jsonschema.Draft202012Validator(health_schema()).validate(healthy)


def test_the_schema_judges_as_the_code_does() -> None:
    import jsonschema

    validator = jsonschema.Draft202012Validator(request_schema())
    assert validator.is_valid({"image": "x", "seed": 3, "preset": "fast"})
    assert not validator.is_valid({"image": "x", "seed": -3})
    assert not validator.is_valid({"image": "x", "colour": "red"})
