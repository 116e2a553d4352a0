"""Passes of a model captured once and replayed, where the host cannot issue kernels fast enough.

A captured pass reads and writes fixed places in memory, so each has inputs of its own that are
copied into before it is replayed; weights are read where they lay when it was captured.

    first calls     as they are, one of them timed: how much of it was the host's issuing?
    launch-bound    captured at the next call, else never
    captured        inputs copied, replayed, output copied

What is asked of a device is a small protocol (`Capturer`), so that the bookkeeping is the same code
on a CPU, with a stand-in. A capture that fails leaves that pass as it is, with one line in the log.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from trellis_runtime.engines.trellis2.device import vram
from trellis_runtime.logs import logger

Inputs = tuple[Tensor, ...]
Compute = Callable[[Inputs], Tensor]

_TIMED_CALL = 2  # the first one compiles and tunes
_LAUNCH_BOUND = 0.9
"""Share of a pass's time that is issuing, from which on the device waits for the host."""


class Captured(Protocol):
    """A captured pass."""

    output: Tensor

    def replay(self) -> None:
        """Compute the output again from what the inputs hold now."""


class Capturer(Protocol):
    """What captures passes on a device, and says what they cost."""

    def capture(self, compute: Compute, inputs: Inputs) -> Captured:
        """Capture `compute` of `inputs`, which must stay where they are; may raise RuntimeError."""

    def issuing_share(self, call: Callable[[], Tensor]) -> tuple[Tensor, float]:
        """Return what `call` returns, and the share of its time that the host took to issue it."""

    def held_bytes(self) -> int:
        """Return the bytes that the device's allocator holds now, less what it would give back."""


@dataclass(frozen=True, slots=True)
class PassKey:
    """What two passes must share to share a graph: the model, its inputs' shapes and dtypes."""

    model: int
    inputs: tuple[tuple[tuple[int, ...], torch.dtype], ...]

    @classmethod
    def of(cls, model: object, inputs: Inputs) -> PassKey:
        """Return the key of a pass of `model`, which must outlive it."""
        return cls(id(model), tuple((tuple(t.shape), t.dtype) for t in inputs))


@dataclass(slots=True)
class _Pass:
    lasting: bool
    calls: int = 0
    is_launch_bound: bool = False
    weights: tuple[int, ...] = ()
    captured: Captured | None = None
    own: Inputs = ()
    """What the captured pass reads."""
    sources: list[Tensor | None] = field(default_factory=list)
    """What each of `own` was last copied from, held so that nothing else can lie there."""
    bytes: int = 0

    def holds_for(self, inputs: Inputs, weights: tuple[int, ...]) -> bool:
        """Whether what was captured is right for these."""
        if self.captured is None or self.weights != weights:
            return False
        # A pass of one job reads that job's own tensors, but for the first two.
        return self.lasting or all(
            source is given for source, given in zip(self.sources[2:], inputs[2:], strict=True)
        )


