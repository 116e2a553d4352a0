"""What a caller is told of a doubtful result, and that a good one is told nothing of."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.conftest import ROOT, encoded, environment, picture, pixels
from trellis_runtime.assets.warnings import cutout_warnings, result_warnings, silhouette_overlap
from trellis_runtime.cli.parser import main
from trellis_runtime.contract.answer import MeshReport
from trellis_runtime.contract.engine import Asset, CutOut
from trellis_runtime.contract.ladder import Plan
from trellis_runtime.contract.request import parse_request
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import ENGINE_STAGES
from trellis_runtime.engines.embedded import EmbeddedEngine
from trellis_runtime.errors import MeshRejected
from trellis_runtime.worker.worker import Worker

MakeWorker = Callable[..., Worker]
SPECKLES = (ROOT / "tests/data/speckles.png").read_bytes()
SMALL = {"resolution": 512, "texture_size": 512, "decimation_target": 20_000, "seed": 1}
GOOD = CutOut(pixels(picture(256)), "alpha", 0.3, 0.0, 200)
REPORT = MeshReport(
    vertices=4, faces=4, components=1, boundary_edges=0, nonmanifold_edges=0, degenerate_faces=0,
    bounds=[], warnings=[],
)  # fmt: skip


def ask(worker: Worker, image: bytes, **changes: Any) -> dict[str, Any]:
    text = base64.b64encode(image).decode()
    return asyncio.run(worker.handle({"id": "warned", "input": SMALL | {"image": text} | changes}))


def made(image: np.ndarray[Any, Any], **changes: Any) -> tuple[Asset, CutOut]:
    plan = replace(Plan.as_asked(parse_request({"image": "x", **SMALL}), 1), **changes)
    engine = EmbeddedEngine()
    generation = engine.begin(image, plan)
    for stage in ENGINE_STAGES:
        generation.run(stage, plan, JobScope("x"))
    return generation.asset(), generation.cutout()


def crumbs(count: int = 144, radius: int = 5) -> bytes:
    """Round crumbs in rows, on nothing."""
    size = 480
    image = Image.new("RGBA", (size, size), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    step = size / round(count**0.5)
    for number in range(count):
        x, y = (
            (number % round(size / step) + 0.5) * step,
            (number // round(size / step) + 0.5) * step,
        )
        box = [x - radius, y - radius, x + radius, y + radius]
        draw.ellipse(box, fill=(180, 60, 40, 255))
    return encoded(image)


def two_mugs() -> np.ndarray[Any, Any]:
    mug = pixels(picture(128))
    return np.concatenate([mug, mug], axis=1)


@pytest.mark.parametrize(
    ("cutout", "code"),
    [
        (replace(GOOD, alpha_ignored=True), "alpha_ignored"),
        (replace(GOOD, plain_shape=True), "alpha_plain_shape"),
        (replace(GOOD, source="model", uncertain=0.5), "cutout_uncertain"),
        (replace(GOOD, share=0.97), "covers_picture"),
        (replace(GOOD, share=0.01), "small_object"),
        (replace(GOOD, longer_px=20), "tiny_object"),
        (replace(GOOD, border=0.2), "touches_border"),
        (replace(GOOD, rgba=two_mugs()), "several_pieces"),
    ],
)
def test_each_doubt_has_its_code(cutout: CutOut, code: str) -> None:
    assert [warning.code for warning in cutout_warnings(cutout)] == [code]
    assert not cutout_warnings(GOOD)


def test_a_mesh_in_pieces_is_told_of() -> None:
    asset, cutout = made(pixels(picture(256)))
    told = result_warnings(asset, REPORT.model_copy(update={"components": 834}), cutout)
    assert [warning.code for warning in told] == ["mesh_in_pieces"]
    assert "834" in told[0].text


def test_the_silhouette_is_compared_with_the_cut_out() -> None:
    asset, cutout = made(pixels(picture(256)))
    assert silhouette_overlap(asset, cutout) > 0.93
    assert not result_warnings(asset, REPORT, cutout)
    half = asset.vertices.copy()
    half[:, 0] *= 0.3  # squashed: no longer what was cut out
    squashed = replace(asset, vertices=half)
    assert silhouette_overlap(squashed, cutout) < 0.6
    assert [w.code for w in result_warnings(squashed, REPORT, cutout)] == ["silhouette_differs"]
    coarse = replace(asset, faces=asset.faces[::50])  # large faces count by area, not by corners
    assert silhouette_overlap(coarse, cutout) <= silhouette_overlap(asset, cutout)


def test_large_faces_are_filled() -> None:
    square = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], np.float32)
    asset = Asset(square, np.array([[0, 1, 2], [0, 2, 3]], np.uint32), square)
    full = np.full((64, 64, 4), 255, np.uint8)
    assert silhouette_overlap(asset, replace(GOOD, rgba=full)) > 0.98


def test_a_good_picture_has_no_warnings(make_worker: MakeWorker, photo: bytes) -> None:
    answer = ask(make_worker(), photo)
    assert answer["warnings"] == []
    assert answer["cutout"] is None


def test_debris_is_told_of(make_worker: MakeWorker) -> None:
    codes = [warning["code"] for warning in ask(make_worker(), crumbs())["warnings"]]
    assert "several_pieces" in codes
    assert "mesh_in_pieces" in codes


@pytest.mark.parametrize("target", [1000, 20_000])
def test_loose_pixels_are_refused_and_not_an_internal_error(
    make_worker: MakeWorker, target: int
) -> None:
    answer = ask(make_worker(), SPECKLES, resolution=1024, decimation_target=target)
    assert answer["code"] == "image_rejected"
    assert "too thin" in answer["error"]


def test_crumbs_that_a_coarse_grid_loses_are_a_rejected_mesh() -> None:
    with Image.open(io.BytesIO(crumbs())) as image:
        coarse = {"remesh_resolution": 16}  # as decimation comes to, where it fails on a finer one
        with pytest.raises(MeshRejected, match="too small") as caught:
            made(pixels(image), **coarse)
    assert caught.value.field == "decimation_target"


def test_the_cut_out_is_delivered_when_asked(make_worker: MakeWorker, photo: bytes) -> None:
    answer = ask(make_worker(), photo, output={"cutout": True, "delivery": "inline"})
    png = base64.b64decode(answer["cutout"]["base64"])
    shown = np.asarray(Image.open(io.BytesIO(png)))
    assert shown.shape[2] == 4
    assert 0.1 < (shown[..., 3] > 128).mean() < 0.9
    assert answer["cutout"]["content_type"] == "image/png"


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    return tmp_path


def test_the_command_line_shows_the_cut_out(
    shell: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = shell / "photo.png"
    almost = pixels(picture(200, alpha=False)).copy()
    almost[0, 0, 3] = 0
    image.write_bytes(encoded(Image.fromarray(almost)))
    assert main(["cutout", str(image)]) == 0
    said = capsys.readouterr().out
    assert "the background remover" in said
    assert "alpha_ignored" in said
    with Image.open(shell / "photo.cutout.png") as shown:
        assert shown.mode == "RGBA"


def test_a_run_with_warnings_is_not_called_as_asked(
    shell: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for data, warned in ((crumbs(), True), (encoded(picture()), False)):
        (shell / "photo.png").write_bytes(data)
        few = ["--resolution", "1024", "--texture-size", "512", "--decimation-target", "5000"]
        assert main(["run", str(shell / "photo.png"), *few]) == 0
        said = capsys.readouterr().out
        assert ("several_pieces" in said) == warned
        assert ("as_asked" in said) != warned
        assert ("nothing was given up" in said) != warned
