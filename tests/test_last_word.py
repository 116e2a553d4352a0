"""The last word about a job is its result: posted until it is taken, and never overtaken."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from runpod.serverless.modules import rp_http, rp_progress
from structlog.testing import capture_logs

from tests.loopback import body, http_server, read_sent
from tests.plane import HANG, Plane, WorkerProcess
from tests.test_platform import FAULTY, INLINE, model, plane  # noqa: F401 - a fixture
from trellis_runtime.worker import last_word
from trellis_runtime.worker.last_word import NotTaken, Poster, _where


def test_the_sdk_has_the_places_that_we_take() -> None:
    """A release of the SDK that moves them must be noticed here, not by a lost result."""
    assert asyncio.iscoroutinefunction(rp_http._transmit)
    assert list(rp_http._transmit.__annotations__) or rp_http._transmit.__code__.co_argcount == 3
    assert rp_http._transmit.__code__.co_varnames[:3] == ("client_session", "url", "job_data")
    assert "_transmit" in rp_http._handle_result.__code__.co_names
    assert rp_progress._thread_target.__code__.co_varnames[:2] == ("job", "progress")


@pytest.mark.parametrize("answers", [[0], [429], [408], [503, 0, 429]], ids=str)
def test_a_result_is_posted_until_it_is_taken(
    plane: Plane,  # noqa: F811
    tmp_path: Path,
    answers: list[int],
) -> None:
    with WorkerProcess(plane, tmp_path) as worker:
        plane.done_statuses.extend(answers)
        record = plane.ask(INLINE)
        assert len(model(record)) > 1024
        assert record.refused_posts == len(answers)
        worker.until_event("result_taken", tries=len(answers) + 1)
        assert len(plane.ask(INLINE).results) == 1
        assert len(record.results) == 1


def test_a_post_that_is_never_answered_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    hanging, seen = threading.Event(), list[bytes]()

    def reply(handler: http.server.BaseHTTPRequestHandler) -> None:
        seen.append(read_sent(handler))
        if len(seen) == 1:
            hanging.wait(30)
        body(b"")(handler)

    async def post(url: str) -> None:
        async with aiohttp.ClientSession() as session:
            await Poster(result_tries_s=8).transmit(session, url + "/job-done/w/j1?x=1", RESULT)

    with http_server(reply) as url:
        monkeypatch.setattr(last_word, "TRY_S", 0.5)
        asyncio.run(post(url))
        hanging.set()
    assert [json.loads(s) for s in seen] == [json.loads(RESULT)] * 2


RESULT = json.dumps({"output": {"artifact": {"bucket": "b", "key": "t/j1/model.glb"}}})


@pytest.mark.parametrize(("status", "tries"), [(503, 2), (400, 1), (404, 1), (413, 1)])
def test_what_is_given_up_says_where_the_result_lies(status: int, tries: int) -> None:
    seen: list[int] = []

    def reply(handler: http.server.BaseHTTPRequestHandler) -> None:
        seen.append(status)
        body(b"", status)(handler)

    async def post(url: str) -> None:
        async with aiohttp.ClientSession() as session:
            with pytest.raises(NotTaken, match=str(status)):
                await Poster(result_tries_s=2.2).transmit(session, f"{url}/d/w/j1?x=1", RESULT)

    with http_server(reply) as url, capture_logs() as logs:
        asyncio.run(post(url))
    assert len(seen) == tries
    (told,) = [entry for entry in logs if entry["event"] == "result_given_up"]
    assert told["lies"] == "t/j1/model.glb in the bucket b, answer.json beside it"
    assert told["job_id"] == "j1"


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"error": "x", "output": {}}, "no result"),
        ({"output": {"artifact": {"base64": "AA"}}}, "lost"),
        ({"output": {"artifact": {"url": "https://h/x.glb"}}}, "upload_url"),
        ({"output": None}, "lost"),
    ],
)
def test_where_a_result_lies_is_told_for_each_way(told: dict[str, Any], words: str) -> None:
    assert words in _where(told)


def test_a_pause_that_the_platform_asks_for_is_kept() -> None:
    times: list[float] = []

    def reply(handler: http.server.BaseHTTPRequestHandler) -> None:
        times.append(time.monotonic())
        if len(times) == 1:
            handler.send_response(429)
            handler.send_header("Retry-After", "3")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
        else:
            body(b"")(handler)

    async def post(url: str) -> None:
        async with aiohttp.ClientSession() as session:
            await Poster().transmit(session, f"{url}/d/w/j1?x=1", RESULT)

    with http_server(reply) as url:
        asyncio.run(post(url))
    assert times[1] - times[0] >= 3  # a least pause, which no slow machine shortens


def test_a_progress_post_that_hangs_is_ended_before_the_result(
    plane: Plane,  # noqa: F811
    tmp_path: Path,
) -> None:
    plane.updates_hang = True
    with WorkerProcess(plane, tmp_path, FAULTY, FAULT="slow:shape") as worker:
        record = plane.ask(INLINE)
        assert not record.overtaken
        assert record.events[-1].get("status") is None
        assert not worker.events("progress_post_left")


def test_a_result_whose_answer_never_comes_does_not_hold_the_process_for_ever(
    plane: Plane,  # noqa: F811
    tmp_path: Path,
) -> None:
    with WorkerProcess(plane, tmp_path, TRELLIS2_SHUTDOWN_GRACE_S="1") as worker:
        plane.done_statuses.extend([HANG] * 5)
        plane.submit(INLINE)
        worker.until_event("generation_complete")
        worker.process.terminate()
        assert worker.wait(30) == 1
        assert worker.events("grace_period_over")
