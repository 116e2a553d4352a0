"""Kernels get the tensors that they declare, whatever their strides, and no others."""

# No `from __future__ import annotations` here: Warp reads the kernel's annotations as types.

from typing import Any

import pytest
import torch
import warp

from trellis_runtime.engines.trellis2.baking.launch import launch, recorded


@warp.kernel(enable_backward=False)  # type: ignore[untyped-decorator]
def scaled(
    points: warp.array(dtype=warp.vec3),  # type: ignore[valid-type]
    factors: warp.array2d(dtype=warp.float32),  # type: ignore[valid-type]
    bias: warp.float32,
    out: warp.array(dtype=warp.vec3),  # type: ignore[valid-type]
) -> None:
    i = warp.tid()
    out[i] = points[i] * factors[i, 1] + warp.vec3(bias, bias, bias)


def given(count: int = 5) -> list[Any]:
    points = torch.arange(3.0 * count).reshape(count, 3)
    factors = torch.arange(2.0 * count).reshape(count, 2)
    return [points, factors, 0.5, torch.zeros(count, 3)]


def test_vectors_matrices_and_numbers_arrive() -> None:
    points, factors, bias, out = given()
    launch(scaled, 5, [points, factors, bias, out])
    assert torch.equal(out, points * factors[:, 1:] + 0.5)


def test_every_second_row_and_a_transposed_matrix_are_read_where_they_lie() -> None:
    points, factors = torch.rand(10, 3)[::2], torch.rand(2, 5).T
    out = torch.zeros(5, 3)
    launch(scaled, 5, [points, factors, 0.5, out])
    assert torch.allclose(out, points * factors[:, 1:] + 0.5)


def test_nothing_runs_over_nothing() -> None:
    launch(scaled, 0, [torch.zeros(0, 3), torch.zeros(0, 2), 0.5, torch.zeros(0, 3)])


@pytest.mark.parametrize(
    ("place", "instead", "failure", "words"),
    [
        (1, torch.zeros(10), TypeError, "factors has 1 dimensions; the kernel wants 2"),
        (3, torch.zeros(15), RuntimeError, "shape"),
        (1, torch.zeros((5, 2), dtype=torch.int64), RuntimeError, "Cannot convert"),
        (1, torch.zeros((5, 2), dtype=torch.float64), RuntimeError, "Cannot convert"),
    ],
)
def test_a_tensor_of_another_kind_is_refused(
    place: int, instead: torch.Tensor, failure: type[Exception], words: str
) -> None:
    arguments = given()
    arguments[place] = instead
    with pytest.raises(failure, match=words):
        launch(scaled, 5, arguments)


def test_an_argument_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        launch(scaled, 5, given()[:3])


def test_a_recorded_launch_runs_anew_each_time_over_what_its_tensors_hold_then() -> None:
    points, factors, bias, out = given()
    run = recorded(scaled, 5, [points, factors, bias, out])
    out.zero_()
    run()
    assert torch.equal(out, points * factors[:, 1:] + 0.5)
    points += 1
    run()
    assert torch.equal(out, points * factors[:, 1:] + 0.5)
    recorded(scaled, 0, [torch.zeros(0, 3), torch.zeros(0, 2), 0.5, torch.zeros(0, 3)])()


def test_a_recorded_launch_keeps_its_tensors() -> None:
    points, factors, bias, out = given()
    run = recorded(scaled, 5, [points.clone(), factors.clone(), bias, out])
    others = [torch.full((5, 3), 7.0) for _ in range(64)]  # would take freed memory
    run()
    assert torch.equal(out, points * factors[:, 1:] + 0.5)
    assert others
