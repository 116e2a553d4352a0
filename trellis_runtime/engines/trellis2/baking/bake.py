"""From a decoded surface and its voxels to a textured asset.

    decoded surface ─► fill holes ─► close (`shells`) ─► decimate ─► repair ─► unwrap ─► rasterise
          │                          sheets: one layer              two sides               │
          └─► nearest point, voxels around it ◄──── points of the texels ◄──────────────────┘
                        ├─► base colour, metallic-roughness, alpha mode ─► gutters ─► asset, report
                        └─► normal map, occlusion, where asked (`detail`)

Every step runs on a CPU and a GPU alike, gives the same bytes each time, and knows beforehand what
memory it needs. Where the card has less, `OutOfVram` says so before anything is allocated; with
`options.chunked` the steps that do not fit run on the host instead, and blocks are small.

Long because both halves are one story. The first line of the diagram, down to unwrapping, is
`bake_geometry`: it can begin before there are colours, and is made again only where alpha shows
what was dropped as hidden. The rest is `bake_texture`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from trellis_runtime.contract.engine import Asset
from trellis_runtime.contract.ladder import Plan
from trellis_runtime.contract.request import AlphaChoice, DetailMap, Shell
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.engines.trellis2.baking.alpha import find_transparency, vertex_transparency
from trellis_runtime.engines.trellis2.baking.connectivity import BLOCK, vertex_normals
from trellis_runtime.engines.trellis2.baking.decimation import decimate, decimation_bytes
from trellis_runtime.engines.trellis2.baking.decoded import Decoded, DecodedSurface
from trellis_runtime.engines.trellis2.baking.detail import (
    Detail,
    Frames,
    Full,
    bake_detail,
    detail_bytes,
)
from trellis_runtime.engines.trellis2.baking.holes import fill_holes
from trellis_runtime.engines.trellis2.baking.lookup import VoxelAttributeLookup
from trellis_runtime.engines.trellis2.baking.nearest import Surface
from trellis_runtime.engines.trellis2.baking.quality import Baked, measure_quality
from trellis_runtime.engines.trellis2.baking.raster import Raster, rasterize
from trellis_runtime.engines.trellis2.baking.remesh import remesh
from trellis_runtime.engines.trellis2.baking.see_through import clear_faces
from trellis_runtime.engines.trellis2.baking.shells import (
    close_solids,
    orient_double_sided,
    repair_shells,
    shells_bytes,
)
from trellis_runtime.engines.trellis2.baking.tangents import vertex_tangents
from trellis_runtime.engines.trellis2.baking.texels import as_bytes, bake_texels, split_maps
from trellis_runtime.engines.trellis2.baking.uv_layout import Layout, unwrap, unwrap_bytes
from trellis_runtime.engines.trellis2.device import vram
from trellis_runtime.engines.trellis2.device.baton import HostWork
from trellis_runtime.errors import MeshRejected
from trellis_runtime.logs import logger

_HOLE_PERIMETER = 3e-2  # upstream's bound on what is a hole and no opening
_HOLE_VOXELS = 16.0  # around a hole, where voxels are larger than upstream's bound was made for
_GEOMETRY_STEPS, _STEPS = 4, 7
_SMALL_BLOCK = 1 << 19  # half-edges at a time, where memory is short
_BUDGET = 256 << 20
_SMALL_BUDGET = 32 << 20
_TREE_BYTES_PER_FACE = 200
_TREE_BUDGET = 512 << 20


@dataclass(frozen=True, slots=True)
class BakeOptions:
    """What an asset is to be like.

    decimation_target: faces at most. texture_size: texels a side; 0 puts colours at the vertices.
    min_thickness: what open sheets are thickened to, in the asset's units. remesh_*: cells, for
    shell "remeshed" alone. maps: of the detail that few faces lose, beside a texture. chunked:
    little memory instead of little time; the same quality.
    """

    decimation_target: int
    texture_size: int
    shell: Shell = "closed"
    min_thickness: float = 0.0
    alpha_mode: AlphaChoice = "auto"
    remesh_resolution: int = 1024
    remesh_band: int = 1
    maps: tuple[DetailMap, ...] = ()
    chunked: bool = False

    @property
    def block(self) -> int:
        """How many half-edges are looked at at a time."""
        return _SMALL_BLOCK if self.chunked else BLOCK

    @classmethod
    def of(cls, plan: Plan) -> BakeOptions:
        """Return what `plan` asks of a bake."""
        return cls(
            decimation_target=plan.decimation_target,
            texture_size=plan.texture_size,
            shell=plan.shell if plan.remesh else "double_sided",
            min_thickness=plan.min_thickness,
            alpha_mode=plan.alpha_mode,
            remesh_resolution=plan.remesh_resolution,
            remesh_band=plan.remesh_band,
            maps=plan.maps,
            chunked=plan.chunk_bake,
        )


def bake(
    decoded: Decoded,
    plan: Plan,
    scope: JobScope,
    device: torch.device | str,
    on_host: HostWork = nullcontext,
) -> Asset:
    """Return the textured asset that `plan` asks for, with its quality report."""
    options = BakeOptions.of(plan)
    geometry = bake_geometry(decoded.surface, options, device, scope, on_host, colors=decoded)
    return bake_texture(decoded, geometry, options, device, scope)


def bake_surface(
    decoded: Decoded,
    options: BakeOptions,
    device: torch.device | str,
    scope: JobScope | None = None,
) -> Asset:
    """Return the textured asset, computed on `device`; raises `MeshRejected` or `OutOfVram`."""
    scope = scope or JobScope("bake")
    geometry = bake_geometry(decoded.surface, options, device, scope, colors=decoded)
    return bake_texture(decoded, geometry, options, device, scope)


@dataclass(frozen=True, slots=True)
class Geometry:
    """An asset's surface as it will be, still without colours.

    vertices (V, 3) float32 and faces (F, 3) integer, in the decoder's axes; normals (V, 3) unit;
    layout: the charts, None where the colours will be at the vertices. hidden: how many faces were
    dropped because nobody can see them.
    """

    vertices: Tensor
    faces: Tensor
    normals: Tensor
    layout: Layout | None
    hidden: int = 0

    def suits(self, decoded: Decoded, options: BakeOptions) -> bool:
        """Whether geometry that was made without colours is what these would have given, too."""
        if self.hidden == 0:
            return True
        return clear_faces(decoded.vertices, decoded.faces, decoded, options.alpha_mode) is None


def bake_geometry(
    surface: DecodedSurface,
    options: BakeOptions,
    device: torch.device | str,
    scope: JobScope,
    on_host: HostWork = nullcontext,
    *,
    colors: Decoded | None = None,
) -> Geometry:
    """Return `surface` closed, decimated and unwrapped; raises `MeshRejected` or `OutOfVram`.

    colors: where they are there already; what lies behind translucent faces then stays.
    """
    return _GeometryBake(surface, options, torch.device(device), scope, on_host, colors).run()


def bake_texture(
    decoded: Decoded,
    geometry: Geometry,
    options: BakeOptions,
    device: torch.device | str,
    scope: JobScope,
) -> Asset:
    """Return `geometry` with the colours of `decoded`; raises `OutOfVram`."""
    return _TextureBake(decoded, options, torch.device(device), scope).run(geometry)


def bake_bytes(faces: int, voxels: int, options: BakeOptions) -> int:
    """Return how many bytes of a card's memory a bake takes at its peak, its inputs included."""
    inputs = 18 * faces + 36 * voxels
    if options.chunked:
        surface, tree, budget = 0, min(_TREE_BUDGET, faces * _TREE_BYTES_PER_FACE), _SMALL_BUDGET
    else:
        surface, tree, budget = (
            _surface_bytes(faces, options),
            faces * _TREE_BYTES_PER_FACE,
            _BUDGET,
        )
    size = options.texture_size
    texels = 24 * size**2 + 72 * options.decimation_target + 64 * voxels + tree + 2 * budget
    if not options.chunked:  # else what does not fit is on the host
        texels += detail_bytes(faces, size, options.maps)
    return inputs + max(surface, texels, unwrap_bytes(options.decimation_target, size))


