"""`retryable` is a property of what happened, and what can be known beforehand is told beforehand."""

from __future__ import annotations

import http.server
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import environment
from tests.loopback import body, http_server, read_sent
from tests.seaweed import BUCKET, SeaweedFs
from tests.test_delivery import ON_PLATFORM, handle, worker
from tests.test_worker import QUICK
from trellis_runtime.contract.request import PRESETS, parse_request
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.sizes import faces_within, least_glb_bytes
from trellis_runtime.contract.stages import Stage
from trellis_runtime.delivery.choose import Delivery
from trellis_runtime.delivery.fetch import fetch, upload
from trellis_runtime.delivery.presigned import put_headers, require_signature_usable
from trellis_runtime.errors import (
    AnswerTooLarge,
    FetchFailed,
    InvalidInput,
    MeshRejected,
    StageFailed,
    StorageFailed,
    UrlRefused,
)
from trellis_runtime.settings import FetchLimits, Settings
from trellis_runtime.worker.blame import library_errors

LOOPBACK = FetchLimits(timeout_s=5, allow_networks=(IPv4Network("127.0.0.1/32"),))
DENIED = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFs]:
    with SeaweedFs(tmp_path_factory.mktemp("seaweed")) as running:
        yield running


# --- fetching ---


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
def test_what_an_address_refuses_it_refuses_again(status: int, scope: JobScope) -> None:
    seen: list[str] = []

    def refuse(handler: http.server.BaseHTTPRequestHandler) -> None:
        seen.append(handler.path)
        body(DENIED, status)(handler)

    with http_server(refuse) as url, pytest.raises(FetchFailed) as caught:
        fetch(f"{url}/x?sig=SECRET", 100, LOOPBACK, scope)
    assert not caught.value.retryable
    assert f"{status} (AccessDenied)" in caught.value.message
    assert len(seen) == 1
    assert "SECRET" not in caught.value.message


@pytest.mark.parametrize("first", [408, 425, 429, 500, 503, 0])
def test_a_fetch_that_fails_for_a_moment_is_tried_again(first: int, scope: JobScope) -> None:
    seen: list[int] = []

    def flaky(handler: http.server.BaseHTTPRequestHandler) -> None:
        seen.append(first if not seen else 200)
        if seen[-1] == 0:
            handler.close_connection = True  # the connection ends without an answer
            return
        body(b"picture", seen[-1])(handler)

    with http_server(flaky) as url:
        assert fetch(url, 100, LOOPBACK, scope) == b"picture"
    assert seen == [first, 200]


def test_a_body_that_is_cut_off_is_fetched_again(scope: JobScope) -> None:
    seen: list[int] = []

    def cut(handler: http.server.BaseHTTPRequestHandler) -> None:
        seen.append(1)
        body(b"whole picture" if len(seen) > 1 else b"half", length=13)(handler)
        handler.close_connection = True

    with http_server(cut) as url:
        assert fetch(url, 100, LOOPBACK, scope) == b"whole picture"


def test_tries_end_with_the_time_of_the_download(scope: JobScope) -> None:
    seen: list[int] = []

    def down(handler: http.server.BaseHTTPRequestHandler) -> None:
        seen.append(1)
        body(b"", 503)(handler)

    with http_server(down) as url, pytest.raises(FetchFailed) as caught:
        fetch(url, 100, LOOPBACK.model_copy(update={"timeout_s": 0.9}), scope)
    assert caught.value.retryable
    assert "answered 503" in caught.value.message  # what happened, not that time is up
    assert len(seen) == 1  # the pause of a second would have ended it


def test_a_name_that_does_not_resolve_may_resolve_later(scope: JobScope) -> None:
    short = FetchLimits(timeout_s=0.9)
    with pytest.raises(FetchFailed) as caught:
        fetch("http://no-such-host.invalid/x", 100, short, scope)
    assert caught.value.retryable


# --- uploading ---


