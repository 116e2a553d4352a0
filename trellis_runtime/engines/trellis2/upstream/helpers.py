"""DINOv3 and the background remover: found, built, and refused unless read whole.

DINOv3 is `models/dinov3`'s, and read as strictly as upstream's own models, by `checkpoints`. The
remover brings its own code and comes through transformers, which fills a tensor that a file lacks
with random values and only warns. A model of which something is missing would then answer, wrongly,
for as long as the worker lives. `from_pretrained` can tell what it did not find; upstream's wrapper
does not ask it to, so it is asked while that runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from trellis_runtime.engines.trellis2.models.dinov3 import DinoV3, VitShape
from trellis_runtime.engines.trellis2.upstream import imports, interface
from trellis_runtime.engines.trellis2.upstream.checkpoints import (
    ModelFiles,
    PipelineFiles,
    described_by,
    first_few,
    parameters_without_memory,
    read_json,
    require_files,
)
from trellis_runtime.errors import SetupFailed
from trellis_runtime.settings import Trellis2

ENCODER, REMOVER = "image_cond_model", "rembg_model"
"""What `pipeline.json` calls DINOv3 and the background remover."""

_ENCODER_CLASS = "DinoV3FeatureExtractor"

Report = dict[str, Any]
"""transformers' loading info: lists of keys by kind (`missing_keys`, say), see `_WORDS`."""

_WORDS = {
    "missing_keys": "lacks",
    "unexpected_keys": "has unexpected",
    "mismatched_keys": "misshapes",
    "error_msgs": "cannot be read:",
}


def folders(settings: Trellis2, files: PipelineFiles) -> dict[str, Path | None]:
    """Return where DINOv3 and the remover are: either can be replaced by setting, or be nowhere."""
    found = {}
    for part, override in ((ENCODER, settings.dinov3_dir), (REMOVER, settings.rembg_dir)):
        with described_by(files.config):
            name = files.args[part]["args"]["model_name"]
            places = (override, files.folder / name, Path(name))
        found[part] = next((place for place in places if place and place.is_dir()), None)
    return found


def find_encoder(files: PipelineFiles, folder: Path | None) -> ModelFiles:
    """Return DINOv3's files in a folder as published; raises `SetupFailed`."""
    with described_by(files.config):
        name = files.args[ENCODER]["name"]
    if name != _ENCODER_CLASS:
        raise SetupFailed(
            f"{files.config} names the image encoder {name}; this worker has {_ENCODER_CLASS}"
        )
    if folder is None:
        raise SetupFailed("DINOv3 is in no local folder: set TRELLIS2_DINOV3_DIR")
    return require_files(ModelFiles(ENCODER, folder / "config.json", folder / "model.safetensors"))


def build_encoder(files: ModelFiles, context: int) -> DinoV3:
    """Build DINOv3 without memory, as its `config.json` describes it.

    Raises `SetupFailed` for another architecture, or a width other than `context`, which the flow
    models were trained on.
    """
    shape = VitShape.of_config(read_json(files.config), str(files.config))
    if shape.hidden_size != context:
        raise SetupFailed(
            f"DINOv3 in {files.config.parent} has {shape.hidden_size} channels; the flow models "
            f"were trained on {context}"
        )
    with parameters_without_memory():
        return DinoV3(shape)


def load_remover(files: PipelineFiles, folder: Path) -> tuple[Any, nn.Module]:
    """Return upstream's wrapper of the remover in a folder, and its model in float32, on the host.

    Imports transformers. Raises `SetupFailed`.
    """
    removers = imports.import_removers()
    interface.check_code(interface.REMOVER_CALLS)
    with described_by(files.config):
        build = getattr(removers, files.args[REMOVER]["name"])
    wrapper = build_whole(build, "the background remover", folder, is_synthetic=files.is_synthetic)
    # Upstream's wrapper feeds it float32, whatever dtype its file has.
    return wrapper, wrapper.model.eval().float().requires_grad_(False)


def build_whole(build: Callable[[str], Any], name: str, folder: Path, *, is_synthetic: bool) -> Any:
    """Return what `build` makes of a model's folder; raises `SetupFailed` unless it was read whole.

    `name` is the model's. A builder that does not go through transformers tells nothing of what it
    read: that is taken for a synthetic checkpoint alone.
    """
    with loading_reports() as reports, described_by(folder / "config.json"):
        try:
            helper = build(str(folder))
        except (OSError, RuntimeError, ValueError, ImportError) as err:
            raise SetupFailed(f"{name} cannot be loaded from {folder} ({err})") from None
    for report in reports:
        _require_empty(report, name, folder)
    if not reports and not is_synthetic:
        raise SetupFailed(f"{name} was loaded from {folder}, and nothing told what was missing")
    return helper


@contextmanager
def loading_reports() -> Iterator[list[Report]]:
    """Collect what transformers tells of each model that is loaded while the context lasts."""
    reports: list[Report] = []
    transformers = sys.modules.get("transformers")  # upstream's modules have imported it
    if transformers is None:
        yield reports
        return
    base: Any = transformers.PreTrainedModel
    own = base.__dict__["from_pretrained"]

    def telling(cls: Any, *args: Any, **kwargs: Any) -> Any:
        asked = kwargs.pop("output_loading_info", False)
        model, report = own.__func__(cls, *args, output_loading_info=True, **kwargs)
        reports.append(report)
        return (model, report) if asked else model

    base.from_pretrained = classmethod(telling)
    try:
        yield reports
    finally:
        base.from_pretrained = own


def _require_empty(report: Report, name: str, folder: Path) -> None:
    for kind, word in _WORDS.items():
        found = report.get(kind)
        if found:
            keys = sorted(str(key[0] if isinstance(key, tuple) else key) for key in found)
            files = ", ".join(p.name for p in sorted(folder.glob("*.safetensors"))) or "no file"
            raise SetupFailed(f"{name} in {folder} ({files}) {word} {first_few(keys)}")
