"""keep and finish_of: what was sampled is kept, and another job makes new files of it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.plane import Plane, WorkerProcess
from tests.seaweed import BUCKET, SeaweedFs
from tests.test_delivery import ON_PLATFORM
from tests.test_delivery import handle as handle_on_platform
from tests.test_delivery import worker as platform_worker
from tests.test_finishes import ALL, PLAIN, Watched, WatchedGeneration, asking
from tests.test_variants import of_seeds
from tests.test_worker import PHOTO, handle, start
from trellis_runtime.assets.arrays import pack, unpack
from trellis_runtime.contract.answer import GenerationResult
from trellis_runtime.contract.ladder import RUNGS, LadderState, Plan
from trellis_runtime.contract.request import parse_request, request_schema
from trellis_runtime.contract.stages import Stage
from trellis_runtime.delivery.latents import BucketLatents, sweep_latents
from trellis_runtime.errors import InvalidInput, OutOfVram
from trellis_runtime.settings import DeliverySettings, Settings

OUTPUT = {"preview": True, "size_m": 0.5, "finishes": ALL[:2]}
KEEPING: dict[str, Any] = PLAIN | {"keep": "latents", "output": OUTPUT}


def finishing(job: str = "j1", **more: Any) -> dict[str, Any]:
    return {"finish_of": job, "output": {"preview": False}} | more


def kept_in(tmp_path: Path, job: str = "j1") -> Path:
    return tmp_path / "output/latents" / job


def change_facts(tmp_path: Path, **changes: Any) -> None:
    path = kept_in(tmp_path) / "latents.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


# --- the request ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"image": "x"}, "image is not used with finish_of"),
        ({"image_url": "https://a.example/b"}, "image_url is not used with finish_of"),
        ({"seed": 1}, "seed is not used with finish_of"),
        ({"seeds": [1]}, "seeds is not used with finish_of"),
        ({"variants": 2}, "variants is not used with finish_of"),
        ({"keep": "latents"}, "keep is not used with finish_of"),
        ({"resolution": 512}, "resolution is not used with finish_of"),
        ({"preset": "fast"}, "is not used with finish_of"),
        ({"background": "keep"}, "background is not used with finish_of"),
        ({"sampler": {"shape": {"steps": 2}}}, "sampler is not used with finish_of"),
        ({"retry_seeds": 1}, "retry_seeds is not used with finish_of"),
        ({"output": {"cutout": True}}, "no picture is kept"),
        ({"finish_of": ""}, "finish_of"),
        ({"finish_of": "x" * 129}, "at most 128 characters"),
    ],
)
def test_what_was_settled_by_the_first_job_is_refused_and_the_schema_says_the_same(
    wrong: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        parse_request({"finish_of": "j1"} | wrong)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"finish_of": "j1"} | wrong, request_schema())


def test_what_a_finishing_job_leaves_out_is_as_the_first_had_it() -> None:
    asked = {"finish_of": "j1", "texture_size": 512, "output": {"pivot": "bottom"}}
    jsonschema.validate(asked, request_schema())
    first = parse_request(
        {"image": "x", "seed": 4, "resolution": 512, "texture_size": 4096, "shell": "remeshed",
         "output": {"size_m": 3.0}}
    )  # fmt: skip
    merged = parse_request(asked).finishing(first)
    assert (merged.texture_size, merged.shell, merged.resolution) == (512, "remeshed", 512)
    assert (merged.output.size_m, merged.output.pivot) == (None, "bottom")


# --- the same bytes ---------------------------------------------------------------------------


def test_a_later_job_makes_the_same_files_without_sampling(
    tmp_path: Path, khronos: Callable[[bytes], None]
) -> None:
    first = handle(start(tmp_path), KEEPING)
    kept = first["kept"]
    assert (kept["id"], kept["place"]) == ("j1", "folder")
    data = (kept_in(tmp_path) / "latents.npz").read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (kept["bytes"], kept["sha256"])
    engine = Watched()
    later = handle(start(tmp_path, engine), {"finish_of": "j1", "output": OUTPUT}, "j2")
    GenerationResult.model_validate_json(json.dumps(later))
    assert later["finish_of"] == "j1"
    assert engine.ran == []  # nothing is begun; what is resumed it does not count
    assert {"image", "condition", "structure", "shape", "texture"}.isdisjoint(later["timings"])
    assert {"latents", "bake", "export", "store"} <= set(later["timings"])
    for name in ("model.glb", "phone.glb", "quicklook.usdz", "preview.png"):
        ours = (tmp_path / "output/j2" / name).read_bytes()
        if name.endswith(".usdz"):
            assert len(ours) > 1000
        else:
            assert ours == (tmp_path / "output/j1" / name).read_bytes(), name
    assert later["degradation"] == first["degradation"]
    assert later["seed"] == first["seed"]
    khronos((tmp_path / "output/j2/model.glb").read_bytes())


def test_other_files_are_made_of_the_same_sampling(tmp_path: Path) -> None:
    worker = start(tmp_path)
    handle(worker, KEEPING)
    small = {"decimation_target": 1500, "texture_size": 1024}
    later = handle(worker, finishing(**small), "j2")
    assert later["mesh"]["faces"] <= 1500
    assert later["texture"]["size"] == 1024
    handle(worker, PLAIN | small | {"output": {"preview": False}}, "j3")
    models = [(tmp_path / f"output/{job}/model.glb").read_bytes() for job in ("j2", "j3")]
    assert models[0] == models[1]


def test_each_variant_is_kept_and_finished_by_its_own_name(tmp_path: Path) -> None:
    worker = start(tmp_path)
    first = handle(worker, of_seeds(5, 9) | {"keep": "latents"})
    for told in first["variants"]:
        assert told["kept"]["id"] == f"j1-{told['name']}"
        later = handle(worker, finishing(told["kept"]["id"]), f"of-{told['name']}")
        assert later["seed"] == told["seed"]
        assert later["artifact"]["sha256"] == told["artifact"]["sha256"]


def test_nothing_of_the_picture_and_no_address_is_kept(tmp_path: Path) -> None:
    handle(start(tmp_path), KEEPING)
    folder = kept_in(tmp_path)
    assert {p.name for p in folder.iterdir()} == {"latents.json", "latents.npz"}
    told = json.loads((folder / "latents.json").read_bytes())
    assert not {"image", "image_url", "output"} & set(told["request"])
    photo = base64.b64decode(PHOTO)
    for path in folder.iterdir():
        assert photo[100:160] not in path.read_bytes()
        assert PHOTO[:60].encode() not in path.read_bytes()
    assert told["input_sha256"] == hashlib.sha256(photo).hexdigest()


def test_a_plain_job_keeps_nothing(tmp_path: Path) -> None:
    answer = handle(start(tmp_path), PLAIN)
    assert answer["kept"] is None
    assert not (tmp_path / "output/latents").exists()


# --- what cannot be finished ------------------------------------------------------------------


def failed(tmp_path: Path, request: dict[str, Any] | None = None) -> tuple[str, str]:
    engine = Watched()
    answer = handle(start(tmp_path, engine), request or finishing(), "j2")
    assert engine.ran == []
    assert not (tmp_path / "output/j2").exists()
    return answer["code"], answer["error"]


def test_what_is_gone_expired_foreign_or_damaged_is_told_apart(tmp_path: Path) -> None:
    assert failed(tmp_path, finishing("never-was"))[0] == "latents_gone"
    assert failed(tmp_path, finishing("../../etc"))[0] == "latents_gone"
    handle(start(tmp_path), KEEPING)
    facts, arrays = (kept_in(tmp_path) / f"latents.{end}" for end in ("json", "npz"))
    whole, data = facts.read_bytes(), arrays.read_bytes()

    for changes, code, words in (
        ({"expires_at": "2020-01-01T00:00:00+00:00"}, "latents_expired", "2020-01-01"),
        ({"engine": "trellis2"}, "latents_foreign", "trellis2 (here embedded)"),
        ({"worker_version": "0.0.1"}, "latents_foreign", "worker 0.0.1"),
        ({"versions": {}}, "latents_foreign", "numpy absent"),
        ({"layout": 2}, "latents_foreign", "layout 2"),
        ({"expires_at": "soon"}, "latents_damaged", "expires_at"),
        ({"rungs": ["x"]}, "latents_damaged", "rung"),
        ({"seed": -1}, "latents_damaged", "latents.json"),
        ({"request": {"resolution": 7}}, "latents_damaged", "resolution"),
        ({"sha256": "0" * 64}, "latents_damaged", "SHA-256"),
        ({"facts": {}}, "latents_damaged", "picture_values"),
    ):
        # A sweep at the start removes what is over its time, so the reader is asked by itself.
        worker = start(tmp_path)
        change_facts(tmp_path, **changes)
        answer = handle(worker, finishing(), "j2")
        assert answer["code"] == code, changes
        assert words in answer["error"]
        assert not (tmp_path / "output/j2").exists()
        facts.write_bytes(whole)

    arrays.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert failed(tmp_path)[0] == "latents_damaged"
    facts.write_bytes(b"{")
    assert failed(tmp_path)[0] == "latents_damaged"
    facts.write_bytes(whole)
    arrays.unlink()
    assert failed(tmp_path)[0] == "latents_gone"


def forged(arrays: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {k: v for k, v in (arrays | changes).items() if v is not None}


def test_arrays_that_are_not_the_engines_own_are_refused_before_the_bake(tmp_path: Path) -> None:
    """A checksum can be forged by whoever can write the bucket; shapes and values are looked at."""
    handle(start(tmp_path), KEEPING)
    path = kept_in(tmp_path) / "latents.npz"
    true = unpack(path.read_bytes())
    for changes in (
        {"front_height": None},
        {"front_height": true["front_height"].astype(np.float64)},
        {"front_height": np.full_like(true["front_height"], np.nan)},
        {"front_height": true["front_height"][:-1]},
        {"mask": np.zeros_like(true["mask"])},
        {"silhouette": np.zeros((0, 0), bool)},
        {"back_color": true["back_color"][..., :2]},
    ):
        data = pack(forged(true, **changes))
        path.write_bytes(data)
        change_facts(tmp_path, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
        assert failed(tmp_path)[0] == "latents_damaged", list(changes)


def test_a_pickle_is_never_read() -> None:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.array([{"a": 1}], dtype=object))
    for data in (buffer.getvalue(), b"\x80\x04N.", b""):
        with pytest.raises(ValueError):
            unpack(data)
    squeezed = io.BytesIO()
    np.savez_compressed(squeezed, x=np.zeros(10_000_000, np.uint8))
    with pytest.raises(ValueError, match="compressed"):
        unpack(squeezed.getvalue())
    boasting = pack({"x": np.zeros(4, np.uint8)}).replace(b"(4,)", b"(9,)")
    with pytest.raises(ValueError):
        unpack(boasting)


def test_a_header_that_claims_more_than_there_is_takes_no_memory() -> None:
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        member, {"shape": (10**12,), "fortran_order": False, "descr": "<f4"}
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("x.npy", member.getvalue() + b"1234")
    with pytest.raises(ValueError, match="as many bytes as it claims"):
        unpack(buffer.getvalue())


@pytest.mark.parametrize(
    "header",
    [b"(" * 50, b"-" * 9000 + b"1", b"'''", b"{[]: 1}", b"\n   x\n  y", b"\xff", b"",
     b"{'descr': '<f4', 'fortran_order': False, 'shape': (1.5,), }",
     b"{'descr': ('<f4', (2,)), 'fortran_order': False, 'shape': (1,), }"],
)  # fmt: skip
def test_a_header_that_is_none_is_told_as_damage(header: bytes) -> None:
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"1234"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("x.npy", member)
    with pytest.raises(ValueError, match="an array"):
        unpack(buffer.getvalue())


@given(
    st.dictionaries(
        st.text("abc_", min_size=1, max_size=6),
        st.tuples(
            st.sampled_from(["<f4", "<i4", "|u1", "|b1"]),
            st.lists(st.integers(0, 4), max_size=3),
        ),
        max_size=4,
    )
)
def test_arrays_come_back_as_they_were(kinds: dict[str, tuple[str, list[int]]]) -> None:
    arrays = {
        name: np.arange(int(np.prod(shape))).reshape(shape).astype(kind)
        for name, (kind, shape) in kinds.items()
    }
    back = unpack(pack(arrays))
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        assert np.array_equal(back[name], array)


@given(st.binary(max_size=400), st.integers(0, 10**6))
def test_any_bytes_are_arrays_or_a_value_error(noise: bytes, at: int) -> None:
    true = pack({"x": np.arange(40, dtype=np.int32), "y": np.ones((3, 3), bool)})
    at %= len(true)
    for data in (noise, true[:at] + noise + true[at + len(noise) :]):
        try:
            unpack(data)
        except ValueError:
            pass


def test_latents_of_a_lower_level_than_is_accepted_are_refused(tmp_path: Path) -> None:
    worker = start(tmp_path)
    handle(worker, KEEPING)
    change_facts(tmp_path, rungs=["resolution_512"])
    answer = handle(worker, finishing(max_degradation_level=8), "j2")
    assert (answer["code"], answer["field"]) == ("invalid_input", "max_degradation_level")
    assert "level 9" in answer["error"]


def test_what_was_sampled_is_given_up_by_no_rung() -> None:
    plan = Plan.as_asked(parse_request({"image": "x", "resolution": 1536}), 1)
    descent = LadderState.resumed(plan, 12, ["tokens_32768"], Stage.DECODE, offload=False)
    assert descent.rung.name == "tokens_32768"
    while descent.step_down(Stage.DECODE):
        pass
    while descent.step_down(Stage.BAKE):
        pass
    names = {rung.name for rung in descent.taken}
    assert {"offload", "host_skips", "vertex_colors"} <= names
    assert not {"resolution_1024", "resolution_512"} & names
    assert descent.plan.resolution == 1536
    kept = "what was sampled is kept as it is"
    assert ("resolution_512", kept) in descent.skipped
    again = descent.again(plan)
    assert again.first_stage is Stage.DECODE
    assert RUNGS[5].name in {rung.name for rung in again.taken}


class Resumed(Watched):
    """The watched engine, whose resumed bakes count too."""

    def resume(self, latents: Any, plan: Plan) -> Any:
        return WatchedGeneration(self, super().resume(latents, plan))


def test_a_resumed_bake_goes_down_the_ladder_and_stops_with_its_job(tmp_path: Path) -> None:
    handle(start(tmp_path), KEEPING)
    engine = Resumed(0, OutOfVram("no room"))
    answer = handle(start(tmp_path, engine), finishing(), "j2")
    assert engine.ran == [Stage.BAKE, Stage.BAKE]
    assert len(answer["degradation"]["attempts"]) == 1
    stopped = Resumed()
    stopped.during = lambda _number, scope: scope.cancel()
    answer = handle(start(tmp_path, stopped), finishing(), "j3")
    assert answer["code"] == "cancelled"
    assert not (tmp_path / "output/j3").exists()


def test_a_worker_that_keeps_nothing_says_so_before_anything_is_computed(tmp_path: Path) -> None:
    engine = Watched()
    answer = handle(start(tmp_path, engine, TRELLIS2_KEEP_HOURS="0"), KEEPING)
    assert (answer["code"], answer["field"]) == ("invalid_input", "keep")
    assert engine.ran == []


def test_a_job_that_fails_after_keeping_leaves_nothing(tmp_path: Path) -> None:
    most = {"TRELLIS2_MAX_ANSWER_BYTES": "90000"}
    asked = KEEPING | {"decimation_target": 20_000, "output": {"preview": False}}
    worker = platform_worker(tmp_path, **ON_PLATFORM, **most)
    assert handle_on_platform(worker, "j1", asked)["code"] == "answer_too_large"
    assert not [p for p in tmp_path.rglob("latents.*") if p.is_file()]


# --- where it lies, and for how long ----------------------------------------------------------


def test_what_is_over_its_time_is_swept_and_the_oldest_go_where_room_is_short(
    tmp_path: Path,
) -> None:
    worker = start(tmp_path)
    for job in ("a", "b", "c"):
        handle(worker, KEEPING | {"output": {"preview": False}}, job)
    root = tmp_path / "output"
    size = sum(p.stat().st_size for p in (root / "latents/a").iterdir())
    for age, job in enumerate(("c", "b", "a")):
        at = datetime.now(UTC).timestamp() - 100 * age
        os.utime(root / "latents" / job, (at, at))
    settings = DeliverySettings(output_dir=root, keep_disk_gb=2.5 * size / 1024**3)
    assert sweep_latents(settings) == 1
    assert sorted(p.name for p in (root / "latents").glob("[abc]")) == ["b", "c"]
    assert sweep_latents(settings, wanted=size) == 1
    assert sorted(p.name for p in (root / "latents").glob("[abc]")) == ["c"]
    facts = root / "latents/c/latents.json"
    told = json.loads(facts.read_bytes())
    ends = datetime.fromisoformat(told["expires_at"])
    assert abs(ends - datetime.now(UTC) - timedelta(hours=24)) < timedelta(hours=1)
    facts.write_text(json.dumps(told | {"expires_at": "2020-01-01T00:00:00+00:00"}))
    start(tmp_path)  # sweeps
    assert not (root / "latents/c").exists()


def test_latents_that_a_disk_has_no_room_for_are_refused_in_words(tmp_path: Path) -> None:
    asked = KEEPING | {"output": {"preview": False}}
    answer = handle(start(tmp_path, TRELLIS2_KEEP_DISK_GB="0.0001"), asked)
    assert (answer["code"], answer["field"]) == ("storage_failed", "keep")
    assert "TRELLIS2_KEEP_DISK_GB" in answer["error"]
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_variants_latents_do_not_take_the_place_of_its_siblings(tmp_path: Path) -> None:
    size = handle(start(tmp_path / "one"), of_seeds(1) | {"keep": "latents"})["variants"][0]
    room = {"TRELLIS2_KEEP_DISK_GB": str(1.5 * size["kept"]["bytes"] / 1024**3)}
    answer = handle(start(tmp_path / "two", **room), of_seeds(1, 2) | {"keep": "latents"})
    assert (answer["code"], answer["field"]) == ("storage_failed", "keep")
    assert "for 2 variants" in answer["error"]
    assert not [p for p in (tmp_path / "two").rglob("*") if p.is_file()]


def test_latents_on_a_workers_own_disk_are_finished_while_they_are_there(tmp_path: Path) -> None:
    worker = platform_worker(tmp_path, **ON_PLATFORM)
    first = handle_on_platform(worker, "scratch", KEEPING | {"output": {"preview": False}})
    assert first["kept"]["place"] == "folder"
    later = handle_on_platform(worker, "later", finishing("scratch"))
    assert later["artifact"]["base64"] == first["artifact"]["base64"]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with SeaweedFs(tmp_path_factory.mktemp("s3")) as server:
        yield server


def test_latents_in_a_bucket_serve_another_worker_and_a_job_that_is_run_again(
    bucket: SeaweedFs, tmp_path: Path
) -> None:
    plain = {"output": {"preview": False}}
    worker = platform_worker(tmp_path / "one", **bucket.variables())
    first = handle_on_platform(worker, "kept", KEEPING | plain)
    assert first["kept"]["place"] == "bucket"
    found = bucket.client.head_object(Bucket=BUCKET, Key="trellis2/latents/kept/latents.npz")
    assert found["Metadata"]["sha256"] == first["kept"]["sha256"]
    other = platform_worker(tmp_path / "two", **bucket.variables())
    later = handle_on_platform(other, "fin", finishing("kept"))
    assert later["artifact"]["sha256"] == first["artifact"]["sha256"]
    bucket.client.delete_object(Bucket=BUCKET, Key="trellis2/latents/kept/latents.npz")
    again = handle_on_platform(other, "fin", finishing("kept"))
    assert again["timings"] == later["timings"]  # answered with what lies there
    assert handle_on_platform(other, "fin2", finishing("kept"))["code"] == "latents_gone"


def test_the_buckets_own_end_of_an_object_is_obeyed(bucket: SeaweedFs, tmp_path: Path) -> None:
    worker = platform_worker(tmp_path, **bucket.variables())
    handle_on_platform(worker, "old", KEEPING | {"output": {"preview": False}})
    key = "trellis2/latents/old/latents.json"
    body = bucket.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    past = datetime.now(UTC) - timedelta(hours=1)
    bucket.client.put_object(Bucket=BUCKET, Key=key, Body=body, Expires=past)
    answer = handle_on_platform(worker, "late", finishing("old"))
    assert answer["code"] == "latents_expired"


class Lifecycle:
    """A bucket that says when its lifecycle ends an object, as Amazon's does."""

    def __init__(self, ends: datetime) -> None:
        self._ends = format_datetime(ends.astimezone(UTC), usegmt=True)

    def apart(self, _folder: str) -> Lifecycle:
        return self

    def fetch(self, _name: str, _most: int, _scope: Any) -> tuple[bytes, dict[str, str]]:
        return b"{}", {"Expiration": f'expiry-date="{self._ends}", rule-id="latents"'}


