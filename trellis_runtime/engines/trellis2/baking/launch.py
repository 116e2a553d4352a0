"""Running Warp's kernels over torch's tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import warp
from torch import Tensor

warp.config.log_level = warp.LOG_WARNING  # it prints to stdout, where our log is

Threads = int | tuple[int, int]
"""How many, or how many in each row and column of a grid."""


def launch(kernel: Any, threads: Threads, arguments: Sequence[Any]) -> None:
    """Run a Warp kernel over `threads` things, or a grid, where its tensors are, in torch's order.

    arguments: tensors as the kernel declares them, with a last dimension of three where it has
    vectors; at least one. Others are handed over as they are. Raises `TypeError` for a tensor of
    other dimensions, `RuntimeError` for one of another type.
    """
    if all(threads) if isinstance(threads, tuple) else threads:
        _launch(kernel, threads, arguments)


def recorded(kernel: Any, threads: int, arguments: Sequence[Any]) -> Callable[[], None]:
    """Return what does as `launch`, each time that it is called, with hardly any work of the host.

    It keeps the tensors, and the stream that is torch's now.
    """
    if threads == 0:
        return lambda: None
    kept = list(arguments)
    command = _launch(kernel, threads, kept, record_cmd=True)
    stream = _stream(_device(kept))

    def run(kept: list[Any] = kept) -> None:  # the tensors live as long as what reads them
        command.launch(stream)

    return run


def _launch(
    kernel: Any, threads: int | tuple[int, int], arguments: Sequence[Any], **options: bool
) -> Any:
    warp.init()  # does its work once
    device = _device(arguments)
    inputs = [
        _handed_over(given, declared) if isinstance(given, Tensor) else given
        for given, declared in zip(arguments, kernel.adj.args, strict=True)
    ]
    on = {"device": warp.device_from_torch(device), "stream": _stream(device)}
    return warp.launch(kernel, dim=threads, inputs=inputs, **on, **options)


def _device(arguments: Sequence[Any]) -> torch.device:
    return next(given.device for given in arguments if isinstance(given, Tensor))


def _stream(device: torch.device) -> Any:
    """Return torch's stream as one of Warp's; on a CPU there is nothing to order."""
    return warp.stream_from_torch(device) if device.type == "cuda" else None


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
