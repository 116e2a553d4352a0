"""output.finishes: more files of one sampling, through the worker, the SDK's loop and the server."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import requests
import trimesh
from PIL import Image

from tests.conftest import picture, pixels
from tests.generations import WithinGeneration
from tests.plane import Plane, WorkerProcess
from tests.seaweed import BUCKET, SeaweedFs
from tests.test_delivery import ON_PLATFORM
from tests.test_delivery import handle as handle_on_platform
from tests.test_delivery import worker as platform_worker
from tests.test_glb import parts
from tests.test_quality_retries import GOOD, LEAKY, Reported
from tests.test_server_endpoint import Endpoint, beside, ended, submit
from tests.test_worker import PHOTO, QUICK, handle, start
from trellis_runtime.assets import gltfpack
from trellis_runtime.assets.glb_reader import read_textures
from trellis_runtime.contract.answer import GenerationResult
from trellis_runtime.contract.engine import Asset, Generation
from trellis_runtime.contract.files import FORMATS, file_called
from trellis_runtime.contract.ladder import RUNGS, LadderState, Plan
from trellis_runtime.contract.request import parse_request, request_schema
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import ENGINE_STAGES, Stage
from trellis_runtime.engines.embedded import EmbeddedEngine
from trellis_runtime.errors import EngineFault, InvalidInput, MeshRejected, OutOfVram
from trellis_runtime.worker.export import Exported, export
from trellis_runtime.worker.finishes import Finisher
from trellis_runtime.worker.fitting import fit
from trellis_runtime.worker.orders import settle
from trellis_runtime.worker.worker import Worker

ALL = [
    {"name": "phone", "decimation_target": 1000, "texture_size": 1024, "compression": "draco"},
    {"name": "quicklook", "format": "usdz"},
    {"name": "blender", "format": "obj", "size_m": 2.0, "pivot": "bottom"},
    {"name": "points", "format": "ply", "up_axis": "z"},
    {"name": "print", "format": "stl", "size_m": 0.08},
    {"name": "print-3mf", "format": "3mf"},
]
PLAIN: dict[str, Any] = QUICK | {"decimation_target": 3000}


def asking(*finishes: dict[str, Any], **output: Any) -> dict[str, Any]:
    return PLAIN | {"output": {"preview": False, "finishes": list(finishes), **output}}


class Watched(EmbeddedEngine):
    """The embedded engine, whose bakes are counted; number `at` (from 0) raises `error` once."""

    def __init__(self, at: int = -1, error: Exception | None = None) -> None:
        super().__init__()
        self.at, self.error = at, error
        self.ran: list[Stage] = []
        self.plans: list[Plan] = []
        self.during: Callable[[int, JobScope], None] = lambda _number, _scope: None

    def begin(self, image: Any, plan: Plan) -> Any:
        return WatchedGeneration(self, super().begin(image, plan))


class WatchedGeneration(WithinGeneration):
    def __init__(self, engine: Watched, inner: Generation) -> None:
        super().__init__(inner)
        self._engine = engine

    def run(self, stage: Stage, plan: Plan, scope: JobScope) -> None:
        engine = self._engine
        engine.ran.append(stage)
        if stage is Stage.BAKE:
            number = len(engine.plans)
            engine.plans.append(plan)
            engine.during(number, scope)
            if number == engine.at and engine.error is not None:
                raise engine.error
        super().run(stage, plan, scope)


# --- the request ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("finish", "words"),
    [
        ({"name": "Big"}, "name"),
        ({"name": "../x"}, "name"),
        ({"name": "x" * 33}, "name"),
        ({"name": "model"}, "plain GLB"),
        ({}, "name is missing"),
        ({"name": "a", "format": "fbx"}, "'stl', '3mf', 'hulls' or 'maps'"),
        ({"name": "model", "format": "hulls"}, "plain GLB"),
        ({"name": "a", "hulls": 4}, "hulls is for format 'hulls'"),
        ({"name": "a", "format": "hulls", "hulls": 65}, "64"),
        ({"name": "a", "format": "hulls", "hulls": 0}, "1"),
        ({"name": "a", "format": "hulls", "decimation_target": 2000}, "is not used with"),
        ({"name": "a", "format": "stl", "texture_size": 512}, "has no textures"),
        ({"name": "a", "format": "3mf", "texture_format": "png"}, "has no textures"),
        ({"name": "a", "format": "usdz", "texture_format": "webp"}, "takes png, jpeg"),
        ({"name": "a", "format": "obj", "compression": "draco"}, "compression is for format 'glb'"),
        ({"name": "a", "compression": "gzip"}, "'none', 'draco' or 'meshopt'"),
        ({"name": "a", "format": "maps", "compression": "meshopt"}, "is for format 'glb'"),
        ({"name": "a", "format": "maps", "size_m": 0.5}, "size_m is not used with format 'maps'"),
        ({"name": "a", "format": "maps", "size_axis": "x"}, "size_axis is not used with"),
        ({"name": "a", "format": "maps", "pivot": "center"}, "pivot is not used with"),
        ({"name": "a", "format": "maps", "up_axis": "y"}, "up_axis is not used with"),
        ({"name": "a", "format": "maps", "hulls": 3}, "hulls is for format 'hulls'"),
        ({"name": "a", "format": "maps", "texture_size": 0}, "512, 1024"),
        ({"name": "a", "up_axis": "z"}, "y-up by its own rules"),
        ({"name": "a", "format": "usdz", "up_axis": "z"}, "y-up by its own rules"),
        ({"name": "a", "size_m": 0}, "0.001"),
        ({"name": "a", "size_m": 1001}, "1000"),
        ({"name": "a", "decimation_target": 999}, "1000"),
        ({"name": "a", "texture_size": 1000}, "512, 1024"),
        ({"name": "a", "faces": 5}, "not a field"),
        ({"name": "a", "maps": ["height"]}, "'normal' or 'occlusion'"),
        ({"name": "a", "maps": ["normal", "normal"]}, "given twice"),
        ({"name": "a", "format": "stl", "maps": ["normal"]}, "has no textures"),
    ],
)
def test_a_finish_that_cannot_be_is_refused_and_the_schema_says_the_same(
    finish: dict[str, Any], words: str
) -> None:
    payload = {"image": "x", "output": {"finishes": [finish]}}
    with pytest.raises(InvalidInput, match=words) as caught:
        parse_request(payload)
    assert str(caught.value.field).startswith("output.finishes.0")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(payload, request_schema())


def test_maps_that_the_engine_cannot_bake_are_refused_before_anything_is_computed(
    tmp_path: Path,
) -> None:
    engine = Watched()
    worker = start(tmp_path, engine)
    for asked, field in (
        (asking(maps=["normal"]), "output.maps"),
        (asking(ALL[0], {"name": "b", "maps": ["occlusion"]}), "output.finishes.1.maps"),
    ):
        answer = handle(worker, asked)
        assert (answer["code"], answer["field"]) == ("invalid_input", field)
        assert asked["output"].get("maps", ["occlusion"])[0] in answer["error"]
        assert "embedded" in answer["error"]
    assert engine.ran == []


def test_a_finish_has_the_requests_maps_its_own_or_none_without_a_texture() -> None:
    finishes = [{"name": "a"}, {"name": "b", "maps": []}, {"name": "c", "maps": ["occlusion"]},
                {"name": "d", "format": "ply"}]  # fmt: skip
    asked = {"image": "x", "output": {"maps": ["normal"], "finishes": finishes, "lods": [2000]}}
    jsonschema.validate(asked, request_schema())
    request = parse_request(asked)
    orders = [settle(finish, request) for finish in request.output.all_finishes]
    plans = [order.plan(Plan.as_asked(request, 1)) for order in orders]
    assert [plan.maps for plan in plans] == [("normal",), (), ("occlusion",), (), ("normal",)]
    with pytest.raises(InvalidInput, match="given twice"):
        parse_request({"image": "x", "output": {"maps": ["normal", "normal"]}})


def test_finishes_are_bounded_and_each_has_a_name_of_its_own() -> None:
    many = [{"name": f"f{number}"} for number in range(9)]
    with pytest.raises(InvalidInput, match="8"):
        parse_request({"image": "x", "output": {"finishes": many}})
    with pytest.raises(InvalidInput, match="'a' is given twice"):
        parse_request({"image": "x", "output": {"finishes": [{"name": "a"}, {"name": "a"}]}})


def test_every_format_is_accepted_by_the_schema_too() -> None:
    jsonschema.validate({"image": "x", "output": {"finishes": ALL}}, request_schema())
    assert len(parse_request({"image": "x", "output": {"finishes": ALL}}).output.finishes) == 6


def test_what_a_finish_leaves_out_is_as_the_request_has_it() -> None:
    asked = {
        "texture_size": 1024,
        "decimation_target": 7000,
        "output": {
            "texture_format": "webp", "compression": "draco", "size_m": 3.0, "size_axis": "y",
            "pivot": "bottom",
            "finishes": [{"name": "a"}, {"name": "b", "format": "usdz"},
                         {"name": "c", "format": "stl"}],
        },
    }  # fmt: skip
    request = parse_request({"image": "x", **asked})
    glb, usdz, stl = (settle(finish, request) for finish in request.output.finishes)
    assert (glb.decimation_target, glb.texture_size, glb.texture_format) == (7000, 1024, "webp")
    assert (glb.compression, glb.placement.size_m, glb.placement.pivot) == ("draco", 3.0, "bottom")
    assert (usdz.compression, usdz.texture_format) == ("none", "png")  # it knows no WebP
    assert (stl.placement.size_m, stl.placement.axis, stl.placement.up) == (3.0, "y", "z")
    unsized = parse_request({"image": "x", "output": {"finishes": ALL}})
    sizes = [settle(f, unsized).placement.size_m for f in unsized.output.finishes]
    assert sizes == [None, None, 2.0, None, 0.08, 0.1]


def test_a_library_that_is_absent_is_told_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Watched()
    lacking = replace(FORMATS["usdz"], packages=(("no_such_module", "usd-core"),))
    monkeypatch.setitem(FORMATS, "usdz", lacking)
    answer = handle(start(tmp_path, engine), asking(ALL[0], ALL[1]))
    assert answer["code"] == "invalid_input"
    assert answer["field"] == "output.finishes.1.format"
    assert "usd-core" in answer["error"]
    assert engine.ran == []


@pytest.mark.parametrize(
    ("output", "field"),
    [
        ({"compression": "meshopt"}, "output.compression"),
        ({"finishes": [ALL[4], {"name": "a", "compression": "meshopt"}]},
         "output.finishes.1.compression"),
    ],
)  # fmt: skip
def test_meshopt_without_gltfpack_is_told_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: dict[str, Any], field: str
) -> None:
    engine = Watched()
    monkeypatch.setattr(gltfpack, "WASM", tmp_path / "gltfpack.wasm")
    answer = handle(start(tmp_path, engine), PLAIN | {"output": output})
    assert (answer["code"], answer["field"]) == ("invalid_input", field)
    assert "gltfpack.wasm" in answer["error"]
    assert str(tmp_path) not in answer["error"]
    assert engine.ran == []


def test_names_of_files_lead_nowhere_else() -> None:
    told = file_called("print.3mf")
    assert told is not None
    assert told.content_type == "model/3mf"
    assert file_called("model.glb") is not None
    for name in ("../a.glb", "a/b.stl", ".stl", "a.exe", "request.json", "A.stl"):
        assert file_called(name) is None


# --- the worker -------------------------------------------------------------------------------


def test_sampling_is_done_once_and_each_file_is_as_it_is_told(tmp_path: Path) -> None:
    engine = Watched()
    worker = start(tmp_path, engine)
    answer = handle(worker, asking(*ALL))
    GenerationResult.model_validate_json(json.dumps(answer))
    assert engine.ran == [
        *ENGINE_STAGES,
        Stage.BAKE,
        Stage.BAKE,
    ]  # phone's, and colours' at vertices
    folder = tmp_path / "output/j1"
    names = [
        "phone.glb",
        "quicklook.usdz",
        "blender.zip",
        "points.ply",
        "print.stl",
        "print-3mf.3mf",
    ]
    assert [told["file_name"] for told in answer["files"]] == names
    assert {p.name for p in folder.iterdir()} == {*names, "model.glb", "answer.json"}
    for told in answer["files"]:
        data = (folder / told["file_name"]).read_bytes()
        assert told["error"] is None
        assert told["artifact"]["bytes"] == len(data)
        assert told["artifact"]["sha256"] == hashlib.sha256(data).hexdigest()
        assert told["artifact"]["content_type"] == FORMATS[told["format"]].content_type
        assert told["seconds"] > 0
        assert told["oom_quality_degradation_level"] == 0
    assert answer["timings"]["finish"] >= sum(told["seconds"] for told in answer["files"]) - 0.01
    assert [told["faces"] for told in answer["files"]] == [1000] + [answer["mesh"]["faces"]] * 5
    assert [told["texture"]["size"] for told in answer["files"]] == [1024, 512, 512, 0, 0, 0]
    printed = trimesh.load(folder / "print.stl")
    assert printed.is_watertight
    assert max(printed.extents) == pytest.approx(80, rel=1e-4)
    assert answer["files"][4]["size_m"] == pytest.approx(list(printed.extents / 1000), abs=1e-5)
    assert (answer["files"][4]["unit"], answer["files"][4]["up_axis"]) == ("millimetre", "z")


def test_maps_are_those_of_the_glb_that_they_are_asked_beside_and_cost_no_bake(
    tmp_path: Path,
) -> None:
    engine = Watched()
    finishes = [
        {"name": "textures", "format": "maps"},
        {"name": "phone", "decimation_target": 1000, "texture_size": 1024},
        {"name": "phone-maps", "format": "maps", "decimation_target": 1000, "texture_size": 1024},
    ]
    answer = handle(start(tmp_path, engine), asking(*finishes))
    GenerationResult.model_validate_json(json.dumps(answer))
    assert engine.ran == [*ENGINE_STAGES, Stage.BAKE]  # the phone's, which its maps share
    folder = tmp_path / "output/j1"
    for glb, maps, size in (
        ("model.glb", "textures.zip", 512),
        ("phone.glb", "phone-maps.zip", 1024),
    ):
        archive = zipfile.ZipFile(folder / maps)
        for name, texture in zip(
            ("base_color.png", "metallic_roughness.png"),
            read_textures((folder / glb).read_bytes()),
            strict=True,
        ):
            assert texture is not None
            picture_of = Image.open(io.BytesIO(archive.read(name)))
            assert picture_of.size == (size, size)
            assert np.array_equal(np.asarray(picture_of), np.asarray(texture))
    told = answer["files"][0]
    assert told["artifact"]["content_type"] == "application/zip"
    assert told["faces"] == answer["mesh"]["faces"]
    assert told["texture"] == answer["texture"]


def test_a_plain_request_stays_one_glb(tmp_path: Path) -> None:
    engine = Watched()
    answer = handle(start(tmp_path, engine), PLAIN)
    assert answer["files"] == []
    assert "finish" not in answer["timings"]
    assert engine.ran == list(ENGINE_STAGES)


def opened(request: Any, engine: EmbeddedEngine) -> tuple[Generation, LadderState]:
    """A generation of the engine whose stages have run for `request`, and its way down."""
    engine.load(lambda _phase, _seconds: None)
    descent = LadderState.begin(Plan.as_asked(request, 1), 12)
    generation = engine.begin(pixels(picture(96)), descent.plan)
    for stage in ENGINE_STAGES:
        generation.run(stage, descent.plan, JobScope("x"))
    return generation, descent


def test_progress_goes_through_each_finish_and_never_back() -> None:
    request = parse_request(asking(*ALL))
    generation, descent = opened(request, EmbeddedEngine())
    seen: list[tuple[str, float]] = []
    scope = JobScope("x", progress=lambda *told: seen.append(told))
    scope.weights[Stage.FINISH] *= len(ALL)
    Finisher(generation, descent, generation.asset(), request, lambda *_: {}).make(scope)
    done = [share for _, share in seen]
    assert {stage for stage, _ in seen} == {"finish"}
    assert done == sorted(done)
    assert len(set(done)) > len(ALL)  # steps within a bake are told too


def test_the_portions_of_a_stage_share_it() -> None:
    seen: list[float] = []
    scope = JobScope("x", progress=lambda _stage, share: seen.append(share))
    with scope.stage(Stage.FINISH):
        for number in range(2):
            with scope.portion(number, 2):
                scope.step(1, 2)
                scope.step(2, 2)
    whole = scope.weights[Stage.FINISH] / sum(scope.weights.values())
    assert seen == pytest.approx([0, 0, whole / 4, whole / 2, whole / 2, whole * 3 / 4, whole])


@pytest.mark.parametrize("error", [MeshRejected("no face is left"), OutOfVram("no room")])
def test_a_finish_that_fails_leaves_the_others_alone(tmp_path: Path, error: Any) -> None:
    engine = Watched(1, error)
    failing = asking(ALL[0], ALL[4], ALL[1]) | {"max_degradation_level": 0}
    answer = handle(start(tmp_path, engine), failing)
    phone, stl, usdz = answer["files"]
    assert phone["artifact"] is None
    assert phone["error"]["code"] == error.code
    assert phone["error"]["retryable"] == error.retryable
    assert stl["error"] is usdz["error"] is None
    assert {p.name for p in (tmp_path / "output/j1").iterdir()} == {
        "model.glb", "answer.json", "print.stl", "quicklook.usdz",
    }  # fmt: skip


def test_a_finish_that_crashes_is_told_without_what_it_said(tmp_path: Path) -> None:
    answer = handle(start(tmp_path, Watched(1, KeyError("/secret/path"))), asking(ALL[0], ALL[1]))
    phone, usdz = answer["files"]
    assert (phone["error"]["code"], phone["error"]["retryable"]) == ("internal", True)
    assert "secret" not in json.dumps(answer)
    assert usdz["error"] is None


def test_an_engine_that_cannot_be_trusted_ends_the_job(tmp_path: Path) -> None:
    answer = handle(start(tmp_path, Watched(1, EngineFault("CUDA error"))), asking(ALL[0]))
    assert answer["code"] == "engine_fault"
    assert answer["refresh_worker"]
    assert not (tmp_path / "output/j1").exists()


def test_a_finish_goes_down_the_ladder_on_its_own(tmp_path: Path) -> None:
    engine = Watched(1, OutOfVram("no room"))
    answer = handle(start(tmp_path, engine), asking(ALL[0]))
    assert answer["oom_quality_degradation_level"] == 0
    assert answer["files"][0]["error"] is None
    assert answer["files"][0]["oom_quality_degradation_level"] > 0
    assert engine.ran == [*ENGINE_STAGES, Stage.BAKE, Stage.BAKE]


def test_rungs_that_lowered_one_bake_do_not_lower_the_next() -> None:
    plan = Plan.as_asked(parse_request({"image": "x"}), 1)
    descent = LadderState.begin(plan, RUNGS[-1].level)
    while descent.plan.texture_size == plan.texture_size:
        assert descent.step_down(Stage.BAKE)
    other = descent.again(replace(plan, texture_size=1024))
    assert other.plan.texture_size == 1024
    assert other.plan.chunk_bake
    assert other.lossless


def test_a_job_that_is_stopped_in_a_finish_delivers_nothing(tmp_path: Path) -> None:
    engine = Watched()
    engine.during = lambda number, scope: scope.cancel() if number == 1 else None
    answer = handle(start(tmp_path, engine), asking(*ALL))
    assert answer["code"] == "cancelled"
    assert not (tmp_path / "output/j1").exists()


def test_a_strict_check_holds_for_each_finish() -> None:
    """The model passed; a finish whose own report fails is refused, with the report's words."""
    request = parse_request(asking(ALL[0]) | {"strict": ["open"]})
    generation, descent = opened(request, EmbeddedEngine())
    made = replace(generation.asset(), quality=GOOD)
    finisher = Finisher(Reported(generation, LEAKY), descent, made, request, lambda *_: {})
    (told,) = (finished.told for finished in finisher.make(JobScope("x")))
    assert told.error is not None
    assert told.error.code == "mesh_rejected"
    assert "7 edges have one face" in told.error.text


