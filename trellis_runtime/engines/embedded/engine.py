"""The embedded engine's stages, and what each leaves for the next.

condition   photo -> crop and silhouette
structure   silhouette -> coarse inflation
shape       coarse inflation -> fine inflation
texture     crop -> colours of front and back
decode      inflation + shading -> heights of front and back
bake        heights + colours -> closed mesh with textures

Long because all six stages hand their products on to each other here.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
import scipy
from threadpoolctl import threadpool_limits

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
from trellis_runtime.contract.request import DetailMap
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import Stage
from trellis_runtime.engines.embedded import inflation, needs, surface, texture
from trellis_runtime.engines.embedded.budget import Budget, Share
from trellis_runtime.engines.embedded.decoded import Decoded
from trellis_runtime.engines.embedded.foreground import WORK_PX, Foreground, find_foreground
from trellis_runtime.engines.embedded.inflation import Field, Mask
from trellis_runtime.engines.embedded.saliency import SaliencyNetwork
from trellis_runtime.engines.embedded.surface import Floats
from trellis_runtime.errors import ImageRejected, MeshRejected

T = TypeVar("T")

_THICKNESS = 0.85
_RELIEF = 0.012
_BACK_FLATNESS = 0.8


@dataclass(slots=True)
class _Products:
    """What the stages have left so far; all on the host."""

    foreground: Foreground | None = None
    silhouette: Mask | None = None
    coarse: Field | None = None
    mask: Mask | None = None
    inflated: Field | None = None
    colors: tuple[texture.Pixels, texture.Pixels] | None = None
    heights: tuple[Floats, Floats] | None = None
    asset: Asset | None = None


class EmbeddedEngine:
    """Silhouette inflation on a CPU; deterministic by seed."""

    def __init__(self, memory_budget_bytes: int | None = None) -> None:
        self._budget = Budget(memory_budget_bytes)
        self._network = SaliencyNetwork()

    @property
    def most_side_by_side(self) -> int | None:
        return None  # what its libraries share is locked where they are called

    @property
    def measures_quality(self) -> bool:
        return False

    @property
    def detail_maps(self) -> tuple[DetailMap, ...]:
        return ()

    @property
    def ignored_fields(self) -> tuple[str, ...]:
        return ("sampler", "shell", "remesh_band", "min_thickness", "alpha_mode",
                "strict", "retry_seeds")  # fmt: skip

    @property
    def useful_side_px(self) -> int:
        return 2 * WORK_PX  # of the whole picture: an object of half its side still fills the crop

    def info(self) -> EngineInfo:
        return EngineInfo(
            name="embedded",
            versions={
                "numpy": np.__version__,
                "scipy": scipy.__version__,
                "opencv": cv2.__version__,
                "python": platform.python_version(),
            },
        )

    def load(self, note: Callable[[str, float], None]) -> None:
        """Load the network, and use one thread for sums: their order, so the mesh, is then fixed.

        The vectors are short, too: threads that wait for each other cost more than they bring.
        """
        started = time.perf_counter()
        threadpool_limits(1, user_api="blas")
        self._network.load()
        note("load", time.perf_counter() - started)

    def begin(self, image: Rgba, plan: Plan) -> EmbeddedGeneration:
        return EmbeddedGeneration(image, plan.seed, self._budget.share(), self._network)

    @property
    def resumes_at(self) -> Stage:
        return Stage.BAKE

    def resume(self, latents: Latents, plan: Plan) -> EmbeddedGeneration:
        decoded = Decoded.of(latents, needs.grid_cells(plan.resolution), WORK_PX)
        nothing = np.zeros((0, 0, 4), np.uint8)
        generation = EmbeddedGeneration(
            nothing, plan.seed, self._budget.share(), self._network, decoded.picture_values
        )
        generation.go_on_from(decoded)
        return generation

    def wants_offload(self, plan: Plan) -> bool:
        return False

    def memory(self) -> MemorySnapshot | None:
        return self._budget.snapshot()


class EmbeddedGeneration:
    """One job."""

    def __init__(
        self,
        image: Rgba,
        seed: int,
        budget: Share,
        network: SaliencyNetwork,
        picture_values: int | None = None,
    ) -> None:
        """`picture_values` stands for the picture's size in a generation that has none."""
        self._image = image
        self._picture_values = image.size if picture_values is None else picture_values
        self._seed = seed
        self._budget = budget
        self._network = network
        self._products = _Products()

    def run(self, stage: Stage, plan: Plan, scope: JobScope) -> None:
        {
            Stage.CONDITION: self._condition,
            Stage.STRUCTURE: self._structure,
            Stage.SHAPE: self._shape,
            Stage.TEXTURE: self._texture,
            Stage.DECODE: self._decode,
            Stage.BAKE: self._bake,
        }[stage](plan, scope)
        if plan.offload:
            self._budget.drop()

    def need(self, stage: Stage, plan: Plan) -> int:
        return needs.peak(stage, plan, self._sizes())

    def reclaim(self) -> None:
        self._budget.drop()

    def reseed(self, seed: int) -> None:
        self._seed = seed
        kept = self._products
        self._products = _Products(foreground=kept.foreground, silhouette=kept.silhouette)
        self._budget.drop()

    def latents(self) -> Latents:
        made = self._products
        decoded = Decoded(
            require_product(made.heights),
            require_product(made.mask),
            require_product(made.silhouette),
            require_product(made.colors),
            self._picture_values,
        )
        return decoded.to_latents()

    def go_on_from(self, decoded: Decoded) -> None:
        """Have the products that `decoded` holds, for the bake."""
        self._products = _Products(
            silhouette=decoded.silhouette,
            mask=decoded.mask,
            heights=decoded.heights,
            colors=decoded.colors,
        )

    def cutout(self) -> CutOut:
        return require_product(self._products.foreground).cutout

    def asset(self) -> Asset:
        return require_product(self._products.asset)

    def close(self) -> None:
        self._products = _Products()
        self._budget.drop()

    def _sizes(self) -> needs.Sizes:
        silhouette = self._products.silhouette
        if silhouette is None:
            return needs.Sizes(self._picture_values)
        return needs.Sizes(self._picture_values, silhouette.shape[0], float(silhouette.mean()))

    def _held(self, stage: Stage, plan: Plan) -> int:
        return needs.held(stage, plan, self._sizes())

    def _working(self, stage: Stage, plan: Plan) -> int:
        return needs.working(stage, plan, self._sizes())

    def _condition(self, plan: Plan, scope: JobScope) -> None:
        # The network and the crop work on copies; resident, the float picture stays.
        self._budget.hold("the conditioning picture", self._held(Stage.CONDITION, plan))
        found = find_foreground(self._image, plan.background, self._network)
        self._products.foreground, self._products.silhouette = found, found.mask

    def _structure(self, plan: Plan, scope: JobScope) -> None:
        cells = inflation.levels(needs.grid_cells(plan.resolution))[0]
        self._budget.hold("the coarse solution", self._held(Stage.STRUCTURE, plan))
        mask = inflation.grid_mask(require_product(self._products.foreground).mask, cells)
        self._products.coarse = inflation.solve(mask, None, by_rows=False)

    def _shape(self, plan: Plan, scope: JobScope) -> None:
        silhouette = require_product(self._products.foreground).mask
        solution = require_product(self._products.coarse)
        sizes = inflation.levels(needs.grid_cells(plan.resolution))
        with self._budget.working("the fine solution", self._working(Stage.SHAPE, plan)):
            for done, cells in enumerate(sizes):
                scope.step(done, len(sizes))
                mask = inflation.grid_mask(silhouette, cells)
                solution = inflation.solve(mask, solution, by_rows=plan.chunk_rows)
            distance = inflation.outline_distance(silhouette, sizes[-1])
            solution = inflation.smooth_rim(solution, distance)
        if not solution.any():
            raise ImageRejected(
                "the foreground found is too thin to give it a shape", field="image"
            )
        self._budget.hold("the shape", self._held(Stage.SHAPE, plan))
        self._products.mask, self._products.inflated = mask, solution

    def _texture(self, plan: Plan, scope: JobScope) -> None:
        foreground = require_product(self._products.foreground)
        self._budget.hold("the colours", self._held(Stage.TEXTURE, plan))
        front = texture.front_colors(foreground)
        self._products.colors = front, texture.back_colors(front, foreground.mask, self._seed)

    def _decode(self, plan: Plan, scope: JobScope) -> None:
        inflated = require_product(self._products.inflated)
        side = inflated.shape[0]
        with self._budget.working("the heights", self._working(Stage.DECODE, plan)):
            thickness = _THICKNESS * np.random.default_rng(self._seed).uniform(0.92, 1.08)
            height = (np.sqrt(inflated) * thickness).astype(np.float32)
            relief = texture.luminance_relief(require_product(self._products.foreground), side)
            relief *= _RELIEF * np.minimum(1.0, height / 0.05)
            front = np.maximum(height + relief, 0.0)
        self._budget.hold("the heights", self._held(Stage.DECODE, plan))
        self._products.heights = front, height * np.float32(_BACK_FLATNESS)

    def _bake(self, plan: Plan, scope: JobScope) -> None:
        mesh = self._surface(plan)
        scope.step(1, 3)
        split, is_back = surface.split_sides(mesh)
        normals = surface.vertex_normals(mesh)[_origin_of(split, mesh)]
        front, back = require_product(self._products.colors)
        common = dict(
            vertices=split.vertices,
            faces=split.faces.astype(np.uint32),
            normals=normals,
            effective={"resolution": plan.resolution},
        )
        if plan.texture_size == 0:
            colors = texture.at_vertices(front, back, split.vertices[:, :2], is_back)
            self._products.asset = Asset(**common, vertex_colors=colors)
            return
        with self._budget.working("the texture", needs.baked_texture(plan)):
            charts = surface.plan_charts(split, plan.texture_size)
            base, packed = texture.bake(
                front, back, charts, plan.texture_size, by_rows=plan.chunk_bake
            )
        scope.step(2, 3)
        self._products.asset = Asset(
            **common,
            uvs=charts.uv(split.vertices[:, :2], is_back),
            base_color=base,
            metallic_roughness=packed,
        )

    def _surface(self, plan: Plan) -> surface.Surface:
        """Return the closed surface, with no more faces than asked.

        Where decimation does not leave it closed, a coarser grid does the same by construction.
        """
        finest = require_product(self._products.mask).shape[0]
        cells = min(finest, needs.grid_cells(plan.remesh_resolution))
        while True:
            extracted = self._extract(cells, plan)
            reduced = surface.decimate(extracted, plan.decimation_target)
            if len(extracted.faces) == 0 or (reduced is not None and len(reduced.faces) == 0):
                raise MeshRejected(
                    "nothing of the foreground is left in a mesh of "
                    f"{plan.decimation_target} faces: its pieces are too small",
                    field="decimation_target",
                    retryable=False,
                )
            if reduced is not None:
                return reduced
            share = (plan.decimation_target / len(extracted.faces)) ** 0.5
            cells = max(8, int(cells * min(share, 0.95)))

    def _extract(self, cells: int, plan: Plan) -> surface.Surface:
        front, back = require_product(self._products.heights)
        mask = require_product(self._products.mask)
        silhouette = require_product(self._products.silhouette)
        with self._budget.working("the surface", needs.surface(cells, plan, self._sizes())):
            if cells < mask.shape[0]:
                mask = inflation.grid_mask(silhouette, cells)
                inside = inflation.inner_corners(mask)
                front = inflation.resample(front, cells + 1) * inside
                back = inflation.resample(back, cells + 1) * inside
            distance = inflation.outline_distance(silhouette, cells) if plan.remesh else None
            return surface.extract(mask, front, back, distance)


def _origin_of(split: surface.Surface, mesh: surface.Surface) -> np.ndarray:
    """Return, for each vertex of `split`, the vertex of `mesh` that it came from."""
    origin = np.empty(len(split.vertices), np.int64)
    origin[split.faces.ravel()] = mesh.faces.ravel()
    return origin
