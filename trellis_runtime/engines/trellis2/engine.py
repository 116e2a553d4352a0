"""TRELLIS.2's stages, each from products that wait in host memory.

A decoded mesh and its voxels stay on the card where there is room for all: a copy to the host and
back would take longer than decoding them. `reclaim` takes them away.

condition   picture -> background removed, cropped; DINOv3 features at 512 and 1024
structure   features -> coordinates of the sparse structure
shape       coordinates -> shape latent (a cascade above 512)
texture     shape latent -> texture latent
decode      both latents -> mesh and coloured voxels
bake        mesh and voxels -> textured asset

Long because all six stages hand their products on to each other here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from trellis_runtime.contract.answer import EngineInfo
from trellis_runtime.contract.engine import (
    Asset,
    CutOut,
    MemorySnapshot,
    Rgba,
    require_product,
)
from trellis_runtime.contract.ladder import Plan
from trellis_runtime.contract.request import Sampler
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import Stage
from trellis_runtime.engines.trellis2.baking.bake import Decoded, bake
from trellis_runtime.engines.trellis2.device import vram
from trellis_runtime.engines.trellis2.device.residency import Residency
from trellis_runtime.engines.trellis2.models.rows import chunked_rows
from trellis_runtime.engines.trellis2.picture import cut_out
from trellis_runtime.engines.trellis2.upstream import adapter as upstream
from trellis_runtime.errors import EngineFault, MeshRejected
from trellis_runtime.settings import Trellis2

# Upstream's torch peaks above its resident weights were 1.4, 3.5 and 7.2 GiB on an H200; the rest
# is room for what CuMesh and nvdiffrast allocate outside torch.
_WORKING_BYTES = {512: 3 * 2**30, 1024: 6 * 2**30, 1536: 10 * 2**30}


@dataclass(slots=True)
class _Latent:
    """A structured latent on the host, and the resolution that it is for."""

    feats: torch.Tensor
    coords: torch.Tensor
    resolution: int


@dataclass(slots=True)
class Products:
    """What the stages have left so far."""

    cutout: CutOut | None = None
    features: dict[int, torch.Tensor] | None = None
    structure: torch.Tensor | None = None
    shape: _Latent | None = None
    texture: _Latent | None = None
    decoded: Decoded | None = None
    asset: Asset | None = None


class Trellis2Engine:
    """microsoft/TRELLIS.2 at 5565d24."""

    def __init__(self, settings: Trellis2) -> None:
        self._settings = settings
        self._watch: vram.PeakWatch | None = None
        self._pipeline: upstream.UpstreamPipeline | None = None
        self._residency: Residency | None = None

    def info(self) -> EngineInfo:
        pipeline = self._pipeline
        return EngineInfo(
            name="trellis2",
            versions=upstream.versions(),
            synthetic=pipeline is not None and pipeline.is_synthetic,
            attention=pipeline.attention if pipeline else None,
            card=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        )

    def load(self, note: Callable[[str, float], None]) -> None:
        """Load all models, resident where the card has room for them and a job besides."""
        with vram.translated():
            self._pipeline = upstream.load(self._settings, _WORKING_BYTES[1024], note)
            self._residency = Residency(self._pipeline.modules, "cuda")
            started = time.perf_counter()
            fits = vram.available() > self._residency.absent_bytes + _WORKING_BYTES[1024]
            if fits and self._settings.placement != "offload":
                for name in self._pipeline.modules:
                    self._residency.place(name)
            torch.cuda.synchronize()
            note("place", time.perf_counter() - started)
        self._watch = vram.PeakWatch()

    def begin(self, image: Rgba, plan: Plan) -> Trellis2Generation:
        pipeline, residency, watch = self.parts()
        watch.start()
        return Trellis2Generation(image, plan, pipeline, residency, watch)

    def wants_offload(self, plan: Plan) -> bool:
        if self._settings.placement == "offload":
            return True
        _, residency, _ = self.parts()
        return vram.available() < residency.absent_bytes + _WORKING_BYTES[plan.resolution]

    def memory(self) -> MemorySnapshot | None:
        return self._watch.snapshot() if self._watch else None

    def parts(self) -> tuple[upstream.UpstreamPipeline, Residency, vram.PeakWatch]:
        """Return what `load` made; benchmarks run upstream itself on the same models."""
        if self._pipeline is None or self._residency is None or self._watch is None:
            raise EngineFault("the engine was used before it was loaded")
        return self._pipeline, self._residency, self._watch


class Trellis2Generation:
    """One job. Noise is drawn on the CPU, in upstream's order, from the job's seed."""

    def __init__(
        self,
        image: Rgba,
        plan: Plan,
        pipeline: upstream.UpstreamPipeline,
        residency: Residency,
        watch: vram.PeakWatch,
    ) -> None:
        self._image = image
        self._pipeline = pipeline
        self._residency = residency
        self._watch = watch
        self._products = Products()
        self._noise_states: dict[Stage, torch.Tensor] = {}
        self._seed = plan.seed

    def run(self, stage: Stage, plan: Plan, scope: JobScope) -> None:
        run = {
            Stage.CONDITION: self._condition,
            Stage.STRUCTURE: self._structure,
            Stage.SHAPE: self._shape,
            Stage.TEXTURE: self._texture,
            Stage.DECODE: self._decode,
            Stage.BAKE: self._bake,
        }[stage]
        # Upstream then brings each model just before it uses it, through `Residency`.
        self._pipeline.trellis.low_vram = plan.offload
        with vram.translated(), torch.no_grad():
            self._set_noise(stage)
            run(plan, scope)
            torch.cuda.synchronize()

    def need(self, stage: Stage, plan: Plan) -> int | None:
        return None  # not known here: the ladder goes by what each rung is declared to free

    def reclaim(self) -> None:
        with vram.translated():
            if self._products.decoded is not None:
                self._products.decoded = self._products.decoded.on_host()
            self._residency.evict()
            vram.reclaim()

    def cutout(self) -> CutOut:
        return require_product(self._products.cutout)

    def asset(self) -> Asset:
        return require_product(self._products.asset)

    def close(self) -> None:
        self._products = Products()
        self._watch.stop()
        with vram.translated():
            vram.release()

    @property
    def products(self) -> Products:
        """What the stages have left so far; benchmarks compare it with upstream's."""
        return self._products

    def _set_noise(self, stage: Stage) -> None:
        """Begin a stage with the random state that it had the first time."""
        if stage == Stage.STRUCTURE:
            torch.manual_seed(self._seed)
        elif stage in self._noise_states:
            torch.set_rng_state(self._noise_states[stage])
        self._noise_states[stage] = torch.get_rng_state()

    def _condition(self, plan: Plan, scope: JobScope) -> None:
        picture = self._cut_out(plan)
        features = {}
        with self._residency.needed("image_cond_model", offload=plan.offload):
            for size in (512,) if plan.resolution == 512 else (512, 1024):
                features[size] = self._pipeline.features(picture, size).cpu()
        self._products.features = features

    def _cut_out(self, plan: Plan) -> Image.Image:
        """Return the object on black, cropped, as upstream has it."""

        def remove(picture: Image.Image) -> Image.Image:
            with self._residency.needed("rembg_model", offload=plan.offload):
                return self._pipeline.remove_background(picture)

        picture, self._products.cutout = cut_out(self._image, plan.background, remove)
        return picture if picture.mode == "RGB" else self._pipeline.crop(picture)

    def _structure(self, plan: Plan, scope: JobScope) -> None:
        names = ("sparse_structure_flow_model", "sparse_structure_decoder")
        with (
            self._residency.needed(*names, offload=plan.offload),
            self._pipeline.steps(
                "sparse_structure_sampler", scope, plan.samplers.sparse_structure.steps
            ),
        ):
            coords = self._pipeline.sample_structure(
                self._condition_at(512), sampler_parameters(plan.samplers.sparse_structure)
            )
        if len(coords) == 0:
            raise MeshRejected("the sparse structure is empty; another seed may help")
        self._products.structure = coords.cpu()

    def _shape(self, plan: Plan, scope: JobScope) -> None:
        coords = require_product(self._products.structure).cuda()
        parameters = sampler_parameters(plan.samplers.shape)
        names, rounds = ["shape_slat_flow_model_512"], 1
        if plan.resolution > 512:
            rounds = 2  # the cascade samples at 512 first
            names += ["shape_slat_flow_model_1024", "shape_slat_decoder"]
        decoder = self._pipeline.modules["shape_slat_decoder"]
        with (
            self._residency.needed(*names, offload=plan.offload),
            self._pipeline.steps("shape_slat_sampler", scope, plan.samplers.shape.steps * rounds),
            chunked_rows(decoder, chunked=plan.chunk_rows),
        ):
            if plan.resolution == 512:
                slat = self._pipeline.sample_shape(self._condition_at(512), coords, parameters)
                resolution = 512
            else:
                slat, resolution = self._pipeline.sample_shape_cascade(
                    self._condition_at(512),
                    self._condition_at(1024),
                    coords,
                    plan.resolution,
                    parameters,
                    plan.max_tokens,
                )
        self._products.shape = _on_host(slat, resolution, "shape")

    def _texture(self, plan: Plan, scope: JobScope) -> None:
        shape = require_product(self._products.shape)
        size = 512 if shape.resolution == 512 else 1024
        name = f"tex_slat_flow_model_{size}"
        with (
            self._residency.needed(name, offload=plan.offload),
            self._pipeline.steps("tex_slat_sampler", scope, plan.samplers.texture.steps),
        ):
            slat = self._pipeline.sample_texture(
                self._condition_at(size),
                name,
                self._sparse(shape),
                sampler_parameters(plan.samplers.texture),
            )
        self._products.texture = _on_host(slat, shape.resolution, "texture")

    def _decode(self, plan: Plan, scope: JobScope) -> None:
        shape, texture = (
            require_product(self._products.shape),
            require_product(self._products.texture),
        )
        with self._decoder("shape_slat_decoder", plan):
            mesh, guides = self._pipeline.decode_shape(self._sparse(shape), shape.resolution)
        scope.step(1, 3)
        if plan.chunk_decoder:
            guides = upstream.without_caches(guides)
            vertices, faces = mesh.vertices.cpu(), mesh.faces.cpu()
            del mesh
        else:
            vertices, faces = mesh.vertices, mesh.faces
        if plan.offload:
            vram.reclaim()
        with self._decoder("tex_slat_decoder", plan):
            voxels = self._pipeline.decode_texture(self._sparse(texture), guides)
        scope.step(2, 3)
        if len(faces) == 0:
            raise MeshRejected("the decoded mesh is empty; another seed may help")
        decoded = Decoded(
            vertices.float(),
            faces.int(),
            voxels.coords[:, 1:],
            voxels.feats.float(),
            shape.resolution,
        )
        self._products.decoded = decoded.on_host() if plan.offload else decoded

    @contextmanager
    def _decoder(self, name: str, plan: Plan) -> Iterator[None]:
        """Have one decoder ready, as lean as the plan wants it."""
        with (
            self._residency.needed(name, offload=plan.offload),
            chunked_rows(self._pipeline.modules[name], chunked=plan.chunk_rows),
            self._pipeline.lean_decoders(active=plan.chunk_decoder),
        ):
            yield

    def _bake(self, plan: Plan, scope: JobScope) -> None:
        if plan.offload:
            self._residency.evict()
            vram.reclaim()
        decoded = require_product(self._products.decoded)
        asset = bake(decoded, plan, scope)
        lowered = {"resolution": decoded.resolution}
        self._products.asset = replace(asset, effective={**asset.effective, **lowered})

    def _condition_at(self, size: int) -> dict[str, torch.Tensor]:
        features = require_product(self._products.features)[size].cuda()
        return {"cond": features, "neg_cond": torch.zeros_like(features)}

    def _sparse(self, latent: _Latent) -> Any:
        return self._pipeline.sparse_tensor(latent.feats.cuda(), latent.coords.cuda())


def _on_host(slat: Any, resolution: int, name: str) -> _Latent:
    if not torch.isfinite(slat.feats).all():
        raise MeshRejected(f"the {name} latent has values that are not finite")
    return _Latent(slat.feats.cpu(), slat.coords.cpu(), resolution)


def sampler_parameters(sampler: Sampler) -> dict[str, Any]:
    """Return a sampler's parameters by upstream's names."""
    return {
        "steps": sampler.steps,
        "guidance_strength": sampler.guidance_strength,
        "guidance_rescale": sampler.guidance_rescale,
        "guidance_interval": list(sampler.guidance_interval),
        "rescale_t": sampler.rescale_t,
    }