def test_the_date_that_a_lifecycle_rule_gives_is_read(scope: Any) -> None:
    ends = datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC)
    found = BucketLatents(Lifecycle(ends), "x").facts(scope)  # type: ignore[arg-type]
    assert found is not None
    assert found.expires == ends


def test_settings_bound_what_is_kept() -> None:
    settings = Settings.from_env({"TRELLIS2_KEEP_HOURS": "2.5", "TRELLIS2_KEEP_DISK_GB": "1"})
    assert settings.delivery.keep_hours == 2.5
    assert settings.delivery.keep_disk_bytes == 2**30


# --- through the platform ---------------------------------------------------------------------


def test_all_finishes_at_once_and_then_those_of_the_first_jobs_latents_through_the_sdk(
    tmp_path: Path,
) -> None:
    with Plane() as plane, WorkerProcess(plane, tmp_path):
        inline = asking(*ALL, delivery="inline") | {"keep": "latents"}
        first = plane.ask(inline).output
        assert [told["error"] for told in first["files"]] == [None] * len(ALL)
        later = {"finish_of": first["kept"]["id"], "output": inline["output"]}
        second = plane.ask(later).output
    assert "structure" not in second["timings"]
    assert second["artifact"]["sha256"] == first["artifact"]["sha256"]
    for ours, theirs in zip(second["files"], first["files"], strict=True):
        assert ours["name"] == theirs["name"]
        assert ours["faces"] == theirs["faces"]
        if ours["format"] in ("glb", "ply", "stl"):
            assert ours["artifact"]["sha256"] == theirs["artifact"]["sha256"], ours["name"]
