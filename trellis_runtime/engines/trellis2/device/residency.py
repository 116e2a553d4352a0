"""What lives on the GPU, when.

Resident: every model stays there. Offload: a model is there for its stage alone; its weights never
change, so a copy on the host is made once, and leaving the GPU costs nothing but dropping the copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Residency:
    """Places models by name; `needed` is the one way to use them.

    Upstream's `low_vram` calls a model's `to` just before it is used and `cpu` just after. Those
    two are ours here: `to` copies the weights in, `cpu` drops the copy. So a stage that uses
    three models after one another never holds more than one.
    """

    def __init__(self, models: dict[str, nn.Module], device: str) -> None:
        self._models = models
        self._device = device
        self._hosted: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for name, model in models.items():
            model.to = _answering(model, lambda name=name: self.place(name))  # type: ignore[method-assign, misc]
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

        With `offload` nothing is on the device before and after, also after an error.
        """
        if offload:
            self.evict()
        else:
            for name in names:
                self.place(name)
        try:
            yield
        finally:
            if offload:
                self.evict()

    def place(self, name: str) -> None:
        """Bring one model to the device."""
        for tensor in _tensors(self._models[name]):
            if tensor.device.type != torch.device(self._device).type:
                tensor.data = tensor.data.to(self._device, non_blocking=True)

    def evict(self, *names: str) -> None:
        """Take models off the device, all of them when none is named."""
        for name in names or tuple(self._models):
            if name not in self._hosted:
                self._hosted[name] = [(t, _host_copy(t)) for t in _tensors(self._models[name])]
            for tensor, host in self._hosted[name]:
                tensor.data = host

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
