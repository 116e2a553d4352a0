"""The nearest point of a surface, for remeshing and for looking up colours.

Upstream asks CuMesh's bounding-volume hierarchy, which is built on one CPU core (2.2 s for 5.5
million faces). NVIDIA Warp builds one on the GPU.
"""

# No `from __future__ import annotations` here: Warp reads the kernel's annotations as types.

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import warp
from torch import Tensor, arange, empty, float32, int32, split, zeros
from torch import bool as bool_
from torch.cuda import current_stream, default_stream

from trellis_runtime.engines.trellis2.baking.launch import launch
from trellis_runtime.engines.trellis2.device.vram import require_free

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
    missed: warp.array(dtype=warp.int32),  # type: ignore[valid-type]
) -> None:
    i = warp.tid()
    projected[i] = points[i]
    missed[i] = 1
    found = warp.mesh_query_point_no_sign(mesh, points[i], near)
    if not found.result and far > near:
        found = warp.mesh_query_point_no_sign(mesh, points[i], far)
    if found.result:
        missed[i] = 0
        projected[i] = warp.mesh_eval_position(mesh, found.face, found.u, found.v)


class Beside:
    """A stream of torch's other than its default one, and so not ordered with Warp's frees.

    Warp frees on the device's legacy stream, which waits for torch's default one and for no other.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def settle(self) -> None:
        """Wait until the stream has done its work: what it read may then be freed."""
        self._stream.synchronize()

    @contextmanager
    def building(self) -> Iterator[None]:
        """Have Warp work where it frees: building frees as it goes, and takes that memory again."""
        self.settle()
        legacy = warp.get_device(str(self._stream.device)).null_stream
        with warp.ScopedStream(legacy, sync_enter=False):
            yield
        warp.synchronize_stream(legacy)


class Tree(warp.Mesh):  # type: ignore[misc]
    """A tree over triangles, on whatever stream it is built and asked."""

    def __init__(
        self, points: Any, indices: Any, constructor: str, beside: Beside | None = None
    ) -> None:
        with nullcontext() if beside is None else beside.building():
            super().__init__(points=points, indices=indices, bvh_constructor=constructor)
        self._beside = beside

    def __del__(self) -> None:
        beside: Beside | None = getattr(self, "_beside", None)
        if beside is not None:
            beside.settle()
        super().__del__()


def _beside_default(device: Any) -> Beside | None:
    """Return torch's stream on `device`; None where it is the default one, and on a CPU."""
    if device.type != "cuda" or current_stream(device) == default_stream(device):
        return None
    return Beside(current_stream(device))


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
        launch(_distance, len(points), [self._built().id, points, _FAR, distances])
        return (distances,)

    def nearest(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return faces (N,) int32 and barycentric weights (N, 3) of the nearest points."""
        points = points.to(float32).contiguous()
        faces = empty(len(points), dtype=int32, device=points.device)
        weights = empty((len(points), 3), device=points.device)
        launch(_closest_point, len(points), [self._built().id, points, _FAR, faces, weights])
        return faces, weights

    def project(self, points: Tensor, near: float, budget: int | None = None) -> Tensor:
        """Return the nearest points (N, 3) of the surface to points (N, 3).

        `near`: how far most of them are away at most; those farther are asked again, unbounded.
        `budget`: bytes that a tree may take. Where one over all faces takes more, trees over slabs
        of the surface are built one after another, and none is kept.
        """
        points = points.to(float32).contiguous()
        slabs = 1 if budget is None else -(-len(self.faces) * _BUILD_BYTES_PER_FACE // budget)
        if slabs <= 1 or self._bvh is not None:
            return _projected(self._built(), points, near, _FAR)[0]
        out, left = points.clone(), arange(len(points), device=points.device)
        while len(left) and near < _FAR:
            out[left], missed = self._project_by_slabs(points[left], near, slabs)
            left, near = left[missed], 4 * near
        return out

    def _project_by_slabs(self, points: Tensor, near: float, slabs: int) -> tuple[Tensor, Tensor]:
        """Return the nearest points (N, 3) within `near`, and (N,) bool: for which there is none.

        A slab's tree holds all faces that come within `near` of the slab, so that what it finds
        for a point in it is the nearest of all.
        """
        extent = self.vertices.amax(0) - self.vertices.amin(0)
        axis = int(extent.argmax())
        along = self.vertices[:, axis][self.faces.long()]
        low, high = along.amin(1), along.amax(1)
        cuts = low.sort().values[:: max(1, -(-len(low) // slabs))].tolist()
        out, missed = points.clone(), zeros(len(points), dtype=bool_, device=points.device)
        for start, end in zip([-_FAR, *cuts[1:]], [*cuts[1:], _FAR], strict=True):
            here = ((points[:, axis] >= start) & (points[:, axis] < end)).nonzero()[:, 0]
            some = self.faces[(high >= start - near) & (low <= end + near)]
            if len(here) and len(some):
                found = _projected(self._tree_over(some), points[here].contiguous(), near, near)
                out[here], missed[here] = found
            else:
                missed[here] = True
        return out, missed

    def bvh_id(self) -> Any:
        """Return the whole tree's name for a kernel; the tree lives as long as this surface."""
        return self._built().id

    def trees(self, budget: int) -> Iterator[warp.Mesh]:
        """Yield trees for a kernel of one's own, that together are over all faces.

        One that lives as long as this surface, or, where it takes more than `budget` bytes, several
        over some of the faces each, one after another.
        """
        some = max(1, budget // _BUILD_BYTES_PER_FACE)
        if len(self.faces) <= some or self._bvh is not None:
            yield self._built()
            return
        for part in split(self.faces, some):
            yield self._tree_over(part)

    def _built(self) -> warp.Mesh:
        """Return the tree; called in torch's order.

        Raises `OutOfVram` where it does not fit: Warp says on stderr that an allocation failed,
        goes on, and leaves the device with an illegal memory access.
        """
        if self._bvh is None:
            self._bvh = self._tree_over(self.faces)
        return self._bvh

    def _tree_over(self, faces: Tensor) -> warp.Mesh:
        if faces.is_cuda:
            require_free("the surface's tree", len(faces) * _BUILD_BYTES_PER_FACE)
        return Tree(
            warp.from_torch(self.vertices, dtype=warp.vec3),
            warp.from_torch(faces.reshape(-1), dtype=warp.int32),
            "lbvh" if faces.is_cuda else "sah",
            _beside_default(faces.device),
        )


def _projected(mesh: warp.Mesh, points: Tensor, near: float, far: float) -> tuple[Tensor, Tensor]:
    """Return the nearest points (N, 3), and (N,) bool: for which there is none within `far`."""
    projected = empty((len(points), 3), device=points.device)
    missed = empty(len(points), dtype=int32, device=points.device)
    launch(_project, len(points), [mesh.id, points, near, far, projected, missed])
    return projected, missed > 0
