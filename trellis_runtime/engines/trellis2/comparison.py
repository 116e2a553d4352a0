"""Ours beside upstream's own code, stage by stage, for `acceptance`.

Both begin each stage from the same products, upstream's, with the same random state: a difference
is then that stage's own, and does not grow from one stage to the next. Upstream runs twice, the
second time on another of torch's attention kernels: how far it is from itself says how far ours may
be. What runs is upstream's pipeline up to its decoded mesh; what it does next needs CuMesh, and
this worker has a bake of its own.

    features ─► structure ─► shape ─► texture ─► surface and voxels
    upstream    U            U        U          U
    upstream on other        U ─► U'  U ─► U'    U ─► U'              each from U's products
    ours                     U ─► O   U ─► O     U ─► O
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from trellis_runtime.contract.engine import Rgba, require_product
from trellis_runtime.contract.ladder import Plan
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import Stage
from trellis_runtime.engines.trellis2.baking.chamfer import chamfer
from trellis_runtime.engines.trellis2.baking.decoded import Decoded
from trellis_runtime.engines.trellis2.device import vram
from trellis_runtime.engines.trellis2.engine import Trellis2Engine, Trellis2Generation
from trellis_runtime.engines.trellis2.grid import cell_keys, find
from trellis_runtime.engines.trellis2.upstream.adapter import Rows, UpstreamPipeline

COMPARED = (Stage.STRUCTURE, Stage.SHAPE, Stage.TEXTURE, Stage.DECODE)
"""The stages that both have."""

_POINTS = 100_000
_LARGEST_SIDE = 2048  # of any grid here: cells are told apart by keys on one of this side


@dataclass(slots=True)
class Made:
    """What the compared stages leave, on the host."""

    structure: Tensor
    shape: Rows
    resolution: int
    texture: Rows
    decoded: Decoded


@dataclass(frozen=True, slots=True)
class Agreement:
    """How alike two results of a stage are.

    iou: shared cells over all cells. error: of the features in shared cells, the norm of the
    difference over the norm. distance_voxels: between decoded surfaces, the mean of both ways.
    """

    iou: float
    error: float | None = None
    distance_voxels: float | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of each compared stage: ours with upstream's, and upstream's with its own on other kernels.

    `made` is upstream's, and `resolution` the one that it really used.
    """

    ours: dict[Stage, Agreement]
    itself: dict[Stage, Agreement]
    made: Made


def compare(engine: Trellis2Engine, image: Rgba, plan: Plan) -> Comparison:
    """Run upstream twice and ours once on `image`, up to the decoded surface."""
    generation = engine.begin(image, plan)
    try:
        generation.run(Stage.CONDITION, plan, JobScope("acceptance"))
        states: dict[Stage, Tensor] = {}
        theirs = _upstream(engine, generation, plan, states, None)
        again = _upstream(engine, generation, plan, states, theirs)
        ours = _ours(generation, plan, states, theirs)
        device = engine.parts()[0].device
        with vram.translated():
            vram.reclaim(device)
            found = _agreements(ours, theirs, device), _agreements(again, theirs, device)
        return Comparison(*found, theirs)
    finally:
        generation.close()


def _upstream(
    engine: Trellis2Engine,
    generation: Trellis2Generation,
    plan: Plan,
    states: dict[Stage, Tensor],
    given: Made | None,
) -> Made:
    """Run upstream's stages, and note the random state that each begins with in `states`.

    With `given`, each stage begins with that one's products and the states noted, on other kernels.
    """
    pipeline, residency, _ = engine.parts()
    features = require_product(generation.products.features)
    names = () if plan.offload else tuple(pipeline.modules)
    pipeline.bring_models_on_use(plan.offload)
    torch.manual_seed(plan.seed)
    with (
        vram.translated(),
        torch.no_grad(),
        residency.needed(*names, offload=plan.offload),
        _own_flows(pipeline) as own,
        _other_kernel(own.device) if given else nullcontext(),
    ):
        return _Upstream(own, features, plan, states, given).run()