@dataclass(slots=True)
class PassGraphs:
    """The captured passes of one engine; its user sees to it that one thread at a time calls."""

    capturer: Capturer
    resting: bool = False
    """Whether nothing is captured or replayed now: a job is short of memory."""
    captures: int = 0
    """Passes captured so far."""
    _passes: dict[PassKey, _Pass] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes of device memory that captured passes hold beyond their own inputs."""
        return sum(one.bytes for one in self._passes.values())

    @property
    def captured(self) -> int:
        """Passes that are captured now."""
        return sum(one.captured is not None for one in self._passes.values())

    def run(
        self,
        key: PassKey,
        compute: Compute,
        inputs: Inputs,
        weights: tuple[int, ...],
        *,
        lasting: bool = False,
    ) -> Tensor:
        """Return `compute(inputs)`, replayed where that has been found to pay.

        inputs: the first two change with every call, the others rarely and not in place.
        weights: where the model's weights are (`data_ptr`); elsewhere, what was captured is wrong
        and is dropped. lasting: of a shape that every job has, so kept when a job ends.
        """
        if self.resting:
            return compute(inputs)
        one = self._passes.setdefault(key, _Pass(lasting))
        if one.holds_for(inputs, weights):
            return _replayed(one, inputs)
        one.captured, one.bytes = None, 0
        one.calls += 1
        if one.calls == _TIMED_CALL:
            out, share = self.capturer.issuing_share(lambda: compute(inputs))
            one.is_launch_bound = share >= _LAUNCH_BOUND
            return out
        if one.is_launch_bound and self._capture(one, compute, inputs):
            one.weights = weights
            return _replayed(one, inputs)
        return compute(inputs)

    def end_job(self) -> None:
        """Drop what was captured for shapes of one job, and let go of the job's tensors."""
        self._passes = {key: one for key, one in self._passes.items() if one.lasting}
        for one in self._passes.values():
            one.sources = [None] * len(one.sources)

    def drop(self) -> None:
        """Drop all that is captured: memory is short, or weights are leaving."""
        self._passes.clear()

    def _capture(self, one: _Pass, compute: Compute, inputs: Inputs) -> bool:
        before = self.capturer.held_bytes()
        copied = len(inputs) if one.lasting else 2
        own = (*(t.clone() for t in inputs[:copied]), *inputs[copied:])
        try:
            one.captured = self.capturer.capture(compute, own)
        except RuntimeError as err:  # torch's own out of memory is one too
            one.is_launch_bound = False  # never tried again for this pass
            reason = str(err).splitlines()[0][:200] if str(err) else type(err).__name__
            logger().warning("pass_not_captured", reason=reason)
            return False
        self.captures += 1
        one.own, one.sources = own, list(inputs)
        one.bytes = max(0, self.capturer.held_bytes() - before)
        return True


def _replayed(one: _Pass, inputs: Inputs) -> Tensor:
    assert one.captured is not None  # noqa: S101
    for number, (own, given) in enumerate(zip(one.own, inputs, strict=True)):
        if number < 2 or one.sources[number] is not given:
            own.copy_(given)
            one.sources[number] = given
    one.captured.replay()
    return one.captured.output.clone()


class CudaGraph:
    """A pass captured as a CUDA graph."""

    def __init__(self, compute: Compute, inputs: Inputs, pool: Any) -> None:
        self._graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        stream = torch.cuda.current_stream()
        try:
            # Other threads may call the driver meanwhile, as the watch on memory does.
            with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
                self.output = compute(inputs)
        finally:
            # torch's own context leaves this thread on the capture's stream where it fails.
            torch.cuda.set_stream(stream)

    def replay(self) -> None:
        """Compute the output again."""
        self._graph.replay()


class CudaCapturer:
    """Captures on the current CUDA device; all graphs share one pool, as one runs at a time.

    `capture` and `new_pool` are what it asks of torch.
    """

    def __init__(
        self,
        capture: Callable[[Compute, Inputs, Any], Captured] = CudaGraph,
        new_pool: Callable[[], Any] | None = None,
    ) -> None:
        self._capture = capture
        self._new_pool = new_pool or torch.cuda.graph_pool_handle
        self._pool: Any = None
        self._alive = weakref.WeakSet[Captured]()

    def capture(self, compute: Compute, inputs: Inputs) -> Captured:
        """Capture a CUDA graph; raises RuntimeError where something in it cannot be captured."""
        if not self._alive:  # torch gives up a pool with its last graph, and takes it for no other
            self._pool = self._new_pool()
        made = self._capture(compute, inputs, self._pool)
        self._alive.add(made)
        return made

    def issuing_share(self, call: Callable[[], Tensor]) -> tuple[Tensor, float]:
        """Return the result, and the time to issue it over the time until the device is done."""
        torch.cuda.synchronize()
        started = time.perf_counter()
        out = call()
        issued = time.perf_counter()
        torch.cuda.synchronize()
        return out, (issued - started) / max(time.perf_counter() - started, 1e-9)

    def held_bytes(self) -> int:
        """Return what torch's allocator holds and would not give back.

        Capturing empties its cache: with that in the sum, a graph would seem to take nothing.
        """
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()


def for_device(device: vram.Device, *, wished: bool) -> PassGraphs | None:
    """Return a place for captured passes where they are wished and the device can capture any."""
    return PassGraphs(CudaCapturer()) if wished and vram.is_cuda(device) else None
