"""TRELLIS.2's stages, each from products that wait in host memory.

A decoded mesh and its voxels stay on the card where there is room for all: a copy to the host and
back would take longer than decoding them. `reclaim` takes them away.

Jobs in flight share the models, upstream's pipeline object and torch's random state: each stage has
them to itself, and begins with the random state that the job's stage before it left.

condition   picture -> background removed, cropped; DINOv3 features at 512 and 1024
structure   features -> coordinates of the sparse structure
shape       coordinates -> shape latent (a cascade above 512)
texture     shape latent -> texture latent
decode      both latents -> mesh and coloured voxels
bake        mesh and voxels -> textured asset

With `TRELLIS2_OVERLAP`, texture decodes the mesh first and bakes its geometry on a thread while it
samples; decode and bake then find that done.

Long because all six stages hand their products on to each other here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

import torch
from PIL import Image

from trellis_runtime.contract.answer import EngineInfo
from trellis_runtime.contract.engine import (
    Asset,
    CutOut,
    Latents,
    MemorySnapshot,
    Rgba,
    require_product,
)
from trellis_runtime.contract.ladder import Plan
from trellis_runtime.contract.request import DetailMap, parse_request
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import Stage
from trellis_runtime.engines.trellis2.baking.ahead import GeometryAhead, geometry_beside
from trellis_runtime.engines.trellis2.baking.bake import (
    BakeOptions,
    bake_bytes,
    bake_geometry,
    bake_texture,
    geometry_bytes,
)
from trellis_runtime.engines.trellis2.baking.decoded import Decoded, DecodedSurface
from trellis_runtime.engines.trellis2.device import vram
from trellis_runtime.engines.trellis2.device.baton import HostWork, Turn
from trellis_runtime.engines.trellis2.device.fetching import next_model
from trellis_runtime.engines.trellis2.device.in_flight import InFlight
from trellis_runtime.engines.trellis2.device.placement import (
    START_RESOLUTION,
    WORKING_BYTES,
    Placement,
)
from trellis_runtime.engines.trellis2.device.residency import Residency
from trellis_runtime.engines.trellis2.latents import Latent, from_latents, on_host, to_latents
from trellis_runtime.engines.trellis2.models import graphs
from trellis_runtime.engines.trellis2.models.finite import require_finite
from trellis_runtime.engines.trellis2.picture import LONGEST_PX, cut_out, needs_remover
from trellis_runtime.engines.trellis2.upstream import loading
from trellis_runtime.engines.trellis2.upstream.adapter import (
    Rows,
    Subdivisions,
    UpstreamPipeline,
)
from trellis_runtime.engines.trellis2.upstream.flows import FastFlow
from trellis_runtime.errors import EngineFault, ImageRejected, MeshRejected, NotFinite, OutOfVram
from trellis_runtime.logs import logger
from trellis_runtime.settings import DecoderRetry, Trellis2

_DECODED_IN = (Stage.STRUCTURE, Stage.SHAPE, Stage.DECODE)  # the cascade decodes in between
# What a closed, smooth shape decodes to at 1024; both grow with the square of the resolution.
_FACES_AT_1024, _VOXELS_AT_1024 = 5_500_000, 2_750_000
_MOST_IN_FLIGHT = 2  # a third would wait: two keep the card busy


def job_bytes(plan: Plan, *, has_remover: bool = False) -> int | None:
    """Return the bytes that a job takes at its peak beside resident weights, by what is known
    before it begins; None for one that is offloaded: it takes what there is.
    """
    if plan.offload:
        return None
    scale = (plan.resolution / 1024) ** 2
    faces, voxels = int(_FACES_AT_1024 * scale), int(_VOXELS_AT_1024 * scale)
    stage = Placement(0, has_remover).needed_bytes(plan.resolution, plan.background)
    return max(stage, bake_bytes(faces, voxels, BakeOptions.of(plan)))


@dataclass(frozen=True, slots=True)
class _Mesh:
    """A decoded mesh before its voxels are, and the subdivisions that they follow."""

    surface: DecodedSurface
    guides: Subdivisions


@dataclass(slots=True)
class Products:
    """What the stages have left so far."""

    cutout: CutOut | None = None
    features: dict[int, torch.Tensor] | None = None
    structure: torch.Tensor | None = None
    shape: Latent | None = None
    texture: Latent | None = None
    mesh: _Mesh | None = None
    ahead: GeometryAhead | None = None
    decoded: Decoded | None = None
    asset: Asset | None = None


class Trellis2Engine:
    """microsoft/TRELLIS.2, at the commit that `upstream/interface.py` names.

    `device` is where it computes. A worker needs a CUDA card; on the CPU the same code runs with
    small models, which is how it is tested. `room` is how many bytes jobs in flight may share;
    what is free, where it is not given.
    """

    def __init__(
        self, settings: Trellis2, device: str = vram.CARD, room: int | None = None
    ) -> None:
        self._settings = settings
        self._device = torch.device(device)
        self._watch: vram.PeakWatch | None = None
        self._pipeline: UpstreamPipeline | None = None
        self._residency: Residency | None = None
        self._graphs: graphs.PassGraphs | None = None
        self._room = room
        self.overlap = settings.overlap
        """Whether a job's geometry is baked while its texture is sampled."""
        self._in_flight = InFlight(self._measure_room, _MOST_IN_FLIGHT)

    @property
    def most_side_by_side(self) -> int | None:
        return self._in_flight.most

    @property
    def measures_quality(self) -> bool:
        return True

    @property
    def detail_maps(self) -> tuple[DetailMap, ...]:
        return get_args(DetailMap)

    @property
    def ignored_fields(self) -> tuple[str, ...]:
        return ()

    @property
    def useful_side_px(self) -> int:
        return 2 * LONGEST_PX  # the last halving is left to one resampler, whatever browser sent it

    def info(self) -> EngineInfo:
        pipeline = self._pipeline
        return EngineInfo(
            name="trellis2",
            versions=loading.versions(),
            synthetic=pipeline is not None and pipeline.is_synthetic,
            attention=pipeline.attention if pipeline else None,
            card=vram.card_name(self._device),
        )

    def load(self, note: Callable[[str, float], None]) -> None:
        """Load all models, resident where the card has room for them and a job besides."""
        with vram.translated():
            self._pipeline = loading.load(self._settings, self._device, note)
            self._residency = Residency(self._pipeline.modules, self._device.type)
            self._watch = vram.PeakWatch(self._device)
            started = time.perf_counter()
            fits = self._placement().fits(vram.available(self._device), START_RESOLUTION)
            if fits and self._settings.placement != "offload":
                for name in self._pipeline.modules:
                    self._residency.place(name)
            vram.synchronize(self._device)
            note("place", time.perf_counter() - started)
        self.use_graphs(graphs.for_device(self._device, wished=self._settings.graphs))
        self._limit_in_flight()

    def use_graphs(self, captured: graphs.PassGraphs | None) -> None:
        """Have `captured` keep passes of all flow models; None: none is captured."""
        self._graphs = captured
        for flow in self.parts()[0].flows.values():
            if isinstance(flow, FastFlow):
                flow.use_graphs(captured)

    def begin(self, image: Rgba, plan: Plan) -> Trellis2Generation:
        pipeline, _, _ = self.parts()
        if not pipeline.removes_backgrounds and needs_remover(image, plan.background):
            raise ImageRejected(
                "image shows an object before a background, and this worker has no background "
                "remover; send a picture whose background is transparent, or background: 'keep'",
                field="image",
            )
        return self._generation(image, plan)

    @property
    def resumes_at(self) -> Stage:
        return Stage.DECODE

    def resume(self, latents: Latents, plan: Plan) -> Trellis2Generation:
        pipeline, _, _ = self.parts()
        shape, texture = from_latents(latents, pipeline.latent_channels)
        generation = self._generation(None, plan)
        generation.products.shape, generation.products.texture = shape, texture
        return generation

    def _generation(self, image: Rgba | None, plan: Plan) -> Trellis2Generation:
        pipeline, residency, watch = self.parts()
        watch.start()
        return Trellis2Generation(
            image,
            plan,
            pipeline,
            residency,
            watch,
            self._in_flight,
            decoder_retry=self._settings.decoder_retry,
            overlap=self.overlap,
            fetch_ahead=self._settings.fetch_ahead,
            captured=self._graphs,
        )

    def wants_offload(self, plan: Plan) -> bool:
        if self._settings.placement == "offload":
            return True
        _, residency, _ = self.parts()
        available = self._in_flight.room.when_idle() + residency.absent_bytes
        return not self._placement().fits(available, plan.resolution, plan.background)

    def memory(self) -> MemorySnapshot | None:
        return self._watch.snapshot() if self._watch else None

    def _placement(self) -> Placement:
        pipeline, residency, _ = self.parts()
        return Placement(residency.absent_bytes, pipeline.removes_backgrounds)

    def _measure_room(self) -> int:
        """Return the bytes that jobs could have, with all models on the card."""
        if self._room is not None:
            return self._room
        _, residency, _ = self.parts()
        captured = self._graphs.bytes if self._graphs else 0  # given back where memory is short
        return vram.available(self._device) + captured - residency.absent_bytes

    def _limit_in_flight(self) -> None:
        """Have one job at a time where there is no room for two of the default resolution."""
        asked = Plan.as_asked(parse_request({"image": "-"}), seed=0)
        need = job_bytes(asked, has_remover=self.parts()[0].removes_backgrounds) or 0
        if self._settings.placement == "offload" or self._measure_room() < _MOST_IN_FLIGHT * need:
            self._in_flight.room.most = self._in_flight.most = 1

    def parts(self) -> tuple[UpstreamPipeline, Residency, vram.PeakWatch]:
        """Return what `load` made; benchmarks run upstream itself on the same models."""
        if self._pipeline is None or self._residency is None or self._watch is None:
            raise EngineFault("the engine was used before it was loaded")
        return self._pipeline, self._residency, self._watch


