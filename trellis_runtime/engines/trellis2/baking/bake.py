"""From decoded voxels to an asset: clean, remesh, decimate, unwrap, bake.

The steps and their constants are those of upstream's `o_voxel.postprocess.to_glb` at 5565d24, with
these differences: holes are filled without CuMesh, which leaks there (`holes`), decimation cannot
loop for ever, the remeshing grid can be smaller than the voxels', charts are laid flat on the GPU
(`unwrap`) and packed by their outlines (`packing`), texels can be looked up in blocks, gutters are
filled with the nearest texel, and colours can go to the vertices instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trellis_runtime.contract.engine import Asset
from trellis_runtime.contract.ladder import Plan
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.engines.trellis2.baking.gutters import fill_gutters
from trellis_runtime.engines.trellis2.baking.holes import fill_holes
from trellis_runtime.engines.trellis2.baking.nearest import Surface
from trellis_runtime.engines.trellis2.baking.remesh import remesh
from trellis_runtime.engines.trellis2.baking.unwrap import cut, unwrap
from trellis_runtime.engines.trellis2.baking.voxels import VoxelGrid
from trellis_runtime.engines.trellis2.device.vram import require_free
from trellis_runtime.errors import MeshRejected
from trellis_runtime.logs import logger

_HOLE_PERIMETER = 3e-2
_CONE_HALF_ANGLE = float(np.radians(60.0))  # upstream's 90 would fold what is laid flat
_RASTER_FACES = 100_000
_BLOCK_TEXELS = 1_048_576
_SMALL_BLOCK_TEXELS = 65_536
_SIMPLIFY_STEPS = 400
_SMALLEST_COMPONENT = 1e-5
_SIMPLIFY_BYTES_PER_FACE = 160  # edges, adjacency, quadrics and costs, from CuMesh's own arrays


@dataclass(frozen=True, slots=True)
class Decoded:
    """What the decoders left: a mesh, and the voxels that colour it.

    vertices (V, 3) float32 in -0.5..0.5, faces (F, 3) int32, coords (L, 3) int32 in cells of
    `resolution`, attributes (L, 6) float32: base colour, metallic, roughness, alpha, each 0..1.
    """

    vertices: Tensor
    faces: Tensor
    coords: Tensor
    attributes: Tensor
    resolution: int

    def on_host(self) -> Decoded:
        """Return the same in host memory."""
        return Decoded(
            self.vertices.cpu(),
            self.faces.cpu(),
            self.coords.cpu(),
            self.attributes.cpu(),
            self.resolution,
        )


def bake(decoded: Decoded, plan: Plan, scope: JobScope) -> Asset:
    """Return the textured asset that `plan` asks for."""
    with scope.part("holes"):
        vertices, faces = fill_holes(decoded.vertices.cuda(), decoded.faces.cuda(), _HOLE_PERIMETER)
    surface = Surface(vertices, faces)
    scope.step(1, 5)
    if plan.remesh:
        with scope.part("remesh"):
            mesh = _loaded(_remeshed(surface, decoded.resolution, plan))
        if plan.chunk_bake:
            surface.release_bvh()  # its tree is as large as what decimation needs
        with scope.part("simplify"):
            _simplify(mesh, plan.decimation_target)
    else:
        with scope.part("simplify"):
            mesh = _cleaned(_loaded((vertices, faces)), plan.decimation_target)
    if mesh.num_faces == 0:
        raise MeshRejected("no face is left after remeshing and decimation")
    scope.step(2, 5)
    sampler = Sampler(decoded, surface)
    if plan.texture_size == 0:
        return _with_vertex_colors(mesh, sampler, plan)
    return _with_textures(mesh, sampler, plan, scope)


def _remeshed(surface: Surface, resolution: int, plan: Plan) -> tuple[Tensor, Tensor]:
    """Return vertices and faces of the surface, remeshed on a grid of at most `resolution`."""
    import cumesh

    resolution = min(resolution, plan.remesh_resolution)
    if plan.chunk_bake:
        return remesh(surface, resolution, plan.remesh_band, "cuda")
    made: tuple[Tensor, Tensor] = cumesh.remeshing.remesh_narrow_band_dc(
        surface.vertices,
        surface.faces,
        center=torch.zeros(3, device="cuda"),
        scale=(resolution + 3 * plan.remesh_band) / resolution,
        resolution=resolution,
        band=plan.remesh_band,
        project_back=0,
        verbose=False,
        bvh=surface,
    )
    return made


def _loaded(surface: tuple[Tensor, Tensor]) -> Any:
    """Return a CuMesh of vertices and faces; it copies them into memory of its own."""
    import cumesh

    # CuMesh can use nothing that torch has cached.
    require_free("the surface", sum(t.numel() * t.element_size() for t in surface))
    mesh = cumesh.CuMesh()
    mesh.init(*surface)
    return mesh


def _cleaned(mesh: Any, target: int) -> Any:
    for goal in (3 * target, target):
        _simplify(mesh, goal)
        mesh.remove_duplicate_faces()
        mesh.repair_non_manifold_edges()
        mesh.remove_small_connected_components(_SMALLEST_COMPONENT)
        vertices, faces = mesh.read()
        filled = fill_holes(vertices, faces, _HOLE_PERIMETER)
        mesh = None
        mesh = _loaded(filled)
    mesh.unify_face_orientations()
    return mesh


def _simplify(mesh: Any, target: int) -> None:
    """Decimate with upstream's schedule, which never ends on some meshes, under a bound.

    A mesh that stays above the target is delivered as it is, with a warning.
    """
    threshold, faces = 1e-8, mesh.num_faces
    require_free("decimation", faces * _SIMPLIFY_BYTES_PER_FACE)
    for _ in range(_SIMPLIFY_STEPS):
        if faces <= target:
            return
        _, left = mesh.cu_mesh.simplify_step(1e-2, 1e-3, threshold, False)
        if (faces - left) / faces < 1e-2:
            threshold *= 10
        faces = left
    if faces > target:
        logger().warning("simplify_stopped", faces=faces, target=target, steps=_SIMPLIFY_STEPS)


class Sampler:
    """Looks up the voxels' attributes at points near the surface as decoded."""

    def __init__(self, decoded: Decoded, surface: Surface) -> None:
        self._surface = surface
        self._side = decoded.resolution
        self._voxels = VoxelGrid(decoded.coords.cuda(), decoded.attributes.cuda(), self._side)

    def __call__(self, points: Tensor, block: int = _BLOCK_TEXELS) -> Tensor:
        """Return attributes (N, 6) of points (N, 3), in blocks of `block` points."""
        parts = [self._look_up(part) for part in torch.split(points, block)]
        return torch.cat(parts) if parts else points.new_zeros((0, 6))

    def _look_up(self, points: Tensor) -> Tensor:
        # The point on the surface as decoded: remeshing and decimation have moved it.
        face, weights = self._surface.nearest(points)
        corners = self._surface.vertices[self._surface.faces[face.long()].long()]
        nearest = (corners * weights[..., None]).sum(dim=1)
        return self._voxels.sample((nearest + 0.5) * self._side)


