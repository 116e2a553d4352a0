"""The command line's words: help that helps, units that stay with their numbers, early refusals."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from tests.conftest import ROOT, encoded, environment, picture
from trellis_runtime.cli.check import print_page
from trellis_runtime.cli.console import require_writable
from trellis_runtime.cli.parser import _parser
from trellis_runtime.cli.stats import Stats, print_report
from trellis_runtime.cli.verbs import ABOUT
from trellis_runtime.errors import InvalidInput
from trellis_runtime.settings import Settings


def verbs() -> dict[str, argparse.ArgumentParser]:
    for action in _parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError


@pytest.mark.parametrize("verb", verbs())
def test_each_verbs_help_helps(verb: str) -> None:
    parser = verbs()[verb]
    about, examples = ABOUT[verb]
    told = parser.format_help()
    assert " ".join(about.split()) in " ".join(told.split())
    for action in parser._actions:
        assert action.help, action.dest
    for example in examples:
        assert f"  python -m trellis_runtime {example}\n" in told
        _parser().parse_args(example.split())


@pytest.mark.parametrize(
    ("path", "words"),
    [("none/model.glb", "there is no folder"), (".", "is a folder")],
)
def test_where_a_file_goes_is_checked_before_the_work(
    path: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match=words):
        require_writable(tmp_path / path, "--output")
    require_writable(tmp_path / "model.glb", "--output")
    (tmp_path / "no picture.jpg").write_bytes(b"no picture")
    done = subprocess.run(
        [sys.executable, "-m", "trellis_runtime", "run", "no picture.jpg", "-o", path],
        cwd=tmp_path, env=os.environ | environment(tmp_path), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert words in done.stderr
    assert "image_rejected" not in done.stderr  # the picture was not looked at


def test_outside_the_virtual_environment_it_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-m", "trellis_runtime", "run", "photo.jpg"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert re.search(r"The package '\w+' is not installed", done.stderr)
    assert ".venv/bin/python -m trellis_runtime" in done.stderr


def narrow(width: int = 60) -> Console:
    return Console(file=io.StringIO(), width=width)


def text_of(console: Console) -> str:
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_units_are_not_wrapped(tmp_path: Path) -> None:
    console = narrow()
    print_page(console, Settings.from_env(environment(tmp_path)))
    assert re.search(r"disk +│ \d+\.\d GiB free, a job needs 0\.01 +│", text_of(console))
    stats = Stats()
    stats.read(LOG)
    console = narrow()
    print_report(console, stats.report())
    shown = text_of(console)
    assert "retries after out of memory" in shown
    assert re.search(r"faces +│ 2 +│ 500,000 +│", shown)


EVENT = {
    "event": "generation_complete", "elapsed_seconds": 8.9, "degradation_level": 0, "faces": 500_000,
    "vertices": 252_156, "oom_retries": 0, "vram_peak_bytes": 6_442_450_944,
    "stage_seconds": {"shape": 0.41}, "timestamp": "2026-11-21T01:30:00Z",
}  # fmt: skip
LOG = [
    b"--- Starting Serverless Worker |  Version 1.12.0 ---\n",
    b"INFO   | Jobs in queue: 1\n",
    b'{"requestId": null, "message": "Started.", "level": "INFO"}\n',
    b"\n",
    *[json.dumps(EVENT).encode() + b"\n"] * 2,
]


def test_a_normal_log_has_no_broken_lines_and_whole_numbers() -> None:
    stats = Stats()
    stats.read(LOG)
    report = stats.report()
    assert (report["broken_lines"], report["lines_of_others"], report["jobs"]) == (0, 3, 2)
    console = narrow(200)
    print_report(console, report)
    shown = text_of(console)
    assert "e+" not in shown
    assert "6,442,450,944" in shown
    assert re.search(r"a job, s +│ 2 +│ +8\.9 ", shown.replace("│ 8.9", "│  8.9"))
    stats.read([b'{"event": "generation_complete", "fac'])
    assert stats.report()["broken_lines"] == 1


def test_the_card_of_a_result_is_one_line_a_fact(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(encoded(picture()))
    done = subprocess.run(
        [sys.executable, "-m", "trellis_runtime", "run", "photo.png", "--preset", "fast"],
        cwd=tmp_path, env=os.environ | environment(tmp_path, COLUMNS="30"), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first = done.stdout.splitlines()[0]
    assert re.fullmatch(r"engine embedded, seed \d+, [\d,]+ vertices, [\d,]+ faces, texture 1024 png, [\d.]+ s", first)  # fmt: skip