def test_a_file_for_printers_that_is_open_says_so() -> None:
    """Each finish has warnings of its own; the plan for printers is closed whatever was asked."""
    request = parse_request(asking(ALL[4], ALL[0]) | {"shell": "double_sided"})
    generation, descent = opened(request, EmbeddedEngine())
    whole = generation.asset()

    class Torn(Reported):
        def asset(self) -> Asset:
            return replace(whole, faces=whole.faces[:-1], uvs=None, base_color=None)

    torn = Torn(generation, GOOD)
    finisher = Finisher(torn, descent, whole, request, lambda *_: {})
    stl, glb = (finished.told for finished in finisher.make(JobScope("x")))
    assert [warning.code for warning in stl.warnings] == ["not_closed"]
    assert glb.warnings == []
    order = settle(request.output.finishes[0], request)
    assert order.plan(descent.requested).shell == "closed"
    assert (
        settle(request.output.finishes[1], request).plan(descent.requested).shell == "double_sided"
    )


def test_levels_of_detail_are_one_glb_each_within_its_budget(
    tmp_path: Path, khronos: Callable[[bytes], None]
) -> None:
    engine = Watched()
    lods = [2500, 1500, 1000]
    answer = handle(start(tmp_path, engine), asking(ALL[4], lods=lods))
    assert engine.ran.count(Stage.SHAPE) == 1
    told = answer["files"]
    assert [one["file_name"] for one in told] == ["print.stl", "lod0.glb", "lod1.glb", "lod2.glb"]
    for one, budget in zip(told[1:], lods, strict=True):
        assert 0.9 * budget <= one["faces"] <= budget
        assert one["texture"]["size"] == 512
        khronos((tmp_path / "output/j1" / one["file_name"]).read_bytes())


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ({"lods": [2000, 2000]}, "fewer faces than the one before"),
        ({"lods": [2000, 5000]}, "fewer faces than the one before"),
        ({"lods": [999]}, "1000"),
        ({"lods": [9000 - n for n in range(7)], "finishes": ALL[:2]}, "9 together"),
        ({"lods": [2000], "finishes": [{"name": "lod0"}]}, "'lod0' is given twice"),
        ({"hulls": 4, "finishes": [{"name": "hulls"}]}, "'hulls' is given twice"),
        ({"hulls": 4, "lods": [9000 - n for n in range(8)]}, "9 together"),
        ({"hulls": 65}, "64"),
    ],
)
def test_levels_that_cannot_be_are_refused(output: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        parse_request({"image": "x", "output": output})


# --- delivery ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFs]:
    with SeaweedFs(tmp_path_factory.mktemp("seaweed")) as running:
        yield running


def test_a_job_that_is_run_again_finds_its_finishes_in_the_bucket(
    bucket: SeaweedFs, tmp_path: Path
) -> None:
    of = platform_worker(tmp_path, **bucket.variables())
    asked = asking(ALL[4], ALL[5])
    first = handle_on_platform(of, "fin", asked)
    told = first["files"][0]["artifact"]
    got = requests.get(told["url"], timeout=10).content
    assert hashlib.sha256(got).hexdigest() == told["sha256"]
    again = handle_on_platform(of, "fin", asked)
    assert again["timings"] == first["timings"]
    assert [f["artifact"]["sha256"] for f in again["files"]] == [
        f["artifact"]["sha256"] for f in first["files"]
    ]
    bucket.client.delete_object(Bucket=BUCKET, Key="trellis2/fin/print.stl")
    third = handle_on_platform(of, "fin", asked)
    assert third["timings"] != first["timings"]
    assert third["files"][0]["artifact"]["sha256"] == told["sha256"]  # the same bytes again


def test_all_formats_at_once_through_the_sdk(tmp_path: Path) -> None:
    with Plane() as plane, WorkerProcess(plane, tmp_path):
        record = plane.ask(asking(*ALL, delivery="inline"))
    answer = record.output
    assert len(record.results) == 1
    for told in answer["files"]:
        data = base64.b64decode(told["artifact"]["base64"])
        assert hashlib.sha256(data).hexdigest() == told["artifact"]["sha256"]
        first = {"glb": b"glTF", "ply": b"ply\n", "stl": b"trel"}.get(told["format"], b"PK\3\4")
        assert data[:4] == first


def test_an_endpoints_finishes_come_to_this_machine(tmp_path: Path) -> None:
    data = b"solid nothing\n" * 20
    told = {
        "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(),
        "content_type": "model/stl", "base64": base64.b64encode(data).decode(),
    }  # fmt: skip
    worker = start(tmp_path / "there")
    answer = handle(worker, PLAIN | {"output": {"delivery": "inline", "preview": False}})
    answer["files"] = [
        {"name": "print", "format": "stl", "file_name": "print.stl", "artifact": told}
    ]
    done = json.dumps({"status": "COMPLETED", "output": answer}).encode()
    with beside(Endpoint([(200, done)]), tmp_path) as url:
        job = submit(url)
        assert ended(url, job)["state"] == "done"
        got = requests.get(f"{url}/jobs/{job}/files/print.stl", timeout=10)
        assert got.content == data
        assert got.headers["content-type"] == "model/stl"
        assert requests.get(f"{url}/jobs/{job}/files/other.stl", timeout=10).status_code == 404


# --- the recipe -------------------------------------------------------------------------------


def test_a_glb_holds_what_it_was_made_of_and_no_secret(tmp_path: Path) -> None:
    worker = start(tmp_path)
    answer = handle(worker, asking({"name": "small", "decimation_target": 1000}, size_m=0.5))
    photo = base64.b64decode(PHOTO)
    for name, finish in (("model.glb", None), ("small.glb", "small")):
        data = (tmp_path / "output/j1" / name).read_bytes()
        document, blob = parts(data)
        told = document["asset"]["extras"]
        assert told["input_sha256"] == hashlib.sha256(photo).hexdigest()
        assert told["content_sha256"] == hashlib.sha256(blob).hexdigest()
        assert told.get("finish") == finish
        assert (told["seed"], told["engine"]) == (3, "embedded")
        assert told["versions"] == answer["engine"]["versions"]
        assert told["request"]["decimation_target"] == 3000
        assert told["effective"]["decimation_target"] == (1000 if finish else 3000)
        assert not {"image", "image_url"} & set(told["request"])
        assert PHOTO[:40].encode() not in data


def test_addresses_with_signatures_are_not_in_the_recipe(tmp_path: Path) -> None:
    from trellis_runtime.contract.answer import EngineInfo
    from trellis_runtime.worker.recipe import recipe

    request = parse_request(
        {
            "image_url": "https://a.example/p.png?token=SECRET",
            "output": {"upload_url": "https://b.example/?X-Amz-Signature=SECRET"},
        }
    )
    generation, descent = opened(parse_request(PLAIN), EmbeddedEngine())
    told = recipe(EngineInfo(name="x"), request, "0" * 64, descent, generation.asset())
    assert "SECRET" not in json.dumps(told)


# --- delivery without a bucket ----------------------------------------------------------------


def on_platform(tmp_path: Path, most: int) -> Worker:
    return platform_worker(tmp_path, **ON_PLATFORM, TRELLIS2_MAX_ANSWER_BYTES=str(most))


def test_what_is_too_large_for_the_answer_is_compressed_before_it_is_refused(
    tmp_path: Path,
) -> None:
    """The mildest form that fits is taken, and told; with more room it is as asked."""
    asked = {**QUICK, "decimation_target": 20_000, "output": {"preview": False}}
    answers = {
        most: handle_on_platform(on_platform(tmp_path, most), f"j{most}", asked)
        for most in (10_000_000, 690_000, 400_000)
    }
    found = {}
    for most, answer in answers.items():
        data = base64.b64decode(answer["artifact"]["base64"])
        assert len(json.dumps(answer)) <= most
        found[most] = parts(data)[0].get("extensionsRequired", [])
        codes = [warning["code"] for warning in answer["warnings"]]
        assert ("compressed_for_delivery" in codes) == (most < 10_000_000)
        assert answer["mesh"]["faces"] == answers[10_000_000]["mesh"]["faces"]
    draco = "KHR_draco_mesh_compression"
    assert found == {
        10_000_000: [], 690_000: ["EXT_texture_webp"], 400_000: ["EXT_texture_webp", draco],
    }  # fmt: skip
    texts = [w["text"] for w in answers[400_000]["warnings"] if w["code"].startswith("compr")]
    assert "WebP and its geometry was compressed with Draco" in texts[0]
    assert answers[400_000]["texture"]["format"] == "webp"


def test_the_bytes_of_a_mesh_are_known_without_encoding_it(tmp_path: Path) -> None:
    """So a step that cannot be enough is not tried: WebP for a mesh that is too large itself."""
    generation, _ = opened(parse_request(PLAIN), EmbeddedEngine())
    exported = export(generation.asset(), "png", {})
    images = [view["bufferView"] for view in parts(exported.data)[0]["images"]]
    views = parts(exported.data)[0]["bufferViews"]
    real = sum(v["byteLength"] for number, v in enumerate(views) if number not in images)
    assert exported.geometry_bytes == real
    tried: list[str] = []

    def again(texture_format: str, compression: str) -> Exported:
        tried.append(compression)
        return exported

    output = parse_request(PLAIN).output
    fit(exported, real - 1, output, again)
    assert tried == ["draco"]
    fit(exported, len(exported.data) - 1, output, again)
    assert tried == ["draco", "none", "draco"]


def test_what_fits_in_no_form_is_refused_in_words(tmp_path: Path) -> None:
    asked = {**QUICK, "decimation_target": 20_000, "output": {"preview": False}}
    answer = handle_on_platform(on_platform(tmp_path, 90_000), "j", asked)
    assert answer["code"] == "answer_too_large"
    assert "compression" in answer["error"]


def test_a_caller_who_chose_inline_gets_the_form_that_was_asked_for(tmp_path: Path) -> None:
    asked = {
        **QUICK, "decimation_target": 20_000, "output": {"preview": False, "delivery": "inline"},
    }  # fmt: skip
    answer = handle_on_platform(on_platform(tmp_path, 400_000), "j", asked)
    assert answer["code"] == "answer_too_large"


@pytest.mark.parametrize(
    ("compression", "needs"),
    [
        ("draco", {"KHR_draco_mesh_compression"}),
        ("meshopt", {"EXT_meshopt_compression", "KHR_mesh_quantization"}),
    ],
)
def test_a_compressed_model_is_previewed_and_its_maps_are_shown(
    tmp_path: Path, khronos: Callable[[bytes], None], compression: str, needs: set[str]
) -> None:
    output = {"compression": compression, "size_m": 0.3, "lods": [1000]}
    answer = handle(start(tmp_path), PLAIN | {"output": output})
    assert answer["files"][0]["compression"] == compression
    assert answer["files"][0]["error"] is None
    data = (tmp_path / "output/j1/model.glb").read_bytes()
    khronos(data)
    assert set(parts(data)[0]["extensionsRequired"]) == needs
    assert answer["preview"]["bytes"] > 1000
    low, high = answer["mesh"]["bounds"]
    assert max(b - a for a, b in zip(low, high, strict=True)) == pytest.approx(0.3, abs=1e-5)
    base, packed = read_textures(data)
    assert base is not None and packed is not None
    assert base.size == packed.size == (512, 512)
