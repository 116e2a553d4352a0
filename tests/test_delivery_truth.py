"""What was delivered stays, links work, and the last word about a job is right."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
from fastapi.testclient import TestClient

from tests.conftest import ROOT, encoded, environment, picture
from tests.loopback import Authority
from tests.s3_proxy import (
    Exchange,
    Proxy,
    Rule,
    insists_on,
    loses_the_answer,
    writes_only,
)
from tests.seaweed import BUCKET, KEY_ID, SECRET, SeaweedFs
from tests.test_delivery import ON_PLATFORM, handle, worker
from tests.test_server_bounds import until
from tests.test_worker import QUICK
from trellis_runtime.assets.glb_reader import require_glb
from trellis_runtime.contract.answer import Artifact
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.delivery import s3_client
from trellis_runtime.delivery.s3 import operators_store, require_bucket
from trellis_runtime.delivery.storage import LocalStore
from trellis_runtime.errors import SetupFailed, StorageFailed
from trellis_runtime.server import create_app, served
from trellis_runtime.settings import Bucket, Settings
from trellis_runtime.worker.admission import Admission

FOUR = ("answer.json", "model.glb", "preview.png", "thumbnail.webp")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFs]:
    with SeaweedFs(tmp_path_factory.mktemp("seaweed")) as running:
        yield running


def at(endpoint: str, **more: str) -> dict[str, str]:
    return {
        "BUCKET_ENDPOINT_URL": endpoint,
        "BUCKET_ACCESS_KEY_ID": KEY_ID,
        "BUCKET_SECRET_ACCESS_KEY": SECRET,
        "BUCKET_NAME": BUCKET,
        "BUCKET_MAX_ATTEMPTS": "2",
        **more,
    }


def settled(tmp_path: Path, endpoint: str, **more: str) -> Bucket:
    return Settings.from_env(environment(tmp_path, **at(endpoint, **more))).bucket


def whole(answer: dict[str, Any]) -> bool:
    got = requests.get(answer["glb_url"], timeout=10)
    return hashlib.sha256(got.content).hexdigest() == answer["artifact"]["sha256"]


# --- a job that is run again ---


def test_a_job_that_is_run_again_is_answered_without_computing(
    bucket: SeaweedFs, tmp_path: Path
) -> None:
    of = worker(tmp_path, **bucket.variables())
    first = handle(of, "again")
    stamps = {k: bucket.client.head_object(Bucket=BUCKET, Key=k)["LastModified"] for k in bucket.keys() if "/again/" in k}  # fmt: skip
    of.engine = None  # type: ignore[assignment]  # nothing is computed: there is nothing that could
    second = handle(of, "again")
    assert second["artifact"]["sha256"] == first["artifact"]["sha256"]
    assert second["timings"] == first["timings"]
    assert whole(second)
    assert {k: bucket.client.head_object(Bucket=BUCKET, Key=k)["LastModified"] for k in stamps} == stamps  # fmt: skip


@pytest.mark.parametrize("refusal", ["disk_full", "worker_busy", "worker_stopping"])
def test_a_refusal_is_not_the_last_word_about_a_job_that_is_done(
    bucket: SeaweedFs, tmp_path: Path, refusal: str
) -> None:
    of, job = worker(tmp_path, **bucket.variables()), "done-before"
    first = handle(of, job)
    with ExitStack() as held:
        if refusal == "worker_stopping":
            of.admission.drain()
        elif refusal == "disk_full":
            full = {"jobs": of.settings.jobs.model_copy(update={"min_free_disk_gb": 1e9})}
            of.settings = of.settings.model_copy(update=full)
            of.admission = Admission(of.settings.jobs, tmp_path)
            of.admission.open()
        else:
            for _ in range(of.settings.jobs.room):
                held.enter_context(of.admission.slot())
        assert handle(of, "never-done")["code"] == refusal
        again = handle(of, job)
    assert again["artifact"]["sha256"] == first["artifact"]["sha256"]
    assert whole(again)


@pytest.mark.parametrize("lost", ["model.glb", "preview.png", "answer.json"])
def test_an_earlier_result_that_is_not_whole_is_computed_again(
    bucket: SeaweedFs, tmp_path: Path, lost: str
) -> None:
    of, job = worker(tmp_path, **bucket.variables()), f"torn-{lost}"
    first = handle(of, job)
    bucket.client.delete_object(Bucket=BUCKET, Key=f"trellis2/{job}/{lost}")
    second = handle(of, job)
    assert second["timings"] != first["timings"]
    assert whole(second)
    assert len([k for k in bucket.keys() if f"/{job}/" in k]) == 4


def test_a_model_that_was_replaced_is_not_taken_for_the_jobs_own(
    bucket: SeaweedFs, tmp_path: Path
) -> None:
    of = worker(tmp_path, **bucket.variables())
    handle(of, "swapped")
    bucket.client.put_object(Bucket=BUCKET, Key="trellis2/swapped/model.glb", Body=b"another")
    assert whole(handle(of, "swapped"))


def test_another_request_under_the_same_id_leaves_the_first_ones_result(
    bucket: SeaweedFs, tmp_path: Path
) -> None:
    of = worker(tmp_path, **bucket.variables())
    first = handle(of, "reused")
    other = handle(of, "reused", QUICK | {"seed": 99})
    assert first["artifact"]["sha256"] != other["artifact"]["sha256"]
    assert whole(first)
    assert whole(other)
    assert handle(of, "reused", QUICK | {"seed": 99})["timings"] == other["timings"]
    assert handle(of, "reused")["timings"] == first["timings"]


def test_what_is_kept_of_a_request_tells_nothing_of_it(bucket: SeaweedFs, tmp_path: Path) -> None:
    handle(worker(tmp_path, **bucket.variables()), "told")
    found = bucket.client.head_object(Bucket=BUCKET, Key="trellis2/told/answer.json")["Metadata"]
    assert set(found) == {"sha256", "run", "request"}
    assert len(found["request"]) == 64


# --- taking back ---


def refuses(call: str) -> Rule:
    def rule(exchange: Exchange) -> bool:
        if exchange.call == call:
            exchange.refuse(403, "AccessDenied")
        return exchange.call == call

    return rule


def test_a_failing_second_run_deletes_nothing_of_the_first(
    bucket: SeaweedFs, tmp_path: Path
) -> None:
    """The first run's answer.json is gone, so the second computes; its own ending fails."""
    first = handle(worker(tmp_path, **bucket.variables()), "kept")
    bucket.client.delete_object(Bucket=BUCKET, Key="trellis2/kept/answer.json")
    proxy = Proxy(bucket, refuses("PUT answer.json"))
    with proxy.serve() as url:
        second = handle(worker(tmp_path, **at(url)), "kept")
    assert second["code"] == "storage_failed"
    assert "PUT answer.json" in proxy.calls
    assert requests.get(first["glb_url"], timeout=10).ok


