"""How many bytes each stage holds and works with: stated to the budget, and asked by the ladder."""

from __future__ import annotations

from dataclasses import dataclass

from trellis_runtime.contract.ladder import Plan
from trellis_runtime.contract.stages import ENGINE_STAGES, Stage
from trellis_runtime.engines.embedded import inflation, texture

_CELLS_PER_RESOLUTION = 2  # a grid cell for every 2 of the request: 512 cells a side at 1024
_BYTES_PER_CELL = 2 * (12 + 32 + 48)  # positions, quads and triangles of both sheets


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the bytes depend on besides the plan.

    `picture_values` is the count of numbers in the picture as it was sent; `crop_px` the crop's
    side and `object_share` the share of it that is object, both 0 before the crop is made.
    """

    picture_values: int
    crop_px: int = 0
    object_share: float = 0.0


def grid_cells(resolution: int) -> int:
    """Return the cells a side of the grid for a request's resolution."""
    return resolution // _CELLS_PER_RESOLUTION


def held(stage: Stage, plan: Plan, sizes: Sizes) -> int:
    """Bytes that `stage` leaves behind for those after it, until `plan` has them offloaded."""
    cells = grid_cells(plan.resolution)
    return {
        Stage.CONDITION: sizes.picture_values * 4,
        Stage.STRUCTURE: inflation.working_bytes(inflation.levels(cells)[0], by_rows=False),
        Stage.SHAPE: 8 * (cells + 1) ** 2,
        Stage.TEXTURE: 2 * 3 * sizes.crop_px**2,
        Stage.DECODE: 2 * 4 * (cells + 1) ** 2,
        Stage.BAKE: 0,
    }[stage]


def working(stage: Stage, plan: Plan, sizes: Sizes) -> int:
    """Bytes that `stage` takes while it runs, and gives back."""
    cells = grid_cells(plan.resolution)
    if stage == Stage.SHAPE:
        return inflation.working_bytes(cells, by_rows=plan.chunk_rows)
    if stage == Stage.DECODE:
        # chunked, the relief is made in single precision, one field at a time
        fields = 2 if plan.chunk_decoder else 3 if plan.chunk_rows else 5
        return fields * 4 * (cells + 1) ** 2
    if stage == Stage.BAKE:
        finest = min(cells, grid_cells(plan.remesh_resolution))
        return max(surface(finest, plan, sizes), baked_texture(plan))
    return 0


def surface(cells: int, plan: Plan, sizes: Sizes) -> int:
    """Bytes of the surface on a grid of `cells`, with the distances that smooth its outline."""
    distances = 4 * (cells + 1) ** 2 if plan.remesh else 0
    return int(sizes.object_share * cells**2) * _BYTES_PER_CELL + distances


def baked_texture(plan: Plan) -> int:
    """Bytes of the textures and their maps, 0 where colours go to the vertices."""
    if plan.texture_size == 0:
        return 0
    return texture.bake_bytes(plan.texture_size, by_rows=plan.chunk_bake)


def peak(stage: Stage, plan: Plan, sizes: Sizes) -> int:
    """Bytes at the stage's peak, with what the stages before it have left where it is not away."""
    before = ENGINE_STAGES[: ENGINE_STAGES.index(stage)]
    left = 0 if plan.offload else sum(held(earlier, plan, sizes) for earlier in before)
    return left + max(working(stage, plan, sizes), held(stage, plan, sizes))
