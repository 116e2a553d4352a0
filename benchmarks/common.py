"""What the GPU suites share: a loaded engine, a picture, and rows that are shown and kept."""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks.host import loops_per_second
from trellis_runtime.contract.ladder import Plan
from trellis_runtime.contract.request import parse_request
from trellis_runtime.engines.trellis2.baking.decoded import Decoded
from trellis_runtime.engines.trellis2.engine import Trellis2Engine
from trellis_runtime.engines.trellis2.upstream.rehearsal import shape_of
from trellis_runtime.settings import Settings
from trellis_runtime.worker.worker import Worker


def photo() -> Image.Image:
    """Return a picture with alpha; with random weights its content only has to be there."""
    picture = Image.new("RGBA", (768, 768), (200, 60, 30, 0))
    ImageDraw.Draw(picture).ellipse([150, 150, 620, 620], fill=(200, 60, 30, 255))
    return picture


def as_base64(picture: Image.Image) -> str:
    """Return the picture as a job carries it."""
    data = io.BytesIO()
    picture.save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def plan_for(resolution: int, **wishes: Any) -> Plan:
    """Return the plan that a job's input of these wishes comes to."""
    request = parse_request({"image": as_base64(photo()), "resolution": resolution, **wishes})
    return Plan.as_asked(request, seed=1)


def decoded_from(mesh: Any, resolution: int) -> Decoded:
    """Turn upstream's mesh with voxels into what our bake takes."""
    return Decoded(
        mesh.vertices.float(), mesh.faces.int(), mesh.coords.int(), mesh.attrs.float(), resolution
    ).on_host()


@dataclass(slots=True)
class Bench:
    """A loaded engine, and the rows of the suite that runs on it."""

    worker: Worker
    out: Path
    suite: str = ""
    shape: str = "smooth"
    warm: bool = True
    picture: Image.Image = field(default_factory=photo)
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    host_loops_per_s: float = field(default_factory=loops_per_second)

    @classmethod
    def start(cls, models: Path, out: Path) -> Bench:
        """Load the engine on synthetic weights; the shape drives its structure."""
        environment = dict(os.environ) | {
            "TRELLIS2_ENGINE": "trellis2",
            "TRELLIS2_MODEL_DIR": str(models),
            "TRELLIS2_REHEARSAL": "1",
            "TRELLIS2_OUTPUT_DIR": str(out / "jobs"),
            "TRELLIS2_MIN_FREE_DISK_GB": "0.1",
        }
        started = time.perf_counter()
        bench = cls(Worker.start(Settings.from_env(environment)), out)
        print(
            f"# loaded in {time.perf_counter() - started:.1f} s: {bench.worker.startup_seconds}",
            flush=True,
        )
        return bench

    def begin(self, suite: str, shape: str = "smooth") -> None:
        """Begin a suite on a rehearsal shape, with no rows yet."""
        self.suite, self.rows, self.notes = suite, [], {}
        if shape != self.shape:
            shape_of(self.engine.parts()[0]).become(shape)
            self.shape = shape

    @property
    def engine(self) -> Trellis2Engine:
        engine = self.worker.engine
        assert isinstance(engine, Trellis2Engine)
        return engine

    @property
    def image(self) -> NDArray[np.uint8]:
        return np.asarray(self.picture)

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Show and keep rows as they come: a run that dies leaves what it had."""
        for row in rows:
            self.rows.append(row)
            print(" ".join(f"{k}={v}" for k, v in row.items()), flush=True)
            self.save()

    def note(self, name: str, value: Any) -> None:
        self.notes[name] = value
        print(f"# {name}: {value}", flush=True)

    def report(self) -> dict[str, Any]:
        return {
            "suite": self.suite,
            "date": time.strftime("%Y-%m-%d"),
            "versions": self.engine.info().versions | {"python": sys.version.split()[0]},
            "card": torch.cuda.get_device_name(),
            "host_loops_per_s": self.host_loops_per_s,
            "attention": self.engine.info().attention,
            "weights": "synthetic, true architecture; rehearsal shape",
            "shape": self.shape,
            "notes": self.notes,
            "rows": self.rows,
        }

    def save(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / f"{self.suite}-{self.shape}.json").write_text(
            json.dumps(self.report(), indent=1)
        )
