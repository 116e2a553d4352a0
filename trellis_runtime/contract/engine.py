"""What an engine must do, and the values that cross its border.

The lifecycle: `load` once, then for each job `begin` -> `run` each stage of `ENGINE_STAGES` in
order (a stage may be run again, leaner, from the products of those before it) -> `asset` ->
`close`. `reseed` goes back behind the first stage; `resume` begins at a late one, from `latents`.
Products between stages stay inside the `Generation`, in host memory, so that nothing above knows
tensors. Out of memory is always `OutOfVram`; a state that cannot be trusted is `EngineFault`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from trellis_runtime.contract.answer import EngineInfo
from trellis_runtime.contract.ladder import Plan
from trellis_runtime.contract.quality import QualityReport
from trellis_runtime.contract.request import DetailMap
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import Stage
from trellis_runtime.errors import EngineFault

T = TypeVar("T")

Arrays = Mapping[str, NDArray[Any]]

Rgba = NDArray[np.uint8]
"""An upright picture: (height, width, 4), sRGB, straight alpha."""


@dataclass(frozen=True, slots=True)
class MemorySnapshot:
    """The device's memory as its driver sees it, in bytes."""

    free: int
    total: int
    peak: int


@dataclass(frozen=True, slots=True)
class CutOut:
    """What of the picture an engine modelled.

    rgba      (h, w, 4) uint8 sRGB, straight alpha: the object, cropped to it
    source    alpha: the picture's own channel; model: a background remover; keep: all of it
    share     of the picture's pixels that are object, 0 to 1
    border    of the picture's outermost pixels that are object, 0 to 1
    longer_px the object's longer side, in pixels of the picture as it was sent
    uncertain of the object's pixels, those that the background remover was unsure of, 0 to 1
    box       what `rgba` shows: left, top, right and bottom as shares of the upright picture as it
              was sent; a margin may lie outside 0 to 1
    """

    rgba: Rgba
    source: Literal["alpha", "model", "keep"]
    share: float
    border: float
    longer_px: int
    uncertain: float = 0.0
    alpha_ignored: bool = False
    plain_shape: bool = False
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Asset:
    """A textured mesh, glTF's axes and units: +Y up, the front faces +Z, one metre a side.

    vertices   (V, 3) float32
    faces      (F, 3) uint32, counter-clockwise seen from outside
    normals    (V, 3) float32, unit length
    uvs        (V, 2) float32, glTF's origin (top left), or None
    base_color (S, S, 3) or (S, S, 4) uint8 sRGB, or None
    metallic_roughness (S, S, 3) uint8 linear: G roughness, B metallic, or None
    has_occlusion whether R of metallic_roughness is ambient occlusion: 255 sees all of the sky
    normal_map (S, S, 3) uint8: x along the tangent, y along the bitangent, z along the normal, each
               -1 to 1, or None
    tangents   (V, 4) float32, with a normal map: a unit vector, and +1 or -1, by which the cross
               product of normal and tangent is the bitangent
    vertex_colors (V, 3) or (V, 4) uint8 sRGB, where there is no texture
    alpha_mode glTF's: OPAQUE (alpha is not written), MASK (seen where alpha is at least
               `alpha_cutoff`) or BLEND
    translucent (F,) bool: with BLEND, the faces to be blended; the others are written as an opaque
               primitive of their own, which renderers need not sort. None: all are blended
    quality    what the engine measured of it, None where it measures nothing
    """

    vertices: NDArray[np.float32]
    faces: NDArray[np.uint32]
    normals: NDArray[np.float32]
    uvs: NDArray[np.float32] | None = None
    base_color: NDArray[np.uint8] | None = None
    metallic_roughness: NDArray[np.uint8] | None = None
    has_occlusion: bool = False
    normal_map: NDArray[np.uint8] | None = None
    tangents: NDArray[np.float32] | None = None
    vertex_colors: NDArray[np.uint8] | None = None
    alpha_mode: str = "OPAQUE"
    alpha_cutoff: float = 0.5
    translucent: NDArray[np.bool_] | None = None
    quality: QualityReport | None = None
    double_sided: bool = False
    effective: Mapping[str, int | str] = field(default_factory=dict)
    """Values that the engine itself had to lower, `resolution` for one."""

    @property
    def texture_size(self) -> int:
        """Pixels a side, 0 without a texture."""
        return 0 if self.base_color is None else int(self.base_color.shape[0])


@dataclass(frozen=True, slots=True)
class Latents:
    """What an engine needs to go on with a job that was sampled, in another job or process.

    arrays   by name, on the host
    facts    numbers beside them
    """

    arrays: Arrays
    facts: Mapping[str, int]


def require_product(product: T | None) -> T:
    """Return a stage's product; raises `EngineFault` where that stage has not run."""
    if product is None:
        raise EngineFault("a stage ran before the one that it rests on")
    return product


class Generation(Protocol):
    """One job inside an engine."""

    def run(self, stage: Stage, plan: Plan, scope: JobScope) -> None:
        """Run `stage` from the products of those before it; raises `OutOfVram`, `EngineFault`."""

    def need(self, stage: Stage, plan: Plan) -> int | None:
        """Return the bytes that `stage` takes at its peak under `plan`, None where unknown.

        All that the job holds by then is included. Asked only after `stage` ran out of memory.
        """

    def reclaim(self) -> None:
        """After an out-of-memory error, give back all that the next attempt can do without."""

    def reseed(self, seed: int) -> None:
        """Drop all but what `Stage.CONDITION` left; the stages behind it then run for `seed`."""

    def latents(self) -> Latents:
        """Return what `Engine.resume` needs; known once the last stage has run."""

    def cutout(self) -> CutOut:
        """Return what of the picture is modelled; known once `Stage.CONDITION` has run."""

    def asset(self) -> Asset:
        """Return the product of the last stage."""

    def close(self) -> None:
        """Drop all products."""


class Engine(Protocol):
    """The thing that computes."""

    @property
    def most_side_by_side(self) -> int | None:
        """How many generations may run at once without sharing state; None: any number.

        Once loaded it may be fewer: as many as there is memory for.
        """

    @property
    def measures_quality(self) -> bool:
        """Whether its assets carry a quality report, so that a job may insist on checks."""

    @property
    def detail_maps(self) -> tuple[DetailMap, ...]:
        """The maps of `output.maps` that it can bake."""

    @property
    def ignored_fields(self) -> tuple[str, ...]:
        """Fields of a request that change nothing here, dotted."""

    @property
    def useful_side_px(self) -> int:
        """The longer side beyond which a picture brings it no more detail."""

    def info(self) -> EngineInfo:
        """Name the engine, its versions and its card."""

    def load(self, note: Callable[[str, float], None]) -> None:
        """Make ready, once, telling `note` each phase and its seconds; failure is terminal."""

    def begin(self, image: Rgba, plan: Plan) -> Generation:
        """Start a job on `image`."""

    @property
    def resumes_at(self) -> Stage:
        """The first stage that a resumed generation runs."""

    def resume(self, latents: Latents, plan: Plan) -> Generation:
        """Go on with what was sampled under `plan`, at `resumes_at`, without a picture.

        Raises `LatentsDamaged` where `latents` are not what this engine leaves.
        """

    def wants_offload(self, plan: Plan) -> bool:
        """Whether the free memory is known to be too little for `plan` with all resident."""

    def memory(self) -> MemorySnapshot | None:
        """Return the device's memory, None where there is no device."""
