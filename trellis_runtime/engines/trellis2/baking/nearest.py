"""The nearest point of a surface, for remeshing and for looking up colours.

Upstream asks CuMesh's bounding-volume hierarchy, which is built on one CPU core (2.2 s for 5.5
million faces). NVIDIA Warp builds one on the GPU.
"""

# No `from __future__ import annotations` here: Warp reads the kernel's annotations as types.

from typing import Any

import warp
from torch import Tensor, empty, float32, int32

from trellis_runtime.engines.trellis2.device.vram import require_free

warp.config.log_level = warp.LOG_WARNING  # it prints to stdout, where our log is

_BUILD_BYTES_PER_FACE = 200  # the tree and what building it takes, from Warp's own arrays
_FAR = 10.0  # beyond any two points of a mesh in -0.5..0.5


@warp.kernel(enable_backward=False)
def _distance(
    mesh: warp.uint64,
    points: warp.array(dtype=warp.vec3),  # type: ignore[valid-type]
    far: warp.float32,
    distances: warp.array(dtype=warp.float32),  # type: ignore[valid-type]
) -> None:
    i = warp.tid()
    distances[i] = far
    found = warp.mesh_query_point_no_sign(mesh, points[i], far)
    if found.result:
        at = warp.mesh_eval_position(mesh, found.face, found.u, found.v)
        distances[i] = warp.length(at - points[i])


@warp.kernel(enable_backward=False)
def _closest_point(
    mesh: warp.uint64,
    points: warp.array(dtype=warp.vec3),  # type: ignore[valid-type]
    far: warp.float32,
    faces: warp.array(dtype=warp.int32),  # type: ignore[valid-type]
    weights: warp.array(dtype=warp.vec3),  # type: ignore[valid-type]
) -> None:
    i = warp.tid()
    faces[i] = 0
    weights[i] = warp.vec3(1.0, 0.0, 0.0)
    found = warp.mesh_query_point_no_sign(mesh, points[i], far)
    if found.result:
        faces[i] = found.face
        weights[i] = warp.vec3(found.u, found.v, 1.0 - found.u - found.v)


@warp.kernel(enable_backward=False)
def _project(
    mesh: warp.uint64,
    points: warp.array(dtype=warp.vec3),  # type: ignore[valid-type]
    near: warp.float32,
    far: warp.float32,
    projected: warp.array(dtype=warp.vec3),  # type: ignore[valid-type]
) -> None:
    i = warp.tid()
    projected[i] = points[i]
    found = warp.mesh_query_point_no_sign(mesh, points[i], near)
    if not found.result:
        found = warp.mesh_query_point_no_sign(mesh, points[i], far)
    if found.result:
        projected[i] = warp.mesh_eval_position(mesh, found.face, found.u, found.v)


class Surface:
    """Triangles that can be asked for their nearest point, as CuMesh's `cuBVH` can.

    vertices (V, 3) float32 and faces (F, 3) int32 on one device. The tree over them is built when
    it is first asked. Its memory is Warp's, not torch's: about 100 bytes per face.
    """

    def __init__(self, vertices: Tensor, faces: Tensor) -> None:
        warp.init()  # does its work once
        self.vertices, self.faces = vertices.contiguous(), faces.contiguous()
        self._bvh: warp.Mesh | None = None

    def release_bvh(self) -> None:
        """Give the tree's memory back; the next question builds it again."""
        self._bvh = None

    def unsigned_distance(self, points: Tensor) -> tuple[Tensor]:
        """Return distances (N,) of points (N, 3), in a tuple as `cuBVH` has it.

        Faces and weights are left out: at 1536 they would take half a gigabyte for nothing.
        """
        points = points.to(float32).contiguous()
        distances = empty(len(points), device=points.device)
        self._launch(_distance, points, [warp.from_torch(distances)])
        return (distances,)

    def nearest(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return faces (N,) int32 and barycentric weights (N, 3) of the nearest points."""
        points = points.to(float32).contiguous()
        faces = empty(len(points), dtype=int32, device=points.device)
        weights = empty((len(points), 3), device=points.device)
        outputs = [warp.from_torch(faces), warp.from_torch(weights, dtype=warp.vec3)]
        self._launch(_closest_point, points, outputs)
        return faces, weights

    def project(self, points: Tensor, near: float) -> Tensor:
        """Return the nearest points (N, 3) of the surface to points (N, 3).

        `near`: how far most of them are away at most; those farther are asked again, unbounded.
        """
        points = points.to(float32).contiguous()
        projected = empty((len(points), 3), device=points.device)
        given = [self._built().id, warp.from_torch(points, dtype=warp.vec3), near, _FAR]
        output = warp.from_torch(projected, dtype=warp.vec3)
        launch(_project, len(points), [*given, output], points)
        return projected

    def _built(self) -> warp.Mesh:
        """Return the tree; called in torch's order.

        Raises `OutOfVram` where it does not fit: Warp says on stderr that an allocation failed,
        goes on, and leaves the device with an illegal memory access.
        """
        if self._bvh is None:
            if self.vertices.is_cuda:
                require_free("the surface's tree", len(self.faces) * _BUILD_BYTES_PER_FACE)
            self._bvh = warp.Mesh(
                points=warp.from_torch(self.vertices, dtype=warp.vec3),
                indices=warp.from_torch(self.faces.reshape(-1), dtype=warp.int32),
                bvh_constructor="lbvh" if self.vertices.is_cuda else "sah",
            )
        return self._bvh

    def _launch(self, kernel: Any, points: Tensor, outputs: list[Any]) -> None:
        given = [self._built().id, warp.from_torch(points, dtype=warp.vec3), _FAR]
        launch(kernel, len(points), [*given, *outputs], points)


def launch(kernel: Any, threads: int, arguments: list[Any], on: Tensor) -> None:
    """Run a Warp kernel on the device of the tensor `on`, in torch's order.

    The caller has called `warp.init`, without which no array can be handed over.
    """
    if threads == 0:
        return
    # On a CPU there is nothing to order.
    stream = warp.stream_from_torch(on.device) if on.is_cuda else None
    with warp.ScopedStream(stream):
        device = warp.device_from_torch(on.device)
        warp.launch(kernel, dim=threads, inputs=arguments, device=device)
