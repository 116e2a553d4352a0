"""The background remover: run before the first job, counted in the placement, missed in words."""

from __future__ import annotations

import asyncio
import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conftest import encoded, environment, picture, pixels
from tests.test_joints_engine import plan_for
from tests.upstream_record import CALLS, calls
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import Stage
from trellis_runtime.engines.trellis2 import Trellis2Engine
from trellis_runtime.engines.trellis2.device.placement import GIB, Placement
from trellis_runtime.errors import ImageRejected
from trellis_runtime.settings import Settings, Trellis2
from trellis_runtime.worker.warmup import photograph, warm_up
from trellis_runtime.worker.worker import Worker

PHOTO = pixels(picture(256, alpha=False))
# 2.44 x 5 + 0.14 + 0.88 x 2 + DINOv3 1.13 + BiRefNet 0.82 GiB, as docs/deploy.md sums them
ALL_WEIGHTS = int(16.05 * GIB)
CARDS = {"16 GB": 15.5, "L4": 22.0, "24 GB": 23.5, "48 GB": 47.0}


@pytest.fixture(scope="module")
def engine(small_checkpoint: Path, stand_in: None) -> Trellis2Engine:
    made = Trellis2Engine(Trellis2(model_dir=small_checkpoint), device="cpu")
    made.load(lambda *_: None)
    return made


@pytest.fixture(scope="module")
def without(
    small_checkpoint: Path, stand_in: None, tmp_path_factory: pytest.TempPathFactory
) -> Trellis2Engine:
    folder = tmp_path_factory.mktemp("models") / "m"
    shutil.copytree(small_checkpoint, folder, ignore=shutil.ignore_patterns("rembg"))
    made = Trellis2Engine(Trellis2(model_dir=folder), device="cpu")
    made.load(lambda *_: None)
    return made


# --- placement ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("card", "resident"),
    [("16 GB", ()), ("L4", (512,)), ("24 GB", (512, 1024)), ("48 GB", (512, 1024, 1536))],
)
def test_each_card_keeps_every_model_where_the_sums_say_so(
    card: str, resident: tuple[int, ...]
) -> None:
    sums = Placement(ALL_WEIGHTS, has_remover=True)
    available = int(CARDS[card] * GIB)
    assert tuple(r for r in (512, 1024, 1536) if sums.fits(available, r)) == resident


def test_the_removers_pass_counts_where_it_is_the_largest_and_only_where_it_runs() -> None:
    absent = 10 * GIB
    sums, bare = Placement(absent, has_remover=True), Placement(absent, has_remover=False)
    assert sums.needed_bytes(512) == absent + 4 * GIB
    assert sums.needed_bytes(512, "keep") == bare.needed_bytes(512) == absent + 3 * GIB
    assert sums.needed_bytes(1024) == bare.needed_bytes(1024) == absent + 6 * GIB


