"""The one table of codes: `errors.py`, what is raised, what HTTP answers, and the documents."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT
from trellis_runtime.contract.reports import failures
from trellis_runtime.errors import WorkerError
from trellis_runtime.server.guards import answer_response, error_response

LEAVES = list(failures())
SOURCES = [
    path
    for path in sorted((ROOT / "trellis_runtime").rglob("*.py"))
    if path.name != "errors.py" or path.parent.name != "trellis_runtime"
]


def _made(tree: ast.Module) -> Iterator[str]:
    """Yield the names that are called, handed to a function, or kept in a table to be called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            told = () if _name(node.func) in ("isinstance", "suppress") else node.args
            yield from map(_name, (node.func, *told))
        elif isinstance(node, ast.Dict):
            yield from map(_name, node.values)
        elif isinstance(node, ast.IfExp):
            yield from map(_name, (node.body, node.orelse))


def _name(node: ast.expr | None) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def test_every_row_is_raised_somewhere() -> None:
    made = {name for path in SOURCES for name in _made(ast.parse(path.read_text()))}
    assert [leaf.__name__ for leaf in LEAVES if leaf.__name__ not in made] == []


def test_no_code_is_told_past_the_table() -> None:
    """A literal beside the key `code`, in Python or on the page, is a code that no row explains."""
    for path in SOURCES:
        literal = re.findall(r'"code": "(\w+)"', path.read_text())
        assert set(literal) <= {leaf.code for leaf in LEAVES}, path


def test_each_row_says_all_and_codes_are_unique() -> None:
    assert len({leaf.code for leaf in LEAVES}) == len(LEAVES)
    for leaf in LEAVES:
        assert re.fullmatch(r"[a-z_]+", leaf.code)
        assert 400 <= leaf.status < 600
        meaning = inspect.getdoc(leaf) or ""
        for text in (meaning, leaf.remedy):
            assert text.endswith("."), leaf
        assert "TODO" not in meaning


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.code)
def test_http_answers_each_row_with_its_status_and_the_five_keys(leaf: type[WorkerError]) -> None:
    err = leaf("what happened", field="seed")
    for response in (error_response(err), answer_response(err.to_wire("job"))):
        told = json.loads(bytes(response.body))
        assert response.status_code == leaf.status
        assert set(told) == {"error", "code", "retryable", "job_id", "field"}
        assert (told["code"], told["retryable"]) == (leaf.code, leaf.retryable)
        assert ("retry-after" in response.headers) == (leaf.status == 429)


def test_the_published_schema_has_every_row() -> None:
    schema = json.loads((ROOT / "docs/schema/error.schema.json").read_text())
    told = {row["const"]: row["description"] for row in schema["properties"]["code"]["oneOf"]}
    assert set(told) == {leaf.code for leaf in LEAVES}
    for leaf in LEAVES:
        assert leaf.remedy in told[leaf.code]


def test_the_api_page_has_every_row() -> None:
    page = (ROOT / "docs/api.md").read_text()
    for leaf in LEAVES:
        assert re.search(rf"^\| `{leaf.code}` \| {leaf.status} \|", page, re.MULTILINE), leaf.code


def test_an_instance_may_differ_from_its_row() -> None:
    for leaf in LEAVES:
        if leaf.code == "out_of_vram":
            continue
        assert leaf("x", retryable=not leaf.retryable).to_wire("")["retryable"] != leaf.retryable
        assert leaf("x").retryable == leaf.retryable
