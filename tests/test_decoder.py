"""Pictures are decoded where they can be ended, and where memory has a bound."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image, ImageDraw

from tests.conftest import encoded, picture
from tests.memory import grown_mib
from trellis_runtime.assets.decode_child import BASE_BYTES, BYTES_PER_PIXEL
from trellis_runtime.assets.decoder import Decoder
from trellis_runtime.assets.images import decode_image
from trellis_runtime.contract.scope import Deadline, JobScope
from trellis_runtime.errors import DeadlineExceeded, ImageRejected, JobCancelled
from trellis_runtime.settings import ImageLimits

DATA = Path(__file__).parent / "data"
LIMITS = ImageLimits()
HURRIED = LIMITS.model_copy(update={"decode_timeout_s": 1.0})


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    made = Decoder()
    yield made
    made.close()


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "decode_child" in " ".join(p.cmdline())]


def many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan is there `scans` times: each is decoded again."""
    whole = encoded(Image.new("RGB", (side, side), (9, 120, 40)), "JPEG", progressive=True)
    last, end = whole.rindex(b"\xff\xda"), whole.rindex(b"\xff\xd9")
    return whole[:end] + whole[last:end] * scans + whole[end:]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "AVIF", "HEIF"])
def test_a_picture_is_what_it_is_in_process(decoder: Decoder, form: str, scope: JobScope) -> None:
    data = encoded(picture(alpha=False), form)
    for _ in range(2):
        there = decoder.decode(data, LIMITS, "image", scope)
        assert np.array_equal(there, decode_image(data, LIMITS))


def test_one_child_serves_one_picture_after_another(decoder: Decoder, scope: JobScope) -> None:
    seen = set()
    for _ in range(3):
        decoder.decode(encoded(picture()), LIMITS, "image", scope)
        seen |= {child.pid for child in children()}
    assert len(seen) == 1


