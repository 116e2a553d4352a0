"""Delivery to a real S3 server, to a presigned URL, and inline; and what happens when it fails."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import environment
from tests.plane import Plane, WorkerProcess
from tests.seaweed import BUCKET, KEY_ID, SECRET, SeaweedFs, bucket_variables, free_port
from tests.test_worker import QUICK
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.delivery import s3
from trellis_runtime.delivery.storage import folder_of
from trellis_runtime.errors import SetupFailed, StorageFailed
from trellis_runtime.settings import Bucket, Settings
from trellis_runtime.worker.worker import Worker

LOOPBACK = {"TRELLIS2_FETCH_ALLOW_NETWORKS": "127.0.0.1/32"}
ON_PLATFORM = {"RUNPOD_WEBHOOK_GET_JOB": "http://plane/job-take/"}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFs]:
    with SeaweedFs(tmp_path_factory.mktemp("seaweed")) as running:
        yield running


def worker(tmp_path: Path, **variables: str) -> Worker:
    return Worker.start(Settings.from_env(environment(tmp_path, **LOOPBACK, **variables)))


def handle(of: Worker, job_id: str, payload: Any = None, **top: Any) -> dict[str, Any]:
    return asyncio.run(of.handle({"id": job_id, "input": payload or QUICK, **top}))


def test_a_result_is_in_the_bucket_whole_and_its_url_works(
    bucket: SeaweedFs, tmp_path: Path
) -> None:
    answer = handle(worker(tmp_path, **bucket.variables(), **ON_PLATFORM), "s3-1")
    got = requests.get(answer["glb_url"], timeout=10)
    assert got.headers["Content-Type"] == "model/gltf-binary"
    assert got.headers["Content-Disposition"] == 'attachment; filename="s3-1-model.glb"'
    assert hashlib.sha256(got.content).hexdigest() == answer["artifact"]["sha256"]
    assert len(got.content) == answer["artifact"]["bytes"]
    assert requests.get(answer["preview"]["url"], timeout=10).content[:4] == b"\x89PNG"
    assert answer["artifact"]["expires_at"] > "2026"
    assert [k for k in bucket.keys() if "s3-1" in k] == [
        f"trellis2/s3-1/{name}"
        for name in ("answer.json", "model.glb", "preview.png", "thumbnail.webp")
    ]
    assert not (tmp_path / "output").exists()


def test_the_same_job_twice_is_one_object(bucket: SeaweedFs, tmp_path: Path) -> None:
    of = worker(tmp_path, **bucket.variables())
    first, second = handle(of, "twice"), handle(of, "twice")
    assert first["artifact"]["sha256"] == second["artifact"]["sha256"]
    assert len([k for k in bucket.keys() if "/twice/" in k]) == 4


def test_a_public_base_url_is_answered_unsigned(bucket: SeaweedFs, tmp_path: Path) -> None:
    of = worker(
        tmp_path,
        **bucket.variables(),
        BUCKET_PUBLIC_BASE_URL="https://cdn.example/m/",
        BUCKET_PREFIX="a/b",
    )
    answer = handle(of, "cdn")
    assert answer["glb_url"] == "https://cdn.example/m/a/b/cdn/model.glb"
    assert answer["artifact"]["expires_at"] is None


def test_runpods_own_volume_gets_bucket_and_key_not_a_url_that_cannot_work() -> None:
    volume = Bucket.model_validate(
        {
            "endpoint_url": "https://s3api-eu-ro-1.runpod.io/",
            "access_key_id": "a",
            "secret_access_key": "b",
            "name": "vol",
        }
    )
    artifact = s3.operators_store(volume, "job").artifact("k", 4, "0" * 64, "model/gltf-binary")
    assert (artifact.url, artifact.bucket, artifact.key) == (None, "vol", "k")


def test_a_jobs_own_bucket_is_used_for_that_job(bucket: SeaweedFs, tmp_path: Path) -> None:
    config = {
        "accessId": KEY_ID,
        "accessSecret": SECRET,
        "bucketName": BUCKET,
        "endpointUrl": bucket.endpoint,
    }
    answer = handle(worker(tmp_path, **ON_PLATFORM), "own", s3Config=config)
    got = requests.get(answer["glb_url"], timeout=10)
    assert hashlib.sha256(got.content).hexdigest() == answer["artifact"]["sha256"]
    assert SECRET not in json.dumps(answer)


def test_a_jobs_own_bucket_may_not_lead_anywhere_private(tmp_path: Path) -> None:
    config = {
        "accessId": "a",
        "accessSecret": "b",
        "bucketName": "c",
        "endpointUrl": "http://10.0.0.1:9000",
    }
    answer = handle(worker(tmp_path), "ssrf", s3Config=config)
    assert (answer["code"], answer["field"]) == ("url_refused", "s3Config")


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ("x", "s3Config"),
        ({}, "s3Config.endpointUrl"),
        ({"endpointUrl": "http://h", "accessId": 5}, "s3Config.accessId"),
    ],
)
def test_a_malformed_s3_config_is_refused_before_anything_is_computed(
    config: Any, field: str, tmp_path: Path
) -> None:
    answer = handle(worker(tmp_path), "bad", s3Config=config)
    assert (answer["code"], answer["field"]) == ("invalid_input", field)


def test_an_upload_url_gets_the_model(bucket: SeaweedFs, tmp_path: Path) -> None:
    url = bucket.client.generate_presigned_url(
        "put_object", {"Bucket": BUCKET, "Key": "given.glb", "ContentType": "model/gltf-binary"}
    )
    payload = QUICK | {"output": {"delivery": "upload", "upload_url": url}}
    answer = handle(worker(tmp_path, **ON_PLATFORM), "up", payload)
    stored = bucket.client.get_object(Bucket=BUCKET, Key="given.glb")["Body"].read()
    assert hashlib.sha256(stored).hexdigest() == answer["artifact"]["sha256"]
    assert answer["glb_url"] == f"{bucket.endpoint}/{BUCKET}/given.glb"
    assert "Signature" not in json.dumps(answer)
    assert answer["preview"]["base64"]


def test_an_upload_url_with_a_wrong_signature_fails_loudly(
    bucket: SeaweedFs, tmp_path: Path
) -> None:
    url = f"{bucket.endpoint}/{BUCKET}/x.glb?X-Amz-Signature=WRONGSECRET"
    answer = handle(worker(tmp_path), "up", QUICK | {"output": {"upload_url": url}})
    assert answer["code"] == "storage_failed"
    assert "40" in answer["error"]
    assert "WRONGSECRET" not in json.dumps(answer)


def test_inline_that_is_too_large_goes_to_the_bucket_when_there_is_one(
    bucket: SeaweedFs, tmp_path: Path
) -> None:
    of = worker(tmp_path, **bucket.variables(), TRELLIS2_MAX_ANSWER_BYTES="100000")
    answer = handle(of, "large-inline", QUICK | {"output": {"delivery": "inline"}})
    assert answer["artifact"]["base64"] is None
    assert requests.get(answer["glb_url"], timeout=10).ok


def test_wrong_keys_fail_the_start_up_check_and_the_job_without_telling_them(
    bucket: SeaweedFs, tmp_path: Path
) -> None:
    variables = bucket.variables() | {"BUCKET_SECRET_ACCESS_KEY": "WRONGSECRET"}
    of = worker(tmp_path, **variables)
    with pytest.raises(SetupFailed, match="SignatureDoesNotMatch") as caught:
        of.require_ready()
    answer = handle(of, "wrong")
    assert (answer["code"], answer["retryable"]) == ("storage_failed", False)
    assert "WRONGSECRET" not in json.dumps(answer) + str(caught.value)


def test_a_dead_bucket_fails_after_bounded_tries(tmp_path: Path) -> None:
    variables = bucket_variables(f"http://127.0.0.1:{free_port()}", BUCKET_MAX_ATTEMPTS="2")
    answer = handle(worker(tmp_path, **variables), "dead")
    assert answer["code"] == "storage_failed"
    assert "ConnectionRefusedError" in answer["error"]


def test_a_slow_bucket_is_given_up_within_its_time(tmp_path: Path) -> None:
    """It accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        variables = bucket_variables(
            f"http://127.0.0.1:{silent.getsockname()[1]}",
            BUCKET_MAX_ATTEMPTS="2",
            BUCKET_TIMEOUT_S="0.3",
        )
        answer = handle(worker(tmp_path, **variables), "slow")
    assert answer["code"] == "storage_failed"
    assert "took too long" in answer["error"]


