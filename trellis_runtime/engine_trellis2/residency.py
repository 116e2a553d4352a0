"""What lives on the GPU, when.

Resident: every model stays there. Offload: a model is there for its stage alone; its weights never
change, so a copy on the host is made once, and leaving the GPU costs nothing but dropping the copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Residency:
    """Places models by name; `needed` is the one way to use one."""

    def __init__(self, models: dict[str, nn.Module], device: str) -> None:
        self._models = models
        self._device = device
        self._hosted: dict[str, list[tuple[Tensor, Tensor]]] = {}

    @property
    def resident_bytes(self) -> int:
        """Bytes of weights on the device now."""
        return sum(
            t.numel() * t.element_size()
            for model in self._models.values()
            for t in _tensors(model)
            if t.device.type == torch.device(self._device).type
        )

    @contextmanager
    def needed(self, *names: str, offload: bool) -> Iterator[None]:
        """Have the named models on the device; with `offload`, them alone, and not after."""
        if offload:
            self.evict(*(n for n in self._models if n not in names))
        for name in names:
            self.place(name)
        try:
            yield
        finally:
            if offload:
                self.evict(*names)

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


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _host_copy(tensor: Tensor) -> Tensor:
    host = tensor.data.to("cpu")
    # Pinned memory is copied at the bus's full speed; without a GPU there is nothing to pin for.
    return host.pin_memory() if torch.cuda.is_available() else host
