"""Starting: read-ahead, lazy loading, warm-up, kernel caches, and the cold-start bench."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import ROOT
from trellis_runtime.cli.cold_start import chart
from trellis_runtime.engines.embedded import EmbeddedEngine
from trellis_runtime.errors import SetupFailed
from trellis_runtime.settings import Settings
from trellis_runtime.worker.readahead import ReadAhead, drop
from trellis_runtime.worker.startup import build_engine, require_side_by_side
from trellis_runtime.worker.warmup import picture
from trellis_runtime.worker.worker import Worker


def settings(tmp_path: Path, **variables: str) -> Settings:
    return Settings.from_env({
        "TRELLIS2_ENGINE": "embedded", "TRELLIS2_OUTPUT_DIR": str(tmp_path / "out"),
        "TRELLIS2_MIN_FREE_DISK_GB": "0", "TRELLIS2_LOG_LEVEL": "error", **variables,
    })  # fmt: skip


def job() -> dict[str, Any]:
    data = io.BytesIO()
    Image.fromarray(picture()).resize((96, 96)).save(data, "PNG")
    image = base64.b64encode(data.getvalue()).decode()
    return {"id": "one", "input": {"image": image, "preset": "fast", "output": {"preview": False}}}


class Counting(EmbeddedEngine):
    loads = generations = 0

    def load(self, note: Any) -> None:
        self.loads += 1
        super().load(note)

    def begin(self, image: Any, plan: Any) -> Any:
        self.generations += 1
        return super().begin(image, plan)


def test_read_ahead_reads_every_byte_of_the_weights_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "ckpts").mkdir()
    for number in range(6):
        (tmp_path / "ckpts" / f"{number}.safetensors").write_bytes(os.urandom(1000 * number + 1))
    (tmp_path / "notes.txt").write_bytes(b"x" * 50)
    drop(tmp_path)
    reading = ReadAhead([tmp_path, tmp_path / "ckpts"])
    reading.join()
    assert reading.finished
    assert reading.bytes == sum(1000 * n + 1 for n in range(6))
    assert reading.seconds > 0


def test_read_ahead_leaves_what_it_cannot_read_to_the_loader(tmp_path: Path) -> None:
    gone = tmp_path / "a.safetensors"
    gone.write_bytes(b"x")
    reading = ReadAhead([tmp_path, tmp_path / "absent"])
    gone.unlink(missing_ok=True)
    reading.join()
    assert reading.bytes in (0, 1)


def test_a_lazy_worker_loads_with_its_first_job_and_once(tmp_path: Path) -> None:
    engine = Counting(None)
    worker = Worker.start(settings(tmp_path, TRELLIS2_PRELOAD="0"), engine)
    assert engine.loads == 0
    assert asyncio.run(worker.health())["status"] == "ok"
    for _ in range(2):
        answer = asyncio.run(worker.handle(job()))
        assert "error" not in answer, answer
        assert answer["init"]["load"] >= 0
    assert engine.loads == 1
    worker.close()


def test_a_preloaded_worker_is_loaded_and_warm_before_it_takes_jobs(tmp_path: Path) -> None:
    engine = Counting(None)
    worker = Worker.start(settings(tmp_path, TRELLIS2_WARM_UP="512"), engine)
    assert (engine.loads, engine.generations) == (1, 2)  # a photograph, and a whole one
    assert 0 < worker.startup_seconds["warm_up"] < worker.startup_seconds["ready"]
    assert not list((tmp_path / "out").glob("*/*.glb"))  # the warm-up's result is thrown away
    worker.close()


class Alone(Counting):
    """An engine that keeps state which jobs share."""

    most_side_by_side = 1


def test_more_generations_than_an_engine_keeps_apart_are_refused_at_start(tmp_path: Path) -> None:
    two = settings(tmp_path, MAX_CONCURRENT_GENERATIONS="2")
    with pytest.raises(SetupFailed, match="MAX_CONCURRENT_GENERATIONS is 2.*at most 1"):
        Worker.start(two, Alone())
    Worker.start(settings(tmp_path), Alone()).close()
    Worker.start(two, Counting()).close()


class Small(Counting):
    """An engine that finds, once loaded, that there is room for one job alone."""

    @property
    def most_side_by_side(self) -> int:
        return 1 if self.loads else 2


def test_the_platform_is_told_how_many_jobs_there_is_room_for(tmp_path: Path) -> None:
    worker = Worker.start(settings(tmp_path, MAX_CONCURRENT_GENERATIONS="2"), Small())
    assert worker.concurrency == 1
    worker.close()
    later = settings(tmp_path, MAX_CONCURRENT_GENERATIONS="2", TRELLIS2_PRELOAD="0")
    worker = Worker.start(later, Small())
    assert worker.concurrency == 2
    worker.engine.load(lambda _phase, _seconds: None)
    assert worker.concurrency == 1
    worker.close()


def test_the_sdk_is_imported_without_a_search_for_the_processors_name() -> None:
    program = (
        "import cpuinfo, handler\n"
        "asked = []\n"
        "search = cpuinfo.get_cpu_info = lambda: asked.append(1) or {}\n"
        "sdk = handler.import_sdk()\n"
        "print(asked == [], cpuinfo.get_cpu_info is search, callable(sdk.serverless.start))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True"] * 3


def test_the_gpu_engine_runs_two_generations_at_most() -> None:
    for wished in ("2", "3"):
        wanted = {"TRELLIS2_ENGINE": "trellis2", "MAX_CONCURRENT_GENERATIONS": wished}
        gpu_settings = Settings.from_env(wanted)
        if wished == "2":
            require_side_by_side(build_engine(gpu_settings), gpu_settings.jobs)
            continue
        with pytest.raises(SetupFailed, match="MAX_CONCURRENT_GENERATIONS is 3"):
            require_side_by_side(build_engine(gpu_settings), gpu_settings.jobs)


def test_a_kernel_cache_is_seeded_once_and_keyed_by_card_and_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trellis_runtime.engines.trellis2.device import kernel_cache

    key = kernel_cache.cache_key("NVIDIA L40S", (8, 9))
    assert key.startswith("nvidia-l40s-sm89-")
    assert key != kernel_cache.cache_key("NVIDIA L40S", (9, 0))
    monkeypatch.setattr(kernel_cache.importlib.metadata, "version", lambda _name: "0.0.0")
    assert kernel_cache.cache_key("NVIDIA L40S", (8, 9)) != key
    for variable in ("TRITON_CACHE_DIR", "FLEX_GEMM_AUTOTUNE_CACHE_PATH", "WARP_CACHE_PATH"):
        monkeypatch.setenv(variable, "elsewhere")
    seed, folder = tmp_path / "seed", tmp_path / "mine"
    (seed / key / "triton").mkdir(parents=True)
    (seed / key / "triton/k.cubin").write_bytes(b"code")
    assert not kernel_cache.activate(folder, seed, "another-card")
    assert kernel_cache.activate(folder, seed, key)
    assert os.environ["TRITON_CACHE_DIR"] == str(folder / key / "triton")
    assert (folder / key / "triton/k.cubin").read_bytes() == b"code"
    (folder / key / "triton/k.cubin").write_bytes(b"tuned")
    assert kernel_cache.activate(folder, seed, key)
    assert (folder / key / "triton/k.cubin").read_bytes() == b"tuned"  # ours is never overwritten
    assert sorted(p.name for p in folder.iterdir()) == sorted(["another-card", key])


def test_the_cold_start_bench_runs_fresh_processes_and_draws(tmp_path: Path) -> None:
    drawing = tmp_path / "phases.svg"
    done = subprocess.run(
        [sys.executable, "-m", "trellis_runtime", "bench", "cold-start", "--runs", "1",
         "--presets", "fast", "--picture", str(drawing)],
        env=os.environ | {"TRELLIS2_ENGINE": "embedded", "TRELLIS2_OUTPUT_DIR": str(tmp_path)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.strip().splitlines()[-1])
    assert {row["case"] for row in report["rows"]} == {"preload", "lazy"}
    assert all(row["phases"]["first_job_s"] > 0 for row in report["rows"])
    assert ET.parse(drawing).getroot().tag.endswith("svg")


def test_a_chart_survives_names_that_are_markup() -> None:
    row = {"case": "<b>&", "ours_s": 2.0, "phases": {"imports": 0.5}}
    assert ET.fromstring(chart([row], ["imports"])) is not None


_AS_ANOTHER_USER = """
import os, sys
from pathlib import Path
from trellis_runtime.engines.trellis2.device import kernel_cache
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
found = kernel_cache.activate(Path(sys.argv[1]), None, "card")
place = Path(os.environ["TRITON_CACHE_DIR"]).parent
(place / "triton").mkdir(exist_ok=True)
print(found, place, sorted(p.name for p in place.iterdir()))
"""


@pytest.mark.parametrize("filled", [False, True])
def test_a_kernel_cache_of_another_user_is_copied_not_failed_on(filled: bool) -> None:
    """On one volume, a worker as root comes first, and one as `--user worker` after it."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a process of another user")
    with tempfile.TemporaryDirectory() as text:
        volume = Path(text)
        volume.chmod(0o755)
        if filled:
            (volume / "card/warp").mkdir(parents=True)
        command = [sys.executable, "-c", _AS_ANOTHER_USER, str(volume)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120,
            env={"HOME": "/tmp", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found, place, inside = done.stdout.strip().splitlines()[-1].split(" ", 2)
        assert found == str(filled)
        assert not Path(place).is_relative_to(volume)
        assert inside == str(["triton", "warp"] if filled else ["triton"])
        shutil.rmtree(Path(place).parent)


def test_a_kernel_cache_that_is_no_folder_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trellis_runtime.engines.trellis2.device import kernel_cache

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in kernel_cache._VARIABLES:
        monkeypatch.setenv(name, "")  # put back afterwards
    (tmp_path / "cache").write_text("a file")
    assert not kernel_cache.activate(tmp_path / "cache", None, "card")
    assert Path(os.environ["WARP_CACHE_PATH"]).parent.is_dir()
