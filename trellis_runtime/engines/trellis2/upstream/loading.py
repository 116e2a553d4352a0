"""From a model folder and upstream's packages to a pipeline that is ready, or `SetupFailed`.

files found ─► upstream's models imported ─► compared with the table ─► built without memory
                    weights read ┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┐  beside the imports
                    pipeline imported ─► compared ─► assembled ◄─────┘
                                                      └─► objects compared with the table
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trellis_runtime.engines.packages import GPU_PACKAGES
from trellis_runtime.engines.trellis2.device import kernel_cache, vram
from trellis_runtime.engines.trellis2.device.placement import START_RESOLUTION, Placement
from trellis_runtime.engines.trellis2.upstream import attention, imports, interface, rehearsal
from trellis_runtime.engines.trellis2.upstream.adapter import UpstreamPipeline
from trellis_runtime.engines.trellis2.upstream.checkpoints import (
    Built,
    PipelineFiles,
    build_models,
    described_by,
    fill_models,
    find_pipeline,
    float32_bytes,
)
from trellis_runtime.engines.trellis2.upstream.decoders import row_layers
from trellis_runtime.engines.trellis2.upstream.flows import FastFlow
from trellis_runtime.engines.trellis2.upstream.helpers import build_whole, require_width
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

    The flow models and decoders go to `device` where every model and a job fit, else to the host.
    """
    with _timed("cuda", note):
        vram.initialize(device)
        if settings.model_dir is None:
            raise SetupFailed("TRELLIS2_MODEL_DIR is not set")
        files = find_pipeline(settings.model_dir, MODELS)
        note("kernel_cache_found", float(_use_kernel_cache(settings, device)))
    fits = _placement(settings, files).fits(vram.available(device), START_RESOLUTION)
    weights_at = device.type if fits and settings.placement != "offload" else "cpu"
    kernels = "sdpa" if settings.flow == "fast" else attention.choose()
    os.environ.update(attention.environment(kernels))  # noqa: TID251 - upstream reads it at import
    with ThreadPoolExecutor(1, thread_name_prefix="load") as beside:
        with _timed("import_upstream", note):
            models = _import_models()
            built = build_models(files.models, partial(getattr, models))
            # Weights travel while the rest is imported, which takes longer.
            loading = beside.submit(_fill_models, files, built, weights_at, note)
            pipeline_class, sparse_type, decoder_class = _import_pipeline(kernels)
        with _timed("load", note):
            modules = loading.result()
            flows = _flows(settings, modules)
            with described_by(files.config):
                inner = _assemble(files, pipeline_class, modules | flows, device)
                _load_helpers(settings, files, inner, modules)
            interface.check_models(inner, modules)
    pipeline = UpstreamPipeline(
        trellis=inner,
        modules=modules,
        flows=flows,
        row_layers={name: row_layers(modules[name]) for name in DECODERS},
        attention=kernels,
        is_synthetic=files.is_synthetic or settings.rehearsal,
        sparse_tensor_type=sparse_type,
        decoder_class=decoder_class,
        device=device,
    )
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


def _import_pipeline(kernels: str) -> tuple[Any, Any, Any]:
    with _importing():
        from trellis2.models.sc_vaes.sparse_unet_vae import SparseUnetVaeDecoder
        from trellis2.modules.sparse import SparseTensor
        from trellis2.pipelines import Trellis2ImageTo3DPipeline  # imports transformers
    interface.check_code()
    attention.check_chosen(kernels)
    attention.install_flash_attn_shim(kernels)
    return Trellis2ImageTo3DPipeline, SparseTensor, SparseUnetVaeDecoder


def _use_kernel_cache(settings: Trellis2, device: torch.device) -> bool:
    if not vram.is_cuda(device):
        return False  # a CPU compiles no kernels
    folder = settings.kernel_cache_dir.expanduser()
    return kernel_cache.use_for_card(folder, settings.kernel_seed_dir)


def _fill_models(
    files: PipelineFiles, built: list[Built], device: str, note: Note
) -> dict[str, nn.Module]:
    with _timed("load_beside_imports", note):
        return fill_models(files.models, built, device)


def _assemble(
    files: PipelineFiles, pipelines: Any, modules: dict[str, nn.Module], device: torch.device
) -> Any:
    from trellis2.pipelines import samplers

    args = files.args

    def sampler(name: str) -> Any:
        return getattr(samplers, args[name]["name"])(**args[name]["args"])

    inner = pipelines(
        modules,
        *(sampler(n) for n in _SAMPLERS),
        *(args[n]["params"] for n in _SAMPLERS),
        args["shape_slat_normalization"],
        args["tex_slat_normalization"],
        None,
        None,
        low_vram=False,
    )
    inner._device = device
    return inner


def _load_helpers(
    settings: Trellis2, files: PipelineFiles, inner: Any, modules: dict[str, nn.Module]
) -> None:
    """Load DINOv3 and the matting model from local folders; either can be replaced by setting."""
    from trellis2.modules import image_feature_extractor
    from trellis2.pipelines import rembg

    stated = files.args["image_cond_model"]
    dino = _local(settings.dinov3_dir, files.folder, stated["args"]["model_name"])
    if dino is None:
        raise SetupFailed("DINOv3 is in no local folder: set TRELLIS2_DINOV3_DIR")
    build = getattr(image_feature_extractor, stated["name"])
    extractor = build_whole(build, "DINOv3", dino, is_synthetic=files.is_synthetic)
    reader = modules["sparse_structure_flow_model"].get_parameter(
        "blocks.0.cross_attn.to_kv.weight"
    )
    require_width(extractor.model, reader.shape[1], dino)
    if not hasattr(extractor.model, "layer"):  # transformers 5 has moved it
        extractor.model.layer = extractor.model.model.layer
    inner.image_cond_model = extractor
    modules["image_cond_model"] = extractor.model.eval().requires_grad_(False)
    stated = files.args["rembg_model"]
    matting = _local(settings.rembg_dir, files.folder, stated["args"]["model_name"])
    if matting is not None:
        build, words = getattr(rembg, stated["name"]), "the background remover"
        remover = build_whole(build, words, matting, is_synthetic=files.is_synthetic)
        inner.rembg_model = remover
        # Upstream's wrapper feeds it float32, whatever dtype its file has.
        modules["rembg_model"] = remover.model.eval().float().requires_grad_(False)
    else:
        modules["rembg_model"] = nn.Identity()


def _placement(settings: Trellis2, files: PipelineFiles) -> Placement:
    """Return the sums of a start, by the files: the helpers are float32, whatever theirs holds."""
    args, placed = files.args, []
    for part, override in (
        ("image_cond_model", settings.dinov3_dir),
        ("rembg_model", settings.rembg_dir),
    ):
        with described_by(files.config):
            placed.append(_local(override, files.folder, args[part]["args"]["model_name"]))
    helpers = sum(float32_bytes(folder) for folder in placed if folder is not None)
    return Placement(files.weight_bytes + helpers, has_remover=placed[1] is not None)


def _local(override: Path | None, folder: Path, name: str) -> Path | None:
    for candidate in (override, folder / name, Path(name)):
        if candidate is not None and candidate.is_dir():
            return candidate
    return None
