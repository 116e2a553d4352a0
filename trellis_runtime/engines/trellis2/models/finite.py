"""Values that are not finite, counted where they are made, before anything is decided by them.

float16 ends at 65,504. What overflows there becomes infinite, the next norm makes NaN of it, and a
NaN is not greater than 0: in a decoder that asks "does this cell exist?" the surface would be lost
in silence. So each layer whose answer decides on geometry or colour is watched while it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import isnan
from typing import Any

import torch
from torch import Tensor, nn

from trellis_runtime.errors import NotFinite


def require_finite(what: str, values: Tensor) -> None:
    """Raise `NotFinite` that counts the values of `what` that are infinite or NaN."""
    finite = torch.isfinite(values)
    if finite.all():
        return
    count, shown = int((~finite).sum()), str(values.dtype).removeprefix("torch.")
    raise NotFinite(f"{count} of {values.numel()} values of {what} ({shown}) are not finite")


@contextmanager
def watched(layers: Iterable[tuple[str, nn.Module]]) -> Iterator[None]:
    """Have each layer's output checked as it is made; raises `NotFinite` with the layer's name."""
    hooks = [layer.register_forward_hook(_checking(name)) for name, layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def largest_values(layers: Iterable[tuple[str, nn.Module]]) -> Iterator[dict[str, float]]:
    """Collect the largest magnitude of each label's outputs; several layers may share a label."""
    found: dict[str, float] = {}

    def keep(label: str) -> Callable[..., None]:
        def hook(_layer: nn.Module, _given: Any, output: Any) -> None:
            values = values_of(output)
            if values.numel():
                # A NaN is larger than anything: it must not be lost in a maximum.
                largest = float(values.abs().max().float())
                before = found.get(label, 0.0)
                found[label] = largest if isnan(largest) else max(before, largest)

        return hook

    hooks = [layer.register_forward_hook(keep(label)) for label, layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def wider(model: Any, dtype: torch.dtype | None) -> Iterator[None]:
    """Have a model's float16 weights, and what it computes from them, in `dtype` for a while.

    float32 holds every float16 value; bfloat16 has its range and rounds weights to 8 bits. The
    weights' memory doubles with float32. None changes nothing.
    """
    half = [p for p in model.parameters() if p.dtype == torch.float16 and dtype is not None]
    kept, own = [p.data for p in half], getattr(model, "dtype", None)
    try:
        for parameter in half:
            parameter.data = parameter.data.to(dtype)
        if half:
            model.dtype = dtype
        yield
    finally:
        for parameter, data in zip(half, kept, strict=True):
            parameter.data = data
        if half:
            model.dtype = own


def values_of(output: Any) -> Tensor:
    """Return a layer's numbers: of a tensor, a sparse tensor, or the last of several."""
    if isinstance(output, list | tuple):
        return values_of(output[-1])
    values: Tensor = output if isinstance(output, Tensor) else output.feats
    return values


def _checking(name: str) -> Callable[..., None]:
    def hook(_layer: nn.Module, _given: Any, output: Any) -> None:
        require_finite(name, values_of(output))

    return hook