def test_a_bucket_that_loses_bytes_is_noticed(bucket: SeaweedFs, tmp_path: Path) -> None:
    settings = Settings.from_env(environment(tmp_path, **bucket.variables()))
    store = s3.operators_store(settings.bucket, "lossy")
    store.put("model.glb", b"whole model", "model/gltf-binary", JobScope("lossy"))
    with pytest.raises(StorageFailed, match="holds 5 bytes"):
        s3.require_same("model.glb", 5, 11, None, "b")
    with pytest.raises(StorageFailed, match="another model.glb"):
        s3.require_same("model.glb", 11, 11, "a", "b")
    with pytest.raises(StorageFailed, match="another model.glb"):
        s3.require_etag("model.glb", b"whole model", f'"{hashlib.md5(b"x").hexdigest()}"')


def test_a_bucket_that_dies_in_the_middle_and_comes_back(tmp_path: Path) -> None:
    """The job in between fails loudly and can be sent again; the one after is delivered."""
    seaweed = SeaweedFs(tmp_path / "seaweed")
    seaweed.start()
    try:
        with (
            Plane() as plane,
            WorkerProcess(
                plane, tmp_path, **seaweed.variables(), BUCKET_MAX_ATTEMPTS="2"
            ) as process,
        ):
            assert plane.ask(QUICK).output["glb_url"]
            seaweed.stop()
            lost = plane.ask(QUICK).results[0]
            assert lost["output"]["code"] == "storage_failed"
            assert lost["output"]["retryable"] is True
            seaweed.start()
            record = plane.ask(QUICK)
            assert requests.get(record.output["glb_url"], timeout=10).content[:4] == b"glTF"
            assert process.files() == []
    finally:
        seaweed.stop()


