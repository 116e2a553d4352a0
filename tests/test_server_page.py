"""What the page stands on: cut-outs, the list of jobs, their pictures, and what they should take."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from tests.test_server import body, events, picture, serving
from trellis_runtime.assets.glb_reader import require_glb
from trellis_runtime.contract.files import MODEL, THUMBNAIL
from trellis_runtime.server.addresses import with_http_addresses
from trellis_runtime.server.expectation import Expectations
from trellis_runtime.server.job import Job, finish
from trellis_runtime.server.jobs import Jobs


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page-server")


@pytest.fixture(scope="module")
def url(out: Path) -> Iterator[str]:
    with serving(out) as url:
        yield url


@pytest.fixture(scope="module")
def done(url: str) -> dict[str, Any]:
    return run(url)


def run(url: str, **more: Any) -> dict[str, Any]:
    job_id = requests.post(f"{url}/jobs", json=body(**more), timeout=30).json()["id"]
    return events(url, job_id)[-1]


def test_a_cut_out_says_what_would_be_modelled_and_where_it_is(url: str) -> None:
    answer = requests.post(f"{url}/cutout", json=body(), timeout=60)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["source"], told["warnings"], told["picture"]) == ("alpha", [], None)
    shown = Image.open(io.BytesIO(base64.b64decode(told["cutout"]["base64"])))
    assert shown.size == (told["cutout"]["width"], told["cutout"]["height"])
    rows, cols = np.nonzero(np.asarray(shown)[..., 3] >= 128)
    left, top, right, bottom = told["box"]
    across, down = (right - left) / shown.width, (bottom - top) / shown.height
    found = [left + cols.min() * across, top + rows.min() * down,
             left + (cols.max() + 1) * across, top + (rows.max() + 1) * down]  # fmt: skip
    # the ellipse of `picture()`: 20 to 140 of 160 across, 30 to 130 down
    assert np.allclose(found, [20 / 160, 30 / 160, 141 / 160, 131 / 160], atol=0.02)


def test_a_cut_out_can_bring_the_picture_and_keeps_all_when_told_to(url: str) -> None:
    asked = body(background="keep")
    told = requests.post(f"{url}/cutout?picture=true", json=asked, timeout=60).json()
    assert told["source"] == "keep"
    whole = Image.open(io.BytesIO(base64.b64decode(told["picture"]["base64"])))
    assert whole.size == (160, 160)


def test_a_cut_out_is_no_job_and_its_refusals_are_the_jobs_own(url: str) -> None:
    before = requests.get(f"{url}/health", timeout=9).json()["queue"]
    assert requests.post(f"{url}/cutout", json=body(), timeout=60).status_code == 200
    after = requests.get(f"{url}/health", timeout=9).json()["queue"]
    assert (after["served"], after["in_hand"]) == (before["served"], 0)
    bad = requests.post(f"{url}/cutout", json=body(image="AAAA"), timeout=60)
    assert (bad.status_code, bad.json()["code"]) == (400, "image_rejected")
    assert requests.post(f"{url}/cutout", data=b"{", timeout=9).status_code == 400


def test_a_cut_out_takes_a_place_among_the_jobs(tmp_path: Path) -> None:
    slow = body(preset="game_asset", decimation_target=800_000)
    with serving(tmp_path, TRELLIS2_MAX_QUEUED_JOBS="0") as url:
        first = requests.post(f"{url}/jobs", json=slow, timeout=30).json()["id"]
        while requests.get(f"{url}/jobs/{first}", timeout=9).json()["stage"] == "queued":
            pass
        refused = requests.post(f"{url}/cutout", json=body(), timeout=30)
        assert (refused.status_code, refused.json()["retryable"]) == (429, True)
        requests.post(f"{url}/jobs/{first}/cancel", timeout=60)


def test_the_list_holds_no_result_and_its_pictures_have_addresses(
    url: str, done: dict[str, Any]
) -> None:
    inline = run(url, output={"delivery": "inline"})
    listed = requests.get(f"{url}/jobs", timeout=9)
    line = next(line for line in listed.json() if line["id"] == inline["id"])
    assert "answer" not in line
    assert len(listed.content) < 1000 * len(listed.json())
    assert line["summary"]["faces"] == inline["answer"]["mesh"]["faces"]
    small = requests.get(url + line["thumbnail"], timeout=9)
    assert small.headers["content-type"] == THUMBNAIL.content_type
    given = requests.get(url + line["input"], timeout=9)
    assert (given.content, given.headers["content-type"]) == (picture(), "image/png")


def test_a_damaged_folder_hides_no_other_job(
    url: str, out: Path, done: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = json.loads((out / done["id"] / "answer.json").read_bytes())
    for number, odd in enumerate(({"variants": 0}, [], answer | {"mesh": 5}, "a" * 9)):
        (out / f"odd-{number}").mkdir()
        (out / f"odd-{number}/answer.json").write_text(json.dumps(odd))
    for number, odd in enumerate(([], {"request": 5}, {"created": "now"}, {"endpoint": []})):
        shutil.copytree(out / done["id"], out / f"asked-{number}")
        (out / f"asked-{number}/request.json").write_text(json.dumps(odd))
    listed = {line["id"]: line for line in requests.get(f"{url}/jobs", timeout=9).json()}
    assert done["id"] in listed
    assert not any(name.startswith("odd-") for name in listed)
    assert all(listed[f"asked-{number}"]["preset"] is None for number in range(4))
    gone, glob = out / "gone/answer.json", Path.glob  # deleted while the list is made
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [*glob(self, pattern), gone])
    assert done["id"] in [line["id"] for line in Jobs(None, out, print).history(200)[0]]
    for name in [*(f"odd-{n}" for n in range(4)), *(f"asked-{n}" for n in range(4))]:
        shutil.rmtree(out / name)


def test_the_list_comes_in_pages(url: str, done: dict[str, Any]) -> None:
    run(url)
    everything = [line["id"] for line in requests.get(f"{url}/jobs", timeout=9).json()]
    assert len(everything) >= 2
    paged, address = [], f"{url}/jobs?limit=1"
    while address:
        page = requests.get(address, timeout=9)
        paged += [line["id"] for line in page.json()]
        address = url + page.links["next"]["url"] if page.links else ""
    assert paged == everything


def test_files_have_addresses_of_this_server(url: str, done: dict[str, Any]) -> None:
    for answer in (
        done["answer"],
        requests.post(f"{url}/generate", json=body(), timeout=60).json(),
    ):
        assert "file://" not in json.dumps(answer)
        assert answer["glb_url"] == answer[MODEL.field]["url"]
        require_glb(requests.get(answer["glb_url"], timeout=30).content)
    kept = run(url, output={"delivery": "inline"})["answer"]
    require_glb(requests.get(kept[MODEL.field]["url"], timeout=30).content)
    sizes = {file["name"]: file["bytes"] for file in done["files"]}
    assert sizes[MODEL.name] == done["answer"][MODEL.field]["bytes"]
    assert all(requests.get(url + f["url"], timeout=9).status_code == 200 for f in done["files"])


def test_a_deleted_job_is_gone_and_a_foreign_file_beside_it_stays(url: str, out: Path) -> None:
    job_id = run(url)["id"]
    (out / job_id / "notes.txt").write_text("mine")
    assert requests.delete(f"{url}/jobs/{job_id}", timeout=9).status_code == 204
    assert requests.get(f"{url}/jobs/{job_id}", timeout=9).status_code == 404
    assert [path.name for path in (out / job_id).iterdir()] == ["notes.txt"]
    assert requests.delete(f"{url}/jobs/{job_id}", timeout=9).status_code == 404
    (out / "holiday").mkdir()
    (out / "holiday" / MODEL.name).write_text("no job's")
    assert requests.delete(f"{url}/jobs/holiday", timeout=9).status_code == 404
    assert (out / "holiday" / MODEL.name).exists()


def test_a_running_job_is_not_deleted_and_those_behind_it_know_their_place(url: str) -> None:
    slow = body(preset="game_asset", decimation_target=800_000, texture_size=4096)
    ids = [requests.post(f"{url}/jobs", json=slow, timeout=30).json()["id"] for _ in range(3)]
    places = [requests.get(f"{url}/jobs/{i}", timeout=9).json()["queue_place"] for i in ids]
    assert places == [0, 1, 2]
    refused = requests.delete(f"{url}/jobs/{ids[0]}", timeout=9)
    assert (refused.status_code, refused.json()["code"]) == (409, "still_running")
    requests.post(f"{url}/jobs/{ids[0]}/cancel", timeout=60)
    assert requests.get(f"{url}/jobs/{ids[2]}", timeout=9).json()["queue_place"] == 1
    for job_id in ids[1:]:
        requests.post(f"{url}/jobs/{job_id}/cancel", timeout=60)
    ended = requests.get(f"{url}/jobs/{ids[2]}", timeout=9).json()
    assert (ended["state"], ended["queue_place"]) == ("cancelled", None)


def test_every_stage_is_told_while_a_job_runs_here(url: str) -> None:
    job_id = requests.post(f"{url}/jobs", json=body(), timeout=30).json()["id"]
    stages = [view["stage"] for view in events(url, job_id) if view["stage"] != "queued"]
    # a follower sees the newest of what came at once; at a pace of one a second there would be two
    assert len(set(stages)) >= 4


def test_what_a_preset_takes_is_learnt_from_jobs_and_survives_a_restart(
    url: str, out: Path
) -> None:
    made = run(url, **{"preset": "fast", "texture_size": 1024, "decimation_target": 200_000})
    told = requests.get(f"{url}/capabilities", timeout=9).json()
    assert told["expected"]["fast"]["bytes"] == made["answer"][MODEL.field]["bytes"]
    assert told["expected"]["game_asset"] is None
    assert {"sampler", "strict", "output.maps"} <= set(told["ignored_fields"])
    assert told["endpoint_possible"] is False
    with serving(out) as again:
        learnt = requests.get(f"{again}/capabilities", timeout=9).json()["expected"]
        assert learnt["fast"] == told["expected"]["fast"]
        later = requests.post(
            f"{again}/jobs", json=body(texture_size=1024, decimation_target=200_000), timeout=9
        ).json()
        assert later["expected"]["seconds"] == told["expected"]["fast"]["seconds"]
        events(again, later["id"])


def test_a_follower_sees_the_end_that_came_while_it_was_being_told(tmp_path: Path) -> None:
    jobs = Jobs(None, tmp_path, lambda _answer: None)
    job = jobs._jobs["web-1"] = Job("web-1", {})
    seen = []

    async def follow() -> None:
        async for view in jobs.follow("web-1"):
            seen.append(view and view["state"])
            if len(seen) == 1:
                await finish(job, "done", {})

    asyncio.run(asyncio.wait_for(follow(), 30))
    assert seen == ["running", "done"]


def answered(seconds: float, size: int) -> dict[str, Any]:
    return {"timings": {"bake": seconds}, "artifact": {"bytes": size}}


def test_the_expected_time_is_the_median_of_the_same_settings_on_the_same_target() -> None:
    expectations = Expectations()
    for seconds in (1.0, 9.0, 2.0):
        expectations.learn(None, {"preset": "fast"}, answered(seconds, 10))
    expectations.learn("ep", {"preset": "fast"}, answered(70.0, 10))
    expectations.learn(None, {"preset": "fast", "texture_size": 4096}, answered(50.0, 10))
    expectations.learn(None, {"preset": "fast"}, {"timings": None})
    found = expectations.expect(None, {"preset": "fast", "seed": 5})
    assert found is not None
    assert (found.seconds, found.jobs, found.stages) == (2.0, 3, {"bake": 2.0})
    assert expectations.expect(None, {"preset": "balanced"}) is None
    assert expectations.expect(None, {"resolution": "no request at all"}) is None


def test_a_job_of_several_seeds_is_expected_to_take_what_others_of_as_many_took() -> None:
    expectations = Expectations()
    expectations.learn(None, {"preset": "fast"}, answered(1.0, 10))
    models = [{"artifact": {"bytes": 10}}, {"artifact": {"bytes": 12}}, {"error": {"code": "x"}}]
    several = {"timings": {"bake": 3.0}, "variants": models}
    expectations.learn(None, {"preset": "fast", "seeds": [1, 2, 3]}, several)
    found = expectations.expect(None, {"preset": "fast", "variants": 3})
    assert found is not None
    assert (found.seconds, found.bytes, found.jobs) == (3.0, 22, 1)
    assert expectations.expect(None, {"preset": "fast", "variants": 2}) is None


def test_each_finished_file_adds_what_such_files_took() -> None:
    expectations = Expectations()
    expectations.learn(None, {"preset": "fast"}, answered(2.0, 10))
    one = {"name": "a", "format": "obj"}
    asked = {"preset": "fast", "output": {"finishes": [one]}}
    files = [{"format": "obj", "seconds": 3.0, "error": None},
             {"format": "stl", "seconds": 9.0, "error": {"code": "x"}}]  # fmt: skip
    made = answered(2.5, 10) | {"files": files}
    made["timings"]["finish"] = 12.0
    expectations.learn(None, asked, made)
    plain, with_files = (expectations.expect(None, one) for one in ({"preset": "fast"}, asked))
    assert plain is not None and with_files is not None
    assert (plain.seconds, with_files.seconds) == (2.25, 5.25)
    assert with_files.stages["finish"] == 3.0
    both = {"preset": "fast", "output": {"finishes": [one, one | {"name": "b"}]}}
    found = expectations.expect(None, both)
    assert found is not None
    assert found.seconds == 8.25
    assert expectations.files()["fast"] == {"obj": 3.0}
    assert expectations.expect(None, {"preset": "fast", "output": {"compression": "draco"}}) is None


def test_only_addresses_of_files_are_changed() -> None:
    told = {"a": ["file:///home/me/out/x/model.glb", 1], "b": {"url": "https://s.example/file.glb"}}
    assert with_http_addresses(told, "http://h/jobs/x/files") == {
        "a": ["http://h/jobs/x/files/model.glb", 1],
        "b": {"url": "https://s.example/file.glb"},
    }
