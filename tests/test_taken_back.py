"""A job that fails takes back its own files, all of them and no others, and its error stands."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3_proxy import Exchange, Proxy
from tests.seaweed import BUCKET, SeaweedFs
from tests.test_delivery import handle as handle_on_platform
from tests.test_delivery import worker as platform_worker
from tests.test_delivery_truth import at, settled
from tests.test_finishes import PLAIN
from tests.test_worker import handle, start
from trellis_runtime.contract.scope import Deadline, JobScope
from trellis_runtime.delivery import s3
from trellis_runtime.delivery.latents import sweep_latents
from trellis_runtime.delivery.s3 import S3Store, operators_store
from trellis_runtime.delivery.storage import LocalStore, Store
from trellis_runtime.errors import StorageFailed
from trellis_runtime.settings import DeliverySettings
from trellis_runtime.worker import pipeline
from trellis_runtime.worker.pipeline import Discardable, discard_on_error

KEEPING = PLAIN | {"keep": "latents", "output": {"preview": False}}
LATER = {"finish_of": "j1", "output": {"preview": False}}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFs]:
    with SeaweedFs(tmp_path_factory.mktemp("seaweed")) as running:
        yield running


# --- two runs of one job on one machine -------------------------------------------------------


def test_two_runs_of_one_job_write_side_by_side_and_each_file_is_whole(tmp_path: Path) -> None:
    scope, failed = JobScope("x"), list[Exception]()
    wholes = {bytes([number]) * 3_000_000 for number in (1, 2)}

    def write(data: bytes) -> None:
        for _ in range(20):
            try:
                LocalStore(tmp_path, "job").put("model.glb", data, "model/gltf-binary", scope)
            except StorageFailed as err:
                failed.append(err)

    threads = [threading.Thread(target=write, args=(data,)) for data in wholes]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if (path := tmp_path / "job/model.glb").is_file():
            assert path.read_bytes() in wholes
    assert failed == []
    assert list((tmp_path / ".partial").iterdir()) == []


def test_a_run_takes_back_no_file_that_another_run_has_put_in_its_place(tmp_path: Path) -> None:
    scope = JobScope("x")
    first, second = LocalStore(tmp_path, "job"), LocalStore(tmp_path, "job")
    for store, names in ((first, "ab"), (second, "b")):
        for name in names:
            store.put(name, b"of " + name.encode(), "text/plain", scope)
    first.discard(scope)
    assert [path.name for path in (tmp_path / "job").iterdir()] == ["b"]


# --- a store that errs while it takes back ----------------------------------------------------


class Hanging:
    """A rule: HEAD and DELETE hang once `on` is set."""

    def __init__(self) -> None:
        self.on, self.over = threading.Event(), threading.Event()

    def __call__(self, exchange: Exchange) -> bool:
        if self.on.is_set() and exchange.handler.command in ("HEAD", "DELETE"):
            self.over.wait(20)
        return False


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    rule = Hanging()
    yield rule
    rule.over.set()


def stores_behind(url: str, tmp_path: Path, *jobs: str) -> list[S3Store]:
    return [operators_store(settled(tmp_path, url), job) for job in jobs]


def test_a_slow_bucket_hides_no_error_and_keeps_no_other_file(
    bucket: SeaweedFs, tmp_path: Path, hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bound holds for all that is taken back: a stopped job's thread leaves in time."""
    monkeypatch.setattr(pipeline, "SETTLE_S", 0.5)
    scope, local = JobScope("x"), LocalStore(tmp_path / "here", "job")
    with Proxy(bucket, hanging).serve() as url:
        behind = stores_behind(url, tmp_path, "slow-1", "slow-2", "slow-3")
        stores: list[Store] = [*behind, local]
        began = time.monotonic()
        discarded: list[Discardable] = [*stores]
        with pytest.raises(KeyError, match="the job's own"), discard_on_error(discarded):
            for store in stores:
                store.put("model.glb", b"made", "model/gltf-binary", scope)
            hanging.on.set()
            raise KeyError("the job's own")
        hanging.over.set()
    assert not (tmp_path / "here/job").exists()
    assert time.monotonic() - began < 15  # the hanging answers come after 20 each


def test_a_put_that_is_refused_is_told_though_the_bucket_then_hangs(
    bucket: SeaweedFs, tmp_path: Path, hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "SETTLE_S", 0.5)

    def rule(exchange: Exchange) -> bool:
        if exchange.handler.command == "PUT":
            hanging.on.set()
            exchange.refuse(403, "AccessDenied")
            return True
        return hanging(exchange)

    with Proxy(bucket, rule).serve() as url:
        (store,) = stores_behind(url, tmp_path, "refused")
        with pytest.raises(StorageFailed, match="403"):
            store.put("model.glb", b"made", "model/gltf-binary", JobScope("x"))
        hanging.over.set()


