"""What a job is expected to take: the median of what past jobs of the same settings took."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

from pydantic import ValidationError

from trellis_runtime.contract.files import FORMATS, models_told
from trellis_runtime.contract.request import PRESETS, GenerationRequest
from trellis_runtime.contract.stages import Stage
from trellis_runtime.server.job import Expected

_REMEMBERED = 15  # jobs of the same settings
_SETTINGS = 200
_SHAPES_TIME = ("turntable", "compression", "maps", "finishes", "lods", "hulls")
"""Fields of a request's output that its time rests on; none of them is a secret."""

Key = tuple[object, ...]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Took:
    """`seconds` and `stages` are without finished files, whose times are known one by one."""

    seconds: float
    bytes: int
    stages: dict[str, float]


class Expectations:
    """Timings by target and settings; safe from any thread."""

    def __init__(self) -> None:
        self._took: OrderedDict[Key, deque[_Took]] = OrderedDict()
        self._files: OrderedDict[Key, deque[float]] = OrderedDict()  # seconds that each adds
        self._lock = threading.Lock()

    def learn(self, endpoint: str | None, request: dict[str, Any], answer: dict[str, Any]) -> None:
        """Note what a job took that ended well; what cannot be read teaches nothing."""
        asked = _asked(request)
        try:
            stages = {str(name): float(s) for name, s in answer["timings"].items()}
            models = models_told(answer)
            size = sum(int(model["artifact"]["bytes"]) for model in models)
            files = _seconds_by_format(models)
        except (KeyError, TypeError, ValueError, AttributeError):
            return
        if asked is None:
            return
        stages.pop(Stage.FINISH, None)
        with self._lock:
            _note(self._took, _key(endpoint, asked), _Took(sum(stages.values()), size, stages))
            for form, seconds in files:
                _note(self._files, _file_key(endpoint, asked, form), seconds)

    def expect(self, endpoint: str | None, request: dict[str, Any]) -> Expected | None:
        """Return what a job with these settings should take, None where none has run yet.

        A finished file of a format that was never made counts nothing.
        """
        asked = _asked(request)
        if asked is None:
            return None
        with self._lock:
            past = list(self._took.get(_key(endpoint, asked), ()))
            finish = self._seconds_of_files(endpoint, asked)
        if not past:
            return None
        names = {name for took in past for name in took.stages}
        stages = {name: median(took.stages.get(name, 0.0) for took in past) for name in names}
        return Expected(
            seconds=median(took.seconds for took in past) + finish,
            bytes=int(median(took.bytes for took in past)),
            jobs=len(past),
            stages=stages | ({Stage.FINISH.value: finish} if finish else {}),
        )

    def _seconds_of_files(self, endpoint: str | None, asked: GenerationRequest) -> float:
        keys = [_file_key(endpoint, asked, f.format) for f in asked.output.all_finishes]
        each = sum(median(self._files[key]) for key in keys if key in self._files)
        return each * len(asked.seeds_from(0))

    def files(self, endpoint: str | None = None) -> dict[str, dict[str, float]]:
        """Return the seconds that a file of each format adds, by preset; what is known of them."""
        with self._lock:
            return {
                name: {
                    form: round(median(self._files[key]), 2)
                    for form in FORMATS
                    if (key := _file_key(endpoint, asked, form)) in self._files
                }
                for name in PRESETS
                if (asked := _asked({"preset": name}))
            }

    def presets(self, endpoint: str | None = None) -> dict[str, dict[str, Any] | None]:
        """Return what each preset should take, by its name."""
        found = {name: self.expect(endpoint, {"preset": name}) for name in PRESETS}
        return {name: expected.to_wire() if expected else None for name, expected in found.items()}


def _note(known: OrderedDict[Key, deque[_T]], key: Key, value: _T) -> None:
    known.setdefault(key, deque(maxlen=_REMEMBERED)).append(value)
    known.move_to_end(key)
    while len(known) > _SETTINGS:
        known.popitem(last=False)


def _seconds_by_format(models: list[dict[str, Any]]) -> list[tuple[str, float]]:
    """Return the format and the seconds of each file that was made beside a model."""
    files = [file for model in models for file in model.get("files") or []]
    return [(str(file["format"]), float(file["seconds"])) for file in files if not file["error"]]


def _asked(request: dict[str, Any]) -> GenerationRequest | None:
    """Return a request that was shown without its picture and addresses; None for what is none."""
    output = request.get("output")
    told = output if isinstance(output, dict) else {}
    bare = {k: v for k, v in request.items() if k not in ("image", "image_url", "output")}
    bare["output"] = {name: told[name] for name in _SHAPES_TIME if name in told}
    try:
        return GenerationRequest.model_validate(bare | {"image": "-"})
    except (ValidationError, RecursionError):
        return None


def _key(endpoint: str | None, asked: GenerationRequest) -> Key:
    """Return what a job's time rests on but for its files: where it runs, sizes, steps, models."""
    steps = (asked.sampler.sparse_structure.steps, asked.sampler.shape.steps,
             asked.sampler.texture.steps)  # fmt: skip
    output = asked.output
    return (endpoint, asked.resolution, asked.texture_size, asked.decimation_target,
            asked.shell, output.turntable, output.compression, output.maps, steps,
            len(asked.seeds_from(0)))  # fmt: skip


def _file_key(endpoint: str | None, asked: GenerationRequest, form: str) -> Key:
    return (endpoint, asked.resolution, asked.texture_size, asked.decimation_target, form)
