"""The one place that touches upstream's code: microsoft/TRELLIS.2 at 5565d24.

Everything here calls upstream's own functions; what is replaced is named where it is replaced.

Long because calls and loading of upstream stand together.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from trellis_runtime.contract.scope import JobScope
from trellis_runtime.engines.packages import GPU_PACKAGES
from trellis_runtime.engines.trellis2.device import kernel_cache, vram
from trellis_runtime.engines.trellis2.models.flow import FastFlow
from trellis_runtime.engines.trellis2.models.lean_decoder import lean_decoders
from trellis_runtime.engines.trellis2.upstream import attention, rehearsal
from trellis_runtime.engines.trellis2.upstream.checkpoints import (
    Built,
    PipelineFiles,
    build_models,
    fill_models,
    find_pipeline,
)
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
_FLOW = ("flow_model", "flow_model_512", "flow_model_1024")
_SAMPLERS = ("sparse_structure_sampler", "shape_slat_sampler", "tex_slat_sampler")
_VERSIONED = (*GPU_PACKAGES, "transformers", "triton")


@cache
def versions() -> dict[str, str]:
    """Return the versions of what upstream stands on, as far as they are installed."""
    return kernel_cache.installed(_VERSIONED)


@dataclass(slots=True)
class UpstreamPipeline:
    """Upstream's pipeline object, with each model under our own residency."""

    trellis: Any
    modules: dict[str, nn.Module]
    flows: dict[str, nn.Module]
    attention: str
    is_synthetic: bool
    sparse_tensor_type: Any

    def features(self, picture: Image.Image, size: int) -> Tensor:
        """Return DINOv3 features (1, tokens, 1024) of a picture at `size` px."""
        features: Tensor = self.trellis.get_cond([picture], size, include_neg_cond=False)["cond"]
        return features

    def remove_background(self, picture: Image.Image) -> Image.Image:
        """Return the picture with alpha from upstream's matting model."""
        if self.trellis.rembg_model is None:
            raise SetupFailed("no background remover is loaded (TRELLIS2_REMBG_DIR)")
        self.trellis.rembg_model.to("cuda")
        cut: Image.Image = self.trellis.rembg_model(picture)
        return cut

    def crop(self, picture: Image.Image) -> Image.Image:
        """Return upstream's square crop around the object, on black."""
        cropped: Image.Image = self.trellis.preprocess_image(picture)
        return cropped

    def sample_structure(self, condition: dict[str, Tensor], parameters: dict[str, Any]) -> Tensor:
        """Return coordinates (N, 4) of the sparse structure on a grid of 32."""
        coords: Tensor = self.trellis.sample_sparse_structure(condition, 32, 1, parameters)
        return coords

    def sample_shape(
        self, condition: dict[str, Tensor], coords: Tensor, parameters: dict[str, Any]
    ) -> Any:
        """Return the shape latent at 512."""
        model = self.flows["shape_slat_flow_model_512"]
        return self.trellis.sample_shape_slat(condition, model, coords, parameters)

    def sample_shape_cascade(
        self,
        low: dict[str, Tensor],
        high: dict[str, Tensor],
        coords: Tensor,
        resolution: int,
        parameters: dict[str, Any],
        max_tokens: int,
    ) -> tuple[Any, int]:
        """Return the shape latent and the resolution that upstream really used."""
        return self.trellis.sample_shape_slat_cascade(
            low,
            high,
            self.flows["shape_slat_flow_model_512"],
            self.flows["shape_slat_flow_model_1024"],
            512,
            resolution,
            coords,
            parameters,
            max_tokens,
        )

    def sample_texture(
        self, condition: dict[str, Tensor], model: str, shape: Any, parameters: dict[str, Any]
    ) -> Any:
        """Return the texture latent."""
        return self.trellis.sample_tex_slat(condition, self.flows[model], shape, parameters)

    def decode_shape(self, slat: Any, resolution: int) -> tuple[Any, list[Any]]:
        """Return upstream's mesh, its holes not yet filled, and the subdivisions."""
        meshes, guides = self.trellis.decode_shape_slat(slat, resolution)
        return meshes[0], guides

    def decode_texture(self, slat: Any, guides: list[Any]) -> Any:
        """Return the coloured voxels as a sparse tensor, attributes 0..1."""
        return self.trellis.decode_tex_slat(slat, guides)

    def lean_decoders(self, *, active: bool) -> AbstractContextManager[None]:
        """Have both decoders work over blocks of rows while the context lasts."""
        from trellis2.models.sc_vaes.sparse_unet_vae import SparseUnetVaeDecoder

        return lean_decoders(SparseUnetVaeDecoder, active=active)

    def sparse_tensor(self, feats: Tensor, coords: Tensor) -> Any:
        return self.sparse_tensor_type(feats=feats, coords=coords)

    @contextmanager
    def steps(self, sampler: str, scope: JobScope, total: int) -> Iterator[None]:
        """Tell `scope` each of `total` sampler steps, where a stopped job also stops."""
        target = getattr(self.trellis, sampler)
        once, taken = target.sample_once, 0

        def sample_once(*args: Any, **kwargs: Any) -> Any:
            nonlocal taken
            scope.step(taken, total)
            taken += 1
            return once(*args, **kwargs)

        target.sample_once = sample_once
        try:
            yield
        finally:
            del target.sample_once
            for flow in self.flows.values():
                if isinstance(flow, FastFlow):
                    flow.clear_cache()