def test_a_failing_first_run_leaves_nothing(bucket: SeaweedFs, tmp_path: Path) -> None:
    with Proxy(bucket, refuses("PUT answer.json")).serve() as url:
        answer = handle(worker(tmp_path, **at(url)), "failing")
    assert answer["code"] == "storage_failed"
    assert "403 (AccessDenied) to PUT" in answer["error"]
    assert [k for k in bucket.keys() if "/failing/" in k] == []


def test_what_another_run_wrote_in_the_meantime_is_not_taken_back(
    bucket: SeaweedFs, tmp_path: Path
) -> None:
    """Two workers have one job: the second delivers between the first's upload and its failure."""

    def rule(exchange: Exchange) -> bool:
        if exchange.call != "PUT answer.json":
            return False
        handle(worker(tmp_path, **bucket.variables()), "raced", QUICK | {"seed": 4})
        exchange.refuse(403, "AccessDenied")
        return True

    with Proxy(bucket, rule).serve() as url:
        failed = handle(worker(tmp_path, **at(url)), "raced", QUICK | {"seed": 4})
    assert failed["code"] == "storage_failed"
    assert [k.rsplit("/", 1)[1] for k in bucket.keys() if "/raced/" in k] == list(FOUR)


@pytest.mark.parametrize("call", [f"PUT {name}" for name in FOUR])
def test_a_put_whose_answer_is_lost_is_looked_for(
    bucket: SeaweedFs, tmp_path: Path, call: str
) -> None:
    job = f"lost-{call[4:]}"
    with Proxy(bucket, loses_the_answer(call, times=99)).serve() as url:
        answer = handle(worker(tmp_path, **at(url)), job)
    assert "error" not in answer
    assert len([k for k in bucket.keys() if f"/{job}/" in k]) == 4