def test_what_one_store_cannot_take_back_keeps_no_other_from_it(tmp_path: Path) -> None:
    class Broken:
        def discard(self, scope: JobScope) -> None:
            raise RuntimeError("a fault")

    local = LocalStore(tmp_path, "job")
    local.put("model.glb", b"made", "model/gltf-binary", JobScope("x"))
    with pytest.raises(KeyError), discard_on_error([Broken(), local]):
        raise KeyError
    assert not (tmp_path / "job").exists()


# --- latents ----------------------------------------------------------------------------------


def test_another_run_that_kept_the_same_latents_meanwhile_is_no_failure(
    bucket: SeaweedFs, tmp_path: Path
) -> None:
    """Both runs sampled the same; their latents.json differ by the second in which they ended."""
    ahead: list[str] = []

    def rule(exchange: Exchange) -> bool:
        if exchange.call == "PUT latents.json" and not ahead:
            told = json.loads(exchange.sent) | {"created_at": "2026-01-02T03:04:05+00:00"}
            key = exchange.handler.path.split("?")[0].removeprefix(f"/{BUCKET}/")
            bucket.client.put_object(Bucket=BUCKET, Key=key, Body=json.dumps(told).encode())
            ahead.append(key)
        return False

    with Proxy(bucket, rule).serve() as url:
        worker = platform_worker(tmp_path, **at(url))
        first = handle_on_platform(worker, "j1", KEEPING)
        assert "error" not in first
        later = handle_on_platform(worker, "j2", LATER)
    assert len(ahead) == 1
    assert later["artifact"]["sha256"] == first["artifact"]["sha256"]


def test_an_object_that_is_longer_than_what_is_read_is_no_fault_of_the_worker(
    bucket: SeaweedFs, tmp_path: Path
) -> None:
    worker = platform_worker(tmp_path, **bucket.variables())

    def put(key: str, size: int) -> None:
        bucket.client.put_object(Bucket=BUCKET, Key=f"trellis2/{key}", Body=b"x" * size)

    put("latents/long/latents.json", 1_200_000)
    told = handle_on_platform(worker, "later", LATER | {"finish_of": "long"})
    assert told["code"] == "latents_damaged"
    put("long/answer.json", 13_000_000)
    answer = handle_on_platform(worker, "long", PLAIN)
    assert answer["artifact"]["key"].endswith("model.glb")


def test_keeping_takes_nothing_from_a_job_beside_it(tmp_path: Path) -> None:
    worker = start(tmp_path)
    beside = tmp_path / f"output/latents/.partial/{os.getpid()}-other-latents.npz"
    beside.parent.mkdir(parents=True)
    beside.write_bytes(b"half of what another job keeps")
    assert "error" not in handle(worker, KEEPING)
    assert beside.is_file()
    start(tmp_path)  # a new worker's first act: nothing is in the making
    assert not beside.exists()


def test_whatever_lies_among_the_latents_stops_no_job_and_no_start(tmp_path: Path) -> None:
    root = tmp_path / "output"
    strange = {
        "naive": '{"expires_at": "2020-01-01T00:00:00"}', "deep": "[" * 200_000,
        "list": "[]", "number": '{"expires_at": 5}', "empty": "",
    }  # fmt: skip
    for name, text in strange.items():
        (root / "latents" / name).mkdir(parents=True)
        (root / "latents" / name / "latents.json").write_text(text)
    (root / "latents/linked").mkdir()
    (root / "latents/linked/latents.npz").symlink_to("nowhere")
    (root / "latents/file").write_bytes(b"no folder")
    worker = start(tmp_path)
    assert "error" not in handle(worker, KEEPING)
    assert "error" not in handle(worker, LATER, "j2")
    settings = DeliverySettings(output_dir=root, keep_hours=1)
    for folder in (root / "latents").iterdir():
        os.utime(folder, (1, 1))
    assert sweep_latents(settings) == len(strange) + 1
    assert {path.name for path in (root / "latents").iterdir()} == {".partial", "file", "j1"}


def test_a_discard_within_its_time_empties_the_bucket(bucket: SeaweedFs, tmp_path: Path) -> None:
    (store,) = stores_behind(bucket.endpoint, tmp_path, "emptied")
    store.put("model.glb", b"made", "model/gltf-binary", JobScope("x"))
    store.discard(JobScope("discard", Deadline.after(20)))
    assert not [key for key in bucket.keys() if "/emptied/" in key]