def test_a_job_stopped_while_it_is_stored_leaves_nothing(bucket: SeaweedFs, tmp_path: Path) -> None:
    """A proxy holds the model's upload; the job is stopped; what was put is removed again."""
    held, go_on = threading.Event(), threading.Event()
    with holding_proxy(bucket, held, go_on) as endpoint:
        of = worker(tmp_path, **(bucket.variables() | {"BUCKET_ENDPOINT_URL": endpoint}))

        async def stop_while_storing() -> None:
            task = asyncio.create_task(of.handle({"id": "stopped", "input": QUICK}))
            await asyncio.to_thread(held.wait, 30)
            task.cancel()
            await asyncio.sleep(0.05)
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(stop_while_storing())
    assert [k for k in bucket.keys() if "stopped" in k] == []


class holding_proxy:
    """Passes bytes to the bucket, but holds the first connection that carries the model."""

    def __init__(self, bucket: SeaweedFs, held: threading.Event, go_on: threading.Event) -> None:
        self._target = ("127.0.0.1", int(bucket.endpoint.rsplit(":", 1)[1]))
        self._held, self._go_on = held, go_on
        self._server = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> str:
        accept = threading.Thread(target=self._accept, daemon=True)
        accept.start()
        return f"http://127.0.0.1:{self._server.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            try:
                upstream = socket.create_connection(self._target)
            except OSError:  # the bucket is down: its client sees that, and this thread goes on
                client.close()
                continue
            for source, sink in ((client, upstream), (upstream, client)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with source, sink:
            while data := _received(source):
                if b"PUT" in data and b"model.glb" in data:
                    self._held.set()
                    self._go_on.wait(30)
                sink.sendall(data)


def _received(source: socket.socket) -> bytes:
    try:
        return source.recv(65536)
    except OSError:
        return b""


@pytest.mark.parametrize(
    "job_id", ["../../etc/passwd", "a/b", "", ".hidden", "x" * 500, "ключ", "\ud800"]
)
def test_a_jobs_id_cannot_leave_its_folder(job_id: str) -> None:
    folder = folder_of(job_id)
    assert "/" not in folder
    assert not folder.startswith(".")
    assert 0 < len(folder) <= 128
    assert folder_of(job_id) == folder


def test_ids_stay_apart() -> None:
    assert len({folder_of(i) for i in ("a/b", "a_b", "a.b", "ab", "a b")}) == 5