@dataclass(frozen=True, slots=True)
class _Upstream:
    """One run of upstream's stages; `pipeline` has its own flow modules."""

    pipeline: UpstreamPipeline
    features: dict[int, Tensor]
    plan: Plan
    states: dict[Stage, Tensor]
    given: Made | None

    def run(self) -> Made:
        given, own = self.given, self.pipeline
        self._begin(Stage.STRUCTURE)
        sampler = self.plan.samplers.sparse_structure
        structure = own.sample_structure(self.features[512], sampler).cpu()
        self._begin(Stage.SHAPE)
        shape, resolution = self._shape(given.structure if given else structure)
        self._begin(Stage.TEXTURE)
        texture = self._texture(given.shape if given else shape, resolution)
        self._begin(Stage.DECODE)
        vertices, faces, guides = own.decode_shape(given.shape if given else shape, resolution)
        voxels = own.decode_texture(given.texture if given else texture, guides)
        decoded = Decoded(vertices, faces, voxels.coords[:, 1:], voxels.feats, resolution)
        return Made(structure, _hosted(shape), resolution, _hosted(texture), decoded.on_host())

    def _begin(self, stage: Stage) -> None:
        if self.given is not None:
            torch.set_rng_state(self.states[stage])
        self.states[stage] = torch.get_rng_state()

    def _shape(self, coords: Tensor) -> tuple[Rows, int]:
        low, sampler = self.features[512], self.plan.samplers.shape
        if self.plan.resolution == 512:
            return self.pipeline.sample_shape(low, coords, sampler), 512
        both, asked = (low, self.features[1024]), self.plan.resolution
        return self.pipeline.sample_shape_cascade(
            both, coords, asked, sampler, self.plan.max_tokens
        )

    def _texture(self, shape: Rows, resolution: int) -> Rows:
        size = 512 if resolution == 512 else 1024
        name, sampler = f"tex_slat_flow_model_{size}", self.plan.samplers.texture
        return self.pipeline.sample_texture(self.features[size], name, shape, sampler)


def _ours(
    generation: Trellis2Generation, plan: Plan, states: dict[Stage, Tensor], theirs: Made
) -> Made:
    """Run our stages, each from upstream's products and random state."""
    products, scope = generation.products, JobScope("acceptance")
    for stage in COMPARED:
        torch.set_rng_state(states[stage])
        generation.run(stage, plan, scope)
        if stage is Stage.STRUCTURE:
            structure, products.structure = require_product(products.structure), theirs.structure
        elif stage is Stage.SHAPE:
            shape = require_product(products.shape)
            products.shape = replace(shape, rows=theirs.shape, resolution=theirs.resolution)
        elif stage is Stage.TEXTURE:
            texture = require_product(products.texture)
            products.texture = replace(texture, rows=theirs.texture)
    decoded = require_product(products.decoded).on_host()
    return Made(structure, shape.rows, shape.resolution, texture.rows, decoded)


@contextmanager
def _own_flows(pipeline: UpstreamPipeline) -> Iterator[UpstreamPipeline]:
    """Yield the pipeline with upstream's own flow modules in place of ours."""
    models = pipeline.trellis.models
    ours = {name: models[name] for name in pipeline.flows}
    own = {name: pipeline.modules[name] for name in pipeline.flows}
    models.update(own)
    try:
        yield replace(pipeline, flows=own)
    finally:
        models.update(ours)


def _other_kernel(device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which torch's attention is not the kernel that it would choose."""
    card = vram.is_cuda(device)
    return sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION if card else SDPBackend.MATH)


def _hosted(rows: Rows) -> Rows:
    return Rows(rows.feats.cpu(), rows.coords.cpu())


def _agreements(made: Made, theirs: Made, device: torch.device) -> dict[Stage, Agreement]:
    iou, _ = _shared(made.structure, theirs.structure)
    surfaces = made.decoded.to(device), theirs.decoded.to(device)
    distance = chamfer(*surfaces, _POINTS) * theirs.resolution
    voxels = (
        Rows(made.decoded.attributes, made.decoded.coords),
        Rows(theirs.decoded.attributes, theirs.decoded.coords),
    )
    return {
        Stage.STRUCTURE: Agreement(iou),
        Stage.SHAPE: _rows_agree(made.shape, theirs.shape),
        Stage.TEXTURE: _rows_agree(made.texture, theirs.texture),
        Stage.DECODE: replace(_rows_agree(*voxels), distance_voxels=distance),
    }


def _rows_agree(a: Rows, b: Rows) -> Agreement:
    iou, (in_a, in_b) = _shared(a.coords, b.coords)
    x, y = a.feats.float()[in_a], b.feats.float()[in_b]
    return Agreement(iou, float((x - y).norm() / y.norm().clamp(min=1e-30)))


def _shared(a: Tensor, b: Tensor) -> tuple[float, tuple[Tensor, Tensor]]:
    """Return shared over all cells, and the rows of the shared ones in each; coords (N, 3 or 4)."""
    cells = a[:, -3:].long()
    keys, order = cell_keys(b[:, -3:], _LARGEST_SIDE).sort()
    at, there = find(keys, cells, _LARGEST_SIDE)
    shared = int(there.sum())
    return shared / max(len(a) + len(b) - shared, 1), (there.nonzero()[:, 0], order[at[there]])
