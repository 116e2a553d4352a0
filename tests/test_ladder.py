"""The ladder at work: a memory budget in real bytes, one request, and what the answer says."""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import encoded, picture
from trellis_runtime.contract.ladder import RUNGS
from trellis_runtime.worker.worker import Worker

MakeWorker = Callable[..., Worker]
PHOTO = base64.b64encode(encoded(picture(512))).decode()
FULL = {
    "image": PHOTO,
    "seed": 1,
    "resolution": 1024,
    "texture_size": 2048,
    "output": {"preview": False},
}


def ask(worker: Worker, **changes: Any) -> dict[str, Any]:
    return asyncio.run(worker.handle({"id": "ladder", "input": FULL | changes}))


def test_with_room_the_request_is_met_in_full(make_worker: MakeWorker) -> None:
    answer = ask(make_worker(TRELLIS2_EMBEDDED_MEMORY_MB="4000"))
    assert answer["oom_quality_degradation_level"] == 0
    assert answer["degradation"]["attempts"] == []
    assert answer["degradation"]["requested"] == answer["degradation"]["effective"]
    assert answer["vram"]["peak_bytes"] > 50e6


def test_less_room_leads_further_down_and_each_level_is_told(make_worker: MakeWorker) -> None:
    levels = []
    for budget in (4000, 90, 30, 18, 12):
        answer = ask(make_worker(TRELLIS2_EMBEDDED_MEMORY_MB=str(budget)))
        given = answer["degradation"]
        level = answer["oom_quality_degradation_level"]
        levels.append(level)
        assert given["level"] == level
        assert given["rung"] == RUNGS[level].name
        assert given["lossless"] == (level <= 4)
        assert (given["requested"] == given["effective"]) == given["lossless"]
        assert answer["texture"]["size"] == given["effective"]["texture_size"]
        assert answer["vram"]["peak_bytes"] <= budget * 2**20
    assert levels == sorted(levels)
    assert levels[0] == 0
    assert any(0 < level <= 4 for level in levels)
    assert levels[-1] >= 10


def test_nothing_is_given_away_for_nothing(make_worker: MakeWorker) -> None:
    """30 MB used to cost two thirds of the faces; only the texture was too large."""
    full = ask(make_worker(TRELLIS2_EMBEDDED_MEMORY_MB="4000"))
    answer = ask(make_worker(TRELLIS2_EMBEDDED_MEMORY_MB="30"))
    given = answer["degradation"]
    assert given["rung"] == "texture_half"
    assert answer["mesh"]["faces"] == full["mesh"]["faces"]
    changed = {k for k, v in given["requested"].items() if given["effective"][k] != v}
    assert changed == {"texture_size"}
    reasons = {skipped["rung"]: skipped["reason"] for skipped in given["skipped"]}
    assert "all the same" in reasons["remesh_512"]
    assert "all the same" in reasons["remesh_off"]
    assert reasons["resolution_512"] == "frees nothing in bake"


def test_one_attempt_is_enough_where_the_need_is_known(make_worker: MakeWorker) -> None:
    for budget in (60, 30, 24):
        answer = ask(make_worker(TRELLIS2_EMBEDDED_MEMORY_MB=str(budget)))
        stages = [attempt["stage"] for attempt in answer["degradation"]["attempts"]]
        assert stages == ["bake"], "no rung is tried that is known not to fit"


def test_only_the_struck_stage_is_repeated(make_worker: MakeWorker) -> None:
    worker = make_worker(TRELLIS2_EMBEDDED_MEMORY_MB="30")
    ran: Counter[str] = Counter()
    begin = worker.engine.begin

    def counting(image: Any, plan: Any) -> Any:
        generation = begin(image, plan)
        run = generation.run

        def counted(stage: Any, plan: Any, scope: Any) -> None:
            ran[stage] += 1
            run(stage, plan, scope)

        generation.run = counted  # type: ignore[method-assign]
        return generation

    worker.engine.begin = counting  # type: ignore[method-assign]
    answer = ask(worker)
    failed = Counter(a["stage"] for a in answer["degradation"]["attempts"])
    assert failed["bake"] >= 1
    for stage, times in ran.items():
        assert times == 1 + failed[stage]


def test_attempts_tell_stage_rung_and_memory(make_worker: MakeWorker) -> None:
    attempts = ask(make_worker(TRELLIS2_EMBEDDED_MEMORY_MB="30"))["degradation"]["attempts"]
    for attempt in attempts:
        assert attempt["rung"] in {rung.name for rung in RUNGS}
        assert "MiB" in attempt["error"]
        assert 0 <= attempt["vram_free_bytes"] <= 30 * 2**20
        assert attempt["seconds"] >= 0


@pytest.mark.parametrize("limit", [0, 4, 9])
def test_the_caller_can_refuse_to_go_lower(make_worker: MakeWorker, limit: int) -> None:
    worker = make_worker(TRELLIS2_EMBEDDED_MEMORY_MB="18")
    answer = ask(worker, max_degradation_level=limit)
    assert answer["code"] == "out_of_vram"
    assert answer["retryable"] is True
    assert answer["field"] == "max_degradation_level"
    assert len(answer["attempts"]) >= 1
    assert all(a["rung"] in {r.name for r in RUNGS[: limit + 1]} for a in answer["attempts"])


def test_a_request_that_no_rung_fits_fails_with_all_its_attempts(make_worker: MakeWorker) -> None:
    answer = ask(make_worker(TRELLIS2_EMBEDDED_MEMORY_MB="1"))
    assert answer["code"] == "out_of_vram"
    assert answer["attempts"]


def test_the_job_after_a_starved_one_is_at_full_quality(make_worker: MakeWorker) -> None:
    worker = make_worker(TRELLIS2_EMBEDDED_MEMORY_MB="100")
    starved = ask(worker, resolution=1536, texture_size=4096)
    assert starved.get("oom_quality_degradation_level", 13) > 0
    after = ask(worker, resolution=512, texture_size=512)
    assert after["oom_quality_degradation_level"] == 0