def test_a_stores_own_code_reaches_the_caller(scope: JobScope) -> None:
    with http_server(body(DENIED, 403)) as url, pytest.raises(StorageFailed) as caught:
        upload(f"{url}/x?sig=SECRET", b"m", {}, LOOPBACK, scope)
    assert "403 (AccessDenied)" in caught.value.message
    assert not caught.value.retryable


AWS = "https://b.s3.amazonaws.com/k?X-Amz-Date={date}&X-Amz-Expires=60&X-Amz-SignedHeaders={signed}"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("url", "stated", "sent"),
    [
        (AWS.format(date="20260101T000000Z", signed="host"), {}, {}),
        (AWS.format(date="20260101T000000Z", signed="content-type%3Bhost"), {}, {"Content-Type": "a/b"}),
        (AWS.format(date="20260101T000000Z", signed="content-type%3Bhost"), {"content-type": "x/y"}, {"content-type": "x/y"}),
        ("https://b.s3.amazonaws.com/k?AWSAccessKeyId=a&Signature=s&Expires=1", {}, {}),
        ("https://b.s3.amazonaws.com/k?AWSAccessKeyId=a&Signature=s&Expires=1", {"Content-Type": "x/y"}, {"Content-Type": "x/y"}),
        ("https://a.blob.core.windows.net/c/k?sig=s&se=2030-01-01T00%3A00%3A00Z", {}, {"Content-Type": "a/b", "x-ms-blob-type": "BlockBlob"}),
        ("https://example.com/put", {"Authorization": "Bearer t"}, {"Authorization": "Bearer t", "Content-Type": "a/b"}),
    ],
)  # fmt: skip
def test_a_put_sends_what_was_signed(
    url: str, stated: dict[str, str], sent: dict[str, str]
) -> None:
    assert put_headers(url, "a/b", stated) == sent


@pytest.mark.parametrize(
    "query",
    [
        "X-Amz-Date=20251231T235700Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host",
        "X-Goog-Date=20251231T000000Z&X-Goog-Expires=900&X-Goog-SignedHeaders=host",
        f"AWSAccessKeyId=a&Signature=s&Expires={int(NOW.timestamp()) - 61}",
        "sv=2024&sr=b&sig=SECRET&se=2025-12-31T23%3A00%3A00Z",
        "sv=2024&sr=b&sig=SECRET&se=2025-12-31",
    ],
)
def test_a_signature_that_has_expired_is_refused_at_once(query: str) -> None:
    url = f"https://store.example/k?{query}"
    with pytest.raises(UrlRefused, match="expired at 2025-12-31T") as caught:
        require_signature_usable(url, {}, NOW)
    assert not caught.value.retryable
    require_signature_usable(url, {}, NOW - timedelta(days=2))


@pytest.mark.parametrize("query", ["", "X-Amz-Expires=x", "X-Amz-Date=1&X-Amz-Expires=9e99", "sig=s&se=soon", "Signature=a&Expires=" + "9" * 30])  # fmt: skip
def test_what_cannot_be_read_of_a_signature_decides_nothing(query: str) -> None:
    require_signature_usable(f"https://store.example/k?{query}", {}, NOW)


def test_signed_headers_that_only_the_caller_knows_are_asked_for() -> None:
    url = AWS.format(date="20260101T000000Z", signed="host%3Bx-amz-acl%3Bx-amz-meta-shop")
    with pytest.raises(InvalidInput, match="x-amz-acl, x-amz-meta-shop") as caught:
        require_signature_usable(url, {}, NOW)
    assert caught.value.field == "output.upload_headers"
    require_signature_usable(url, {"X-Amz-Acl": "private", "x-amz-meta-shop": "7"}, NOW)


