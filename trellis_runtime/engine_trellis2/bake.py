"""From decoded voxels to an asset: clean, remesh, decimate, unwrap, bake.

The steps and their constants are those of upstream's `o_voxel.postprocess.to_glb` at 5565d24, with
these differences: decimation cannot loop for ever, the remeshing grid can be smaller than the
voxels', texels can be looked up in blocks, gutters are filled with the nearest texel, and colours
can go to the vertices instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trellis_runtime.engine import Asset
from trellis_runtime.engine_trellis2.vram import reclaim, release, require_free
from trellis_runtime.errors import MeshRejected
from trellis_runtime.plan import Plan
from trellis_runtime.telemetry import JobScope, logger

_HOLE_PERIMETER = 3e-2
_CONE_HALF_ANGLE = float(np.radians(90.0))
_RASTER_FACES = 100_000
_BLOCK_TEXELS = 262_144
_SIMPLIFY_STEPS = 400
_SMALLEST_COMPONENT = 1e-5
_SIMPLIFY_BYTES_PER_FACE = 160  # edges, adjacency, quadrics and costs, from CuMesh's own arrays


@dataclass(frozen=True, slots=True)
class Decoded:
    """What the decoders left, on the host: a mesh, and the voxels that colour it.

    vertices (V, 3) float32 in -0.5..0.5, faces (F, 3) int32, coords (L, 3) int32 in cells of
    `resolution`, attributes (L, 6) float32: base colour, metallic, roughness, alpha, each 0..1.
    """

    vertices: Tensor
    faces: Tensor
    coords: Tensor
    attributes: Tensor
    resolution: int


def bake(decoded: Decoded, plan: Plan, scope: JobScope) -> Asset:
    """Return the textured asset that `plan` asks for."""
    import cumesh

    reclaim()  # CuMesh can use nothing that torch has cached
    mesh = cumesh.CuMesh()
    mesh.init(decoded.vertices.cuda(), decoded.faces.cuda())
    mesh.fill_holes(max_hole_perimeter=_HOLE_PERIMETER)
    vertices, faces = mesh.read()
    release()
    bvh = cumesh.cuBVH(vertices, faces)
    scope.step(1, 5)
    if plan.remesh:
        _remesh(mesh, vertices, faces, bvh, decoded, plan)
    else:
        _clean(mesh, plan.decimation_target)
    if mesh.num_faces == 0:
        raise MeshRejected("no face is left after remeshing and decimation")
    scope.step(2, 5)
    release()
    sampler = _Sampler(decoded, vertices, faces, bvh)
    if plan.texture_size == 0:
        return _with_vertex_colors(mesh, sampler, plan)
    return _with_textures(mesh, sampler, plan, scope)


def _remesh(
    mesh: Any, vertices: Tensor, faces: Tensor, bvh: Any, decoded: Decoded, plan: Plan
) -> None:
    import cumesh

    resolution = min(decoded.resolution, plan.remesh_resolution)
    surface = cumesh.remeshing.remesh_narrow_band_dc(
        vertices,
        faces,
        center=torch.zeros(3, device="cuda"),
        scale=(resolution + 3 * plan.remesh_band) / resolution,
        resolution=resolution,
        band=plan.remesh_band,
        project_back=0,
        verbose=False,
        bvh=bvh,
    )
    # What remeshing used is torch's cache now; CuMesh copies the surface into its own memory.
    require_free("the remeshed surface", sum(t.numel() * t.element_size() for t in surface))
    mesh.init(*surface)
    del surface
    _simplify(mesh, plan.decimation_target)


def _clean(mesh: Any, target: int) -> None:
    for goal in (3 * target, target):
        _simplify(mesh, goal)
        mesh.remove_duplicate_faces()
        mesh.repair_non_manifold_edges()
        mesh.remove_small_connected_components(_SMALLEST_COMPONENT)
        mesh.fill_holes(max_hole_perimeter=_HOLE_PERIMETER)
    mesh.unify_face_orientations()


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


class _Sampler:
    """Looks up the voxels' attributes at points near the surface."""

    def __init__(self, decoded: Decoded, vertices: Tensor, faces: Tensor, bvh: Any) -> None:
        self._vertices, self._faces, self._bvh = vertices, faces, bvh
        self._resolution = decoded.resolution
        self._attributes = decoded.attributes.cuda()
        coords = decoded.coords.cuda()
        self._coords = torch.cat([torch.zeros_like(coords[:, :1]), coords], dim=1)

    def __call__(self, points: Tensor, block: int | None) -> Tensor:
        """Return attributes (N, 6) of points (N, 3), in blocks of `block` points."""
        block = block or max(1, len(points))
        parts = [self._look_up(points[i : i + block]) for i in range(0, len(points), block)]
        return torch.cat(parts) if parts else points.new_zeros((0, 6))

    def _look_up(self, points: Tensor) -> Tensor:
        from flex_gemm.ops.grid_sample import grid_sample_3d

        # The point on the surface as decoded: remeshing and decimation have moved it.
        _, face, uvw = self._bvh.unsigned_distance(points, return_uvw=True)
        corners = self._vertices[self._faces[face.long()].long()]
        points = (corners * uvw.unsqueeze(-1)).sum(dim=1)
        side = self._resolution
        values = grid_sample_3d(
            self._attributes,
            self._coords,
            shape=torch.Size([1, self._attributes.shape[1], side, side, side]),
            grid=((points + 0.5) * side).reshape(1, -1, 3),
            mode="trilinear",
        )
        return values.reshape(-1, self._attributes.shape[1])


