"""Checkpoints from a local folder, read strictly.

Upstream builds each model with random values and then loads with `strict=False`, so a key that is
missing leaves a random weight in place without a word. Here parameters are built without memory,
tensors are read straight to where they are needed, and any difference stops the start with its
file's name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trellis_runtime.errors import SetupFailed

SYNTHETIC_MARK = "SYNTHETIC"
"""A file of this name in a model folder says that its values are random."""

NORMALIZATIONS = ("shape_slat_normalization", "tex_slat_normalization")
"""Where `pipeline.json` keeps what the sampled latents are scaled back with."""

_READERS = 5
_ALIGN = 256

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
    def config(self) -> Path:
        return self.folder / "pipeline.json"

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights' files."""
        return sum(model.weights.stat().st_size for model in self.models)

    @property
    def is_synthetic(self) -> bool:
        return (self.folder / SYNTHETIC_MARK).exists()


def find_pipeline(folder: Path, needed: tuple[str, ...]) -> PipelineFiles:
    """Return the files of a model folder, or of the snapshot in a folder of a hub's cache.

    Raises `SetupFailed` that names the first one absent.
    """
    folder = _snapshot(folder)
    config = folder / "pipeline.json"
    args = read_json(config).get("args")
    if not isinstance(args, dict) or not isinstance(args.get("models"), dict):
        raise SetupFailed(f"{config} has no args.models")
    absent = [name for name in needed if name not in args["models"]]
    if absent:
        raise SetupFailed(f"{config} names no {', '.join(absent)}")
    models = tuple(_model_files(folder, name, args["models"][name]) for name in needed)
    files = PipelineFiles(folder, args, models)
    for name in NORMALIZATIONS:
        _require_normalization(config, name, args.get(name), files.is_synthetic)
    return files


def require_files(files: ModelFiles) -> ModelFiles:
    """Return a model's files; raises `SetupFailed` with the first one that is not there."""
    for path in (files.config, files.weights):
        if not path.is_file():
            raise SetupFailed(f"{path} is missing (model {files.name})")
    return files


def float32_bytes(folder: Path) -> int:
    """Return the bytes that a folder's safetensors files have as float32; reads their headers."""
    values = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
        except (SafetensorError, OSError) as err:
            raise SetupFailed(f"{path} is damaged ({err})") from None
        values += sum(prod(shape) for shape in shapes)
    return 4 * values


@contextmanager
def described_by(path: Path) -> Iterator[None]:
    """Raise `SetupFailed` with the name of `path` where its description fits no class here."""
    try:
        yield
    except KeyError as err:
        raise SetupFailed(f"{path} does not say {err}") from None
    except (TypeError, AttributeError) as err:
        raise SetupFailed(f"{path} does not fit the code that reads it: {err}") from None


