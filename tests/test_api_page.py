"""The description of the HTTP form, and the page that shows it: complete, and from this server alone."""

from __future__ import annotations

import re
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from tests.conftest import ROOT
from trellis_runtime.contract.reports import failures
from trellis_runtime.contract.request import parse_request
from trellis_runtime.errors import InvalidInput
from trellis_runtime.server import create_app
from trellis_runtime.settings import Settings

STATIC = ROOT / "trellis_runtime/server/static"
TOLD = create_app(Settings.from_env({})).openapi()
ROUTES = [(path, method) for path, methods in TOLD["paths"].items() for method in methods]


@pytest.fixture(scope="module")
def client() -> TestClient:
    """The application without its worker: the page and the description need none."""
    return TestClient(create_app(Settings.from_env({})), base_url="http://localhost")


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert "/openapi.json" in loaded
    for address in loaded:
        assert address.startswith("/"), address
        assert client.get(address).status_code == 200, address
    assert not re.search(r"<script>|onload=|https?://", page.text)
    assert client.get("/redoc").status_code == 404


def test_the_pages_files_come_with_their_licences() -> None:
    assert "Apache License" in (STATIC / "vendor/swagger-ui.LICENSE").read_text()
    assert (STATIC / "vendor/swagger-ui-bundle.js.LICENSE.txt").is_file()
    assert "validatorUrl: null" in (STATIC / "docs.js").read_text()


@pytest.mark.parametrize(("path", "method"), ROUTES)
def test_each_route_has_its_answers_and_its_errors(path: str, method: str) -> None:
    route = TOLD["paths"][path][method]
    statuses = set(route["responses"])
    assert any(status.startswith("2") for status in statuses)
    assert {"400", "401", "403", "503"} <= statuses
    for status, told in route["responses"].items():
        assert told["description"], (path, status)
        if int(status) >= 400:
            schema = told["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/Failure"}, (path, status)


def test_the_answers_of_generate_name_every_code_that_it_can_give() -> None:
    told = TOLD["paths"]["/generate"]["post"]["responses"]
    assert {str(leaf.status) for leaf in failures()} - set(told) <= {"405"}
    for leaf in failures():
        if str(leaf.status) in told:
            assert leaf.code in told[str(leaf.status)]["description"]
    answers = told["200"]["content"]["application/json"]["schema"]["anyOf"]
    names = [answer["$ref"].rpartition("/")[2] for answer in answers]
    assert names == ["GenerationResult", "VariantsResult"]


def test_the_token_is_described_and_every_reference_leads_somewhere() -> None:
    assert TOLD["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert TOLD["security"] == [{}, {"token": []}]
    text = str(TOLD)
    for name in set(re.findall(r"#/components/schemas/(\w+)", text)):
        jsonschema.Draft202012Validator.check_schema(TOLD["components"]["schemas"][name])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=5,
)  # fmt: skip
FIELDS = sorted(TOLD["components"]["schemas"]["GenerationRequest"]["properties"])
PYDANTICS = re.compile(r"Input should|should have|should match|valid (dictionary|string|integer|number|list|tuple)|instance of|\bnull_|Value error|type=")  # fmt: skip


@given(
    st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4),
    st.dictionaries(st.sampled_from(["delivery", "upload_url", "upload_headers", "preview"]), JSON),
)
def test_no_word_of_a_library_reaches_a_caller(
    payload: dict[str, object], output: dict[str, object]
) -> None:
    for whole in (payload, {"image": "x", "output": output}, {"image": "x", "sampler": {"shape": payload}}):  # fmt: skip
        try:
            parse_request(whole)
        except InvalidInput as err:
            assert not PYDANTICS.search(err.message), err.message
            assert "is not usable" not in err.message, err.message


def test_the_pages_script_is_of_this_server() -> None:
    for name in ("docs.html", "docs.js"):
        text = (STATIC / name).read_text()
        assert "cdn" not in text.lower()
    assert Path(STATIC / "vendor/swagger-ui-bundle.js").stat().st_size > 500_000
