"""`python -m trellis_runtime verify`: what a file is, whether it is whole, whether it can be made again."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import encoded, picture
from tests.test_glb import GOOD, packed, parts
from tests.test_worker import handle, start
from trellis_runtime.cli.parser import main
from trellis_runtime.cli.verify import request_of

PHOTO = encoded(picture(128))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a finish of it, compressed, and the picture that they were made of."""
    root = tmp_path_factory.mktemp("verify")
    asked = {
        "image": base64.b64encode(PHOTO).decode(), "seed": 9, "resolution": 512,
        "texture_size": 512, "decimation_target": 2000,
        "output": {"finishes": [
            {"name": "other", "decimation_target": 1500},
            {"name": "small", "decimation_target": 1000, "compression": "draco", "size_m": 2.0},
        ], "lods": [1800, 1200]},
    }  # fmt: skip
    answer = handle(start(root), asked)
    assert "error" not in answer
    (root / "photo.png").write_bytes(PHOTO)
    return root


@pytest.fixture(autouse=True)
def embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRELLIS2_MIN_FREE_DISK_GB", "0.01")


def report(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, dict[str, Any]]:
    code = main(["verify", "--json", *args])
    return code, json.loads(capsys.readouterr().out)


def test_a_file_tells_what_it_is_and_that_it_is_whole(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told = report(capsys, str(folder / "output/j1/model.glb"))
    assert code == 0
    assert told["whole"]
    assert (told["engine"], told["seed"], told["degradation_level"]) == ("embedded", 9, 0)
    assert told["request"]["decimation_target"] == 2000
    assert told["faces"] <= 2000
    assert main(["verify", str(folder / "output/j1/model.glb")]) == 0
    assert "whole: geometry and textures are as they were written" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["model.glb", "small.glb", "lod1.glb"])
def test_a_file_is_made_again_from_its_picture_and_is_the_same(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    at = str(folder / "output/j1" / name)
    code, told = report(capsys, at, "--image", str(folder / "photo.png"))
    assert told["same_picture"]
    assert told["same"], told
    assert code == 0


def test_a_packed_file_tells_its_bounds_and_is_made_again_the_same(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In metres, as the model lies there, although its geometry is compressed."""
    asked = {
        "image": base64.b64encode(PHOTO).decode(), "seed": 9, "resolution": 512,
        "texture_size": 512, "decimation_target": 2000, "output": {"compression": "meshopt"},
    }  # fmt: skip
    assert "error" not in handle(start(tmp_path), asked)
    at, photo = str(tmp_path / "output/j1/model.glb"), str(folder / "photo.png")
    code, told = report(capsys, at, "--image", photo)
    assert (code, told["whole"], told["same"]) == (0, True, True)
    plain = report(capsys, str(folder / "output/j1/model.glb"))[1]
    assert told["faces"] == plain["faces"]
    assert np.allclose(told["bounds"], plain["bounds"], atol=1 / 2**13)


def test_a_file_that_was_changed_is_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document, blob = parts((folder / "output/j1/model.glb").read_bytes())
    torn = tmp_path / "torn.glb"
    torn.write_bytes(packed(document, blob[:100] + b"\x01" + blob[101:]))
    code, told = report(capsys, str(torn))
    assert code == 1
    assert not told["whole"]


def test_of_a_jobs_files_only_the_one_is_made_again() -> None:
    finishes = [{"name": "a"}, {"name": "b"}]
    asked = {"request": {"output": {"finishes": finishes, "lods": [2000], "hulls": 4}}, "seed": 1}
    for finish, names, lods, hulls in (
        (None, [], [], None),
        ("b", ["b"], [], None),
        ("lod0", [], [2000], None),
        ("hulls", [], [], 4),
    ):
        output = request_of(asked | {"finish": finish}, PHOTO)["output"]
        assert [told["name"] for told in output["finishes"]] == names
        assert (output["lods"], output["hulls"]) == (lods, hulls)


def test_another_picture_is_told_before_anything_is_computed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.png"
    other.write_bytes(encoded(picture(96)))
    code, told = report(capsys, str(folder / "output/j1/model.glb"), "--image", str(other))
    assert code == 1
    assert told["same_picture"] is False
    assert "same" not in told


def test_a_file_of_another_seed_is_told_with_the_difference(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document, blob = parts((folder / "output/j1/model.glb").read_bytes())
    document["asset"]["extras"]["seed"] = 10
    changed = tmp_path / "changed.glb"
    changed.write_bytes(packed(document, blob))
    code, told = report(capsys, str(changed), "--image", str(folder / "photo.png"))
    assert code == 1
    assert told["whole"]
    assert told["same"] is False
    assert told["again"]["bounds"] != told["bounds"]
    assert told["base_color_mean_difference"] >= 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"engine": "another"}, "there is no engine 'another' here"),
        ({"request": {"resolution": 513}}, "resolution"),
    ],
)
def test_a_recipe_that_is_not_ours_makes_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, words: str
) -> None:
    document, blob = parts((folder / "output/j1/model.glb").read_bytes())
    document["asset"]["extras"] |= change
    changed = tmp_path / "changed.glb"
    changed.write_bytes(packed(document, blob))
    code, told = report(capsys, str(changed), "--image", str(folder / "photo.png"))
    assert code == 1
    assert words in told["failed"]


@pytest.mark.parametrize("data", [b"", b"no GLB at all", GOOD])
def test_a_file_without_a_recipe_is_an_error_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes
) -> None:
    path = tmp_path / "x.glb"
    path.write_bytes(data)
    assert main(["verify", str(path)]) == 1
    assert "glb_rejected" in capsys.readouterr().err


def test_a_file_with_a_broken_document_is_an_error_in_words(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document, blob = parts((folder / "output/j1/model.glb").read_bytes())
    for meshes in ([], [{}], [{"primitives": [{"indices": 99}]}], 5):
        path = tmp_path / "x.glb"
        path.write_bytes(packed(document | {"meshes": meshes}, blob))
        assert main(["verify", str(path)]) == 1
        assert "glb_rejected" in capsys.readouterr().err
