"""variants and seeds: one picture, several samplings, each answered and delivered on its own."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import requests

from examples.save_answer import save
from tests.conftest import environment
from tests.generations import WithinGeneration
from tests.plane import Plane, WorkerProcess
from tests.seaweed import BUCKET, SeaweedFs
from tests.test_delivery import ON_PLATFORM
from tests.test_delivery import handle as handle_on_platform
from tests.test_delivery import worker as platform_worker
from tests.test_finishes import PLAIN, Watched
from tests.test_quality_retries import GOOD, LEAKY, Measuring
from tests.test_server import serving
from tests.test_server_endpoint import Endpoint, beside, ended, submit
from tests.test_worker import FILES, QUICK, handle, start
from trellis_runtime.cli.parser import main
from trellis_runtime.contract.answer import ANSWERS, VariantsResult
from trellis_runtime.contract.engine import Asset, Generation
from trellis_runtime.contract.files import file_called, files_told, in_variant, variant_name
from trellis_runtime.contract.ladder import Plan
from trellis_runtime.contract.request import MAX_SEED, MOST_VARIANTS, parse_request, request_schema
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import ENGINE_STAGES, Stage
from trellis_runtime.engines.embedded import EmbeddedEngine
from trellis_runtime.errors import EngineFault, InvalidInput, MeshRejected, OutOfVram
from trellis_runtime.settings import Settings
from trellis_runtime.worker.worker import Worker, draw_seed

SMALL: dict[str, Any] = {k: v for k, v in PLAIN.items() if k != "seed"}


def of_seeds(*seeds: int, **output: Any) -> dict[str, Any]:
    return SMALL | {"seeds": list(seeds), "output": {"preview": False, **output}}


class Striking(Watched):
    """The watched engine; each stage of the seeds in `errors` raises what is given there."""

    def __init__(self, stage: Stage, errors: dict[int, Exception]) -> None:
        super().__init__()
        self.stage, self.errors = stage, errors

    def begin(self, image: Any, plan: Plan) -> Any:
        generation, engine = super().begin(image, plan), self
        run = generation.run

        def struck(stage: Stage, plan: Plan, scope: JobScope) -> None:
            if stage is engine.stage and plan.seed in engine.errors:
                raise engine.errors[plan.seed]
            run(stage, plan, scope)

        generation.run = struck
        return generation


# --- the request ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"variants": 0}, "at least 1"),
        ({"variants": 9}, "at most 8"),
        ({"variants": 1.5}, "whole number"),
        ({"seeds": list(range(9))}, "at most 8 entries"),
        ({"seeds": [1, 2, 1]}, "twice"),
        ({"seeds": [-1]}, "at least 0"),
        ({"seeds": [1, MAX_SEED + 1]}, str(MAX_SEED)),
        ({"seeds": [1], "seed": 2}, "seed is not used with seeds"),
        ({"seeds": [1], "variants": 1}, "variants is not used with seeds"),
        ({"variants": 2, "retry_seeds": 1}, "retry_seeds is 1"),
        ({"variants": 2, "output": {"upload_url": "https://a.example/x"}}, "upload_url"),
    ],
)
def test_variants_that_cannot_be_are_refused_and_the_schema_says_the_same(
    wrong: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        parse_request({"image": "x"} | wrong)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"image": "x"} | wrong, request_schema())


def test_seeds_are_those_that_are_named_or_follow_the_first() -> None:
    for asked, seeds in (
        ({"seeds": [7, 3]}, (7, 3)),
        ({"seeds": [7.0, 3e0]}, (7, 3)),  # JSON has one kind of number
        ({"variants": 3, "seed": MAX_SEED}, (MAX_SEED, 0, 1)),
        ({"variants": 2}, (11, 12)),
    ):
        jsonschema.validate({"image": "x"} | asked, request_schema())
        request = parse_request({"image": "x"} | asked)
        assert request.is_several
        assert request.seeds_from(request.seed if request.seed is not None else 11) == seeds
    assert not parse_request({"image": "x", "seeds": []}).is_several


# --- the worker -------------------------------------------------------------------------------


def test_the_picture_is_prepared_once_and_each_variant_is_as_a_job_of_its_own(
    tmp_path: Path,
) -> None:
    engine = Watched()
    finishes = [{"name": "print", "format": "stl"}]
    asked = of_seeds(5, 9, preview=True, cutout=True, finishes=finishes)
    answer = handle(start(tmp_path, engine), asked)
    assert isinstance(ANSWERS.validate_json(json.dumps(answer)), VariantsResult)
    stl = Stage.BAKE
    assert engine.ran == [*ENGINE_STAGES, stl, *ENGINE_STAGES[1:], stl]
    folder = tmp_path / "output/j1"
    assert json.loads((folder / "answer.json").read_bytes()) == answer
    models = set()
    for number, seed in enumerate((5, 9)):
        told = answer["variants"][number]
        assert (told["name"], told["seed"], told["error"]) == (f"v{number}", seed, None)
        alone = handle(start(tmp_path / str(seed)), asked | {"seeds": [], "seed": seed})
        there = tmp_path / f"{seed}/output/j1"
        names = [*FILES[1:], "cutout.png", "print.stl"]
        assert {p.name for p in there.iterdir()} == {*names, "answer.json"}
        for name in names:
            assert (folder / f"v{number}-{name}").read_bytes() == (there / name).read_bytes()
        assert told["degradation"] == alone["degradation"]
        assert told["mesh"] == alone["mesh"]
        assert told["artifact"]["sha256"] == alone["artifact"]["sha256"]
        assert told["files"][0]["file_name"] == f"v{number}-print.stl"
        assert "condition" not in told["timings"]
        assert told["timings"]["structure"] <= answer["timings"]["structure"]
        models.add(told["artifact"]["sha256"])
    assert len(models) == 2
    assert {p.name[:3] for p in folder.iterdir()} == {"v0-", "v1-", "ans"}


def test_a_plain_request_has_no_variants_in_its_answer(tmp_path: Path) -> None:
    answer = handle(start(tmp_path), PLAIN)
    assert "variants" not in answer
    assert answer["seed"] == 3


def test_a_variant_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    for error, code, retryable in (
        (MeshRejected("no face is left"), "mesh_rejected", False),
        (OutOfVram("no room"), "out_of_vram", True),
        (KeyError("/secret/path"), "internal", True),
    ):
        place = tmp_path / code
        asked = of_seeds(1, 2, 3) | {"max_degradation_level": 0}
        answer = handle(start(place, Striking(Stage.SHAPE, {2: error})), asked)
        first, failed, last = answer["variants"]
        assert first["error"] is last["error"] is None
        assert set(failed) == {"name", "seed", "error"}
        assert (failed["name"], failed["seed"]) == ("v1", 2)
        assert (failed["error"]["code"], failed["error"]["retryable"]) == (code, retryable)
        assert "secret" not in json.dumps(answer)
        assert {p.name for p in (place / "output/j1").iterdir()} == {
            "v0-model.glb", "v2-model.glb", "answer.json",
        }  # fmt: skip


class Judged(WithinGeneration):
    """A generation whose report says what the seed that it was given last is worth."""

    def __init__(self, inner: Generation, seed: int, good: int) -> None:
        super().__init__(inner)
        self._seed, self._good = seed, good

    def reseed(self, seed: int) -> None:
        super().reseed(seed)
        self._seed = seed

    def asset(self) -> Asset:
        return replace(super().asset(), quality=GOOD if self._seed == self._good else LEAKY)


class Judging(Measuring):
    def begin(self, image: Any, plan: Plan) -> Any:
        return Judged(EmbeddedEngine.begin(self, image, plan), plan.seed, min(self._good))


def test_a_strict_check_holds_for_each_variant(tmp_path: Path) -> None:
    """A seed that was named fails so again; one that was drawn may be another next time."""
    asked = SMALL | {"strict": ["open"], "output": {"preview": False}}
    named = handle(start(tmp_path, Judging({1})), asked | {"seeds": [1, 2]})
    assert named["variants"][0]["error"] is None
    assert named["variants"][1]["error"]["code"] == "mesh_rejected"
    assert named["variants"][1]["error"]["retryable"] is False
    good = draw_seed("j2")
    drawn = handle(start(tmp_path, Judging({good})), asked | {"variants": 2}, "j2")
    assert drawn["variants"][0]["seed"] == good
    assert drawn["variants"][1]["error"]["retryable"] is True


def test_where_no_variant_is_made_the_job_fails_and_says_why_for_each(tmp_path: Path) -> None:
    errors: dict[int, Exception] = {1: MeshRejected("nothing left"), 2: OutOfVram("no room")}
    asked = of_seeds(1, 2) | {"max_degradation_level": 0}
    answer = handle(start(tmp_path, Striking(Stage.SHAPE, errors)), asked)
    assert answer["code"] == "mesh_rejected"
    assert answer["retryable"] is False
    assert [v["error"]["code"] for v in answer["variants"]] == ["mesh_rejected", "out_of_vram"]
    assert not (tmp_path / "output/j1").exists()


def test_what_ends_a_job_ends_its_variants_and_nothing_is_left(tmp_path: Path) -> None:
    poisoned = Striking(Stage.SHAPE, {2: EngineFault("CUDA error")})
    answer = handle(start(tmp_path, poisoned), of_seeds(1, 2, 3))
    assert answer["code"] == "engine_fault"
    assert answer["refresh_worker"]
    engine = Watched()
    engine.during = lambda number, scope: scope.cancel() if number == 1 else None
    answer = handle(start(tmp_path, engine), of_seeds(1, 2, 3), "j2")
    assert answer["code"] == "cancelled"
    answer = handle(start(tmp_path), of_seeds(1, 2), "j3", policy={"executionTimeout": 1})
    assert answer["code"] == "deadline_exceeded"
    assert not [p for p in (tmp_path / "output").rglob("*") if p.is_file()]


def test_each_variant_goes_down_the_ladder_on_its_own(tmp_path: Path) -> None:
    engine = Watched(1, OutOfVram("no room"))  # the second bake
    answer = handle(start(tmp_path, engine), of_seeds(1, 2, 3))
    levels = [v["oom_quality_degradation_level"] for v in answer["variants"]]
    assert levels[0] == levels[2] == 0
    assert levels[1] > 0
    assert len(answer["variants"][1]["degradation"]["attempts"]) == 1


def test_progress_says_which_variant_and_never_goes_back(tmp_path: Path) -> None:
    seen: list[tuple[str, float]] = []

    async def run() -> dict[str, Any]:
        job = {"id": "j1", "input": of_seeds(1, 2, 3)}
        return await start(tmp_path).handle(job, watch=lambda *told: seen.append(told))

    import asyncio

    assert "error" not in asyncio.run(run())
    done = [share for _, share in seen]
    assert done == sorted(done)
    stages = list(dict.fromkeys(stage for stage, _ in seen))
    own = ("structure", "shape", "texture", "decode", "bake", "export", "store")
    assert stages == [
        "image", "condition", *(f"{stage} {number}/3" for number in (1, 2, 3) for stage in own),
    ]  # fmt: skip
    assert done[-1] > 0.9


# --- delivery ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with SeaweedFs(tmp_path_factory.mktemp("s3")) as server:
        yield server


def test_a_job_that_is_run_again_finds_its_variants_in_the_bucket(
    bucket: SeaweedFs, tmp_path: Path
) -> None:
    worker = platform_worker(tmp_path, **bucket.variables())
    asked = of_seeds(1, 2, finishes=[{"name": "print", "format": "stl"}])
    first = handle_on_platform(worker, "var", asked)
    told = first["variants"][1]
    assert told["artifact"]["key"] == "trellis2/var/v1-model.glb"
    got = requests.get(told["glb_url"], timeout=10).content
    assert hashlib.sha256(got).hexdigest() == told["artifact"]["sha256"]
    again = handle_on_platform(worker, "var", asked)
    assert again["timings"] == first["timings"]
    bucket.client.delete_object(Bucket=BUCKET, Key="trellis2/var/v1-print.stl")
    third = handle_on_platform(worker, "var", asked)
    assert third["timings"] != first["timings"]
    assert third["variants"][1]["artifact"]["sha256"] == told["artifact"]["sha256"]


def test_an_inline_answer_is_shared_by_its_variants(tmp_path: Path) -> None:
    asked = QUICK | {"decimation_target": 20_000, "variants": 3, "output": {"preview": False}}
    most = {"TRELLIS2_MAX_ANSWER_BYTES": "1600000"}
    worker = platform_worker(tmp_path, **ON_PLATFORM, **most)
    answer = handle_on_platform(worker, "j", asked)
    assert len(json.dumps(answer)) <= 1_600_000
    assert len(answer["variants"]) == 3
    for told in answer["variants"]:
        assert "compressed_for_delivery" in [w["code"] for w in told["warnings"]]
        assert base64.b64decode(told["artifact"]["base64"])[:4] == b"glTF"


def test_variants_that_are_too_large_are_refused_before_anything_is_computed(
    tmp_path: Path,
) -> None:
    inline = QUICK | {"decimation_target": 200_000, "output": {"delivery": "inline"}}
    most = {"TRELLIS2_MAX_ANSWER_BYTES": "4000000"}
    worker = platform_worker(tmp_path, **ON_PLATFORM, **most)
    answer = handle_on_platform(worker, "j", inline | {"variants": 4})
    assert answer["code"] == "answer_too_large"
    assert "a model as asked" in answer["error"]  # not one that was made
    assert "for each of 4 variants" in answer["error"]


def test_an_answer_without_room_for_any_model_is_refused_before_anything_is_computed(
    tmp_path: Path,
) -> None:
    engine = Watched()
    few = {"TRELLIS2_MAX_ANSWER_BYTES": "300000"}
    settings = Settings.from_env(environment(tmp_path, **ON_PLATFORM, **few))
    answer = handle(Worker.start(settings, engine), SMALL | {"variants": 8})
    assert (answer["code"], answer["field"]) == ("answer_too_large", "output.delivery")
    assert "takes about 0 for each of 8 variants" in answer["error"]
    assert "upload_url" not in answer["error"]  # which takes one model
    assert engine.ran == []


def test_names_of_variants_files_lead_nowhere_else() -> None:
    told = file_called("v1-thumbnail.webp")
    assert told is not None
    assert (told.name, told.content_type) == ("v1-thumbnail.webp", "image/webp")
    for name in ("v1-answer.json", "v1-../a.glb", "v9-preview.png", "v1-v1-preview.png", "v1-"):
        assert file_called(name) is None
    assert file_called("v0-" * 5000) is None
    last = variant_name(MOST_VARIANTS - 1)
    assert file_called(in_variant(last, "preview.png")) is not None


def test_an_endpoints_variants_come_to_this_machine(tmp_path: Path) -> None:
    asked = of_seeds(1, 2, delivery="inline", finishes=[{"name": "print", "format": "stl"}])
    answer = handle(start(tmp_path / "there"), asked)
    named = {name: artifact["sha256"] for name, artifact in files_told(answer)}
    assert set(named) == {"v0-model.glb", "v0-print.stl", "v1-model.glb", "v1-print.stl"}
    done = json.dumps({"status": "COMPLETED", "output": answer}).encode()
    with beside(Endpoint([(200, done)]), tmp_path) as url:
        job = submit(url)
        view = ended(url, job)
        assert view["state"] == "done"
        assert {f["name"] for f in view["files"]} == {*named, "answer.json"}
        for name, sha256 in named.items():
            got = requests.get(f"{url}/jobs/{job}/files/{name}", timeout=10).content
            assert hashlib.sha256(got).hexdigest() == sha256


def test_variants_come_through_the_sdk(tmp_path: Path) -> None:
    with Plane() as plane, WorkerProcess(plane, tmp_path):
        record = plane.ask(of_seeds(4, 6, delivery="inline"))
    assert len(record.results) == 1
    assert [told["seed"] for told in record.output["variants"]] == [4, 6]
    for told in record.output["variants"]:
        data = base64.b64decode(told["artifact"]["base64"])
        assert hashlib.sha256(data).hexdigest() == told["artifact"]["sha256"]


def test_the_local_server_counts_shows_and_deletes_variants_and_their_latents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(tmp_path) as url:
        asked = of_seeds(1, 2) | {"keep": "latents"}
        job = requests.post(f"{url}/jobs", json=asked, timeout=30).json()["id"]
        view = ended(url, job)
        assert view["state"] == "done"
        page = requests.get(f"{url}/metrics", timeout=9).text
        assert 'trellis2_degradation_total{level="0",rung="as_asked"} 2.0' in page
        assert 'trellis2_jobs_total{code="",outcome="done"} 1.0' in page
        line = requests.get(f"{url}/jobs", timeout=9).json()[0]
        assert line["summary"]["seed"] == 1
        for query, status in (("?variant=v1", 200), ("", 404), ("?variant=v2", 404)):
            shown = requests.get(f"{url}/jobs/{job}/maps/base_color{query}", timeout=9)
            assert shown.status_code == status, query
        wrong = requests.get(f"{url}/jobs/{job}/maps/base_color?variant=../v1", timeout=9)
        assert wrong.json()["code"] == "invalid_input"
        folder = next(tmp_path.rglob("v0-model.glb")).parent
        assert main(["show", str(folder)]) == 0
        assert "seed 2" in capsys.readouterr().out
        lying = {p.parent.name for p in tmp_path.rglob("latents.npz")}
        assert lying == {f"{job}-v0", f"{job}-v1"}
        kept = view["answer"]["variants"][1]["kept"]["id"]
        later = requests.post(
            f"{url}/generate",
            json={"finish_of": kept, "output": {"preview": False}},
            timeout=60,
        ).json()
        assert later["artifact"]["sha256"] == view["answer"]["variants"][1]["artifact"]["sha256"]
        gone = requests.post(f"{url}/generate", json={"finish_of": "nobody"}, timeout=60)
        assert (gone.status_code, gone.json()["code"]) == (404, "latents_gone")
        requests.delete(f"{url}/jobs/{job}", timeout=9).raise_for_status()
        assert not list(tmp_path.rglob("latents.npz"))


def test_the_example_saves_each_variant_in_a_folder_of_its_own(tmp_path: Path) -> None:
    answer = handle(start(tmp_path / "there"), of_seeds(1, 2, delivery="inline"))
    written = save(answer, tmp_path / "out")
    named = [path.relative_to(tmp_path / "out").as_posix() for path in written]
    assert named == ["v0/model.glb", "v1/model.glb"]