def test_pictures_decoded_side_by_side_are_not_mixed(decoder: Decoder) -> None:
    wrong: list[int] = []

    def decode(shade: int) -> None:
        for _ in range(5):
            data = encoded(Image.new("RGB", (64 + shade, 64), (shade, 0, 0)))
            found = decoder.decode(data, LIMITS, "image", JobScope(str(shade)))
            if found.shape != (64, 64 + shade, 4) or (found[..., 0] != shade).any():
                wrong.append(shade)

    threads = [threading.Thread(target=decode, args=(shade,)) for shade in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(children()) <= 4


@pytest.mark.parametrize("data", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_refused_in_the_same_words(
    decoder: Decoder, data: bytes, scope: JobScope
) -> None:
    with pytest.raises(ImageRejected) as here:
        decode_image(data, LIMITS, "image_url")
    with pytest.raises(ImageRejected) as there:
        decoder.decode(data, LIMITS, "image_url", scope)
    assert (there.value.message, there.value.field) == (here.value.message, "image_url")
    decoder.decode(encoded(picture()), LIMITS, "image", scope)


def test_a_picture_of_thousands_of_scans_is_ended(decoder: Decoder, scope: JobScope) -> None:
    with pytest.raises(ImageRejected, match="longer than 1 s to decode"):
        decoder.decode(many_scans(4000, 3000), HURRIED, "image", scope)
    assert children() == []
    assert decoder.decode(encoded(picture()), LIMITS, "image", scope).shape == (160, 160, 4)


def test_the_jobs_deadline_ends_a_decoder(decoder: Decoder) -> None:
    with pytest.raises(DeadlineExceeded):
        decoder.decode(many_scans(4000, 3000), LIMITS, "image", JobScope("x", Deadline.after(0.5)))
    assert children() == []


def test_a_stopped_job_ends_its_decoder(decoder: Decoder) -> None:
    scope = JobScope("x")
    threading.Timer(0.5, scope.cancel).start()
    with pytest.raises(JobCancelled):
        decoder.decode(many_scans(4000, 3000), LIMITS, "image", scope)
    assert children() == []


def test_a_child_that_died_between_pictures_is_replaced(decoder: Decoder, scope: JobScope) -> None:
    data = encoded(picture())
    decoder.decode(data, LIMITS, "image", scope)
    for child in children():
        child.send_signal(signal.SIGKILL)
        child.wait(10)
    assert decoder.decode(data, LIMITS, "image", scope).shape == (160, 160, 4)


def test_a_child_ends_when_its_pipe_closes(decoder: Decoder, scope: JobScope) -> None:
    decoder.decode(encoded(picture()), LIMITS, "image", scope)
    (child,) = children()
    decoder.close()
    assert not psutil.pid_exists(child.pid) or child.status() == psutil.STATUS_ZOMBIE


def test_a_picture_too_long_for_a_square_is_refused_before_it_is_decompressed(
    decoder: Decoder, scope: JobScope
) -> None:
    data = (DATA / "wide_24000x64.png").read_bytes()
    with pytest.raises(ImageRejected, match="24000x64 px, which is too long and thin"):
        decoder.decode(data, LIMITS, "image", scope)


def test_a_long_picture_is_scaled_to_a_side_whose_square_is_accepted() -> None:
    limits = ImageLimits(max_pixels=1_000_000)
    found = decode_image(encoded(Image.new("RGB", (4000, 200), (8, 90, 7))), limits)
    assert found.shape == (50, 1000, 4)
    assert (found == (8, 90, 7, 255)).all()


def test_colours_under_full_transparency_do_not_bleed_when_a_picture_is_scaled() -> None:
    limits = ImageLimits(max_pixels=250_000)
    half = Image.new("RGBA", (1000, 200), (255, 0, 0, 0))
    half.paste((0, 0, 255, 255), (333, 0, 1000, 200))
    found = decode_image(encoded(half), limits)
    assert (found[..., 0][found[..., 3] > 0] == 0).all()


PREPARE = """
from pathlib import Path
from trellis_runtime.assets.decoder import Decoder
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.errors import WorkerError
from trellis_runtime.settings import ImageLimits
from tests.conftest import encoded, picture
import contextlib
decoder, limits, scope = Decoder(), ImageLimits(), JobScope("x")
decoder.decode(encoded(picture()), limits, "image", scope)
data = Path(arguments[0]).read_bytes()
"""
DECODE = """
with contextlib.suppress(WorkerError):
    decoder.decode(data, limits, "image", scope)
"""


@pytest.mark.parametrize(
    ("name", "pixels"),
    [("avif_says_64_has_15000.avif", 64 * 64), ("wide_24000x64.png", 24000 * 64)],
)
def test_a_picture_that_lies_takes_no_more_than_its_header_explains(name: str, pixels: int) -> None:
    """The AVIF's header says 64 x 64, its stream 15000 x 15000: 800 MB without a bound."""
    room = (BYTES_PER_PIXEL * pixels + BASE_BYTES) / 2**20
    assert grown_mib(PREPARE, DECODE, str(DATA / name)) < room


def test_the_largest_picture_keeps_within_the_bound(tmp_path: Path) -> None:
    """Of those that are accepted, a photograph: parent and child, each by its own peak."""
    path = tmp_path / "large.jpg"
    path.write_bytes(encoded(Image.new("RGB", (5000, 5000), (10, 20, 30)), "JPEG"))
    assert grown_mib(PREPARE, DECODE, str(path)) < (BYTES_PER_PIXEL * 25e6 + BASE_BYTES) / 2**20


def test_children_do_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = (
        "from trellis_runtime.assets.decoder import DECODER; import os, sys, time\n"
        "DECODER.warm_up()\n"
        "if os.fork() == 0: time.sleep(60); os._exit(0)\n"  # as the SDK's ping process: it has the pipe
        "print(os.getpid(), flush=True); time.sleep(60)"
    )

    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    parent.stdout.readline()
    below = psutil.Process(parent.pid).children()
    (child,) = [p for p in below if "decode_child" in " ".join(p.cmdline())]
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    child.wait(15)
    for process in below:
        if process.is_running():
            process.kill()


JOB = """
import asyncio, base64, pathlib
from tests.conftest import encoded, environment, picture
from trellis_runtime.settings import Settings
from trellis_runtime.worker.worker import Worker
worker = Worker.start(Settings.from_env(environment(pathlib.Path(arguments[0]))))
def run(data):
    image = base64.b64encode(data).decode()
    asked = {"resolution": 512, "texture_size": 512, "decimation_target": 4000}
    asked |= {"image": image, "output": {"preview": False, "delivery": "inline"}}
    return asyncio.run(worker.handle({"id": "j", "input": asked}))
assert "error" not in run(encoded(picture()))
data = pathlib.Path(arguments[1]).read_bytes()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(3000, 3000), (6900, 300)])
def test_a_whole_job_takes_memory_by_its_pictures_pixels(
    tmp_path: Path, width: int, height: int
) -> None:
    """48 bytes a pixel, 40 more in the decoder, and 128 MiB; a long picture by its square."""
    image = Image.new("RGB", (width, height), (200, 205, 210))
    ImageDraw.Draw(image).ellipse(
        [width * 0.1, height * 0.1, width * 0.9, height * 0.9], fill=(150, 30, 20)
    )
    path = tmp_path / "picture.jpg"
    path.write_bytes(encoded(image, "JPEG"))
    grown = grown_mib(JOB, "assert 'error' not in run(data)", str(tmp_path), str(path))
    square = max(width, height) ** 2 if width > 2 * height else 0
    assert grown < (88 * width * height + 12 * square) / 2**20 + 128