def without_caches(tensors: list[Any]) -> list[Any]:
    """Return sparse tensors without their cached neighbour maps, which are built again on use."""
    return [type(t)(feats=t.feats, coords=t.coords) for t in tensors]


def load(settings: Trellis2, room: int, note: Callable[[str, float], None]) -> UpstreamPipeline:
    """Import upstream and load every model; raises `SetupFailed`.

    The flow models and decoders go to the card when they leave it `room` bytes, else to the host.
    """
    if not torch.cuda.is_available():
        raise SetupFailed("no CUDA device is visible; the trellis2 engine needs one")
    if settings.model_dir is None:
        raise SetupFailed("TRELLIS2_MODEL_DIR is not set")
    files = find_pipeline(settings.model_dir, MODELS)
    with _timed("cuda", note):
        torch.cuda.init()  # type: ignore[no-untyped-call]
        note("kernel_cache_found", float(_use_kernel_cache(settings)))
    fits = vram.available() > files.weight_bytes + room
    device = "cuda" if fits and settings.placement != "offload" else "cpu"
    kernels = "sdpa" if settings.flow == "fast" else attention.choose()
    os.environ.update(attention.environment(kernels))  # noqa: TID251 - upstream reads it at import
    with ThreadPoolExecutor(1, thread_name_prefix="load") as beside:
        with _timed("import_upstream", note):
            models = _import_models()
            built = build_models(files.models, partial(getattr, models))
            # Weights travel while the rest is imported, which takes longer.
            loading = beside.submit(_fill_models, files, built, device, note)
            pipelines, sparse = _import_pipeline(kernels)
        with _timed("load", note):
            modules = loading.result()
            flows = _flows(settings, modules)
            inner = _assemble(files, pipelines, modules | flows)
            _load_helpers(settings, files, inner, modules)
    pipeline = UpstreamPipeline(inner, modules, flows, kernels, files.is_synthetic, sparse)
    if settings.rehearsal:
        with _timed("rehearsal", note):
            rehearsal.install_synthetic_structure(pipeline)
        pipeline.is_synthetic = True
    return pipeline


@contextmanager
def _timed(phase: str, note: Callable[[str, float], None]) -> Iterator[None]:
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
        from trellis2 import models

        for name in ("SLatFlowModel", "SparseStructureFlowModel", "SparseStructureDecoder"):
            getattr(models, name)  # upstream imports each with its first use
    return models


def _import_pipeline(kernels: str) -> tuple[Any, Any]:
    with _importing():
        import o_voxel  # noqa: F401 - dlopens libcuda; its absence is told here
        from trellis2.modules.sparse import SparseTensor
        from trellis2.pipelines import Trellis2ImageTo3DPipeline  # imports transformers
    attention.install_flash_attn_shim(kernels)
    return Trellis2ImageTo3DPipeline, SparseTensor


def _use_kernel_cache(settings: Trellis2) -> bool:
    key = kernel_cache.cache_key(torch.cuda.get_device_name(), torch.cuda.get_device_capability())
    folder = settings.kernel_cache_dir.expanduser()
    return kernel_cache.activate(folder, settings.kernel_seed_dir, key)


def _fill_models(
    files: PipelineFiles, built: list[Built], device: str, note: Callable[[str, float], None]
) -> dict[str, nn.Module]:
    with _timed("load_beside_imports", note):
        return fill_models(files.models, built, device)


def _assemble(files: PipelineFiles, pipelines: Any, modules: dict[str, nn.Module]) -> Any:
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
    inner._device = torch.device("cuda")
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
    extractor = getattr(image_feature_extractor, stated["name"])(str(dino))
    if not hasattr(extractor.model, "layer"):  # transformers 5 has moved it
        extractor.model.layer = extractor.model.model.layer
    inner.image_cond_model = extractor
    modules["image_cond_model"] = extractor.model.eval().requires_grad_(False)
    stated = files.args["rembg_model"]
    matting = _local(settings.rembg_dir, files.folder, stated["args"]["model_name"])
    if matting is not None:
        inner.rembg_model = getattr(rembg, stated["name"])(str(matting))
        modules["rembg_model"] = inner.rembg_model.model.eval().requires_grad_(False)
    else:
        modules["rembg_model"] = nn.Identity()


def _local(override: Path | None, folder: Path, name: str) -> Path | None:
    for candidate in (override, folder / name, Path(name)):
        if candidate is not None and candidate.is_dir():
            return candidate
    return None
