"""Jobs that insist on quality checks: other seeds are tried, both are told, or the job fails."""

from __future__ import annotations

import asyncio
import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.conftest import picture
from trellis_runtime.contract.engine import Asset, Generation, Rgba
from trellis_runtime.contract.ladder import Plan
from trellis_runtime.contract.quality import QualityReport
from trellis_runtime.engines.embedded.engine import EmbeddedEngine
from trellis_runtime.settings import Settings
from trellis_runtime.worker.worker import Worker

GOOD = QualityReport(
    area_ratio=1.0, distance_voxels=0.01, distance_p99_voxels=0.05, missed_voxels=0.01,
    boundary_edges=0, nonmanifold_edges=0, shells=1, thin_parts=0, faces_asked=2000, faces=1990,
    alpha_mode="OPAQUE",
)  # fmt: skip
LEAKY = GOOD.model_copy(update={"boundary_edges": 7, "thin_parts": 1})


class Reported:
    """A generation whose asset carries a report."""

    def __init__(self, inner: Generation, report: QualityReport) -> None:
        self._inner, self._report = inner, report

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def asset(self) -> Asset:
        return replace(self._inner.asset(), quality=self._report)


class Measuring(EmbeddedEngine):
    """The embedded engine, with a report on each asset that says what a seed is worth."""

    def __init__(self, good_seeds: set[int]) -> None:
        super().__init__()
        self._good = good_seeds
        self.seeds: list[int] = []

    @property
    def measures_quality(self) -> bool:
        return True

    def begin(self, image: Rgba, plan: Plan) -> Any:
        self.seeds.append(plan.seed)
        report = GOOD if plan.seed in self._good else LEAKY
        return Reported(super().begin(image, plan), report)


def encoded() -> str:
    data = io.BytesIO()
    picture().save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def answer(engine: EmbeddedEngine, tmp_path: Path, **wishes: Any) -> dict[str, Any]:
    environment = {"TRELLIS2_OUTPUT_DIR": str(tmp_path), "TRELLIS2_MIN_FREE_DISK_GB": "0.01"}
    worker = Worker.start(Settings.from_env(environment), engine)
    job = {
        "image": encoded(), "seed": 5, "preset": "fast",
        "decimation_target": 2000, "texture_size": 512, **wishes,
    }  # fmt: skip
    try:
        return asyncio.run(worker.handle({"id": "local_test", "input": job}))
    finally:
        worker.close()


def test_the_next_seed_is_tried_and_both_are_told(tmp_path: Path) -> None:
    engine = Measuring({7})
    told = answer(engine, tmp_path, strict=["open"], retry_seeds=3)
    assert engine.seeds == [5, 6, 7]
    assert told["seed"] == 7
    assert [(r["seed"], r["checks"]) for r in told["rejected_seeds"]] == [
        (5, ["open"]),
        (6, ["open"]),
    ]
    assert told["rejected_seeds"][0]["quality"]["boundary_edges"] == 7
    assert told["quality"]["boundary_edges"] == 0


def test_without_a_seed_left_the_job_fails_in_words(tmp_path: Path) -> None:
    engine = Measuring(set())
    told = answer(engine, tmp_path, strict=["open"], retry_seeds=1)
    assert engine.seeds == [5, 6]
    assert told["code"] == "mesh_rejected"
    assert "7 edges have one face" in told["error"]


def test_what_is_not_insisted_on_warns_and_is_delivered(tmp_path: Path) -> None:
    engine = Measuring(set())
    told = answer(engine, tmp_path, retry_seeds=3)
    assert engine.seeds == [5]
    assert told["quality"]["boundary_edges"] == 7
    codes = [warning["code"] for warning in told["warnings"]]
    assert {"quality_open", "quality_thin"} <= set(codes)


def test_an_engine_that_measures_nothing_refuses_strict_checks(tmp_path: Path) -> None:
    told = answer(EmbeddedEngine(), tmp_path, strict=["open"])
    assert told["code"] == "invalid_input"
    assert told["field"] == "strict"
    assert "embedded" in told["error"]