@pytest.mark.parametrize(
    ("params", "headers"),
    [
        ({}, {}),
        ({"ContentType": "application/octet-stream"}, {"Content-Type": "application/octet-stream"}),
        ({"ACL": "private", "Metadata": {"shop": "7"}}, {"x-amz-acl": "private", "x-amz-meta-shop": "7"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("version", ["s3v4", "s3"])
def test_what_boto3_signs_is_taken_by_a_real_store(
    bucket: SeaweedFs,
    params: dict[str, Any],
    headers: dict[str, str],
    version: str,
    scope: JobScope,
) -> None:
    import boto3
    from botocore.config import Config

    from tests.seaweed import KEY_ID, SECRET

    client = boto3.session.Session().client(
        "s3", endpoint_url=bucket.endpoint, aws_access_key_id=KEY_ID, aws_secret_access_key=SECRET,
        region_name="us-east-1", config=Config(signature_version=version),
    )  # fmt: skip
    url = client.generate_presigned_url("put_object", {"Bucket": BUCKET, "Key": "x.glb"} | params)
    require_signature_usable(url, headers)
    upload(url, b"model", put_headers(url, "model/gltf-binary", headers), LOOPBACK, scope)
    assert bucket.client.get_object(Bucket=BUCKET, Key="x.glb")["Body"].read() == b"model"


def test_the_callers_headers_arrive_and_are_shown_nowhere(tmp_path: Path) -> None:
    got: list[dict[str, str]] = []

    def take(handler: http.server.BaseHTTPRequestHandler) -> None:
        got.append(dict(handler.headers))
        read_sent(handler)
        body(b"")(handler)

    with http_server(take) as url:
        output = {
            "upload_url": url,
            "upload_headers": {"X-Store-Token": "SECRET", "Content-Type": "x/y"},
        }
        answer = handle(worker(tmp_path), "own-headers", QUICK | {"output": output})
    assert "error" not in answer
    assert (got[-1]["X-Store-Token"], got[-1]["Content-Type"]) == ("SECRET", "x/y")
    assert "SECRET" not in json.dumps(answer)


@pytest.mark.parametrize(
    ("url", "code", "retryable"),
    [
        ("http://10.0.0.1/x?sig=SECRET", "url_refused", False),
        ("https://a.example/k?sig=SECRET&se=2020-01-01", "url_refused", False),
        ("https://no-such-host.invalid/x?sig=SECRET", "storage_failed", True),
        (AWS.format(date="20990101T000000Z", signed="host%3Bx-amz-acl"), "invalid_input", False),
    ],
)
def test_an_upload_that_cannot_work_is_told_before_anything_is_computed(
    url: str, code: str, retryable: bool, tmp_path: Path
) -> None:
    of = Settings.from_env(environment(tmp_path, TRELLIS2_FETCH_TIMEOUT_S="0.9"))
    output = parse_request({"image": "x", "output": {"upload_url": url}}).output
    with pytest.raises((UrlRefused, StorageFailed, InvalidInput)) as caught:
        Delivery.of_job(of, "j").require_possible(output, JobScope("j"))
    assert (caught.value.code, caught.value.retryable) == (code, retryable)
    assert str(caught.value.field).startswith("output.upload_")
    assert "SECRET" not in caught.value.message


def test_a_bad_bucket_name_is_the_callers_fault(tmp_path: Path) -> None:
    config = {"endpointUrl": "http://127.0.0.1:1", "accessId": "a", "accessSecret": "b", "bucketName": "a b/c"}  # fmt: skip
    answer = handle(worker(tmp_path), "name", s3Config=config)
    assert (answer["code"], answer["field"], answer["retryable"]) == (
        "invalid_input", "s3Config.bucketName", False,
    )  # fmt: skip


# --- sizes ---


def test_the_default_request_inline_as_asked_is_refused_before_it_is_computed(
    tmp_path: Path,
) -> None:
    of = worker(tmp_path, **ON_PLATFORM)
    request = {k: v for k, v in QUICK.items() if k == "image"} | {"output": {"delivery": "inline"}}
    answer = handle(of, "default", request)
    assert (answer["code"], answer["field"]) == ("answer_too_large", "output.delivery")
    assert "decimation_target" in answer["error"]
    assert not answer["retryable"]
    assert not (tmp_path / "output/default").exists()


def test_sizes_are_those_of_the_files_that_are_made(tmp_path: Path) -> None:
    """Geometry alone is counted: a file is at least as large, where its mesh has the faces."""
    payload = QUICK | {"resolution": 512, "decimation_target": 20_000}
    answer = handle(worker(tmp_path), "size", payload)
    least = least_glb_bytes(parse_request(payload))
    assert answer["mesh"]["faces"] >= 0.95 * 20_000
    assert 0.95 * least <= answer["artifact"]["bytes"] <= 3 * least


def test_what_fits_inline_by_what_was_asked() -> None:
    for preset, fits in (("fast", True), ("balanced", False), ("game_asset", False)):
        assert preset in PRESETS
        request = parse_request({"image": "x", "preset": preset})
        assert (least_glb_bytes(request) < 7_400_000) == fits
    assert least_glb_bytes(parse_request({"image": "x", "decimation_target": faces_within(7_400_000)})) <= 7_400_000  # fmt: skip


@pytest.mark.parametrize("output", [{"delivery": "inline"}, {"delivery": "auto"}])
def test_a_place_that_takes_any_size_is_asked_for_none(
    output: dict[str, str], tmp_path: Path, bucket: SeaweedFs
) -> None:
    request = parse_request({"image": "x", "output": output})
    with_bucket = environment(tmp_path, **ON_PLATFORM, **bucket.variables())
    Delivery.of_job(Settings.from_env(with_bucket), "j").require_fits(request)
    alone = Settings.from_env(environment(tmp_path, **ON_PLATFORM))
    with pytest.raises(AnswerTooLarge):
        Delivery.of_job(alone, "j").require_fits(request)


# --- libraries' errors ---


def _empty_maximum() -> None:
    np.zeros(0).max()


def _opencv() -> None:
    import cv2

    cv2.resize(np.zeros((0, 0, 3), np.uint8), (4, 4))


def _hull() -> None:
    from scipy.spatial import ConvexHull

    ConvexHull(np.zeros((5, 3)))


def _own_key() -> None:
    dict[str, int]()["absent"]


def _own_none() -> None:
    None.absent  # type: ignore[attr-defined]  # noqa: B018


def _types() -> None:
    np.zeros(3).reshape("x")  # type: ignore[call-overload]


@pytest.mark.parametrize("work", [_empty_maximum, _opencv, _hull])
def test_a_librarys_word_about_values_has_its_own_code(
    work: Callable[[], None], scope: JobScope
) -> None:
    with pytest.raises(StageFailed, match="bake") as caught, library_errors(Stage.BAKE, scope):
        work()
    assert not caught.value.retryable


@pytest.mark.parametrize("work", [_own_key, _own_none, _types])
def test_a_fault_of_ours_stays_one(work: Callable[[], None], scope: JobScope) -> None:
    with (
        pytest.raises((KeyError, AttributeError, TypeError)),
        library_errors(Stage.BAKE, scope),
    ):
        work()


def test_a_mesh_that_comes_again_is_not_worth_a_second_try(tmp_path: Path) -> None:
    from tests.test_worker import Raising, start

    for payload, retryable in (({**QUICK, "seed": 7}, False), ({**QUICK, "seed": None}, True)):
        of = start(tmp_path, Raising(MeshRejected("the mesh is empty")))
        assert handle(of, "again", payload)["retryable"] is retryable


@pytest.mark.parametrize("text", ["\ud800", "data:image/png;base64,\udfff", "AAAA\ud800"])
def test_a_picture_that_is_no_unicode_is_the_callers_fault(text: str, tmp_path: Path) -> None:
    answer = handle(worker(tmp_path), "surrogate", {"image": text})
    assert answer["code"] in ("image_rejected", "invalid_input")
