"""The short form of `make chaos`: one round of it, four jobs at a time."""

from __future__ import annotations

import pytest

from tests.chaos.__main__ import chaos
from tests.chaos.judge import Verdict, judge_repeats
from tests.chaos.plan import Incident, plan

SEED, JOBS, OFTEN = 803, 14, 3.0  # a plan of SIGTERM, SIGKILL and a store that stops


@pytest.mark.slow
def test_nothing_is_lost_mixed_half_or_left_under_random_faults() -> None:
    verdict = chaos(SEED, JOBS, 4, OFTEN)
    print(verdict.table())
    assert verdict.is_clean, verdict.notes
    assert verdict.delivered + verdict.refused + verdict.cancelled == JOBS
    assert verdict.delivered >= JOBS // 2
    assert verdict.processes >= 2  # it was killed, or told to leave, in between


def test_a_seed_is_a_plan() -> None:
    assert plan(SEED, 60) == plan(SEED, 60)
    assert plan(SEED, 60) != plan(SEED + 1, 60)
    met = {what for part in plan(SEED, 2000) for _, what in part.incidents}
    assert met == set(Incident)


def test_a_second_truth_is_noticed() -> None:
    def made(sha256: str) -> dict[str, object]:
        return {"output": {"artifact": {"sha256": sha256}}}

    verdict = Verdict(0, 1)
    judge_repeats("same", [made("a"), made("a")], verdict, kept=True)
    assert verdict.is_clean
    judge_repeats("two", [made("a"), made("b")], verdict, kept=True)
    judge_repeats("last", [made("a"), {"error": "storage_failed: no"}], verdict, kept=True)
    assert verdict.twice_different == 2
