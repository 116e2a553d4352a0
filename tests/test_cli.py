"""The command line and `handler.py`, as a newcomer meets them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, encoded, environment, picture
from trellis_runtime.assets.glb_reader import inspect_glb
from trellis_runtime.cli.parser import main


def run(tmp_path: Path, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "200",
        "HOME": str(tmp_path),
        **{name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")},
    }
    return subprocess.run(
        [sys.executable, *args], cwd=tmp_path, env=env | environment(tmp_path) | variables,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture
def photo_file(tmp_path: Path) -> Path:
    path = tmp_path / "mug.png"
    path.write_bytes(encoded(picture(256)))
    return path


def test_run_makes_a_glb_and_says_where(photo_file: Path, tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "-m",
        "trellis_runtime",
        "run",
        str(photo_file),
        "-o",
        "mug.glb",
        "--preset",
        "fast",
    )
    assert done.returncode == 0, done.stderr
    assert inspect_glb((tmp_path / "mug.glb").read_bytes()).errors == []
    last = done.stdout.strip().splitlines()[-3:]
    assert last[0].startswith("GLB:")
    assert "mug.glb" in last[0]
    assert last[1].startswith("picture:")
    assert last[2] == "degradation level: 0 (as_asked, lossless): nothing was given up"


def test_run_makes_other_formats_too(photo_file: Path, tmp_path: Path) -> None:
    done = run(
        tmp_path, "-m", "trellis_runtime", "run", str(photo_file), "--preset", "fast",
        "--also", "stl", "--also", "usdz", "--also", "stl",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = {line.split(":")[0]: line.split()[1] for line in done.stdout.splitlines()[1:-1]}
    assert Path(lines["stl"]).stat().st_size > 1000
    assert Path(lines["usdz"]).name == "model-usdz.usdz"
    assert Path(lines["GLB"]).is_file()


def test_run_tells_what_was_given_up(photo_file: Path, tmp_path: Path) -> None:
    done = run(
        tmp_path, "-m", "trellis_runtime", "run", str(photo_file), "--preset", "fast",
        TRELLIS2_EMBEDDED_MEMORY_MB="8",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "out of memory in bake" in done.stdout
    assert "lossy" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["no-such.png"], "no-such.png"),
        (["text.txt"], "image_rejected"),
        (["mug.png", "--seed", "-1"], "invalid_input: seed is -1"),
        (["mug.png", "--decimation-target", "5"], "decimation_target is 5"),
    ],
)
def test_run_refuses_clearly(args: list[str], words: str, photo_file: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("no picture")
    done = run(tmp_path, "-m", "trellis_runtime", "run", *args)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_setting_that_is_wrong_stops_the_start(photo_file: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "-m", "trellis_runtime", "run", str(photo_file), TRELLIS2_LOG_LEVEL="loud")
    assert done.returncode == 2
    assert "TRELLIS2_LOG_LEVEL has value 'loud'" in done.stderr


def test_handler_runs_test_input_through_the_real_sdk(tmp_path: Path) -> None:
    (tmp_path / "test_input.json").write_bytes((ROOT / "test_input.json").read_bytes())
    done = run(tmp_path, str(ROOT / "handler.py"))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "output/local_test"
    assert inspect_glb((folder / "model.glb").read_bytes()).errors == []
    answer = json.loads((folder / "answer.json").read_bytes())
    assert answer["seed"] == 42
    assert answer["mesh"]["boundary_edges"] == 0
    shown = run(tmp_path, "-m", "trellis_runtime", "show", str(folder))
    assert shown.stdout.splitlines()[-3].endswith("model.glb")


def test_handler_exits_with_1_when_the_job_fails(tmp_path: Path) -> None:
    (tmp_path / "test_input.json").write_text('{"input": {"image": "x", "seed": -5}}')
    assert run(tmp_path, str(ROOT / "handler.py")).returncode == 1


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "answer"]) == 0
    assert "oom_quality_degradation_level" in json.loads(capsys.readouterr().out)["properties"]


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for command in ("run", "show", "check", "schema", "ladder", "bench"):
        assert command in text


def test_check_tells_what_this_machine_can_do(tmp_path: Path) -> None:
    done = run(tmp_path, "-m", "trellis_runtime", "check")
    assert done.returncode == 0
    for words in ("embedded engine", "GPU", "disk", "bucket"):
        assert words in done.stdout
    assert (
        run(
            tmp_path, "-m", "trellis_runtime", "check", TRELLIS2_MIN_FREE_DISK_GB="1000000"
        ).returncode
        == 1
    )


def test_bench_ends_with_one_json_object(tmp_path: Path) -> None:
    done = run(tmp_path, "-m", "trellis_runtime", "bench", "--runs", "1", "--presets", "fast")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.strip().splitlines()[-1])
    assert report["suite"] == "embedded"
    assert report["rows"][0]["preset"] == "fast"
    assert set(report["rows"][0]["stage_seconds"]) >= {"condition", "bake", "export"}
