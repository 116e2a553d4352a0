"""Hostile images and jobs, for a bounded time: mutations of a corpus of real ones.

Anything but an answer is a finding: it is written to a file, and the exit code is 1. Run by
`make fuzz`; the corpus is made here, so that it holds every format that the worker reads.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import copy
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from tests.conftest import encoded, environment, picture
from trellis_runtime.assets.glb_reader import inspect_glb
from trellis_runtime.assets.images import decode_image
from trellis_runtime.errors import ImageRejected
from trellis_runtime.settings import ImageLimits, Settings
from trellis_runtime.worker.worker import Worker

_LIMITS = ImageLimits(max_pixels=4_000_000)
_ODD = [
    None,
    True,
    -1,
    0,
    2**31,
    2**63,
    1e308,
    float("nan"),
    "",
    "x" * 5000,
    "\ud800",
    [],
    {},
    [[]] * 50,
]


def corpus() -> list[bytes]:
    """Return small whole files of every format and kind that is read."""
    photo = picture(96)
    flat = photo.convert("RGB")
    files = [encoded(photo, form) for form in ("PNG", "WEBP", "AVIF", "HEIF")]
    files += [
        encoded(flat, "JPEG"),
        encoded(flat.convert("CMYK"), "JPEG"),
        encoded(flat.convert("P")),
    ]
    files += [
        encoded(flat, "WEBP", save_all=True, append_images=[flat]),
        encoded(flat.convert("L").convert("I;16"), "PNG"),
    ]
    return files


def odd_picture(rng: random.Random) -> Image.Image:
    """A whole picture of an odd object: specks, bars, frames, gradients, noise, nearly nothing."""
    width, height = (rng.choice((1, 2, 7, 8, 9, 40, 96, 300)) for _ in range(2))
    colours = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (height, width, 4))
    picture = np.asarray(colours, np.uint8)
    if rng.random() < 0.5:
        picture[..., :3] = rng.randrange(256)
    alpha = Image.new("L", (width, height), 255 if rng.random() < 0.2 else 0)
    draw = ImageDraw.Draw(alpha)
    for _ in range(rng.choice((0, 1, 1, 2, 5, 200))):
        left, top = rng.randrange(-2, width), rng.randrange(-2, height)
        right, bottom = left + rng.randrange(width + 2), top + rng.randrange(height + 2)
        shape = rng.choice((draw.ellipse, draw.rectangle, draw.line))
        shape([left, top, right, bottom], fill=rng.choice((0, 1, 120, 254, 255)))
    if rng.random() < 0.8:
        picture[..., 3] = np.asarray(alpha)
    return Image.fromarray(picture)


def odd_job(valid: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A job in order, of an odd picture, with values from all over their ranges."""
    job = copy.deepcopy(valid)
    form = rng.choice(("PNG", "WEBP"))
    job["input"] |= {
        "image": base64.b64encode(encoded(odd_picture(rng), form)).decode(),
        "background": rng.choice(("auto", "keep")),
        "decimation_target": rng.choice((1000, 5000, 2_000_000)),
        "shell": rng.choice(("closed", "double_sided", "remeshed")),
        "remesh": rng.random() < 0.7,
        "alpha_mode": rng.choice(("auto", "opaque", "mask", "blend")),
    }
    job["input"]["output"] = {
        "preview": rng.random() < 0.3,
        "cutout": rng.random() < 0.3,
        "texture_format": rng.choice(("png", "webp", "jpeg")),
    }
    return job


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, double or overwrite a few places."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(out))
        kind = rng.randrange(4)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at : at + 4] = rng.choice([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"])
        elif kind == 2:
            del out[at : at + rng.randint(1, 64)]
        else:
            out[at:at] = out[at : at + rng.randint(1, 64)]
        if not out:
            return b"\0"
    return bytes(out)


def mutated_job(job: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Replace a few values anywhere in a job by odd ones."""
    job = copy.deepcopy(job)
    for _ in range(rng.randint(1, 3)):
        node: Any = job
        while isinstance(node, dict) and node:
            key = rng.choice(list(node))
            if isinstance(node[key], dict) and node[key] and rng.random() < 0.8:
                node = node[key]
                continue
            node[key] = rng.choice(_ODD)
            break
    return job


def main() -> int:
    """Fuzz for the time given; returns 1 when something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, files = random.Random(args.seed), corpus()
    image = base64.b64encode(files[0]).decode()
    valid = {
        "id": "fuzz",
        "policy": {"executionTimeout": 20_000},
        "input": {
            "image": image, "seed": 1, "resolution": 512, "texture_size": 512, "decimation_target": 1000,
            "sampler": {"shape": {"steps": 5, "guidance_interval": [0.1, 0.9]}},
            "output": {"preview": False, "texture_format": "webp"},
        },
    }  # fmt: skip
    counts = dict.fromkeys(("images", "glbs", "jobs"), 0)
    finding: object = None
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker.start(Settings.from_env(environment(Path(folder))))
        glb = _glb(worker, valid, Path(folder))
        until = time.monotonic() + args.seconds
        try:
            while time.monotonic() < until:
                finding = mutated(rng.choice(files), rng)
                try:
                    decode_image(finding, _LIMITS)
                except ImageRejected:
                    pass
                counts["images"] += 1
                finding = mutated(glb[:4000] + glb[-4000:] if rng.random() < 0.5 else glb, rng)
                inspect_glb(finding)
                counts["glbs"] += 1
                odd = rng.random() < 0.5
                finding = odd_job(valid, rng) if odd else mutated_job(valid, rng)
                answer = asyncio.run(worker.handle(finding))
                _require_foreseen(answer)
                counts["jobs"] += 1
        except Exception:
            Path("fuzz-finding").write_bytes(
                finding if isinstance(finding, bytes) else repr(finding).encode()
            )
            print(f"found after {counts}: see fuzz-finding", file=sys.stderr)
            raise
        finally:
            worker.close()
    print(f"nothing found in {json.dumps(counts)}")
    return 0


def _require_foreseen(answer: dict[str, Any]) -> None:
    json.dumps(answer, allow_nan=False)
    if answer.get("code") in ("internal", "stage_failed"):
        raise RuntimeError(answer["error"])


def _glb(worker: Worker, job: dict[str, Any], folder: Path) -> bytes:
    asyncio.run(worker.handle(copy.deepcopy(job)))
    return (folder / "output/fuzz/model.glb").read_bytes()


if __name__ == "__main__":
    sys.exit(main())