def test_a_put_that_may_have_arrived_is_removed_when_the_job_fails(
    bucket: SeaweedFs, tmp_path: Path
) -> None:
    """The model's answer is lost, and so is that of the look after it; the bucket comes back."""
    lost = loses_the_answer("PUT model.glb", 99)
    seen: list[str] = []

    def rule(exchange: Exchange) -> bool:
        seen.append(exchange.call)
        looks = seen.count("HEAD model.glb")
        if exchange.call == "HEAD model.glb" and 2 <= looks <= 3:  # the look before is the first
            exchange.refuse(503, "SlowDown")
            return True
        return lost(exchange)

    with Proxy(bucket, rule).serve() as url:
        answer = handle(worker(tmp_path, **at(url)), "maybe")
    assert answer["code"] == "storage_failed"
    assert [k for k in bucket.keys() if "/maybe/" in k] == []


def stored(endpoint: str, tmp_path: Path, job: str, data: bytes = b"made") -> Artifact:
    """Put a model as one run of a job does."""
    store = operators_store(settled(tmp_path, endpoint), job, "f" * 64)
    return store.put("model.glb", data, "model/gltf-binary", JobScope(job))


@pytest.mark.parametrize("data", [b"made", b"another"])
def test_of_two_runs_that_upload_at_once_the_first_ones_object_stays(
    bucket: SeaweedFs, tmp_path: Path, data: bytes
) -> None:
    """The second looked before the first had put anything; its bytes are the same, or not."""
    job = f"together-{data.decode()}"
    key = f"trellis2/{job}/model.glb"
    before: list[Any] = []

    def found() -> Any:
        return bucket.client.head_object(Bucket=BUCKET, Key=key)["Metadata"]

    def rule(exchange: Exchange) -> bool:
        if exchange.call == "PUT model.glb" and not before:
            stored(bucket.endpoint, tmp_path, job)
            before.append(found())
        return False

    with Proxy(bucket, rule).serve() as url:
        if data == b"made":
            assert stored(url, tmp_path, job, data).bytes == len(data)
        else:
            with pytest.raises(StorageFailed, match="another run of this job") as refused:
                stored(url, tmp_path, job, data)
            assert refused.value.retryable
    assert found() == before[0]


@pytest.mark.parametrize("status", [400, 501])
def test_a_store_without_conditions_is_written_all_the_same(
    bucket: SeaweedFs, tmp_path: Path, status: int
) -> None:
    def rule(exchange: Exchange) -> bool:
        if is_conditional := "If-None-Match" in exchange.handler.headers:
            exchange.refuse(status, "NotImplemented")
        return is_conditional

    with Proxy(bucket, rule).serve() as url:
        assert stored(url, tmp_path, f"plain-{status}").bytes == 4


def test_an_upload_that_is_damaged_on_its_way_is_sent_again(
    bucket: SeaweedFs, tmp_path: Path
) -> None:
    puts: list[bool] = []

    def rule(exchange: Exchange) -> bool:
        if exchange.call != "PUT model.glb":
            return False
        puts.append("If-None-Match" in exchange.handler.headers)
        if is_first := len(puts) == 1:
            exchange.refuse(400, "BadDigest")
        return is_first

    with Proxy(bucket, rule).serve() as url:
        assert stored(url, tmp_path, "damaged").bytes == 4
    assert puts == [True, True]  # the same again: not as to a store that knows no conditions
    data = bucket.client.get_object(Bucket=BUCKET, Key="trellis2/damaged/model.glb")["Body"].read()
    assert data == b"made"


