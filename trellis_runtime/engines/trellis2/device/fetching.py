"""The model that an offloaded job uses next, copied to the card while the one before it computes.

    in use    weights there ──► computes ───────────────────► dropped
    next                        └ copied, behind them ──► there ──► computes

Copies come out of pinned memory on a stream of their own, into memory of the stream that computes.
That stream waits for them before it reads them, and before it takes such memory back. What is asked
of a device is a small protocol (`Carrier`), so that the bookkeeping is the same code on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from trellis_runtime.contract.stages import Stage
from trellis_runtime.engines.trellis2.device import vram


class Carrier(Protocol):
    """What copies tensors to a device beside its work."""

    def begin(self, hosts: Sequence[Tensor]) -> list[Tensor]:
        """Return copies on the device, which may not be there yet; raises for want of memory."""

    def settle(self) -> None:
        """Have all work that follows come after what was begun."""


class CudaCarrier:
    """Copies on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def begin(self, hosts: Sequence[Tensor]) -> list[Tensor]:
        copies = [torch.empty_like(host, device=self._device) for host in hosts]
        # Memory that was just given back may still be read by work that is under way.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for copy, host in zip(copies, hosts, strict=True):
                copy.copy_(host, non_blocking=True)
        return copies

    def settle(self) -> None:
        torch.cuda.current_stream().wait_stream(self._stream)


class HostCarrier:
    """The same on a CPU, where a copy is there at once."""

    def begin(self, hosts: Sequence[Tensor]) -> list[Tensor]:
        return [host.clone() for host in hosts]

    def settle(self) -> None: ...


def carrier_for(device: torch.device) -> Carrier:
    """Return what copies to a device."""
    return CudaCarrier(device) if vram.is_cuda(device) else HostCarrier()


class FetchAhead:
    """At most one model under way; `fetched` counts those that were begun since it was made."""

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier
        self._name: str | None = None
        self._copies: list[Tensor] = []
        self.fetched = 0

    @property
    def name(self) -> str | None:
        """Which model is under way, or there and not taken yet."""
        return self._name

    def begin(self, name: str, hosts: Sequence[Tensor]) -> None:
        """Begin to copy a model, unless it is under way; one that nobody took is given up.

        Where memory does not suffice after all nothing is begun: it is copied when it is used.
        """
        if name == self._name:
            return
        self.drop()
        try:
            self._copies = self._carrier.begin(hosts)
        except torch.OutOfMemoryError:
            return
        self._name = name
        self.fetched += 1

    def take(self, name: str, into: Sequence[Tensor]) -> list[Tensor] | None:
        """Return the copies of a model, to be read by what is computed from now on.

        None where another one is under way, or where what they are for (`into`) has another type
        by now: a decoder that is run again in a wider one.
        """
        if name != self._name:
            return None
        copies, self._copies, self._name = self._copies, [], None
        self._carrier.settle()
        fits = all(copy.dtype == tensor.dtype for copy, tensor in zip(copies, into, strict=True))
        return copies if fits else None

    def drop(self) -> None:
        """Give the memory of what is under way back."""
        if self._name is not None:
            self._carrier.settle()
        self._copies, self._name = [], None


def next_model(stage: Stage, name: str, resolution: int) -> str | None:
    """Return the model that a job of `resolution` uses after `name` in a stage; None: none.

    A remover runs in some jobs alone, and before all others: nothing leads to it.
    """
    uses = _uses(resolution)
    if name == "rembg_model":
        return uses[0][1]
    at = uses.index((stage, name)) if (stage, name) in uses else len(uses)
    return uses[at + 1][1] if at + 1 < len(uses) else None


def _uses(resolution: int) -> list[tuple[Stage, str]]:
    """Return which model is used when, in order."""
    texture = "tex_slat_flow_model_512" if resolution == 512 else "tex_slat_flow_model_1024"
    cascade = [
        (Stage.SHAPE, "shape_slat_decoder"),
        (Stage.SHAPE, "shape_slat_flow_model_1024"),
    ]
    return [
        (Stage.CONDITION, "image_cond_model"),
        (Stage.STRUCTURE, "sparse_structure_flow_model"),
        (Stage.STRUCTURE, "sparse_structure_decoder"),
        (Stage.SHAPE, "shape_slat_flow_model_512"),
        *(cascade if resolution > 512 else []),
        (Stage.TEXTURE, texture),
        (Stage.DECODE, "shape_slat_decoder"),
        (Stage.DECODE, "tex_slat_decoder"),
    ]
