"""Running Warp's kernels over torch's tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import warp
from torch import Tensor


def launch(kernel: Any, threads: int, arguments: Sequence[Any]) -> None:
    """Run a Warp kernel over `threads` things, on the device of its tensors and in torch's order.

    arguments: tensors as the kernel declares them, with a last dimension of three where it has
    vectors; at least one. Others are handed over as they are. Raises `TypeError` for a tensor of
    other dimensions, `RuntimeError` for one of another type.
    """
    if threads == 0:
        return
    warp.init()  # does its work once
    device = next(given.device for given in arguments if isinstance(given, Tensor))
    inputs = [
        _handed_over(given, declared) if isinstance(given, Tensor) else given
        for given, declared in zip(arguments, kernel.adj.args, strict=True)
    ]
    # On a CPU there is nothing to order.
    stream = warp.stream_from_torch(device) if device.type == "cuda" else None
    with warp.ScopedStream(stream):
        warp.launch(kernel, dim=threads, inputs=inputs, device=warp.device_from_torch(device))


def _handed_over(tensor: Tensor, declared: Any) -> Any:
    """Return what tells a kernel of a tensor's memory: half of the work of an array of Warp's.

    Warp looks at neither the type nor the dimensions of such a descriptor; so both are looked at
    here.
    """
    told = warp.from_torch(tensor, dtype=declared.type.dtype, return_ctype=True)
    if told.ndim != declared.type.ndim:
        raise TypeError(
            f"{declared.label} has {told.ndim} dimensions; the kernel wants {declared.type.ndim}"
        )
    return told