class Trellis2Generation:
    """One job. Noise is drawn on the CPU, in upstream's order, from the job's seed."""

    def __init__(
        self,
        image: Rgba | None,
        plan: Plan,
        pipeline: UpstreamPipeline,
        residency: Residency,
        watch: vram.PeakWatch,
        in_flight: InFlight,
        *,
        decoder_retry: DecoderRetry = "off",
        overlap: bool = False,
        fetch_ahead: bool = False,
        captured: graphs.PassGraphs | None = None,
    ) -> None:
        self._image = image
        self._pipeline = pipeline
        self._device = pipeline.device
        self._residency = residency
        self._watch = watch
        self._products = Products()
        self._in_flight = in_flight
        self._must_be_alone = False
        self._overlap = overlap
        self._fetch_ahead = fetch_ahead
        self._graphs = captured
        self._noise_states: dict[Stage, torch.Tensor] = {}
        self._noise_after: torch.Tensor | None = None
        self._seed = plan.seed
        self._decoder_retry = None if decoder_retry == "off" else getattr(torch, decoder_retry)
        self._widened: set[Stage] = set()
        self._decoder_dtype: torch.dtype | None = None

    def run(self, stage: Stage, plan: Plan, scope: JobScope) -> None:
        with scope.waiting():
            self._in_flight.join(self, self._need(plan), scope.check)
        beside, extras = bool(self._in_flight.others(self)), self._extras()
        try:
            self._run_in_turn(stage, plan, scope)
        except OutOfVram as err:
            if self._must_be_alone or not (beside or self._is_crowded(extras)):
                raise
            # The traceback holds the stage's frames and, through them, its arrays.
            err.__traceback__ = None
            reason = err.message
        else:
            return
        # Memory that another job, captured passes or the next model took is no reason to go down
        # the ladder.
        logger().warning("stage_repeated_alone", job_id=scope.job_id, stage=stage, reason=reason)
        self._must_be_alone = True
        self._run_in_turn(stage, plan, scope)

    def _need(self, plan: Plan) -> int | None:
        return job_bytes(plan, has_remover=self._pipeline.removes_backgrounds)

    def _is_crowded(self, extras: int) -> bool:
        """Whether another job, or what was captured or fetched since `extras`, takes memory."""
        others = self._in_flight.others(self)
        return bool(others) or self._extras() > extras or self._holds()

    def _run_in_turn(self, stage: Stage, plan: Plan, scope: JobScope) -> None:
        """Run a stage when it has the device, and all of it where the job needs that."""
        alone = self._must_be_alone or plan.offload
        with self._in_flight.baton.hold(scope.check, alone=alone) as turn:
            try:
                self._rest_graphs(self._must_be_alone)
                if alone and (self._in_flight.park_others(self) or self._holds()):
                    self._drop_graphs()
                    vram.reclaim(self._device)
                self._run(stage, plan, scope, turn)
            finally:
                scope.note_wait(turn.waited)

    def _run(self, stage: Stage, plan: Plan, scope: JobScope, turn: Turn) -> None:
        runs: dict[Stage, Callable[[Plan, JobScope], None]] = {
            Stage.CONDITION: self._condition,
            Stage.STRUCTURE: self._structure,
            Stage.SHAPE: self._shape,
            Stage.TEXTURE: self._texture,
            Stage.DECODE: self._decode,
            Stage.BAKE: partial(self._bake, turn=turn),
        }
        # Upstream then brings each model just before it uses it, through `Residency`.
        self._pipeline.bring_models_on_use(plan.offload)
        follows = partial(self._follower, stage, plan) if self._fetches_ahead(plan) else None
        with (
            vram.translated(),
            torch.no_grad(),
            self._residency.fetching_ahead(follows),
        ):
            self._finitely(stage, runs[stage], plan, scope)
            vram.synchronize(self._device)
            self._noise_after = torch.get_rng_state()

    def _fetches_ahead(self, plan: Plan) -> bool:
        return self._fetch_ahead and plan.offload and not self._must_be_alone

    def _follower(self, stage: Stage, plan: Plan, name: str) -> str | None:
        """Return the model that is used after `name`, where it fits beside this stage's work."""
        following = next_model(stage, name, plan.resolution)
        if following is None:
            return None
        sums = Placement(self._residency.bytes_of(following), self._pipeline.removes_backgrounds)
        room = vram.available(self._device)
        return following if sums.fits(room, plan.resolution, plan.background) else None

    def _finitely(
        self, stage: Stage, run: Callable[[Plan, JobScope], None], plan: Plan, scope: JobScope
    ) -> None:
        """Run a stage; where values are not finite, again with wider decoders, if that is asked."""
        self._decoder_dtype = self._decoder_retry if stage in self._widened else None
        self._set_noise(stage)
        try:
            run(plan, scope)
            return
        except NotFinite as err:
            wide = self._decoder_retry
            if wide is None or stage not in _DECODED_IN or stage in self._widened:
                raise
            reason = err.message  # the error's frames hold tensors, and end here
        logger().warning("decoder_retried", job_id=scope.job_id, stage=stage, reason=reason)
        self._widened.add(stage)
        self._decoder_dtype = wide
        self._set_noise(stage)
        run(plan, scope)

    def need(self, stage: Stage, plan: Plan) -> int | None:
        decoded = self._products.decoded
        if stage is not Stage.BAKE or decoded is None:
            return None  # not known: the ladder goes by what each rung is declared to free
        return bake_bytes(len(decoded.faces), len(decoded.coords), BakeOptions.of(plan))

    def reclaim(self) -> None:
        with self._in_flight.baton.hold(_wait_on), vram.translated():
            self.park()
            self._overlap = False
            self._drop_graphs()
            self._residency.evict()
            vram.reclaim(self._device)

    def _extras(self) -> int:
        """Return how many passes were captured and models fetched ahead so far."""
        return (self._graphs.captures if self._graphs else 0) + self._residency.fetched

    def _holds(self) -> bool:
        """Whether captured passes hold memory."""
        return self._graphs is not None and self._graphs.captured > 0

    def _rest_graphs(self, resting: bool) -> None:
        if self._graphs is not None:
            self._graphs.resting = resting

    def _drop_graphs(self) -> None:
        if self._graphs is not None:
            self._graphs.drop()

    def park(self) -> None:
        products = self._products  # another job's thread may do this: `close` puts new ones here
        products.mesh = products.ahead = None  # made again where they are needed
        if products.decoded is not None:
            products.decoded = products.decoded.on_host()

    def reseed(self, seed: int) -> None:
        kept = self._products
        self._products = Products(cutout=kept.cutout, features=kept.features)
        self._seed, self._noise_after = seed, None
        self._noise_states.clear()
        self._widened.clear()

    def latents(self) -> Latents:
        made = self._products
        return to_latents(require_product(made.shape), require_product(made.texture))

    def cutout(self) -> CutOut:
        return require_product(self._products.cutout)

    def asset(self) -> Asset:
        return require_product(self._products.asset)

    def close(self) -> None:
        self._products = Products()
        self._watch.stop()
        try:
            if not self._in_flight.others(self):  # who may be capturing, which this would end
                with vram.translated():
                    self._residency.drop_ahead()
                    vram.release(self._device)
        finally:
            self._in_flight.leave(self)

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
        elif self._noise_after is not None:
            torch.set_rng_state(self._noise_after)
        self._noise_states[stage] = torch.get_rng_state()

    def _condition(self, plan: Plan, scope: JobScope) -> None:
        picture = self._cut_out(plan)
        features = {}
        with self._residency.needed("image_cond_model", offload=plan.offload):
            for size in (512,) if plan.resolution == 512 else (512, 1024):
                features[size] = self._pipeline.features(picture, size).cpu()
                require_finite("DINOv3's features", features[size])
        self._products.features = features

    def _cut_out(self, plan: Plan) -> Image.Image:
        """Return the object on black, cropped, as upstream has it."""

        def remove(picture: Image.Image) -> Image.Image:
            with (
                self._residency.needed("rembg_model", offload=plan.offload),
                self._pipeline.finite("rembg_model"),
            ):
                return self._pipeline.remove_background(picture)

        image = require_product(self._image)
        picture, self._products.cutout = cut_out(image, plan.background, remove)
        return picture if picture.mode == "RGB" else self._pipeline.crop(picture)

    def _structure(self, plan: Plan, scope: JobScope) -> None:
        names = ("sparse_structure_flow_model", "sparse_structure_decoder")
        with (
            self._residency.needed(*names, offload=plan.offload),
            self._pipeline.finite("sparse_structure_decoder", self._decoder_dtype),
            self._pipeline.steps(
                "sparse_structure_sampler", scope, plan.samplers.sparse_structure.steps
            ),
        ):
            coords = self._pipeline.sample_structure(
                self._features(512), plan.samplers.sparse_structure
            )
        if len(coords) == 0:
            raise MeshRejected("the sparse structure is empty; another seed may help")
        self._products.structure = coords.cpu()

    def _shape(self, plan: Plan, scope: JobScope) -> None:
        names, rounds = ["shape_slat_flow_model_512"], 1
        if plan.resolution > 512:
            rounds = 2  # the cascade samples at 512 first
            names += ["shape_slat_flow_model_1024", "shape_slat_decoder"]
        with (
            self._residency.needed(*names, offload=plan.offload),
            self._pipeline.steps("shape_slat_sampler", scope, plan.samplers.shape.steps * rounds),
            self._pipeline.decoding(
                "shape_slat_decoder",
                chunk_rows=plan.chunk_rows,
                lean=False,
                dtype=self._decoder_dtype,
            ),
        ):
            rows, resolution = self._sample_shape(plan)
        self._products.shape = on_host(rows, resolution, "shape")

    def _sample_shape(self, plan: Plan) -> tuple[Rows, int]:
        coords = require_product(self._products.structure)
        if plan.resolution == 512:
            sampler = plan.samplers.shape
            return self._pipeline.sample_shape(self._features(512), coords, sampler), 512
        return self._pipeline.sample_shape_cascade(
            (self._features(512), self._features(1024)),
            coords,
            plan.resolution,
            plan.samplers.shape,
            plan.max_tokens,
        )

    def _texture(self, plan: Plan, scope: JobScope) -> None:
        shape = require_product(self._products.shape)
        surface = self._decoded_early(shape, plan)
        if surface is None:
            self._sample_texture(shape, plan, scope)
            return
        self._rest_graphs(True)  # no thread may wait for the device while another captures
        with geometry_beside(surface, BakeOptions.of(plan), self._device, scope) as ahead:
            self._sample_texture(shape, plan, scope)
        self._products.ahead = ahead

    def _sample_texture(self, shape: Latent, plan: Plan, scope: JobScope) -> None:
        size = 512 if shape.resolution == 512 else 1024
        name = f"tex_slat_flow_model_{size}"
        with (
            self._residency.needed(name, offload=plan.offload),
            self._pipeline.steps("tex_slat_sampler", scope, plan.samplers.texture.steps),
        ):
            rows = self._pipeline.sample_texture(
                self._features(size), name, shape.rows, plan.samplers.texture
            )
        self._products.texture = on_host(rows, shape.resolution, "texture")

    def _decoded_early(self, shape: Latent, plan: Plan) -> DecodedSurface | None:
        """Decode the mesh before the texture is sampled, where its geometry is to be baked beside.

        None where it is not; want of memory, and values that are not finite, are left for the stage
        that decodes to meet.
        """
        self._products.mesh = self._products.ahead = None
        lean = plan.offload or plan.chunk_decoder or plan.chunk_bake
        if not self._overlap or lean or self._in_flight.others(self):
            return None
        with suppress(OutOfVram, NotFinite), vram.translated():
            mesh = self._decode_mesh(shape, plan)
            if self._has_room_for_both(mesh.surface, plan):
                self._products.mesh = mesh
                return mesh.surface
        self._overlap = False
        vram.reclaim(self._device)
        return None

    def _has_room_for_both(self, surface: DecodedSurface, plan: Plan) -> bool:
        """Whether the texture's sampling and the bake's geometry fit at once."""
        geometry = geometry_bytes(len(surface.faces), BakeOptions.of(plan))
        need = WORKING_BYTES[plan.resolution] + geometry
        return len(surface.faces) > 0 and self._in_flight.measure() >= need

    def _decode_mesh(self, shape: Latent, plan: Plan) -> _Mesh:
        with self._decoder("shape_slat_decoder", plan):
            vertices, faces, guides = self._pipeline.decode_shape(shape.rows, shape.resolution)
        if plan.chunk_decoder:
            guides = guides.without_caches()
            vertices, faces = vertices.cpu(), faces.cpu()
        return _Mesh(DecodedSurface(vertices, faces, shape.resolution), guides)

    def _decode(self, plan: Plan, scope: JobScope) -> None:
        shape, texture = (
            require_product(self._products.shape),
            require_product(self._products.texture),
        )
        mesh, self._products.mesh = self._products.mesh, None
        if mesh is None:
            mesh = self._decode_mesh(shape, plan)
        scope.step(1, 3)
        if plan.offload:
            vram.reclaim(self._device)
        with self._decoder("tex_slat_decoder", plan):
            voxels = self._pipeline.decode_texture(texture.rows, mesh.guides)
        scope.step(2, 3)
        surface = mesh.surface
        if len(surface.faces) == 0:
            raise MeshRejected("the decoded mesh is empty; another seed may help")
        cells = voxels.coords[:, 1:]
        decoded = Decoded(surface.vertices, surface.faces, cells, voxels.feats, surface.resolution)
        self._products.decoded = decoded.on_host() if plan.offload else decoded

    @contextmanager
    def _decoder(self, name: str, plan: Plan) -> Iterator[None]:
        """Have one decoder ready, as lean as the plan wants it."""
        with (
            self._residency.needed(name, offload=plan.offload),
            self._pipeline.decoding(
                name,
                chunk_rows=plan.chunk_rows,
                lean=plan.chunk_decoder,
                dtype=self._decoder_dtype,
            ),
        ):
            yield

    def _bake(self, plan: Plan, scope: JobScope, turn: Turn) -> None:
        if plan.offload:
            self._residency.evict()
            vram.reclaim(self._device)
        decoded = require_product(self._products.decoded)
        options, ahead = BakeOptions.of(plan), self._products.ahead
        geometry = ahead.fit_for(options, decoded) if ahead is not None else None
        if geometry is None:
            on_host: HostWork = partial(self._in_flight.baton.let_go, turn)
            surface, device = decoded.surface, self._device
            geometry = bake_geometry(surface, options, device, scope, on_host, colors=decoded)
        asset = bake_texture(decoded, geometry, options, self._device, scope)
        told: dict[str, Any] = {"resolution": decoded.resolution}
        if self._widened:
            told["decoder_dtype"] = str(self._decoder_retry).removeprefix("torch.")
        self._products.asset = replace(asset, effective={**asset.effective, **told})

    def _features(self, size: int) -> torch.Tensor:
        return require_product(self._products.features)[size]


def _wait_on() -> None:
    """Never stop waiting: what is to be given back is given back whatever becomes of the job."""
