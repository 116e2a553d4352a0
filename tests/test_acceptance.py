"""`acceptance` and `check --deep`, whole, on the CPU: a small checkpoint and the stand-in."""

from __future__ import annotations

import json
import os
import shutil
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from builder.model_folder import Source, write_record
from tests.conftest import AMPLE, environment
from tests.test_joints_engine import MUG, plan_for
from tests.test_weights_finite import overflowing
from trellis_runtime.assets.glb_reader import check_glb
from trellis_runtime.cli.acceptance import Suite, conclude
from trellis_runtime.cli.parser import main
from trellis_runtime.contract.engine import Asset
from trellis_runtime.engines.model_record import record_problems
from trellis_runtime.engines.trellis2 import Trellis2Engine, acceptance
from trellis_runtime.engines.trellis2.acceptance import Job, Outcome, agrees
from trellis_runtime.engines.trellis2.baking.decoded import Decoded
from trellis_runtime.engines.trellis2.comparison import Agreement
from trellis_runtime.engines.trellis2.upstream.flows import FastFlow
from trellis_runtime.settings import Settings, Trellis2
from trellis_runtime.worker.warmup import photograph

FAST = ("--device", "cpu", "--resolutions", "512", "--texture-size", "512", "--steps", "1")
HERE = Source("trellis2", "org/models", "main", ".", ["*"], None, None)


