"""The bake's steps take the memory that they say they take, and blocks change nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.shapes import make_shape
from trellis_runtime.engines.trellis2.baking.bake import BakeOptions
from trellis_runtime.engines.trellis2.baking.decimation import decimate, decimation_bytes
from trellis_runtime.engines.trellis2.baking.shells import (
    Layered,
    close_solids,
    repair_shells,
    shells_bytes,
)

SIDE = 56
SMALL = 1 << 11  # half-edges: dozens of blocks

NAMES = ["closed_smooth", "open_vase"]


def torch_peak(work: Callable[[], object]) -> int:
    """Return the bytes that torch holds at most, on the CPU, beyond what it held before `work`."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = seen.profiler.kineto_results.events()  # type: ignore[union-attr]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def decoded(name: str) -> tuple[Tensor, Tensor]:
    shape = make_shape(name, SIDE, pricks=6, jitter=0.02)
    return torch.from_numpy(shape.vertices), torch.from_numpy(shape.faces)


def closed(name: str, block: int) -> Layered:
    vertices, faces = decoded(name)
    # What lies beyond x = 0 is clear: rays go through trees over some of the faces each.
    clear = vertices[faces.long()].mean(1)[:, 0] > 0
    return close_solids(vertices, faces, 1 / SIDE, clear=clear, block=block)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_of_any_size_give_the_same_bytes(name: str) -> None:
    whole, parts = closed(name, 1 << 22), closed(name, SMALL)
    assert torch.equal(whole.vertices, parts.vertices)
    assert torch.equal(whole.faces, parts.faces)
    assert whole.report == parts.report
    few, layer = len(whole.faces) // 3, whole.layer
    assert layer is not None  # where one sees through, a pricked body has two sides as well
    once = decimate(whole.vertices, whole.faces, few, layer=layer)
    again = decimate(whole.vertices, whole.faces, few, layer=layer, block=SMALL)
    assert torch.equal(once.vertices, again.vertices)
    assert torch.equal(once.faces, again.faces)
    mended = [
        repair_shells(once.vertices, once.faces, 1 / SIDE, block, once.layer)
        for block in (1 << 22, SMALL)
    ]
    assert torch.equal(mended[0].vertices, mended[1].vertices)
    assert torch.equal(mended[0].faces, mended[1].faces)


@pytest.mark.parametrize("name", NAMES)
def test_closing_and_decimating_take_what_they_say(name: str) -> None:
    vertices, faces = decoded(name)
    made: list[Layered] = []
    peak = torch_peak(lambda: made.append(close_solids(vertices, faces, 1 / SIDE, block=SMALL)))
    need = shells_bytes(len(faces), SMALL)
    assert 0.35 * need < peak <= need
    if name == "closed_smooth":  # its decimation is what asks for most
        assert peak < decimation_bytes(len(faces), SMALL)
    shells = made[0]
    few, layer = len(shells.faces) // 3, shells.layer
    peak = torch_peak(
        lambda: decimate(shells.vertices, shells.faces, few, layer=layer, block=SMALL)
    )
    need = decimation_bytes(len(shells.faces), SMALL)
    assert 0.4 * need < peak <= need


def test_a_closed_surface_of_5_5_million_faces_is_decimated_in_2_gib_or_in_1() -> None:
    for chunked, gib in ((False, 2), (True, 1)):
        block = BakeOptions(500_000, 2048, chunked=chunked).block
        assert decimation_bytes(5_500_000, block) < gib * 2**30