def _with_vertex_colors(mesh: Any, sampler: Sampler, plan: Plan) -> Asset:
    vertices, faces = mesh.read()
    mesh.compute_vertex_normals()
    colors = sampler(vertices)[:, :3]
    return Asset(
        vertices=_to_gltf_axes(vertices),
        faces=faces.cpu().numpy().astype(np.uint32),
        normals=_unit(_to_gltf_axes(mesh.read_vertex_normals())),
        vertex_colors=_as_bytes(colors).cpu().numpy(),
        double_sided=not plan.remesh,
    )


def _with_textures(mesh: Any, sampler: Sampler, plan: Plan, scope: JobScope) -> Asset:
    with scope.part("unwrap"):
        layout = unwrap(cut(mesh, _CONE_HALF_ANGLE))
    charts = layout.charts
    logger().info(
        "unwrapped",
        job_id=scope.job_id,
        charts=charts.count,
        split=layout.split,
        redone_by_xatlas=layout.redone,
        utilization=round(layout.utilization, 4),
    )
    scope.step(3, 5)
    mesh.compute_vertex_normals()
    normals = mesh.read_vertex_normals()[charts.source]
    faces = charts.faces.int()
    with scope.part("rasterize"):
        covered, points = _rasterize(charts.vertices, faces, layout.uvs, plan.texture_size)
    with scope.part("look up"):
        values = sampler(points, _SMALL_BLOCK_TEXELS if plan.chunk_bake else _BLOCK_TEXELS)
    scope.step(4, 5)
    texels = torch.zeros((*covered.shape, 6), dtype=torch.uint8, device=covered.device)
    texels[covered] = _as_bytes(values)
    with scope.part("gutters"):
        pixels = fill_gutters(texels, covered).cpu().numpy()
    packed = np.stack([np.zeros_like(pixels[..., 4]), pixels[..., 4], pixels[..., 3]], axis=-1)
    return Asset(
        vertices=_to_gltf_axes(charts.vertices),
        faces=charts.faces.cpu().numpy().astype(np.uint32),
        normals=_unit(_to_gltf_axes(normals)),
        uvs=layout.uvs.cpu().numpy(),  # the first row of texels is at v = 0, as glTF has it
        base_color=np.ascontiguousarray(pixels[..., :3]),
        metallic_roughness=packed,
        double_sided=not plan.remesh,
    )


@cache
def _raster_context() -> Any:
    """Return the process's one context: what each job's own left behind was never given back."""
    import nvdiffrast.torch as dr

    return dr.RasterizeCudaContext()


def _rasterize(vertices: Tensor, faces: Tensor, uvs: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return which texels a face covers, (size, size), and where those lie, (N, 3)."""
    import nvdiffrast.torch as dr

    context = _raster_context()
    clip = torch.cat([uvs * 2 - 1, torch.zeros_like(uvs[:, :1]), torch.ones_like(uvs[:, :1])], 1)
    raster = torch.zeros((1, size, size, 4), device="cuda")
    for start in range(0, len(faces), _RASTER_FACES):
        part, _ = dr.rasterize(
            context, clip[None], faces[start : start + _RASTER_FACES], resolution=[size, size]
        )
        hit = part[..., 3:4] > 0
        part[..., 3:4] += start
        raster = torch.where(hit, part, raster)
    covered = raster[0, ..., 3] > 0
    points = dr.interpolate(vertices[None], raster, faces)[0][0]
    return covered, points[covered]


def _as_bytes(values: Tensor) -> Tensor:
    return (values.clamp(0, 1) * 255).round().to(torch.uint8)


def _to_gltf_axes(vectors: Tensor) -> NDArray[np.float32]:
    """Turn upstream's z-up into glTF's y-up."""
    x, y, z = vectors.float().cpu().numpy().T
    return np.ascontiguousarray(np.stack([x, z, -y], axis=1))


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    safe = np.where(lengths > 1e-12, vectors / np.maximum(lengths, 1e-12), [0.0, 1.0, 0.0])
    return np.asarray(safe, np.float32)
