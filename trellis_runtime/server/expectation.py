"""What a job is expected to take: the median of what past jobs of the same settings took."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from dataclasses import dataclass
from statistics import median
from typing import Any

from pydantic import ValidationError

from trellis_runtime.contract.files import models_told
from trellis_runtime.contract.request import PRESETS, GenerationRequest
from trellis_runtime.server.job import Expected

_REMEMBERED = 15  # jobs of the same settings
_SETTINGS = 200

Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class _Took:
    seconds: float
    bytes: int
    stages: dict[str, float]


class Expectations:
    """Timings by target and settings; safe from any thread."""

    def __init__(self) -> None:
        self._took: OrderedDict[Key, deque[_Took]] = OrderedDict()
        self._lock = threading.Lock()

    def learn(self, endpoint: str | None, request: dict[str, Any], answer: dict[str, Any]) -> None:
        """Note what a job took that ended well; what cannot be read teaches nothing."""
        key = _key(endpoint, request)
        try:
            stages = {str(name): float(s) for name, s in answer["timings"].items()}
            size = sum(int(model["artifact"]["bytes"]) for model in models_told(answer))
            took = _Took(sum(stages.values()), size, stages)
        except (KeyError, TypeError, ValueError, AttributeError):
            return
        if key is None:
            return
        with self._lock:
            self._took.setdefault(key, deque(maxlen=_REMEMBERED)).append(took)
            self._took.move_to_end(key)
            while len(self._took) > _SETTINGS:
                self._took.popitem(last=False)

    def expect(self, endpoint: str | None, request: dict[str, Any]) -> Expected | None:
        """Return what a job with these settings should take, None where none has run yet."""
        with self._lock:
            past = list(self._took.get(_key(endpoint, request) or (), ()))
        if not past:
            return None
        stages = {name for took in past for name in took.stages}
        return Expected(
            seconds=median(took.seconds for took in past),
            bytes=int(median(took.bytes for took in past)),
            jobs=len(past),
            stages={name: median(took.stages.get(name, 0.0) for took in past) for name in stages},
        )

    def presets(self, endpoint: str | None = None) -> dict[str, dict[str, Any] | None]:
        """Return what each preset should take, by its name."""
        found = {name: self.expect(endpoint, {"preset": name}) for name in PRESETS}
        return {name: expected.to_wire() if expected else None for name, expected in found.items()}


def _key(endpoint: str | None, request: dict[str, Any]) -> Key | None:
    """Return what a job's time rests on: where it runs, its sizes, steps and number of models."""
    output = request.get("output")
    turntable = isinstance(output, dict) and output.get("turntable") is True
    bare = {k: v for k, v in request.items() if k not in ("image", "image_url", "output")}
    try:
        asked = GenerationRequest.model_validate(bare | {"image": "-"})
    except (ValidationError, RecursionError):
        return None
    steps = (asked.sampler.sparse_structure.steps, asked.sampler.shape.steps,
             asked.sampler.texture.steps)  # fmt: skip
    return (endpoint, asked.resolution, asked.texture_size, asked.decimation_target,
            asked.shell, turntable, steps, len(asked.seeds_from(0)))  # fmt: skip
