"""examples/, each run as its users run it, against a worker under the tests' own plane."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.save_answer import NAMES, save
from tests.conftest import ROOT, encoded, picture
from tests.plane import Plane, WorkerProcess
from trellis_runtime.assets.glb_reader import require_glb
from trellis_runtime.contract.files import ARTIFACTS


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a client of an endpoint `ep` with one worker."""
    with Plane() as plane, WorkerProcess(plane, tmp_path_factory.mktemp("worker")):
        yield os.environ | {"RUNPOD_ENDPOINT_BASE_URL": plane.url, "RUNPOD_API_KEY": "plane-key"}


def run(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_picture_is_submitted_with_curl_and_its_inline_model_decoded(
    endpoint: dict[str, str], tmp_path: Path
) -> None:
    photo, answer = tmp_path / "mug.png", tmp_path / "answer.json"
    photo.write_bytes(encoded(picture()))
    done = run(["examples/submit.sh", "ep", str(photo)], endpoint)
    assert done.returncode == 0, done.stdout + done.stderr
    answer.write_text(done.stdout)
    saved = run(
        [sys.executable, "-m", "examples.save_answer", str(answer), str(tmp_path / "out")],
        os.environ.copy(),
    )
    assert saved.returncode == 0, saved.stderr
    assert saved.stdout.split() == [str(tmp_path / "out" / f.name) for f in ARTIFACTS[:3]]
    require_glb((tmp_path / "out/model.glb").read_bytes())


def test_curls_example_fails_with_the_workers_words(
    endpoint: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    done = run(["examples/submit.sh", "ep", str(tmp_path / "text.png")], endpoint)
    assert done.returncode == 1
    assert "image_rejected" in done.stderr


def test_a_folder_is_converted_what_fails_is_told_and_what_is_there_is_kept(
    endpoint: dict[str, str], tmp_path: Path
) -> None:
    pictures, models = tmp_path / "pictures", tmp_path / "models"
    pictures.mkdir()
    for name in ("one.png", "two.PNG"):
        (pictures / name).write_bytes(encoded(picture()))
    (pictures / "broken.jpg").write_bytes(b"no picture")
    (pictures / "notes.txt").write_text("not a picture's suffix")
    command = [sys.executable, "-m", "examples.batch_folder", "ep", str(pictures), str(models)]
    done = run(command, endpoint)
    assert done.returncode == 1
    assert "2 of 3 pictures have a model" in done.stdout
    assert "broken.jpg: image_rejected" in done.stderr
    for name in ("one", "two"):
        require_glb((models / name / "model.glb").read_bytes())
    (models / "one/model.glb").write_bytes(b"kept")
    (pictures / "broken.jpg").unlink()
    assert run(command, endpoint).returncode == 0
    assert (models / "one/model.glb").read_bytes() == b"kept"


def test_a_file_that_is_not_what_was_sent_is_refused(tmp_path: Path) -> None:
    artifact = {"base64": "YWJj", "url": None, "sha256": "0" * 64}
    with pytest.raises(ValueError, match="not those that were sent"):
        save({"artifact": artifact}, tmp_path)
    with pytest.raises(ValueError, match="out_of_vram"):
        save({"error": "out_of_vram: no rung fits"}, tmp_path)


def test_finishes_are_saved_and_stay_in_the_folder(tmp_path: Path) -> None:
    data = b"solid nothing"
    artifact = {"base64": base64.b64encode(data).decode(), "url": None,
                "sha256": hashlib.sha256(data).hexdigest()}  # fmt: skip
    failed = {"file_name": "b.ply", "artifact": None}
    files = [{"file_name": "../a.stl", "artifact": artifact}, failed]
    assert save({"files": files}, tmp_path / "out") == [tmp_path / "out/a.stl"]
    assert (tmp_path / "out/a.stl").read_bytes() == data


def test_the_examples_names_are_the_workers() -> None:
    assert {f.field: f.name for f in ARTIFACTS} == NAMES
    assert (
        json.loads((ROOT / "docs/schema/answer.schema.json").read_text())["properties"].keys()
        >= NAMES.keys()
    )
