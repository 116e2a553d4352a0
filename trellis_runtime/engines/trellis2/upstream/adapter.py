"""Upstream's pipeline behind our own types: plain tensors in, plain tensors out.

    Rows (feats, coords) ──► SparseTensor ──► upstream's method ──► SparseTensor ──► Rows

Everything here calls upstream's own functions, as `interface` lists them; what is replaced is named
where it is replaced. Models are reached by their names in `pipeline.json`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from trellis_runtime.contract.request import Sampler
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.engines.trellis2.models.finite import watched, wider
from trellis_runtime.engines.trellis2.models.rows import RowLayers, chunked_rows
from trellis_runtime.engines.trellis2.upstream.decoders import deciding_layers, lean_decoders
from trellis_runtime.engines.trellis2.upstream.flows import FastFlow
from trellis_runtime.errors import SetupFailed

STRUCTURE_SIDE = 32
_CASCADE_SIDE = 512  # the cascade samples here first


@dataclass(frozen=True, slots=True)
class Rows:
    """Features (N, C) at coordinates (N, 4) int32: batch, x, y, z."""

    feats: Tensor
    coords: Tensor


class Subdivisions:
    """Which children of each cell exist, level by level: made with a shape, followed by a texture.

    They carry neighbour maps that upstream's convolutions have cached, until `without_caches`.
    """

    def __init__(self, tensors: list[Any]) -> None:
        self.tensors = tensors

    def without_caches(self) -> Subdivisions:
        """Return the same without cached neighbour maps, which are built again on use."""
        return Subdivisions([type(t)(feats=t.feats, coords=t.coords) for t in self.tensors])


@dataclass(slots=True)
class UpstreamPipeline:
    """Upstream's pipeline object, with each model under our own residency."""

    trellis: Any
    modules: dict[str, nn.Module]
    flows: dict[str, nn.Module]
    row_layers: dict[str, RowLayers]
    attention: str
    is_synthetic: bool
    sparse_tensor_type: Any
    decoder_class: Any
    device: torch.device

    def bring_models_on_use(self, active: bool) -> None:
        """Have upstream bring each model just before it uses it (its `low_vram`), or not."""
        self.trellis.low_vram = active

    def features(self, picture: Image.Image, size: int) -> Tensor:
        """Return DINOv3 features (1, tokens, 1024) of a picture at `size` px."""
        features: Tensor = self.trellis.get_cond([picture], size, include_neg_cond=False)["cond"]
        return features

    @property
    def removes_backgrounds(self) -> bool:
        """Whether a background remover is loaded."""
        return self.trellis.rembg_model is not None

    @property
    def latent_channels(self) -> tuple[int, int]:
        """Values a token of the shape's latent, and of the texture's.

        The texture's model is given the shape's latent beside its own noise.
        """
        shape = _in_channels(self.flows["shape_slat_flow_model_512"])
        return shape, _in_channels(self.flows["tex_slat_flow_model_512"]) - shape

    def remove_background(self, picture: Image.Image) -> Image.Image:
        """Return the picture with alpha from upstream's matting model."""
        if self.trellis.rembg_model is None:
            raise SetupFailed("no background remover is loaded (TRELLIS2_REMBG_DIR)")
        self.trellis.rembg_model.to(self.device)
        cut: Image.Image = self.trellis.rembg_model(picture)
        return cut

    def crop(self, picture: Image.Image) -> Image.Image:
        """Return upstream's square crop around the object, on black."""
        cropped: Image.Image = self.trellis.preprocess_image(picture)
        return cropped

    def sample_structure(self, features: Tensor, sampler: Sampler) -> Tensor:
        """Return coordinates (N, 4) of the sparse structure on a grid of 32."""
        coords: Tensor = self.trellis.sample_sparse_structure(
            self._condition(features), STRUCTURE_SIDE, 1, sampler_parameters(sampler)
        )
        return coords

    def sample_shape(self, features: Tensor, coords: Tensor, sampler: Sampler) -> Rows:
        """Return the shape latent at 512."""
        model = self.flows["shape_slat_flow_model_512"]
        return _rows(
            self.trellis.sample_shape_slat(
                self._condition(features),
                model,
                coords.to(self.device),
                sampler_parameters(sampler),
            )
        )

    def sample_shape_cascade(
        self,
        features: tuple[Tensor, Tensor],
        coords: Tensor,
        resolution: int,
        sampler: Sampler,
        max_tokens: int,
    ) -> tuple[Rows, int]:
        """Return the shape latent and the resolution that upstream really used.

        `features` are those at 512 and at 1024.
        """
        low, high = (self._condition(f) for f in features)
        slat, used = self.trellis.sample_shape_slat_cascade(
            low,
            high,
            self.flows["shape_slat_flow_model_512"],
            self.flows["shape_slat_flow_model_1024"],
            _CASCADE_SIDE,
            resolution,
            coords.to(self.device),
            sampler_parameters(sampler),
            max_tokens,
        )
        return _rows(slat), used

    def sample_texture(self, features: Tensor, model: str, shape: Rows, sampler: Sampler) -> Rows:
        """Return the texture latent."""
        return _rows(
            self.trellis.sample_tex_slat(
                self._condition(features),
                self.flows[model],
                self.sparse(shape),
                sampler_parameters(sampler),
            )
        )

    def decode_shape(self, shape: Rows, resolution: int) -> tuple[Tensor, Tensor, Subdivisions]:
        """Return vertices (V, 3) float32, faces (F, 3) int32, and the subdivisions made."""
        meshes, guides = self.trellis.decode_shape_slat(self.sparse(shape), resolution)
        return meshes[0].vertices.float(), meshes[0].faces.int(), Subdivisions(guides)

    def decode_texture(self, texture: Rows, guides: Subdivisions) -> Rows:
        """Return coloured voxels: float32 attributes (L, 6) in 0..1, and their cells."""
        voxels = self.trellis.decode_tex_slat(self.sparse(texture), guides.tensors)
        return Rows(voxels.feats.float(), voxels.coords)

    @contextmanager
    def decoding(
        self, name: str, *, chunk_rows: bool, lean: bool, dtype: torch.dtype | None = None
    ) -> Iterator[None]:
        """Have a decoder run as asked: its rows in blocks, and with `lean` its convolutions too.

        See `finite` for `dtype` and what is raised.
        """
        with (
            self.finite(name, dtype),
            chunked_rows(self.row_layers[name], chunked=chunk_rows),
            self.lean_decoders(active=lean),
        ):
            yield

    @contextmanager
    def finite(self, name: str, dtype: torch.dtype | None = None) -> Iterator[None]:
        """Check a model's outputs before they decide anything; raises `NotFinite`.

        With `dtype`, what is float16 of the model is that instead while the context lasts.
        """
        model = self.modules[name]
        with wider(model, dtype), watched(deciding_layers(name, model)):
            yield

    def lean_decoders(self, *, active: bool) -> AbstractContextManager[None]:
        """Have both decoders work over blocks of rows while the context lasts."""
        return lean_decoders(self.decoder_class, active=active)

    def sparse(self, rows: Rows) -> Any:
        """Return rows as upstream's sparse tensor, on the pipeline's device."""
        return self.sparse_tensor_type(
            feats=rows.feats.to(self.device), coords=rows.coords.to(self.device)
        )

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

    def _condition(self, features: Tensor) -> dict[str, Tensor]:
        on_device = features.to(self.device)
        return {"cond": on_device, "neg_cond": torch.zeros_like(on_device)}


def sampler_parameters(sampler: Sampler) -> dict[str, Any]:
    """Return a sampler's parameters by upstream's names."""
    return {
        "steps": sampler.steps,
        "guidance_strength": sampler.guidance_strength,
        "guidance_rescale": sampler.guidance_rescale,
        "guidance_interval": list(sampler.guidance_interval),
        "rescale_t": sampler.rescale_t,
    }


def _in_channels(flow: Any) -> int:
    return int(flow.in_channels)


def _rows(sparse: Any) -> Rows:
    return Rows(sparse.feats, sparse.coords)