def test_the_engine_goes_by_the_sums(
    engine: Trellis2Engine, without: Trellis2Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU all weights are there already: what is left to decide is the stages' work."""
    from trellis_runtime.engines.trellis2.device import vram

    page = 4 * GIB - 1  # a remover's pass does not fit, a sampling at 512 does
    monkeypatch.setattr(vram, "memory_info", lambda device=None: (page, 8 * GIB))
    assert engine.wants_offload(plan_for(512))
    assert not engine.wants_offload(plan_for(512, background="keep"))
    assert not without.wants_offload(plan_for(512))
    assert without.wants_offload(plan_for(1024))


# --- before the first job -------------------------------------------------------------------------


class FarEnoughError(Exception):
    """A warm-up has reached its first sampling; what follows takes long and shows nothing here."""


@contextmanager
def until_the_structure_is_sampled(engine: Trellis2Engine) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise FarEnoughError

    flow = engine.parts()[0].flows["sparse_structure_flow_model"]
    hook = flow.register_forward_pre_hook(stop)
    try:
        with pytest.raises(FarEnoughError):
            yield
    finally:
        hook.remove()


def test_the_warm_up_cuts_out_a_photograph_first(engine: Trellis2Engine) -> None:
    CALLS.clear()
    with until_the_structure_is_sampled(engine):
        warm_up(engine, 512)
    assert [call["mode"] for call in calls("matting")] == ["RGB"]
    kinds = [name for name, _ in CALLS]
    assert kinds.index("matting") < kinds.index("sample")
    assert len(calls("encode")) == 2  # the photograph's, and that of the whole generation
    assert photograph()[..., 3].min() == 255


def test_the_warm_up_of_a_card_without_room_for_all_is_offloaded(
    small_checkpoint: Path, stand_in: None
) -> None:
    """Else it would put every model on a card that the sums say is too small, and end the start."""
    settings = Trellis2(model_dir=small_checkpoint, placement="offload")
    small = Trellis2Engine(settings, device="cpu")
    small.load(lambda *_: None)
    CALLS.clear()
    with until_the_structure_is_sampled(small):
        warm_up(small, 512)
    assert {call["low_vram"] for call in calls("use")} == {True}


def test_a_remover_that_fails_stops_the_start(engine: Trellis2Engine) -> None:
    remover = engine.parts()[0].trellis.rembg_model
    kind = type(remover)
    own = kind.__call__

    def broken(self: object, image: object) -> None:
        raise RuntimeError("mat1 and mat2 must have the same dtype")

    kind.__call__ = broken
    try:
        with pytest.raises(RuntimeError, match="same dtype"):
            warm_up(engine, 512)
    finally:
        kind.__call__ = own


def test_a_start_goes_on_without_a_remover(without: Trellis2Engine) -> None:
    CALLS.clear()
    with until_the_structure_is_sampled(without):
        warm_up(without, 512)
    assert calls("matting") == []
    assert len(calls("sample")) == 1


def test_the_remover_runs_in_float32_whatever_its_file_has(
    small_checkpoint: Path, stand_in: None
) -> None:
    """transformers 5 keeps a file's own dtype; upstream's wrapper feeds float32."""
    from trellis2.pipelines.rembg import BiRefNet  # type: ignore[import-not-found]

    own = BiRefNet.__init__

    def half(self: object, model_name: str) -> None:
        own(self, model_name)
        self.model.half()  # type: ignore[attr-defined]

    BiRefNet.__init__ = half
    try:
        made = Trellis2Engine(Trellis2(model_dir=small_checkpoint), device="cpu")
        made.load(lambda *_: None)
    finally:
        BiRefNet.__init__ = own
    remover = made.parts()[0].modules["rembg_model"]
    assert {p.dtype for p in remover.parameters()} == {torch.float32}


# --- a photograph and no remover ------------------------------------------------------------------


def test_a_photograph_without_a_remover_is_the_callers_error_before_anything_is_computed(
    without: Trellis2Engine,
) -> None:
    CALLS.clear()
    with pytest.raises(ImageRejected, match="transparent, or background: 'keep'") as caught:
        without.begin(PHOTO, plan_for(512))
    assert caught.value.field == "image"
    assert CALLS == []


def test_what_needs_no_remover_is_served_without_one(without: Trellis2Engine) -> None:
    for image, plan in (
        (pixels(picture(256)), plan_for(512)),
        (PHOTO, replace(plan_for(512), background="keep")),
    ):
        generation = without.begin(image, plan)
        generation.run(Stage.CONDITION, plan, JobScope("x"))
        generation.close()


def test_the_answer_to_such_a_job_says_what_to_send(
    without: Trellis2Engine, tmp_path: Path
) -> None:
    worker = Worker.start(Settings.from_env(environment(tmp_path)), without)
    image = base64.b64encode(encoded(picture(256, alpha=False))).decode()
    answer = asyncio.run(worker.handle({"id": "a", "input": {"image": image}}))
    worker.close()
    assert answer["code"] == "image_rejected"
    assert answer["field"] == "image"
    assert "no background remover" in answer["error"]
