"""The ladder, as data and as a way down."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from trellis_runtime.contract.ladder import (
    RUNGS,
    LadderState,
    Plan,
    ladder,
    restart_stage,
)
from trellis_runtime.contract.levels import LOWEST_LEVEL, TEXTURE_LEVELS
from trellis_runtime.contract.request import (
    GenerationRequest,
    Resolution,
    TextureSize,
    parse_request,
)
from trellis_runtime.contract.stages import ENGINE_STAGES, Stage

requests = st.builds(
    lambda **fields: parse_request({"image": "x", **fields}),
    resolution=st.sampled_from(get_args(Resolution)),
    texture_size=st.sampled_from(get_args(TextureSize)),
    remesh=st.booleans(),
    decimation_target=st.integers(1000, 2_000_000),
)
BIGGEST = Plan.as_asked(parse_request({"image": "x", "preset": "game_asset"}), 0)


def test_there_are_thirteen_rungs_and_lossless_ones_come_first() -> None:
    assert [rung.level for rung in RUNGS] == list(range(LOWEST_LEVEL + 1))
    kinds = [rung.lossless for rung in RUNGS]
    assert kinds == sorted(kinds, reverse=True)
    assert len({rung.name for rung in RUNGS}) == 13


@given(requests)
def test_each_rung_is_cheaper_than_the_one_before_and_never_above_the_request(
    request: GenerationRequest,
) -> None:
    asked = Plan.as_asked(request, 1)
    steps = ladder(asked)
    assert steps[0][1] == asked
    for (_, before), (_, after) in pairwise(steps):
        assert after.is_leaner_than(before)
        assert not before.is_leaner_than(after)
    for _, plan in steps[1:]:
        assert plan.is_leaner_than(asked)
        assert plan.resolution <= asked.resolution
        assert plan.texture_size <= asked.texture_size
        assert plan.decimation_target == asked.decimation_target
        assert plan.samplers == asked.samplers


@given(requests)
def test_the_texture_is_lowered_at_levels_10_to_12_and_at_no_other(
    request: GenerationRequest,
) -> None:
    for (_, before), (rung, after) in pairwise(ladder(Plan.as_asked(request, 1))):
        assert (after.texture_size < before.texture_size) == (rung.level in TEXTURE_LEVELS)


@given(requests)
def test_a_lossless_rung_changes_nothing_that_a_caller_can_see(request: GenerationRequest) -> None:
    asked = Plan.as_asked(request, 1)
    for rung, plan in ladder(asked):
        if rung.lossless:
            assert plan.quality() == asked.quality()


def test_a_rung_that_changes_nothing_is_passed_over() -> None:
    small = Plan.as_asked(parse_request({"image": "x", "resolution": 512, "remesh": False}), 0)
    names = [rung.name for rung, _ in ladder(small)]
    for absent in ("tokens_32768", "resolution_1024", "remesh_512", "remesh_off", "resolution_512"):
        assert absent not in names


@given(requests, st.integers(0, 12), st.lists(st.sampled_from(ENGINE_STAGES), max_size=30))
def test_a_descent_goes_down_only_and_obeys_the_callers_limit(
    request: GenerationRequest, limit: int, strikes: list[Stage]
) -> None:
    descent = LadderState.begin(Plan.as_asked(request, 1), limit)
    level = 0
    for failed_stage in strikes:
        before = descent.plan
        rung = descent.step_down(failed_stage)
        if rung is None:
            assert descent.plan == before
            continue
        assert level < rung.level <= limit
        assert failed_stage in rung.frees_memory_in
        assert descent.plan.is_leaner_than(before)
        level = rung.level


def test_only_the_struck_stage_is_repeated_unless_its_input_changes() -> None:
    for rung in RUNGS[1:]:
        for failed_stage in rung.frees_memory_in:
            again = restart_stage(rung, failed_stage)
            if rung.restarts_at is None:
                assert again == failed_stage
            else:
                assert ENGINE_STAGES.index(again) <= ENGINE_STAGES.index(failed_stage)
    # nothing is ever sampled again for a bake that did not fit
    assert all(
        restart_stage(r, Stage.BAKE) == Stage.BAKE for r in RUNGS if Stage.BAKE in r.frees_memory_in
    )


def test_every_engine_stage_has_a_lossless_way_out() -> None:
    for stage in ENGINE_STAGES:
        rung = LadderState.begin(BIGGEST, 12).step_down(stage)
        assert rung is not None
        assert rung.lossless


def test_a_rung_that_frees_nothing_there_is_passed_over() -> None:
    descent = LadderState.begin(BIGGEST, 12)
    taken = [rung.name for _ in range(12) if (rung := descent.step_down(Stage.BAKE))]
    assert taken[:3] == ["offload", "chunk_bake", "remesh_512"]
    assert "chunk_rows" not in taken


def test_a_lower_resolution_restarts_at_the_shape() -> None:
    lower = next(rung for rung in RUNGS if rung.name == "resolution_1024")
    for failed_stage in (Stage.SHAPE, Stage.TEXTURE, Stage.DECODE):
        assert restart_stage(lower, failed_stage) is Stage.SHAPE
