"""The ladder, as data and as a way down."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from trellis_runtime.contract.ladder import (
    RUNGS,
    LadderState,
    Plan,
    Shortage,
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
        before, taken_before = descent.plan, list(descent.taken)
        rungs = descent.step_down(failed_stage)
        if not rungs:
            assert descent.plan == before
            continue
        (rung,) = rungs
        assert rung not in taken_before
        assert rung.level <= limit
        assert failed_stage in rung.frees_memory_in
        assert descent.plan.is_leaner_than(before)
        assert descent.rung.level == max(level, rung.level)
        level = descent.rung.level


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
        (rung,) = LadderState.begin(BIGGEST, 12).step_down(stage)
        assert rung.lossless


def test_a_rung_that_frees_nothing_there_is_passed_over() -> None:
    descent = LadderState.begin(BIGGEST, 12)
    taken = [rung.name for _ in range(12) for rung in descent.step_down(Stage.BAKE)]
    assert taken[:3] == ["offload", "chunk_bake", "remesh_512"]
    assert "chunk_rows" not in taken


def test_a_lower_resolution_restarts_at_the_shape() -> None:
    lower = next(rung for rung in RUNGS if rung.name == "resolution_1024")
    for failed_stage in (Stage.SHAPE, Stage.TEXTURE, Stage.DECODE):
        assert restart_stage(lower, failed_stage) is Stage.SHAPE


def _needs(texture_only: bool) -> Shortage:
    """A bake of 1 byte a texel beside a surface of 4 bytes a cell; of those, what is the more."""

    def need(plan: Plan) -> int:
        surface = 0 if texture_only else 4 * plan.remesh_resolution**2
        return max(surface, plan.texture_size**2)

    return Shortage(need, 5 * 2**20)


ASKED = Plan.as_asked(parse_request({"image": "x", "resolution": 1024, "texture_size": 4096}), 0)


def test_only_what_lowers_the_need_of_what_failed_is_given_away() -> None:
    descent = LadderState.begin(ASKED, 12)
    taken = descent.step_down(Stage.BAKE, _needs(texture_only=True))
    assert [rung.name for rung in taken] == ["texture_half"]
    assert descent.plan == replace(ASKED, texture_size=2048)
    told = dict(descent.skipped)
    assert told["remesh_512"] == "bake would need 16.0 MiB all the same"
    assert told["remesh_off"] == "bake would need 16.0 MiB all the same"
    assert told["resolution_512"] == "frees nothing in bake"


def test_two_needs_are_both_lowered_and_nothing_else() -> None:
    tight = replace(_needs(texture_only=False), available=3 * 2**20)
    descent = LadderState.begin(ASKED, 12)
    taken = descent.step_down(Stage.BAKE, tight)
    assert [rung.name for rung in taken] == ["remesh_512", "texture_half", "texture_quarter"]
    assert tight.fits(descent.plan)
    assert descent.plan.resolution == 1024


def test_a_rung_that_turned_out_needless_is_given_back() -> None:
    sizes = {4096: 10, 2048: 4, 1024: 3, 0: 2}

    def need(plan: Plan) -> int:
        return sizes[plan.texture_size] - (0 if plan.remesh else 1)

    descent = LadderState.begin(ASKED, 12)
    taken = descent.step_down(Stage.BAKE, Shortage(need, 5))
    assert [rung.name for rung in taken] == ["texture_half"]
    assert descent.plan.remesh
    assert dict(descent.skipped)["remesh_off"] == "bake fits without it"


@given(requests, st.sampled_from(ENGINE_STAGES), st.integers(0, 12), st.integers(1, 10**9))
def test_what_is_taken_fits_or_nothing_is(
    request: GenerationRequest, stage: Stage, limit: int, available: int
) -> None:
    asked = Plan.as_asked(request, 1)

    def need(plan: Plan) -> int:
        lean = sum((plan.offload, plan.chunk_rows, plan.chunk_decoder, plan.chunk_bake))
        return plan.texture_size**2 * 12 + plan.resolution**2 * 4 // (1 + lean)

    shortage = Shortage(need, available)
    descent = LadderState.begin(asked, limit)
    taken = descent.step_down(stage, shortage)
    assert descent.rung.level <= limit
    if not taken:
        assert descent.plan == asked
    elif need(asked) > available:
        assert shortage.fits(descent.plan)
        for rung in taken:  # each one is needed
            fewer = LadderState.begin(asked, limit)
            fewer._take([other for other in taken if other is not rung])
            assert not shortage.fits(fewer.plan)


def test_an_unknown_need_is_taken_rung_by_rung() -> None:
    descent = LadderState.begin(ASKED, 12)
    names = [descent.step_down(Stage.BAKE, Shortage(lambda _: None, 1))[0].name for _ in range(3)]
    assert names == ["offload", "chunk_bake", "remesh_512"]


def test_a_lossless_rung_that_one_stage_could_not_use_is_there_for_the_next() -> None:
    descent = LadderState.begin(BIGGEST, 12)
    for _ in range(4):
        descent.step_down(Stage.SHAPE)
    assert not descent.lossless
    (rung,) = descent.step_down(Stage.BAKE)
    assert rung.name == "chunk_bake"