def geometry_bytes(faces: int, options: BakeOptions) -> int:
    """Return how many bytes of a card's memory `bake_geometry` takes at its peak, inputs included.

    Its product stays, to be counted with whatever runs meanwhile.
    """
    unwrapping = unwrap_bytes(options.decimation_target, options.texture_size)
    return 18 * faces + max(_surface_bytes(faces, options), unwrapping)


def _surface_bytes(faces: int, options: BakeOptions) -> int:
    block = options.block
    if options.shell == "remeshed":
        return max(faces * _TREE_BYTES_PER_FACE, decimation_bytes(faces, block))
    if options.shell == "double_sided":
        return max(shells_bytes(faces, block), decimation_bytes(faces, block))
    both = 36 * faces + decimation_bytes(2 * faces, block)  # where no sheet can be cut off
    return max(shells_bytes(faces, block), both)


class _Steps:
    """The parts of a bake that have been done, for the clock and for progress."""

    def __init__(self, scope: JobScope, done: int = 0, of: int = _STEPS) -> None:
        self._scope, self._done, self._of = scope, done, of

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a part, and tell the job how far the bake is."""
        with self._scope.part(name):
            yield
        self._done += 1
        self._scope.step(self._done, self._of)


class _GeometryBake:
    """One surface on its way: what was decoded, what is asked, and where it is computed."""

    def __init__(
        self,
        surface: DecodedSurface,
        options: BakeOptions,
        device: torch.device,
        scope: JobScope,
        on_host: HostWork,
        colors: Decoded | None,
    ) -> None:
        self.options, self.device, self.scope = options, device, scope
        self.on_host, self.colors, self.hidden = on_host, colors, 0
        self.decoded = surface.to(device)
        self._part = _Steps(scope).part

    def run(self) -> Geometry:
        vertices, faces = self._shape()
        if len(faces) == 0:
            raise MeshRejected("no face is left after decimation")
        normals = vertex_normals(vertices, faces)
        if self.options.texture_size == 0:
            return Geometry(vertices, faces, normals, None, self.hidden)
        with self._part("unwrap"):
            layout = unwrap(vertices, faces, self.options.texture_size, on_host=self.on_host)
        logger().info(
            "unwrapped",
            job_id=self.scope.job_id,
            charts=layout.count,
            redone=layout.redone,
            utilization=round(layout.utilization, 4),
        )
        return Geometry(vertices, faces, normals, layout, self.hidden)

    def _shape(self) -> tuple[Tensor, Tensor]:
        """Return vertices (V, 3) and faces (F, 3) of the asset's surface, within the budget."""
        voxel, block = 1 / self.decoded.resolution, self.options.block
        need = _surface_bytes(len(self.decoded.faces), self.options)
        where = _device_for(self.device, "closing the surface", need, self.options, self.scope)
        source = self.decoded.vertices.to(where), self.decoded.faces.to(where)
        with self._part("holes"):
            limit = max(_HOLE_PERIMETER, _HOLE_VOXELS * voxel)
            vertices, faces = fill_holes(*source, limit, block)
        with self._part("shells"):
            vertices, faces, layer = self._closed(vertices, faces, voxel)
        with self._part("decimate"):
            target = self.options.decimation_target
            small = decimate(vertices, faces, target, layer=layer, block=block)
            vertices, faces = small.vertices, small.faces
            if self.options.shell != "double_sided":
                thick = self.options.min_thickness
                mended = repair_shells(vertices, faces, voxel, block, small.layer, thick)
                vertices, faces = mended.vertices, mended.faces
        return vertices.to(self.device), faces.to(self.device)

    def _closed(
        self, vertices: Tensor, faces: Tensor, voxel: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return vertices, faces, and which vertices (V,) are of sheets of one layer, if any."""
        options = self.options
        if options.shell == "double_sided":
            return *orient_double_sided(vertices, faces, options.block), None
        if options.shell == "remeshed":
            side = min(self.decoded.resolution, options.remesh_resolution)
            surface = Surface(vertices, faces)
            return *remesh(surface, side, options.remesh_band, str(vertices.device)), None
        clear, thickness = None, options.min_thickness
        if self.colors is not None:
            clear = clear_faces(vertices, faces, self.colors, options.alpha_mode)
        shells = close_solids(
            vertices,
            faces,
            voxel,
            target=options.decimation_target,
            min_thickness=thickness,
            clear=clear,
            block=options.block,
        )
        self.hidden = shells.report.hidden_faces + shells.report.enclosed_faces
        logger().info("surface_closed", job_id=self.scope.job_id, **shells.report.facts())
        return shells.vertices, shells.faces, shells.layer


def _device_for(
    device: torch.device, what: str, need: int, options: BakeOptions, scope: JobScope
) -> torch.device:
    """Return where to compute `what`: on the card if it fits, else on the host if that may be.

    Raises `OutOfVram` where neither is so.
    """
    if device.type != "cuda":
        return device
    if options.chunked and vram.available(device) < need:
        logger().info("bake_on_host", job_id=scope.job_id, step=what, needed_bytes=need)
        return torch.device("cpu")
    vram.require_free(what, need)
    return device


class _TextureBake:
    """The colours of one surface: where they come from, what is asked, and where it is computed."""

    def __init__(
        self, decoded: Decoded, options: BakeOptions, device: torch.device, scope: JobScope
    ) -> None:
        self.options, self.device, self.scope = options, device, scope
        self.decoded = decoded.to(device)
        self.budget = _SMALL_BUDGET if options.chunked else _BUDGET
        more = 1 if options.maps and options.texture_size else 0
        self._part = _Steps(scope, _GEOMETRY_STEPS, _STEPS + more).part

    def run(self, geometry: Geometry) -> Asset:
        lookup = self._lookup()
        vertices, faces, normals = geometry.vertices, geometry.faces, geometry.normals
        if geometry.layout is None:
            return self._with_vertex_colors(vertices, faces, normals, lookup)
        return self._with_textures(geometry.layout, normals[geometry.layout.source], lookup)

    def _lookup(self) -> VoxelAttributeLookup:
        tree = _TREE_BUDGET if self.options.chunked else None
        surface = Surface(self.decoded.vertices, self.decoded.faces)
        coords, attributes = self.decoded.coords, self.decoded.attributes
        return VoxelAttributeLookup(surface, coords, attributes, self.decoded.resolution, tree)

    def _with_vertex_colors(
        self, vertices: Tensor, faces: Tensor, normals: Tensor, lookup: VoxelAttributeLookup
    ) -> Asset:
        values = lookup(vertices, self.budget)
        mode = vertex_transparency(values[:, 5], self.options.alpha_mode)
        colors = as_bytes(values[:, [0, 1, 2, 5]] if mode != "OPAQUE" else values[:, :3])
        baked = Baked(vertices, faces, alpha_mode=mode)
        return Asset(
            vertices=_to_gltf_axes(vertices),
            faces=faces.cpu().numpy().astype(np.uint32),
            normals=_unit(_to_gltf_axes(normals)),
            vertex_colors=colors.cpu().numpy(),
            alpha_mode=mode,
            double_sided=self.options.shell == "double_sided",
            quality=measure_quality(baked, lookup, self.options.decimation_target),
        )

    def _with_textures(
        self, layout: Layout, normals: Tensor, lookup: VoxelAttributeLookup
    ) -> Asset:
        size = self.options.texture_size
        with self._part("rasterize"):
            raster = rasterize(layout.vertices, layout.faces, layout.uvs, size, self.budget)
        with self._part("texels"):
            texels = bake_texels(raster, lookup, self.budget)
        found = find_transparency(texels, raster, self.options.alpha_mode)
        frames, detail = self._detail(layout, normals, raster, lookup)
        maps = split_maps(texels, alpha=found.mode != "OPAQUE", occlusion=detail.occlusion)
        baked = Baked(
            layout.vertices, layout.faces, layout.uvs, texels[..., :3], raster, found.mode
        )
        with self._part("quality"):
            report = measure_quality(baked, lookup, self.options.decimation_target)
        for name, warning in report.warnings().items():
            logger().warning("quality", job_id=self.scope.job_id, check=name, reason=warning)
        translucent = found.translucent
        return Asset(
            vertices=_to_gltf_axes(layout.vertices),
            faces=layout.faces.cpu().numpy().astype(np.uint32),
            normals=_unit(_to_gltf_axes(normals)),
            uvs=layout.uvs.cpu().numpy(),  # the first row of texels is at v = 0, as glTF has it
            base_color=maps.base_color,
            metallic_roughness=maps.metallic_roughness,
            has_occlusion=detail.occlusion is not None,
            **_normal_mapped(frames, detail),
            alpha_mode=found.mode,
            translucent=None if translucent is None else translucent.cpu().numpy(),
            double_sided=self.options.shell == "double_sided",
            quality=report,
        )

    def _detail(
        self, layout: Layout, normals: Tensor, raster: Raster, lookup: VoxelAttributeLookup
    ) -> tuple[Frames, Detail]:
        """Return the maps of detail that are asked, and the frames that they are written in."""
        if not self.options.maps:
            return Frames(normals, normals[:, :0]), Detail()
        with self._part("detail"):
            normals = normalize(normals, dim=1)
            tangents = vertex_tangents(layout.vertices, layout.faces, normals, layout.uvs)
            frames = Frames(normals, tangents)
            full, where = self._full(lookup)
            detail = bake_detail(
                raster.to(where), frames.to(where), full, self.options.maps, self.budget
            )
        return frames, detail

    def _full(self, lookup: VoxelAttributeLookup) -> tuple[Full, torch.device]:
        """Return the decoded surface to look at, and where: on the host if it does not fit here."""
        vertices, faces = self.decoded.vertices, self.decoded.faces
        clear = clear_faces(vertices, faces, self.decoded, self.options.alpha_mode)
        trees = _TREE_BYTES_PER_FACE * len(faces) * (1 if clear is None else 2)
        need = trees + detail_bytes(len(faces), self.options.texture_size, self.options.maps)
        where = _device_for(self.device, "the maps of detail", need, self.options, self.scope)
        surface = lookup.surface
        if where != self.device:
            surface = Surface(vertices.to(where), faces.to(where))
        opaque = surface
        if clear is not None:
            opaque = Surface(surface.vertices, surface.faces[~clear.to(where)])
        return Full(surface, opaque, self.decoded.resolution), where


def _normal_mapped(frames: Frames, detail: Detail) -> dict[str, Any]:
    """Return an asset's normal map and tangents, none where it was not asked."""
    if detail.normal is None:
        return {}
    sign = frames.tangents[:, 3:].cpu().numpy()
    tangents = np.hstack([_unit(_to_gltf_axes(frames.tangents[:, :3])), sign])
    return {"normal_map": detail.normal.cpu().numpy(), "tangents": tangents}


def _to_gltf_axes(vectors: Tensor) -> NDArray[np.float32]:
    """Turn upstream's z-up into glTF's y-up."""
    x, y, z = vectors.float().cpu().numpy().T
    return np.ascontiguousarray(np.stack([x, z, -y], axis=1))


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    safe = np.where(lengths > 1e-12, vectors / np.maximum(lengths, 1e-12), [0.0, 1.0, 0.0])
    return np.asarray(safe, np.float32)
