"""From a model folder and upstream's packages to a pipeline that is ready, or `SetupFailed`.

files found ─► upstream's models imported ─► compared with the table ─► built without memory
                    weights read ┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┐  beside the imports
             pipeline imported ─► compared ─► remover ─► assembled ◄┘
                                                      └─► objects compared with the table
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from trellis_runtime.engines.packages import GPU_PACKAGES
from trellis_runtime.engines.trellis2.device import kernel_cache, vram
from trellis_runtime.engines.trellis2.device.placement import START_RESOLUTION, Placement
from trellis_runtime.engines.trellis2.models.dinov3 import DinoV3, PictureEncoder
from trellis_runtime.engines.trellis2.upstream import (
    attention,
    helpers,
    imports,
    interface,
    rehearsal,
)
from trellis_runtime.engines.trellis2.upstream.adapter import UpstreamPipeline
from trellis_runtime.engines.trellis2.upstream.checkpoints import (
    ModelFiles,
    PipelineFiles,
    build_models,
    described_by,
    fill_models,
    find_pipeline,
    float32_bytes,
)
from trellis_runtime.engines.trellis2.upstream.decoders import row_layers
from trellis_runtime.engines.trellis2.upstream.flows import FastFlow
from trellis_runtime.errors import SetupFailed
from trellis_runtime.settings import Trellis2

MODELS = (
    "sparse_structure_flow_model",
    "sparse_structure_decoder",
    "shape_slat_flow_model_512",
    "shape_slat_flow_model_1024",
    "shape_slat_decoder",
    "tex_slat_flow_model_512",
    "tex_slat_flow_model_1024",
    "tex_slat_decoder",
)
DECODERS = ("shape_slat_decoder", "tex_slat_decoder")
_FLOW = ("flow_model", "flow_model_512", "flow_model_1024")
_SAMPLERS = ("sparse_structure_sampler", "shape_slat_sampler", "tex_slat_sampler")
_VERSIONED = (*GPU_PACKAGES, "transformers", "triton")

Note = Callable[[str, float], None]
"""Called with a phase of loading and its seconds."""


@cache
def versions() -> dict[str, str]:
    """Return the versions of what upstream stands on, as far as they are installed."""
    return kernel_cache.installed(_VERSIONED)


def load(settings: Trellis2, device: torch.device, note: Note) -> UpstreamPipeline:
    """Import upstream and load every model; raises `SetupFailed`.

    All but the background remover go to `device` where every model and a job fit, else to the host.
    """
    with _timed("cuda", note):
        vram.initialize(device)
        if settings.model_dir is None:
            raise SetupFailed("TRELLIS2_MODEL_DIR is not set")
        files = find_pipeline(settings.model_dir, MODELS)
        places = helpers.folders(settings, files)
        encoder = helpers.find_encoder(files, places[helpers.ENCODER])
        note("kernel_cache_found", float(_use_kernel_cache(settings, device)))
    fits = _placement(files, places).fits(vram.available(device), START_RESOLUTION)
    weights_at = device.type if fits and settings.placement != "offload" else "cpu"
    kernels = "sdpa" if settings.flow == "fast" else attention.choose()
    os.environ.update(attention.environment(kernels))  # noqa: TID251 - upstream reads it at import
    with ThreadPoolExecutor(1, thread_name_prefix="load") as beside:
        with _timed("import_upstream", note):
            models = _import_models()
            wanted, built = (*files.models, encoder), _build_all(files, encoder, models)
            # Weights travel while the rest is imported.
            loading = beside.submit(_fill_models, wanted, built, weights_at, note)
            classes = _import_pipeline(kernels)
        remover = _load_remover(files, places[helpers.REMOVER], note)
        attention.install_flash_attn_shim(kernels)
        with _timed("load", note):
            made = loading.result()
            pipeline = _assemble(settings, files, classes, made, remover, device)
    if settings.rehearsal:
        with _timed("rehearsal", note):
            rehearsal.install_synthetic_structure(pipeline, settings.rehearsal_shape)
    return pipeline


@contextmanager
def _timed(phase: str, note: Note) -> Iterator[None]:
    started = time.perf_counter()
    yield
    note(phase, time.perf_counter() - started)


def _flows(settings: Trellis2, modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Return what the samplers get for each flow model: ours, or upstream's own."""
    flows = {name: modules[name] for name in MODELS if name.endswith(_FLOW)}
    if settings.flow == "fast":
        return {name: FastFlow(model) for name, model in flows.items()}
    return flows


@contextmanager
def _importing() -> Iterator[None]:
    try:
        yield
    except ImportError as err:
        raise SetupFailed(f"upstream's {err.name or 'code'} is not installed ({err})") from None


