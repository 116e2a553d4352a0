"""The next model of an offloaded job, fetched while the one before it computes: order, room, faults.

On a CPU a copy is there at once; which model is copied when, and what becomes of it, is the same code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import AMPLE
from tests.test_joints_engine import TO_DECODE, decoded, plan_for, run
from tests.upstream_record import CALLS, calls
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import Stage
from trellis_runtime.engines.trellis2 import Trellis2Engine
from trellis_runtime.engines.trellis2.device import vram
from trellis_runtime.engines.trellis2.device.fetching import FetchAhead, HostCarrier, next_model
from trellis_runtime.engines.trellis2.device.placement import GIB
from trellis_runtime.engines.trellis2.device.residency import Residency
from trellis_runtime.errors import JobCancelled, OutOfVram
from trellis_runtime.settings import Trellis2

ROOMY, TIGHT = (64 * GIB, 80 * GIB), (6 * GIB, 8 * GIB)


class Told(HostCarrier):
    """Remembers what was begun, by the first tensor's address."""

    def __init__(self) -> None:
        self.begun: list[int] = []

    def begin(self, hosts: Sequence[Tensor]) -> list[Tensor]:
        self.begun.append(hosts[0].data_ptr())
        return super().begin(hosts)


@pytest.fixture(scope="module")
def made(small_checkpoint: Path, stand_in: None) -> Trellis2Engine:
    engine = Trellis2Engine(
        Trellis2(model_dir=small_checkpoint, fetch_ahead=True), device="cpu", room=AMPLE
    )
    engine.load(lambda *_: None)
    return engine


@pytest.fixture
def engine(made: Trellis2Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trellis2Engine]:
    monkeypatch.setattr(vram, "memory_info", lambda device=None: ROOMY)
    made.parts()[1].evict()
    made.parts()[1]._ahead = FetchAhead(Told())
    CALLS.clear()
    yield made
    CALLS.clear()


def ahead(engine: Trellis2Engine) -> FetchAhead:
    found = engine.parts()[1]._ahead
    assert found is not None
    return found


def begun(engine: Trellis2Engine) -> list[str]:
    """Return the names of the models that were fetched, in order."""
    by_address = {
        next(model.parameters()).data_ptr(): name
        for name, model in engine.parts()[0].modules.items()
        if any(True for _ in model.parameters())
    }
    carrier = ahead(engine)._carrier
    assert isinstance(carrier, Told)
    return [by_address[address] for address in carrier.begun]


def used(engine: Trellis2Engine) -> list[str]:
    """Return the models that upstream's pipeline has used, in order, each run of one once."""
    ours = {"PictureEncoder": "image_cond_model", "BiRefNet": "rembg_model"}
    names = [ours.get(call["model"], call["model"]) for call in calls("use")]
    flows = {type(f).__name__ for f in engine.parts()[0].flows.values()}
    assert not flows & set(names)
    return [name for n, name in enumerate(names) if n == 0 or names[n - 1] != name]


@pytest.mark.parametrize("resolution", [512, 1024])
def test_each_model_is_fetched_while_the_one_before_it_is_used(
    engine: Trellis2Engine, resolution: int
) -> None:
    run(engine, plan_for(resolution, offload=True)).close()
    assert begun(engine) == used(engine)[1:]
    assert len(begun(engine)) == (6 if resolution == 512 else 8)
    assert ahead(engine).name is None


@pytest.mark.parametrize("resolution", [512, 1024])
def test_what_comes_out_is_the_same_to_the_bit(engine: Trellis2Engine, resolution: int) -> None:
    reference = decoded(engine, plan_for(resolution))
    assert begun(engine) == []
    fetched = decoded(engine, plan_for(resolution, offload=True))
    assert begun(engine)
    for name in ("vertices", "faces", "coords", "attributes"):
        assert torch.equal(getattr(fetched, name), getattr(reference, name)), name


def test_nothing_is_fetched_where_the_sums_leave_no_room_or_nobody_asked(
    engine: Trellis2Engine, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vram, "memory_info", lambda device=None: TIGHT)
    run(engine, plan_for(1024, offload=True)).close()
    assert begun(engine) == []
    plain = Trellis2Engine(Trellis2(model_dir=small_checkpoint), device="cpu", room=AMPLE)
    plain.load(lambda *_: None)
    monkeypatch.setattr(vram, "memory_info", lambda device=None: ROOMY)
    run(plain, plan_for(512, offload=True), TO_DECODE[:2]).close()
    assert plain.parts()[1].fetched == 0


def failing_once(engine: Trellis2Engine, name: str, error: Exception) -> Any:
    """Have a flow model fail at its first pass, once."""

    def fail(*_: object) -> None:
        hook.remove()
        raise error

    hook = engine.parts()[0].flows[name].register_forward_pre_hook(fail)
    return hook


