"""What lives on the GPU, when.

Resident: every model stays there. Offload: a model is there for its stage alone; its weights never
change, so a copy on the host is made once, and leaving the GPU costs nothing but dropping the copy.
With `fetching_ahead` the next one is under way meanwhile (`fetching`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trellis_runtime.engines.trellis2.device.fetching import FetchAhead, carrier_for

Follows = Callable[[str], str | None]
"""Called with a model's name; returns that of the one to fetch while it computes, None for none."""


class Residency:
    """Places models by name; `needed` is the one way to use them.

    Upstream's `low_vram` calls a model's `to` just before it is used and `cpu` just after. Those
    two are ours here: `to` copies the weights in, `cpu` drops the copy. So a stage that uses
    three models after one another never holds more than one, or two with `fetching_ahead`.
    """

    def __init__(self, models: dict[str, nn.Module], device: str) -> None:
        self._models = models
        self._device = device
        self._hosted: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._ahead: FetchAhead | None = None
        self._follows: Follows | None = None
        for name, model in models.items():
            model.to = _answering(model, lambda name=name: self._bring(name))  # type: ignore[method-assign, misc]
            model.cpu = _answering(model, lambda name=name: self.evict(name))  # type: ignore[method-assign, misc]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, wherever they are."""
        return sum(t.numel() * t.element_size() for t in self._all())

    @property
    def resident_bytes(self) -> int:
        """Bytes of weights on the device now."""
        kind = torch.device(self._device).type
        return sum(t.numel() * t.element_size() for t in self._all() if t.device.type == kind)

    @property
    def absent_bytes(self) -> int:
        """Bytes of weights that are not on the device."""
        return self.weight_bytes - self.resident_bytes

    @contextmanager
    def needed(self, *names: str, offload: bool) -> Iterator[None]:
        """Have the named models ready: on the device, or with `offload` brought when they are used.

        With `offload` nothing is on the device before and after, also after an error, but for the
        model that is fetched ahead, and that not after an error.
        """
        if offload:
            self._evict(self._models)
        else:
            for name in names:
                self.place(name)
        try:
            yield
        except BaseException:
            self.drop_ahead()
            raise
        finally:
            if offload:
                self._evict(self._models)

    @contextmanager
    def fetching_ahead(self, follows: Follows | None) -> Iterator[None]:
        """While the context lasts, fetch the model that follows each one as that is used.

        What is under way at its end is there for the next context. None: nothing is fetched.
        """
        self._follows = follows
        try:
            yield
        finally:
            self._follows = None

    @property
    def fetched(self) -> int:
        """How many models were fetched ahead so far."""
        return self._ahead.fetched if self._ahead else 0

    def bytes_of(self, name: str) -> int:
        """Return the bytes of one model's weights."""
        return sum(t.numel() * t.element_size() for t in _tensors(self._models[name]))

    def drop_ahead(self) -> None:
        """Give back the memory of a model that was fetched and not used."""
        if self._ahead:
            self._ahead.drop()

    def place(self, name: str) -> None:
        """Bring one model to the device."""
        tensors = _tensors(self._models[name])
        fetched = self._ahead.take(name, tensors) if self._ahead else None
        for tensor, copy in zip(tensors, fetched or (), strict=bool(fetched)):
            tensor.data = copy
        for tensor in tensors:
            if tensor.device.type != torch.device(self._device).type:
                tensor.data = tensor.data.to(self._device, non_blocking=True)

    def evict(self, *names: str) -> None:
        """Take models off the device; all of them, and what is fetched, when none is named."""
        if not names:
            self.drop_ahead()
        self._evict(names or self._models)

    def _evict(self, names: Iterable[str]) -> None:
        for name in names:
            for tensor, host in self._host(name):
                tensor.data = host

    def _host(self, name: str) -> list[tuple[Tensor, Tensor]]:
        """Return a model's tensors and what they have on the host."""
        if name not in self._hosted:
            self._hosted[name] = [(t, _host_copy(t)) for t in _tensors(self._models[name])]
        return self._hosted[name]

    def _bring(self, name: str) -> None:
        """Bring a model that is used now, and begin to bring the one that follows it."""
        self.place(name)
        following = self._follows(name) if self._follows else None
        if following is None:
            return
        if self._ahead is None:
            self._ahead = FetchAhead(carrier_for(torch.device(self._device)))
        self._ahead.begin(following, [host for _, host in self._host(following)])

    def _all(self) -> list[Tensor]:
        return [tensor for model in self._models.values() for tensor in _tensors(model)]


def _answering(model: nn.Module, act: Callable[[], None]) -> Callable[..., nn.Module]:
    """Return a method that does `act` and answers the model, whatever it is called with."""

    def call(*_: object) -> nn.Module:
        act()
        return model

    return call


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _host_copy(tensor: Tensor) -> Tensor:
    host = tensor.data.to("cpu")
    if host.is_pinned():
        return host
    # Pinned memory is copied at the bus's full speed; without a GPU there is nothing to pin for.
    return host.pin_memory() if torch.cuda.is_available() else host