def first_few(names: Sequence[str]) -> str:
    """Return the first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _snapshot(folder: Path) -> Path:
    """Return where the files are: in `folder`, or in the snapshot that its `refs/main` names.

    The latter is how huggingface_hub keeps a repository, and so RunPod's model cache: the folder's
    name, `models--ORG--NAME`, is known beforehand, the snapshot's is not.
    """
    named = folder / "refs/main"
    if (folder / "pipeline.json").is_file() or not named.is_file():
        return folder
    snapshot = folder / "snapshots" / named.read_text().strip()
    if not snapshot.is_dir():
        raise SetupFailed(f"{named} names the snapshot {snapshot.name}, which is not in {folder}")
    return snapshot


def build_models(files: Sequence[ModelFiles], classes: Callable[[str], Build]) -> list[nn.Module]:
    """Build the models that `files` describe, without memory.

    Not thread-safe: temporarily patches a method of torch, as accelerate's
    `init_empty_weights` does.
    """
    return [_build(f, classes) for f in files]


def fill_models(
    files: Sequence[ModelFiles], built: Sequence[nn.Module], device: str
) -> dict[str, nn.Module]:
    """Load weights onto `device`, several files at once; returns the models by name.

    On the CPU the weights lie in pinned memory, where a GPU is there to copy them to. Raises
    `SetupFailed` for a missing or unexpected key, another shape, or a damaged file.
    """
    with ThreadPoolExecutor(_READERS, thread_name_prefix="load") as threads:
        filled = threads.map(_fill, files, built, repeat(device))
        return {f.name: model for f, model in zip(files, filled, strict=True)}


def _build(files: ModelFiles, classes: Callable[[str], Build]) -> nn.Module:
    config = read_json(files.config)
    with described_by(files.config):
        build = classes(config["name"])
        with parameters_without_memory():
            return build(**config["args"])


def _fill(files: ModelFiles, model: nn.Module, device: str) -> nn.Module:
    state = _read_tensors(files.weights, device)
    _require_keys(files, model, state)
    expected = dict(model.named_parameters()) | dict(model.named_buffers())
    cast = {name: t.to(expected[name].dtype) for name, t in state.items()}
    model.load_state_dict(cast, strict=False, assign=True)
    _bring_buffers(model, device)
    left = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if left:
        raise SetupFailed(f"{files.weights} leaves {first_few(left)} unset")
    return model.eval().requires_grad_(False)


def _require_normalization(config: Path, name: str, stated: Any, is_synthetic: bool) -> None:
    """Refuse what cannot scale a latent back, and with real weights the placeholder of 0 and 1."""
    try:
        mean, std = (torch.tensor(stated[part], dtype=torch.float64) for part in ("mean", "std"))
    except (KeyError, TypeError, ValueError):
        raise SetupFailed(f"{config} has no numbers for {name}.mean and {name}.std") from None
    usable = mean.shape == std.shape and mean.dim() == 1 and len(mean) > 0
    if not usable or not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
        raise SetupFailed(
            f"{config}: {name} must be as many finite means as positive standard deviations"
        )
    if bool((mean == 0).all() and (std == 1).all()) and not is_synthetic:
        raise SetupFailed(
            f"{config}: {name} is a mean of 0 and a standard deviation of 1 throughout, which is a "
            f"placeholder; a folder of random weights says so by a file named {SYNTHETIC_MARK}"
        )


def _model_files(folder: Path, name: str, relative: str) -> ModelFiles:
    return require_files(
        ModelFiles(name, folder / f"{relative}.json", folder / f"{relative}.safetensors")
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raises `SetupFailed` with its name."""
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
        tensors = load_file(path, device=device)
        return _pinned(tensors) if device == "cpu" and torch.cuda.is_available() else tensors
    except (SafetensorError, OSError, ValueError) as err:
        raise SetupFailed(f"{path} is damaged ({err})") from None


def _pinned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors into one block of pinned memory: pinning is slow per call."""
    sizes = [-(-t.numel() * t.element_size() // _ALIGN) * _ALIGN for t in tensors.values()]
    block = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=True)
    pinned, start = {}, 0
    for (name, tensor), size in zip(tensors.items(), sizes, strict=True):
        part = block[start : start + tensor.numel() * tensor.element_size()]
        pinned[name] = part.view(tensor.dtype).view(tensor.shape).copy_(tensor)
        start += size
    return pinned


def _require_keys(files: ModelFiles, model: nn.Module, state: dict[str, Tensor]) -> None:
    buffers = dict(model.named_buffers())
    expected = dict(model.named_parameters()) | buffers
    missing = sorted(set(expected) - set(state) - set(buffers))
    unexpected = sorted(set(state) - set(expected))
    wrong = sorted(n for n in set(state) & set(expected) if state[n].shape != expected[n].shape)
    for what, names in (("lacks", missing), ("has unexpected", unexpected), ("misshapes", wrong)):
        if names:
            raise SetupFailed(f"{files.weights} {what} {first_few(names)}")


def _bring_buffers(model: nn.Module, device: str) -> None:
    """Bring what a constructor computed, positions' phases say, to where the weights are."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta:
                module._buffers[name] = buffer.to(device)


class _MadeOnHost(TorchFunctionMode):
    """Make on the host what is asked for on the meta device.

    Upstream's constructors compute positions where their parameters are. Without memory they would
    have no values, and some of torch's functions there import torch's compiler, for seconds.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        asked = dict(kwargs or {})
        if str(asked.get("device")) == "meta":
            asked["device"] = "cpu"
        return func(*args, **asked)


@contextmanager
def parameters_without_memory() -> Iterator[None]:
    """Send each parameter to the meta device as it is registered; all else stays real.

    Not thread-safe. Upstream computes tensors in constructors that belong to no state dict (the
    frequencies of its rotary embedding), so the meta device cannot be the default one.
    """
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None:
            empty = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
            module._parameters[name] = empty

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        with torch.no_grad(), _MadeOnHost():
            yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