def _with_vertex_colors(mesh: Any, sampler: _Sampler, plan: Plan) -> Asset:
    vertices, faces = mesh.read()
    mesh.compute_vertex_normals()
    colors = sampler(vertices, _BLOCK_TEXELS)[:, :3]
    return Asset(
        vertices=_to_gltf_axes(vertices),
        faces=faces.cpu().numpy().astype(np.uint32),
        normals=_unit(_to_gltf_axes(mesh.read_vertex_normals())),
        vertex_colors=_to_bytes(colors),
        double_sided=not plan.remesh,
    )


def _with_textures(mesh: Any, sampler: _Sampler, plan: Plan, scope: JobScope) -> Asset:
    vertices, faces, uvs, vmaps = (
        t.cuda()
        for t in mesh.uv_unwrap(
            compute_charts_kwargs={
                "threshold_cone_half_angle_rad": _CONE_HALF_ANGLE,
                "refine_iterations": 0,
                "global_iterations": 1,
                "smooth_strength": 1,
            },
            return_vmaps=True,
            verbose=False,
        )
    )
    scope.step(3, 5)
    mesh.compute_vertex_normals()
    normals = mesh.read_vertex_normals()[vmaps]
    size = plan.texture_size
    covered, points = _rasterize(vertices, faces, uvs, size)
    values = sampler(points, _BLOCK_TEXELS if plan.chunk_bake else None)
    scope.step(4, 5)
    texels = np.zeros((size, size, 6), np.uint8)
    mask = covered.cpu().numpy()
    texels[mask] = _to_bytes(values)
    texels = _fill_gutters(texels, mask)
    flipped = uvs.cpu().numpy().astype(np.float32)
    flipped[:, 1] = 1 - flipped[:, 1]
    packed = np.stack([np.zeros_like(texels[..., 4]), texels[..., 4], texels[..., 3]], axis=-1)
    return Asset(
        vertices=_to_gltf_axes(vertices),
        faces=faces.cpu().numpy().astype(np.uint32),
        normals=_unit(_to_gltf_axes(normals)),
        uvs=flipped,
        base_color=np.ascontiguousarray(texels[..., :3]),
        metallic_roughness=packed,
        double_sided=not plan.remesh,
    )


def _rasterize(vertices: Tensor, faces: Tensor, uvs: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return which texels a face covers, (size, size), and where those lie, (N, 3)."""
    import nvdiffrast.torch as dr

    context = dr.RasterizeCudaContext()
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


def _fill_gutters(texels: NDArray[np.uint8], covered: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Give each uncovered texel the value of the nearest covered one."""
    if not covered.any() or covered.all():
        return texels
    _, labels = cv2.distanceTransformWithLabels(
        (~covered).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    values = np.zeros((int(labels.max()) + 1, texels.shape[2]), np.uint8)
    values[labels[covered]] = texels[covered]
    return np.asarray(values[labels])


def _to_bytes(values: Tensor) -> NDArray[np.uint8]:
    return (values * 255).clamp(0, 255).to(torch.uint8).cpu().numpy()


def _to_gltf_axes(vectors: Tensor) -> NDArray[np.float32]:
    """Turn upstream's z-up into glTF's y-up."""
    x, y, z = vectors.float().cpu().numpy().T
    return np.ascontiguousarray(np.stack([x, z, -y], axis=1))


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    safe = np.where(lengths > 1e-12, vectors / np.maximum(lengths, 1e-12), [0.0, 1.0, 0.0])
    return np.asarray(safe, np.float32)