def _import_models() -> Any:
    with _importing():
        imports.use_decoded_mesh()
        imports.import_dual_grid()  # dlopens libcuda; its absence is told here
        from trellis2 import models

        for name in ("SLatFlowModel", "SparseStructureFlowModel", "SparseStructureDecoder"):
            getattr(models, name)  # upstream imports each with its first use
    return models


@dataclass(frozen=True, slots=True)
class _Classes:
    """What is taken of upstream's code, and the attention kernels that it was imported for."""

    pipeline: Any
    sparse_tensor: Any
    decoder: Any
    attention: str


def _import_pipeline(kernels: str) -> _Classes:
    with _importing():
        from trellis2.models.sc_vaes.sparse_unet_vae import SparseUnetVaeDecoder
        from trellis2.modules.sparse import SparseTensor

        imports.leave_helpers_out()
        from trellis2.pipelines import Trellis2ImageTo3DPipeline
    interface.check_code()
    attention.check_chosen(kernels)
    return _Classes(Trellis2ImageTo3DPipeline, SparseTensor, SparseUnetVaeDecoder, kernels)


def _use_kernel_cache(settings: Trellis2, device: torch.device) -> bool:
    if not vram.is_cuda(device):
        return False  # a CPU compiles no kernels
    folder = settings.kernel_cache_dir.expanduser()
    return kernel_cache.use_for_card(folder, settings.kernel_seed_dir)


def _build_all(files: PipelineFiles, encoder: ModelFiles, models: Any) -> list[nn.Module]:
    """Build upstream's models and DINOv3, which has to be as wide as they expect it."""
    built = build_models(files.models, partial(getattr, models))
    with described_by(files.models[0].config):
        reader = built[0].get_parameter("blocks.0.cross_attn.to_kv.weight")
    return [*built, helpers.build_encoder(encoder, reader.shape[1])]


def _fill_models(
    files: Sequence[ModelFiles], built: Sequence[nn.Module], device: str, note: Note
) -> dict[str, nn.Module]:
    with _timed("load_beside_imports", note):
        return fill_models(files, built, device)


def _load_remover(files: PipelineFiles, folder: Path | None, note: Note) -> tuple[Any, nn.Module]:
    """Return the remover's wrapper and model, or None and a model without weights.

    It is loaded beside the other weights rather than with its first use: a file of it that is
    damaged stops the start, and the first photograph does not wait for transformers.
    """
    if folder is None:
        return None, nn.Identity()
    with _timed("remover", note), _importing():
        return helpers.load_remover(files, folder)


def _assemble(
    settings: Trellis2,
    files: PipelineFiles,
    classes: _Classes,
    modules: dict[str, nn.Module],
    remover: tuple[Any, nn.Module],
    device: torch.device,
) -> UpstreamPipeline:
    """Return upstream's pipeline object around the models, compared with the table."""
    flows = _flows(settings, modules)
    with described_by(files.config):
        inner = _upstreams(files, classes.pipeline, {n: modules[n] for n in MODELS} | flows)
    inner._device = device
    inner.image_cond_model = PictureEncoder(cast(DinoV3, modules[helpers.ENCODER]))
    inner.rembg_model, modules[helpers.REMOVER] = remover
    interface.check_models(inner, modules)
    return UpstreamPipeline(
        trellis=inner,
        modules=modules,
        flows=flows,
        row_layers={name: row_layers(modules[name]) for name in DECODERS},
        attention=classes.attention,
        is_synthetic=files.is_synthetic or settings.rehearsal,
        sparse_tensor_type=classes.sparse_tensor,
        decoder_class=classes.decoder,
        device=device,
    )


def _upstreams(files: PipelineFiles, pipelines: Any, models: dict[str, nn.Module]) -> Any:
    """Return upstream's own object, made of `pipeline.json`'s samplers and these models."""
    from trellis2.pipelines import samplers

    args = files.args

    def sampler(name: str) -> Any:
        return getattr(samplers, args[name]["name"])(**args[name]["args"])

    return pipelines(
        models,
        *(sampler(n) for n in _SAMPLERS),
        *(args[n]["params"] for n in _SAMPLERS),
        args["shape_slat_normalization"],
        args["tex_slat_normalization"],
        None,
        None,
        low_vram=False,
    )


def _placement(files: PipelineFiles, places: Mapping[str, Path | None]) -> Placement:
    """Return the sums of a start, by the files: the helpers are float32, whatever theirs holds."""
    held = sum(float32_bytes(folder) for folder in places.values() if folder is not None)
    return Placement(files.weight_bytes + held, has_remover=places[helpers.REMOVER] is not None)