def test_a_stage_that_runs_out_of_memory_beside_a_fetched_model_is_repeated_without(
    engine: Trellis2Engine,
) -> None:
    """The ladder hears nothing of it: what was fetched was no need of the job's."""
    reference = decoded(engine, plan_for(1024))
    failing_once(engine, "shape_slat_flow_model_1024", OutOfVram("no room"))
    plan = plan_for(1024, offload=True)
    generation = run(engine, plan)
    before_it = ["sparse_structure_flow_model", "sparse_structure_decoder"]
    cascade = ["shape_slat_flow_model_512", "shape_slat_decoder", "shape_slat_flow_model_1024"]
    assert begun(engine) == [*before_it, *cascade, "tex_slat_flow_model_1024"]
    after = generation.products.decoded
    assert after is not None
    assert torch.equal(after.vertices, reference.vertices)


def test_memory_that_fails_where_nothing_was_fetched_goes_to_the_ladder(
    engine: Trellis2Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vram, "memory_info", lambda device=None: TIGHT)
    failing_once(engine, "shape_slat_flow_model_512", OutOfVram("no room"))
    with pytest.raises(OutOfVram, match="no room"):
        run(engine, plan_for(1024, offload=True))


def test_a_job_that_is_stopped_leaves_nothing_under_way_and_all_weights_as_they_were(
    engine: Trellis2Engine,
) -> None:
    modules = engine.parts()[0].modules
    before = {n: [p.clone() for p in m.parameters()] for n, m in modules.items()}
    scope = JobScope("x")
    flow = engine.parts()[0].flows["shape_slat_flow_model_512"]
    hook = flow.register_forward_pre_hook(lambda *_: scope.cancel())
    try:
        with pytest.raises(JobCancelled):
            run(engine, plan_for(1024, offload=True), scope=scope)
    finally:
        hook.remove()
    assert begun(engine)[-1] == "shape_slat_decoder"  # it was under way
    assert ahead(engine).name is None
    for name, kept in before.items():
        for old, new in zip(kept, modules[name].parameters(), strict=True):
            assert torch.equal(old, new), name


def test_a_job_that_ends_between_stages_gives_back_what_was_fetched(engine: Trellis2Engine) -> None:
    generation = run(engine, plan_for(512, offload=True), TO_DECODE[:2])
    assert ahead(engine).name == "shape_slat_flow_model_512"
    generation.close()
    assert ahead(engine).name is None


def test_the_ladder_takes_what_was_fetched_back(engine: Trellis2Engine) -> None:
    generation = run(engine, plan_for(512, offload=True), TO_DECODE[:2])
    generation.reclaim()
    assert ahead(engine).name is None
    generation.close()


# --- alone ----------------------------------------------------------------------------------------


def test_a_copy_of_another_type_than_is_wanted_by_now_is_not_used() -> None:
    fetch, half = FetchAhead(HostCarrier()), torch.ones(3, dtype=torch.float16)
    fetch.begin("decoder", [half])
    assert fetch.take("decoder", [half.float()]) is None
    assert fetch.name is None
    fetch.begin("decoder", [half])
    assert fetch.take("another", [half]) is None
    taken = fetch.take("decoder", [half])
    assert taken is not None
    assert torch.equal(taken[0], half)
    assert taken[0].data_ptr() != half.data_ptr()


class Small(HostCarrier):
    def begin(self, hosts: Sequence[Tensor]) -> list[Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory.")


def test_where_memory_does_not_suffice_after_all_a_model_is_brought_when_it_is_used() -> None:
    models: dict[str, nn.Module] = {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)}
    residency = Residency(models, "cpu")
    residency._ahead = FetchAhead(Small())
    with (
        residency.needed("a", "b", offload=True),
        residency.fetching_ahead({"a": "b", "b": None}.get),
    ):
        assert models["a"].to("cpu") is models["a"]
        assert models["b"].to("cpu") is models["b"]
    assert residency.fetched == 0


class Ordered(HostCarrier):
    """Notes when work is told to wait for what is under way."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def begin(self, hosts: Sequence[Tensor]) -> list[Tensor]:
        self.events.append("begun")
        return super().begin(hosts)

    def settle(self) -> None:
        self.events.append("settled")


@pytest.mark.parametrize("way", ["take", "drop", "begin"])
def test_memory_is_read_or_given_back_only_after_the_copy(way: str) -> None:
    fetch = FetchAhead(carrier := Ordered())
    fetch.begin("a", [torch.ones(2)])
    fetch.begin("a", [torch.ones(2)])  # under way already
    if way == "take":
        fetch.take("a", [torch.ones(2)])
    elif way == "drop":
        fetch.drop()
    else:
        fetch.begin("b", [torch.ones(2)])
    assert carrier.events[:2] == ["begun", "settled"]
    fetch.drop()
    assert carrier.events == ["begun", "settled"] + (["begun", "settled"] if way == "begin" else [])


def test_what_follows_is_known_in_its_stage_alone() -> None:
    assert next_model(Stage.SHAPE, "shape_slat_decoder", 1024) == "shape_slat_flow_model_1024"
    assert next_model(Stage.DECODE, "shape_slat_decoder", 1024) == "tex_slat_decoder"
    assert next_model(Stage.DECODE, "tex_slat_decoder", 1024) is None
    assert next_model(Stage.CONDITION, "rembg_model", 512) == "image_cond_model"
    assert next_model(Stage.BAKE, "tex_slat_decoder", 512) is None