def test_a_link_that_fails_once_is_visited_again(bucket: SeaweedFs, tmp_path: Path) -> None:
    seen: list[str] = []

    def rule(exchange: Exchange) -> bool:
        if exchange.handler.command != "GET":
            return False
        seen.append(exchange.call)
        if is_first := len(seen) == 1:
            exchange.refuse(503, "SlowDown")
        return is_first

    with Proxy(bucket, rule).serve() as url:
        require_bucket(settled(tmp_path, url))
    assert len(seen) == 2


def test_run_copies_a_model_that_went_to_the_bucket(bucket: SeaweedFs, tmp_path: Path) -> None:
    (tmp_path / "mug.png").write_bytes(encoded(picture()))
    variables = environment(tmp_path, **bucket.variables())
    done = subprocess.run(
        [sys.executable, "-m", "trellis_runtime", "run", "mug.png", "-o", "mug.glb",
         "--preset", "fast", "--texture-size", "512", "--decimation-target", "4000"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    require_glb((tmp_path / "mug.glb").read_bytes())
    assert "http://" in done.stdout  # the picture's link


def _ping_is(client: TestClient, status: int) -> bool:
    return client.get("/ping").status_code == status


def test_a_bucket_that_dies_while_serving_turns_ping_unhealthy(
    bucket: SeaweedFs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "_BUCKET_S", 0.1)
    is_dead = threading.Event()

    def rule(exchange: Exchange) -> bool:
        if is_dead.is_set():
            exchange.refuse(403, "AccessDenied")
        return is_dead.is_set()

    with (
        Proxy(bucket, rule).serve() as url,
        TestClient(
            create_app(Settings.from_env(environment(tmp_path, **at(url)))),
            base_url="http://localhost",
        ) as client,
    ):
        for change, status in ((is_dead.clear, 200), (is_dead.set, 503), (is_dead.clear, 200)):
            change()
            until(partial(_ping_is, client, status))
            if status == 503:
                assert "AccessDenied" in client.get("/ping").json()["error"]


def test_a_local_file_of_an_earlier_run_is_not_taken_back(tmp_path: Path) -> None:
    scope = JobScope("x")
    LocalStore(tmp_path, "job").put("model.glb", b"first", "model/gltf-binary", scope)
    second = LocalStore(tmp_path, "job")
    second.put("model.glb", b"second", "model/gltf-binary", scope)
    second.put("preview.png", b"new", "image/png", scope)
    second.discard(JobScope("discard"))
    assert [p.name for p in (tmp_path / "job").iterdir()] == ["model.glb"]


# --- the link that is answered ---


def test_the_region_is_learnt_and_the_link_works(bucket: SeaweedFs, tmp_path: Path) -> None:
    with Proxy(bucket, insists_on("eu-west-9")).serve() as url:
        of = worker(tmp_path, **at(url))
        of.require_ready()
        answer = handle(of, "region")
        assert whole(answer)
        assert "eu-west-9" in answer["glb_url"]


def test_a_stated_region_is_used_from_the_first_call(bucket: SeaweedFs, tmp_path: Path) -> None:
    proxy = Proxy(bucket, insists_on("eu-west-9"))
    with proxy.serve() as url:
        require_bucket(settled(tmp_path, url, BUCKET_REGION="eu-west-9"))
    assert len(proxy.calls) == 3  # put, read back, removed


@pytest.mark.parametrize("stated", [True, False])
def test_a_jobs_own_store_has_its_region(bucket: SeaweedFs, tmp_path: Path, stated: bool) -> None:
    with Proxy(bucket, insists_on("eu-west-9")).serve() as url:
        config = own(url) | ({"region": "eu-west-9"} if stated else {})
        answer = handle(worker(tmp_path, **ON_PLATFORM), f"own-region-{stated}", s3Config=config)
        assert whole(answer)


def own(endpoint: str) -> dict[str, str]:
    return {
        "accessId": KEY_ID,
        "accessSecret": SECRET,
        "bucketName": BUCKET,
        "endpointUrl": endpoint,
    }


def test_the_start_needs_put_and_a_link_that_works_and_no_more(
    bucket: SeaweedFs, tmp_path: Path
) -> None:
    """With a key that only writes, a public address in front of the bucket is enough."""

    def rule(exchange: Exchange) -> bool:
        return "Authorization" in exchange.handler.headers and writes_only(exchange)

    with (
        Proxy(bucket, rule).serve() as url,
        Proxy(bucket, read_by_anyone).serve() as public,
    ):
        of = worker(tmp_path, **at(url, BUCKET_PUBLIC_BASE_URL=f"{public}/{BUCKET}"))
        of.require_ready()
        answer = handle(of, "write-only")
        assert whole(answer)


def read_by_anyone(exchange: Exchange) -> bool:
    """As a CDN in front: it reads with a key of its own."""
    key = exchange.handler.path.removeprefix(f"/{BUCKET}/")
    found = exchange.store.client.get_object(Bucket=BUCKET, Key=key)
    exchange.reply(200, [], found["Body"].read())
    return True


def test_a_key_that_only_writes_is_told_which_call_was_refused(
    bucket: SeaweedFs, tmp_path: Path
) -> None:
    with (
        Proxy(bucket, writes_only).serve() as url,
        pytest.raises(SetupFailed, match=r"answered 403 to GET \(AccessDenied\)"),
    ):
        require_bucket(settled(tmp_path, url))


def test_a_store_that_refuses_put_says_put(bucket: SeaweedFs, tmp_path: Path) -> None:
    def rule(exchange: Exchange) -> bool:
        exchange.refuse(403, "AccessDenied")
        return True

    with (
        Proxy(bucket, rule).serve() as url,
        pytest.raises(SetupFailed, match=r"403 \(AccessDenied\) to PUT"),
    ):
        require_bucket(settled(tmp_path, url))


def test_a_key_that_may_not_remove_leaves_one_small_object(
    bucket: SeaweedFs, tmp_path: Path
) -> None:
    def rule(exchange: Exchange) -> bool:
        if exchange.handler.command == "DELETE":
            exchange.refuse(403, "AccessDenied")
        return exchange.handler.command == "DELETE"

    before = set(bucket.keys())
    with Proxy(bucket, rule).serve() as url:
        require_bucket(settled(tmp_path, url))
    (left,) = set(bucket.keys()) - before
    assert left.startswith("trellis2/.check/")


def test_the_check_leaves_nothing_where_it_may_remove(bucket: SeaweedFs, tmp_path: Path) -> None:
    before = set(bucket.keys())
    require_bucket(settled(tmp_path, bucket.endpoint))
    assert set(bucket.keys()) == before


def test_a_public_address_that_leads_elsewhere_fails_the_start(
    bucket: SeaweedFs, tmp_path: Path
) -> None:
    elsewhere = settled(
        tmp_path, bucket.endpoint, BUCKET_PUBLIC_BASE_URL=f"{bucket.endpoint}/other"
    )
    with pytest.raises(SetupFailed, match="BUCKET_PUBLIC_BASE_URL must lead to the bucket"):
        require_bucket(elsewhere)
    unchecked = elsewhere.model_copy(update={"check_link": False})
    require_bucket(unchecked)


@pytest.mark.parametrize(
    ("name", "value"),
    [("BUCKET_PUBLIC_BASE_URL", "cdn.example/m"), ("BUCKET_ENDPOINT_URL", "s3.example.com")],
)
def test_an_address_without_a_scheme_is_no_address(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(SetupFailed, match=rf"{name} .*http or https"):
        Settings.from_env(environment(tmp_path, **at("https://s3.example.com") | {name: value}))


@pytest.mark.parametrize(
    ("endpoint", "name", "settled_endpoint", "style"),
    [
        ("https://s3.eu-west-1.amazonaws.com", "models", "https://s3.eu-west-1.amazonaws.com", "auto"),
        ("https://models.s3.eu-west-1.amazonaws.com/", "models", "https://s3.eu-west-1.amazonaws.com", "virtual"),
        ("https://models.fra1.digitaloceanspaces.com", "models", "https://fra1.digitaloceanspaces.com", "virtual"),
        ("https://id.r2.cloudflarestorage.com/models", "models", "https://id.r2.cloudflarestorage.com", "auto"),
        ("http://127.0.0.1:9000/models/", "models", "http://127.0.0.1:9000", "auto"),
        ("https://minio.example.com", "minio", "https://minio.example.com", "auto"),
    ],
)  # fmt: skip
def test_a_bucket_in_the_endpoint_is_understood(
    endpoint: str, name: str, settled_endpoint: str, style: str
) -> None:
    given = Bucket.model_validate({"endpoint_url": endpoint, "name": name})
    found = s3_client.settled(given)
    assert (found.endpoint_url, found.addressing_style) == (settled_endpoint, style)


def test_another_path_in_the_endpoint_is_refused_in_words(
    bucket: SeaweedFs, tmp_path: Path
) -> None:
    with pytest.raises(SetupFailed, match="path '/other/folder'.*prefix"):
        require_bucket(settled(tmp_path, f"{bucket.endpoint}/other/folder"))
    answer = handle(worker(tmp_path), "path", s3Config=own(f"{bucket.endpoint}/elsewhere"))
    assert (answer["code"], answer["field"]) == ("invalid_input", "s3Config.endpointUrl")


def test_a_bucket_in_the_endpoints_path_gets_its_keys_once(
    bucket: SeaweedFs, tmp_path: Path
) -> None:
    of = worker(tmp_path, **at(f"{bucket.endpoint}/{BUCKET}"))
    of.require_ready()
    assert whole(handle(of, "in-path"))
    assert "trellis2/in-path/model.glb" in bucket.keys()


@pytest.mark.parametrize(
    ("change", "code", "word"),
    [
        ({"accessSecret": "wrong"}, "storage_failed", "SignatureDoesNotMatch"),
        ({"bucketName": "No Such Bucket!"}, "invalid_input", "bucketName"),
        ({"endpointUrl": "http://10.0.0.1:9000"}, "url_refused", "10.0.0.1"),
        ({"endpointUrl": "http://127.0.0.1:9"}, "storage_failed", "failed"),
    ],
)
def test_a_jobs_own_store_that_cannot_work_is_refused_before_its_engine_starts(
    bucket: SeaweedFs, tmp_path: Path, change: dict[str, str], code: str, word: str
) -> None:
    of = worker(tmp_path, **ON_PLATFORM, BUCKET_MAX_ATTEMPTS="1")
    of.engine = None  # type: ignore[assignment]
    answer = handle(of, "cannot", s3Config=own(bucket.endpoint) | change)
    assert (answer["code"], answer["field"].partition(".")[0]) == (code, "s3Config")
    assert word in answer["error"]


def test_everything_holds_over_tls(
    bucket: SeaweedFs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.bundle))
    with Proxy(bucket, lambda _: False).serve(authority.context) as url:
        of = worker(tmp_path, **at(url))
        of.require_ready()
        answer = handle(of, "tls")
        got = requests.get(answer["glb_url"], timeout=10, verify=str(authority.bundle))
    assert hashlib.sha256(got.content).hexdigest() == answer["artifact"]["sha256"]


def test_a_store_that_drips_ends_at_its_time(bucket: SeaweedFs, tmp_path: Path) -> None:
    """Every byte comes in time; all of them never do."""
    stop = threading.Event()

    def rule(exchange: Exchange) -> bool:
        if exchange.call != "PUT model.glb":
            return False
        exchange.handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not stop.wait(0.05):
            exchange.handler.wfile.write(b"a")
        return True

    with Proxy(bucket, rule).serve() as url:
        answer = handle(worker(tmp_path, **at(url, BUCKET_TIMEOUT_S="0.5")), "dripping")
        stop.set()
    assert answer["code"] == "storage_failed"
    assert "took too long" in answer["error"]


def test_what_a_store_says_of_an_object_is_compared(bucket: SeaweedFs, tmp_path: Path) -> None:
    store = operators_store(settled(tmp_path, bucket.endpoint), "plain", "f" * 64)
    artifact = store.put("model.glb", b"whole", "model/gltf-binary", JobScope("plain"))
    assert store.holds(artifact, "model.glb", JobScope("plain"))
    assert not store.holds(artifact, "preview.png", JobScope("plain"))
    assert store.read("model.glb", JobScope("plain")) == (b"whole", "f" * 64)
