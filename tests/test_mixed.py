"""Never another job's result: many jobs side by side, each of whose assets is known beforehand.

`make mixed` runs 1,000; the tests run 24 at each number.
"""

from __future__ import annotations

import asyncio
import base64
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import encoded
from trellis_runtime.engines.embedded import surface as embedded_surface
from trellis_runtime.engines.embedded.surface import Surface, decimate
from trellis_runtime.worker.worker import Worker

JOBS = int(os.environ.get("MIXED_JOBS", "24"))
PICTURES = 8


def blob(number: int) -> Image.Image:
    """A shape and a colour that no other number has; the odd ones have no alpha."""
    y, x = np.mgrid[:128, :128] / 64.0 - 1.0
    reach = 0.55 + 0.2 * np.cos((number + 2) * np.arctan2(y, x) + number)
    inside = np.hypot(x, y) < reach
    pixels = np.full((128, 128, 4), (205, 208, 212, 255), np.uint8)
    pixels[inside, :3] = (40 + 20 * number, 200 - 22 * number, 30 + 7 * number)
    if number % 2 == 0:
        pixels[..., 3] = inside * 255
    image = Image.fromarray(pixels)
    return image if number % 2 == 0 else image.convert("RGB")


def request(number: int) -> dict[str, Any]:
    return {
        "image": base64.b64encode(encoded(blob(number))).decode(),
        "resolution": 512,
        "texture_size": 512,
        "decimation_target": 4000,
        "seed": 3,
        "output": {"preview": False, "delivery": "inline"},
    }


@pytest.mark.slow
@pytest.mark.parametrize("side_by_side", [2, 4])
def test_no_job_gets_what_another_made(
    make_worker: Callable[..., Worker], side_by_side: int
) -> None:
    worker = make_worker(
        MAX_CONCURRENT_GENERATIONS=str(side_by_side), TRELLIS2_MAX_QUEUED_JOBS="1000"
    )
    chance = random.Random(side_by_side)
    order = [chance.randrange(PICTURES) for _ in range(JOBS)]

    async def ask(job: int, number: int) -> str:
        answer = await worker.handle({"id": f"mixed-{job}", "input": request(number)})
        return str(answer["artifact"]["sha256"])

    async def all_at_once() -> tuple[list[str], list[str]]:
        alone = [await ask(-1 - n, n) for n in range(PICTURES)]
        return alone, await asyncio.gather(*(ask(j, n) for j, n in enumerate(order)))

    alone, together = asyncio.run(all_at_once())
    assert len(set(alone)) == PICTURES
    mixed = [j for j, n in enumerate(order) if together[j] != alone[n]]
    print(f"mixed: {len(mixed)} of {JOBS} jobs at {side_by_side}")
    assert mixed == []


def test_the_library_that_keeps_one_mesh_is_entered_by_one_job_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Watched at its door: the mix itself shows only when threads meet inside it."""
    library = embedded_surface.fast_simplification
    real, inside, most = library.simplify, [], []

    def watched(*arguments: Any, **options: Any) -> Any:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.3)  # long enough for another to come in beside it
        try:
            return real(*arguments, **options)
        finally:
            inside.pop()

    monkeypatch.setattr(library, "simplify", watched)
    grid = np.stack(np.meshgrid(*[np.arange(12.0)] * 2), -1).reshape(-1, 2).astype(np.float32)
    vertices = np.concatenate([grid, np.zeros((144, 1), np.float32)], axis=1)
    first = np.array(
        [[r * 12 + c, r * 12 + c + 1, r * 12 + c + 12] for r in range(11) for c in range(11)]
    )
    threads = [
        threading.Thread(target=decimate, args=(Surface(vertices, first), 20)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) >= 3
    assert max(most) == 1