@pytest.fixture(scope="module")
def folder(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint with a record, as a fetch leaves it."""
    out = tmp_path_factory.mktemp("models") / "m"
    shutil.copytree(small_checkpoint, out)
    write_record(out, {"trellis2": "c0ffee"}, [HERE])
    return out


@pytest.fixture(scope="module")
def engine(folder: Path, stand_in: None) -> Trellis2Engine:
    made = Trellis2Engine(Trellis2(model_dir=folder), device="cpu", room=AMPLE)
    made.load(lambda *_: None)
    return made


@contextmanager
def variables(**wanted: str) -> Iterator[None]:
    kept = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


# --- the whole command ----------------------------------------------------------------------------


def test_the_command_holds_ours_against_upstream_and_ends_in_a_table_and_a_line(
    folder: Path, stand_in: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    glb = tmp_path / "a.glb"
    with variables(TRELLIS2_MODEL_DIR=str(folder)):
        assert main(["acceptance", *FAST, "--glb", str(glb)]) == 0
    shown = capsys.readouterr()
    report = json.loads(shown.out.splitlines()[-1])
    verdicts = {row["name"]: row["verdict"] for row in report["checks"]}
    assert report["acceptance"] == "passed"
    assert report["engine"]["synthetic"] is True
    passed = ["hashes", "load", "structure 512", "shape latent 512", "texture latent 512"]
    passed += ["surface 512", "whole job 512", "rung 1, offload", "rung 2, chunk_rows"]
    passed += ["rung 3, host_skips", "rung 4, chunk_bake", "background remover", "activations"]
    assert verdicts == {name: "passed" for name in passed} | {"peak memory 512": "not run"}
    figures = {row["name"]: row["figures"] for row in report["checks"]}
    assert figures["hashes"]["commits"] == {"org/models": "c0ffee"}
    assert 0 < figures["shape latent 512"]["error"]["ours"] < 0.02
    assert all(row["detail"] for row in report["checks"])
    assert check_glb(glb.read_bytes()).data == glb.read_bytes()
    assert "Acceptance" in shown.out
    assert "rungs 1 to 4 ..." in shown.err  # progress, as it goes
    assert str(folder) not in shown.out


def test_a_folder_that_is_not_whole_fails_with_its_reason_and_no_path(
    folder: Path, stand_in: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "m"
    shutil.copytree(folder, broken)
    (broken / "ckpts/tex_slat_decoder.json").unlink()
    with variables(TRELLIS2_MODEL_DIR=str(broken)):
        assert main(["acceptance", *FAST]) == 1
    out = capsys.readouterr().out
    report = json.loads(out.splitlines()[-1])
    assert report["acceptance"] == "failed"
    assert report["failed"] == ["hashes", "load"]
    details = {row["name"]: row["detail"] for row in report["checks"]}
    missing = "TRELLIS2_MODEL_DIR/ckpts/tex_slat_decoder.json is missing"
    assert missing in details["hashes"]
    assert missing in details["load"]
    assert details["everything else"] == "the engine could not be loaded"
    assert str(tmp_path) not in out


@pytest.mark.gpu
def test_the_command_passes_on_a_card(capsys: pytest.CaptureFixture[str]) -> None:
    """With upstream itself, and TRELLIS2_MODEL_DIR's weights; synthetic ones follow a shape."""
    folder = Path(os.environ.get("TRELLIS2_MODEL_DIR", "no folder"))
    if not (torch.cuda.is_available() and folder.is_dir()):
        pytest.skip("TRELLIS2_MODEL_DIR names no model folder, or there is no card")
    with variables(TRELLIS2_REHEARSAL="1" if (folder / "SYNTHETIC").exists() else "0"):
        ended = main(["acceptance", "--resolutions", "512", "1024"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["failed"] == []
    assert ended == 0
    memory = {r["name"]: r["verdict"] for r in report["checks"] if "memory" in r["name"]}
    assert set(memory.values()) == {"passed"}


def test_whatever_a_check_raises_is_its_failure_and_the_next_one_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = Suite(Settings.from_env(environment(tmp_path)), Namespace(device="cpu"))

    def broken() -> list[Outcome]:
        raise RuntimeError("shape [/red] of [2, 3]")

    suite.check("first", broken)
    suite.check("second", lambda: [Outcome("second", "passed", "as it should be")])
    assert conclude(suite) == 1
    shown = capsys.readouterr().out
    assert "of [2, 3]" in shown
    report = json.loads(shown.splitlines()[-1])
    assert report["failed"] == ["first"]
    assert [row["detail"] for row in report["checks"]] == [
        "RuntimeError: shape [/red] of [2, 3]",
        "as it should be",
    ]


def test_check_deep_prints_the_largest_activation_of_each_level(
    folder: Path, stand_in: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with variables(TRELLIS2_MODEL_DIR=str(folder), TRELLIS2_MIN_FREE_DISK_GB="0.01"):
        assert main(["check", "--deep", "--device", "cpu"]) == 0
    table = capsys.readouterr().out.split("Largest activations")[1]
    for decoder in ("shape_slat_decoder", "tex_slat_decoder"):
        rows = [line for line in table.splitlines() if decoder in line]
        assert ["level 3" in row for row in rows].count(True) == 1
        assert len(rows) == 5  # the input, and four levels with layers


def test_check_asks_for_what_the_engine_runs_on_and_for_no_more(
    stand_in: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The image holds neither CuMesh nor nvdiffrast: the bake is ours."""
    with variables(TRELLIS2_ENGINE="trellis2", TRELLIS2_MIN_FREE_DISK_GB="0.01"):
        assert main(["check"]) == 1
    assert "not installed: flex_gemm " in capsys.readouterr().out


# --- what each check sees -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "itself", "agreed"),
    [
        (Agreement(1.0, 0.003), Agreement(1.0, 0.003), True),
        (Agreement(1.0, 0.1), Agreement(1.0, 0.06), True),
        (Agreement(1.0, 0.1), Agreement(1.0, 0.04), False),
        (Agreement(0.97, 0.003), Agreement(0.99, 0.003), False),
        (Agreement(1.0, float("nan")), Agreement(1.0, 0.003), False),
        (Agreement(1.0, 0.0, 0.04), Agreement(1.0, 0.0, 0.0), True),
        (Agreement(1.0, 0.0, 0.06), Agreement(1.0, 0.0, 0.0), False),
    ],
)
def test_ours_may_be_as_far_from_upstream_as_upstream_is_from_itself(
    ours: Agreement, itself: Agreement, agreed: bool
) -> None:
    assert agrees(ours, itself) is agreed


def verdicts(outcomes: list[Outcome]) -> dict[str, str]:
    return {outcome.name: outcome.verdict for outcome in outcomes}


def test_a_flow_that_differs_fails_at_its_own_stages_alone(engine: Trellis2Engine) -> None:
    own = FastFlow.forward

    def louder(self: FastFlow, x: Any, *rest: Any, **more: Any) -> Any:
        out = own(self, x, *rest, **more)
        return out if isinstance(x, torch.Tensor) else out * 1.1

    FastFlow.forward = louder  # type: ignore[assignment]
    try:
        found = verdicts(acceptance.beside_upstream(engine, MUG, plan_for(512)))
    finally:
        FastFlow.forward = own  # type: ignore[method-assign]
    assert found == {
        "structure 512": "passed",
        "shape latent 512": "failed",
        "texture latent 512": "failed",
        "surface 512": "passed",
    }


def test_a_decoder_that_differs_fails_at_the_surface(engine: Trellis2Engine) -> None:
    pipeline = engine.parts()[0]
    own = type(pipeline).decoding

    @contextmanager
    def shifted(self: Any, name: str, **asked: Any) -> Iterator[None]:
        bias = self.modules[name].output_layer.bias
        with own(self, name, **asked):
            if name == "shape_slat_decoder":
                bias.data[:3] += 3000  # the stand-in moves vertices by tanh of it / 1000 of a cell
            yield
            if name == "shape_slat_decoder":
                bias.data[:3] -= 3000

    limit = acceptance.LEAST_DISTANCE_VOXELS
    type(pipeline).decoding = shifted  # type: ignore[method-assign, assignment]
    acceptance.LEAST_DISTANCE_VOXELS = 1e-5
    try:
        outcomes = acceptance.beside_upstream(engine, MUG, plan_for(512))
    finally:
        type(pipeline).decoding = own  # type: ignore[method-assign]
        acceptance.LEAST_DISTANCE_VOXELS = limit
    assert verdicts(outcomes)["surface 512"] == "failed"
    assert verdicts(outcomes)["shape latent 512"] == "passed"


def job(**changes: Any) -> Job:
    decoded = Decoded(
        torch.rand(4, 3, generator=torch.Generator().manual_seed(1)),
        torch.tensor([[0, 1, 2]], dtype=torch.int32),
        torch.zeros(2, 3, dtype=torch.int32),
        torch.ones(2, 6),
        512,
    )
    flat = np.zeros((3, 3), np.float32)
    asset = Asset(flat, np.array([[0, 1, 2]], np.uint32), flat + 1)
    return Job(replace(decoded, **changes), asset, 0, 0)


def test_one_bit_that_differs_fails_a_rung() -> None:
    same = acceptance._same_bits("rung", job(), job())
    assert same.verdict == "passed"
    other = acceptance._same_bits(
        "rung", job(), job(attributes=torch.ones(2, 6).nextafter(torch.zeros(1)))
    )
    assert (other.verdict, other.figures) == ("failed", {"other": ["decoded attributes"]})
    shorter = job(coords=torch.zeros(1, 3, dtype=torch.int32))
    assert acceptance._same_bits("rung", job(), shorter).verdict == "failed"


def test_a_rung_that_the_job_runs_with_already_is_not_run(engine: Trellis2Engine) -> None:
    plan = plan_for(512, offload=True, chunk_rows=True, chunk_decoder=True, chunk_bake=True)
    outcomes = acceptance.lossless_rungs(engine, MUG, plan, job())
    assert [outcome.verdict for outcome in outcomes] == ["not run"] * 4


def test_the_remover_is_judged_by_its_cut_out(
    engine: Trellis2Engine, small_checkpoint: Path, tmp_path: Path
) -> None:
    plan = plan_for(512, background="keep")
    assert acceptance.background_removed(engine, photograph(), plan).verdict == "passed"
    mug = acceptance.background_removed(engine, MUG, plan)
    assert (mug.verdict, "transparent" in mug.detail) == ("not run", True)
    shutil.copytree(small_checkpoint, tmp_path / "m", ignore=shutil.ignore_patterns("rembg"))
    bare = Trellis2Engine(Trellis2(model_dir=tmp_path / "m"), device="cpu", room=AMPLE)
    bare.load(lambda *_: None)
    without = acceptance.background_removed(bare, photograph(), plan)
    assert (without.verdict, "TRELLIS2_REMBG_DIR" in without.detail) == ("not run", True)


def test_an_overflow_is_found_with_its_level(engine: Trellis2Engine) -> None:
    with overflowing(engine, "shape_slat_decoder"):
        found, failure = acceptance.largest_activations(engine, MUG, plan_for(512))
    assert failure is not None
    assert "subdivision 0" in failure
    outcome = acceptance.activations_outcome(found, failure)
    assert outcome.verdict == "failed"
    assert "shape_slat_decoder's level 0" in outcome.detail
    whole, failure = acceptance.largest_activations(engine, MUG, plan_for(512))
    assert failure is None
    assert acceptance.activations_outcome(whole, failure).verdict == "passed"


def test_a_file_that_changed_is_told_by_its_record(folder: Path, tmp_path: Path) -> None:
    heard: list[str] = []
    assert list(record_problems(folder, heard.append)) == []
    assert "pipeline.json" in heard
    changed = tmp_path / "m"
    shutil.copytree(folder, changed)
    weights = changed / "ckpts/tex_slat_decoder.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert list(record_problems(changed)) == [f"{weights} has changed since it was fetched"]
    (changed / "SOURCES.json").write_text("[]")
    assert "cannot be read" in next(record_problems(changed))
