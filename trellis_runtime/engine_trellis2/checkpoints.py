"""Checkpoints from a local folder, read strictly.

Upstream builds each model with random values and then loads with `strict=False`, so a key that is
missing leaves a random weight in place without a word. Here parameters are built without memory,
tensors are read straight to where they are needed, and any difference stops the start with its
file's name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from trellis_runtime.errors import SetupFailed

SYNTHETIC_MARK = "SYNTHETIC"
"""A file of this name in a model folder says that its values are random."""

Build = Callable[..., nn.Module]


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """One model's two files."""

    name: str
    config: Path
    weights: Path


@dataclass(frozen=True, slots=True)
class PipelineFiles:
    """A model folder: `pipeline.json`'s arguments, and each model's files."""

    folder: Path
    args: dict[str, Any]
    models: tuple[ModelFiles, ...]

    @property
    def is_synthetic(self) -> bool:
        return (self.folder / SYNTHETIC_MARK).exists()


def find_pipeline(folder: Path, needed: tuple[str, ...]) -> PipelineFiles:
    """Return the files of a model folder; raises `SetupFailed` that names the first one absent."""
    config = folder / "pipeline.json"
    args = _read_json(config).get("args")
    if not isinstance(args, dict) or not isinstance(args.get("models"), dict):
        raise SetupFailed(f"{config} has no args.models")
    absent = [name for name in needed if name not in args["models"]]
    if absent:
        raise SetupFailed(f"{config} names no {', '.join(absent)}")
    models = tuple(_model_files(folder, name, args["models"][name]) for name in needed)
    return PipelineFiles(folder, args, models)


def load_model(files: ModelFiles, classes: Callable[[str], Build], device: str) -> nn.Module:
    """Build the model that `files.config` describes and load its weights onto `device`.

    Raises `SetupFailed` for a missing or unexpected key, another shape, or a damaged file.
    """
    config = _read_json(files.config)
    build = classes(config["name"])
    with _parameters_without_memory():
        model = build(**config["args"])
    state = _read_tensors(files.weights, device)
    _require_keys(files, model, state)
    expected = dict(model.named_parameters()) | dict(model.named_buffers())
    cast = {name: t.to(expected[name].dtype) for name, t in state.items()}
    model.load_state_dict(cast, strict=False, assign=True)
    _compute_buffers(files, model, build, config["args"], device)
    return model.eval().requires_grad_(False)


def _model_files(folder: Path, name: str, relative: str) -> ModelFiles:
    files = ModelFiles(name, folder / f"{relative}.json", folder / f"{relative}.safetensors")
    for path in (files.config, files.weights):
        if not path.is_file():
            raise SetupFailed(f"{path} is missing (model {name})")
    return files


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except OSError as err:
        raise SetupFailed(f"{path} cannot be read ({err.strerror})") from None
    except ValueError:
        raise SetupFailed(f"{path} is not JSON") from None
    if not isinstance(content, dict):
        raise SetupFailed(f"{path} is not a JSON object")
    return content


def _read_tensors(path: Path, device: str) -> dict[str, Tensor]:
    try:
        return load_file(path, device=device)
    except (SafetensorError, OSError, ValueError) as err:
        raise SetupFailed(f"{path} is damaged ({err})") from None


def _require_keys(files: ModelFiles, model: nn.Module, state: dict[str, Tensor]) -> None:
    buffers = dict(model.named_buffers())
    expected = dict(model.named_parameters()) | buffers
    missing = sorted(set(expected) - set(state) - set(buffers))
    unexpected = sorted(set(state) - set(expected))
    wrong = sorted(n for n in set(state) & set(expected) if state[n].shape != expected[n].shape)
    for what, names in (("lacks", missing), ("has unexpected", unexpected), ("misshapes", wrong)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise SetupFailed(f"{files.weights} {what} {', '.join(names[:3])}{more}")


def _compute_buffers(
    files: ModelFiles, model: nn.Module, build: Build, args: dict[str, Any], device: str
) -> None:
    """Fill buffers that no file holds (positions' phases, say) from a copy without blocks."""
    unset = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if unset:
        small = dict(build(**(args | {"num_blocks": 0})).named_buffers())
        for name in unset:
            if name not in small:
                raise SetupFailed(f"{files.weights} leaves the buffer {name} unset")
            owner, _, leaf = name.rpartition(".")
            model.get_submodule(owner).register_buffer(leaf, small[name].to(device))
    left = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if left:
        raise SetupFailed(f"{files.weights} leaves {', '.join(left[:3])} unset")


@contextmanager
def _parameters_without_memory() -> Iterator[None]:
    """Send each parameter to the meta device as it is registered; all else stays real.

    Upstream computes tensors in constructors that belong to no state dict (the frequencies of its
    rotary embedding), so the meta device cannot be the default one.
    """
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None:
            empty = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
            module._parameters[name] = empty

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        with torch.no_grad():
            yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
