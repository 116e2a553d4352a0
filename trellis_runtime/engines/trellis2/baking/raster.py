"""Which face covers each texel, by an exact rule, and where on the surface each texel lies.

    uvs -> corners in 1/65536 texel (int64) -> one thread a face and row of texels
        covered: centre inside by three integer edge functions, least face index wins
        touched: centre outside all faces, but within a texel of one: nearest face, then least index

An edge function e(p) = (b - a) x (p - a) (Pineda, A Parallel Algorithm for Polygon Rasterization,
SIGGRAPH 1988) is computed without rounding: |e| < 2^62. A centre on an edge (e = 0) belongs to the
side that the edge's direction names, and the two faces of an edge run along it in opposite
directions, so every centre on a shared edge belongs to exactly one of them (the top-left rule of
GPUs). Only integers are compared, and minima do not depend on the order of threads, so a CPU and a
GPU give the same answer, always.

Touched texels are what bilinear filtering reads beyond a chart's edge. Their place is the face's
plane continued (weights outside 0..1), which lies on the neighbour's side of a seam, rather than
the nearest point of the chart: the mean of the two sides is then right at the seam itself.

Long because coverage, interpolation and their kernels are one rule, judged together.
"""

# No `from __future__ import annotations` here: Warp reads the kernels' annotations as types.

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import warp
from torch import Tensor

from trellis_runtime.engines.trellis2.baking.nearest import launch

NONE = -1
"""No face is near the texel."""

_UNIT = 1 << 16  # fixed-point steps in a texel
_HALF = _UNIT // 2
_REACH = _UNIT  # a texel farther than this from a face, along x or y, is not read beside it
_STRAY = 2.0  # times the mean texel's size on the surface that a texel's distance may come to
_BYTES_PER_TEXEL = 8
_BYTES_PER_POINT = 64
_LARGEST = 0x7FFFFFFFFFFFFFFF

warp.set_module_options({"fuse_fp": False, "enable_backward": False})


@warp.func
def _side(
    ax: warp.int64, ay: warp.int64, bx: warp.int64, by: warp.int64, x: warp.int64, y: warp.int64
) -> warp.int64:
    return (bx - ax) * (y - ay) - (by - ay) * (x - ax)


@warp.func
def _within(e: warp.int64, dx: warp.int64, dy: warp.int64) -> warp.bool:
    zero = warp.int64(0)
    if e != zero:
        return e > zero
    return dy < zero or (dy == zero and dx > zero)


@warp.func
def _lowest(a: warp.int64, b: warp.int64, c: warp.int64) -> warp.int64:
    return warp.min(a, warp.min(b, c))


@warp.func
def _highest(a: warp.int64, b: warp.int64, c: warp.int64) -> warp.int64:
    return warp.max(a, warp.max(b, c))


@warp.func
def _first(low: warp.int64) -> warp.int32:
    """The first column of texels whose centre is at `low` or right of it."""
    return warp.int32(warp.max(low + warp.int64(_HALF - 1), warp.int64(0)) / warp.int64(_UNIT))


@warp.func
def _end(high: warp.int64, side: warp.int32) -> warp.int32:
    """The column after the last whose centre is at `high` or left of it."""
    end = warp.int32(warp.max(high + warp.int64(_HALF), warp.int64(0)) / warp.int64(_UNIT))
    return warp.min(end, side)


@warp.kernel
def _cover(
    corners: warp.array2d(dtype=warp.int64),  # type: ignore[valid-type]
    ends: warp.array(dtype=warp.int64),  # type: ignore[valid-type]
    first_rows: warp.array(dtype=warp.int32),  # type: ignore[valid-type]
    side: warp.int32,
    owners: warp.array(dtype=warp.int32),  # type: ignore[valid-type]
    hits: warp.array(dtype=warp.int32),  # type: ignore[valid-type]
) -> None:
    """One row of texels of one face: `corners` (F, 6) turn counter-clockwise."""
    thread = warp.int64(warp.tid())
    face = warp.lower_bound(ends, thread + warp.int64(1))
    row = first_rows[face] + warp.int32(ends[face] - thread) - 1
    ax, ay = corners[face, 0], corners[face, 1]
    bx, by = corners[face, 2], corners[face, 3]
    cx, cy = corners[face, 4], corners[face, 5]
    unit, half = warp.int64(_UNIT), warp.int64(_HALF)
    y = warp.int64(row) * unit + half
    for column in range(_first(_lowest(ax, bx, cx)), _end(_highest(ax, bx, cx), side)):
        x = warp.int64(column) * unit + half
        inside = _within(_side(ax, ay, bx, by, x, y), bx - ax, by - ay)
        inside = inside and _within(_side(bx, by, cx, cy, x, y), cx - bx, cy - by)
        inside = inside and _within(_side(cx, cy, ax, ay, x, y), ax - cx, ay - cy)
        if inside:
            warp.atomic_min(owners, row * side + column, warp.int32(face))
            warp.atomic_add(hits, row * side + column, 1)


@warp.func
def _share(ax: warp.int64, ay: warp.int64, bx: warp.int64, by: warp.int64, x: warp.int64,
           y: warp.int64) -> warp.float64:  # fmt: skip
    """How far along a -> b the point nearest to (x, y) lies, 0..1."""
    dx, dy = warp.float64(bx - ax), warp.float64(by - ay)
    along = dx * warp.float64(x - ax) + dy * warp.float64(y - ay)
    square = dx * dx + dy * dy
    if square <= warp.float64(0.0):
        return warp.float64(0.0)
    return warp.clamp(along / square, warp.float64(0.0), warp.float64(1.0))


@warp.func
def _distance2(ax: warp.int64, ay: warp.int64, bx: warp.int64, by: warp.int64, x: warp.int64,
               y: warp.int64) -> warp.float64:  # fmt: skip
    share = _share(ax, ay, bx, by, x, y)
    ox = warp.float64(ax - x) + share * warp.float64(bx - ax)
    oy = warp.float64(ay - y) + share * warp.float64(by - ay)
    return ox * ox + oy * oy


@warp.func
def _clear(e: warp.int64, dx: warp.int64, dy: warp.int64) -> warp.bool:
    """Whether the square of the texel's reach lies wholly outside this edge."""
    return e + (warp.abs(dx) + warp.abs(dy)) * warp.int64(_REACH) <= warp.int64(0)


@warp.kernel
def _touch(
    corners: warp.array2d(dtype=warp.int64),  # type: ignore[valid-type]
    ends: warp.array(dtype=warp.int64),  # type: ignore[valid-type]
    first_rows: warp.array(dtype=warp.int32),  # type: ignore[valid-type]
    side: warp.int32,
    first: warp.int32,
    last: warp.int32,
    owners: warp.array(dtype=warp.int32),  # type: ignore[valid-type]
    nearest: warp.array(dtype=warp.int64),  # type: ignore[valid-type]
) -> None:
    """As `_cover`, for rows `first` to `last` - 1, within reach of the face; no owner yet."""
    thread = warp.int64(warp.tid())
    face = warp.lower_bound(ends, thread + warp.int64(1))
    row = first_rows[face] + warp.int32(ends[face] - thread) - 1
    if row < first or row >= last:
        return
    ax, ay = corners[face, 0], corners[face, 1]
    bx, by = corners[face, 2], corners[face, 3]
    cx, cy = corners[face, 4], corners[face, 5]
    unit, half, reach = warp.int64(_UNIT), warp.int64(_HALF), warp.int64(_REACH)
    y = warp.int64(row) * unit + half
    low, high = _lowest(ax, bx, cx) - reach, _highest(ax, bx, cx) + reach
    for column in range(_first(low), _end(high, side)):
        if owners[row * side + column] == 0x7FFFFFFF:
            x = warp.int64(column) * unit + half
            apart = _clear(_side(ax, ay, bx, by, x, y), bx - ax, by - ay)
            apart = apart or _clear(_side(bx, by, cx, cy, x, y), cx - bx, cy - by)
            apart = apart or _clear(_side(cx, cy, ax, ay, x, y), ax - cx, ay - cy)
            if not apart:
                square = _distance2(ax, ay, bx, by, x, y)
                square = warp.min(square, _distance2(bx, by, cx, cy, x, y))
                square = warp.min(square, _distance2(cx, cy, ax, ay, x, y))
                whole = warp.int64(square * warp.float64(0.0625))  # (1/4 step)^2: far below 2^31
                key = warp.min(whole, warp.int64(0x3FFFFFFF)) * warp.int64(4294967296)
                warp.atomic_min(nearest, (row - first) * side + column, key + warp.int64(face))


@warp.func
def _nearest_weights(
    ax: warp.int64, ay: warp.int64, bx: warp.int64, by: warp.int64, cx: warp.int64, cy: warp.int64,
    x: warp.int64, y: warp.int64,
) -> warp.vec3d:  # fmt: skip
    """Weights of a and b at the point of the triangle's edges nearest to (x, y); its distance."""
    one, zero = warp.float64(1.0), warp.float64(0.0)
    da = _distance2(bx, by, cx, cy, x, y)
    db = _distance2(cx, cy, ax, ay, x, y)
    dc = _distance2(ax, ay, bx, by, x, y)
    least = warp.min(da, warp.min(db, dc))
    away = warp.sqrt(least) / warp.float64(_UNIT)
    if da == least:
        return warp.vec3d(zero, one - _share(bx, by, cx, cy, x, y), away)
    if db == least:
        return warp.vec3d(_share(cx, cy, ax, ay, x, y), zero, away)
    share = _share(ax, ay, bx, by, x, y)
    return warp.vec3d(one - share, share, away)


@warp.kernel
def _place(
    corners: warp.array2d(dtype=warp.int64),  # type: ignore[valid-type]
    vertices: warp.array(dtype=warp.vec3),  # type: ignore[valid-type]
    faces: warp.array2d(dtype=warp.int32),  # type: ignore[valid-type]
    owners: warp.array(dtype=warp.int32),  # type: ignore[valid-type]
    texels: warp.array(dtype=warp.int64),  # type: ignore[valid-type]
    side: warp.int32,
    offset_x: warp.int32,
    offset_y: warp.int32,
    longest: warp.float64,
    points: warp.array(dtype=warp.vec3),  # type: ignore[valid-type]
) -> None:
    """The point of each of `texels`; `longest`: how far one texel of distance may lead."""
    i = warp.tid()
    texel = warp.int32(texels[i])
    face = owners[texel]
    if face < 0:
        face = -2 - face
    x = warp.int64(texel % side) * warp.int64(_UNIT) + warp.int64(_HALF + offset_x)
    y = warp.int64(texel / side) * warp.int64(_UNIT) + warp.int64(_HALF + offset_y)
    ax, ay = corners[face, 0], corners[face, 1]
    bx, by = corners[face, 2], corners[face, 3]
    cx, cy = corners[face, 4], corners[face, 5]
    a, b, c = _side(bx, by, cx, cy, x, y), _side(cx, cy, ax, ay, x, y), _side(ax, ay, bx, by, x, y)
    whole = warp.float64(a + b + c)
    p, q, r = vertices[faces[face, 0]], vertices[faces[face, 1]], vertices[faces[face, 2]]
    there = _mean(p, q, r, warp.float64(a) / whole, warp.float64(b) / whole)
    if _lowest(a, b, c) < warp.int64(0):
        weights = _nearest_weights(ax, ay, bx, by, cx, cy, x, y)
        near = _mean(p, q, r, weights[0], weights[1])
        step = there - near
        length = warp.max(warp.length(step), warp.float64(1.0e-30))
        there = near + step * warp.min(warp.float64(1.0), longest * weights[2] / length)
    points[i] = warp.vec3(warp.float32(there[0]), warp.float32(there[1]), warp.float32(there[2]))


@warp.func
def _mean(
    p: warp.vec3, q: warp.vec3, r: warp.vec3, wa: warp.float64, wb: warp.float64
) -> warp.vec3d:
    a = warp.vec3d(warp.float64(p[0]), warp.float64(p[1]), warp.float64(p[2]))
    b = warp.vec3d(warp.float64(q[0]), warp.float64(q[1]), warp.float64(q[2]))
    c = warp.vec3d(warp.float64(r[0]), warp.float64(r[1]), warp.float64(r[2]))
    return a * wa + b * wb + c * (warp.float64(1.0) - wa - wb)


@dataclass(frozen=True, slots=True)
class Raster:
    """A texture's texels and the faces that they show.

    owners (S, S) int32: the face whose inside holds the texel's centre; -2 - f where no face does
    but face f is the nearest within a texel (a gutter that filtering reads); `NONE` elsewhere. v
    grows downwards with the row. overlap: how many centres more than one face covers.
    """

    owners: Tensor
    overlap: int
    corners: Tensor
    vertices: Tensor
    faces: Tensor
    texel_size: float
    """Side of a mean texel on the surface, in the mesh's units."""

    @property
    def size(self) -> int:
        """Texels a side."""
        return len(self.owners)

    @property
    def covered(self) -> Tensor:
        """Texels (S, S) bool whose centre a face covers."""
        return self.owners >= 0

    @property
    def shown(self) -> Tensor:
        """Texels (S, S) bool that have a place: covered or touched."""
        return self.owners != NONE

    @property
    def face_of(self) -> Tensor:
        """The face (S, S) int32 of each texel that has a place, `NONE` elsewhere."""
        return torch.where(self.owners <= -2, -2 - self.owners, self.owners)

    def texel_of_centre(self, which: Tensor) -> Tensor:
        """Return indices (N,) int64 of the texels that hold the centres of the faces `which`."""
        middle = self.corners[which].reshape(-1, 3, 2).sum(1) // (3 * _UNIT)
        x, y = middle.clamp(0, self.size - 1).unbind(1)
        return y * self.size + x

    def blocks(self, budget: int) -> Iterator[Tensor]:
        """Yield indices (N,) int64 into the texels in rows, of all that have a place.

        No block needs more than about `budget` bytes to be placed (`points`).
        """
        rows = max(1, budget // (_BYTES_PER_POINT * self.size))
        for start in range(0, self.size, rows):
            found = (self.owners[start : start + rows].reshape(-1) != NONE).nonzero()[:, 0]
            if len(found):
                yield found + start * self.size

    def points(self, texels: Tensor, offset: tuple[float, float] = (0.0, 0.0)) -> Tensor:
        """Return the points (N, 3) float32 of `texels` (N,) int64, each of which has a place.

        offset: x and y, in texels from the centre, for more than one sample a texel.
        """
        points = torch.empty((len(texels), 3), device=texels.device)
        shift = [round(part * _UNIT) for part in offset]
        inputs = [
            warp.from_torch(self.corners),
            warp.from_torch(self.vertices, dtype=warp.vec3),
            warp.from_torch(self.faces),
            warp.from_torch(self.owners.reshape(-1)),
            warp.from_torch(texels),
            self.size,
            *shift,
            _STRAY * self.texel_size,
        ]
        launch(_place, len(texels), [*inputs, warp.from_torch(points, dtype=warp.vec3)], points)
        return points


def rasterize(
    vertices: Tensor, faces: Tensor, uvs: Tensor, size: int, budget: int = 256 << 20
) -> Raster:
    """Return which face each texel of a texture of `size` a side shows.

    vertices (V, 3) and uvs (V, 2) float, u to the right and v down, in 0..1; faces (F, 3). The
    bands of rows that touched texels are sought in take at most `budget` bytes; what stays is 4
    bytes a texel and 72 a face.
    """
    warp.init()  # does its work once
    faces = faces.int().contiguous()
    # Which way a face turns is looked up in UV; `faces` are turned with it, for weights to fit.
    corners, faces, twice = _corners(uvs, faces, size)
    owners = torch.full((size * size,), 0x7FFFFFFF, dtype=torch.int32, device=uvs.device)
    hits = torch.zeros_like(owners)
    real = twice != 0
    _run(_cover, corners, real, size, 0, [owners, hits])
    overlap = int((hits > 1).sum())
    hits = hits.new_zeros(0)
    rows = max(1, budget // (_BYTES_PER_TEXEL * size))
    for start in range(0, size, rows):
        _touch_band(corners, real, owners, size, start, min(size, start + rows))
    owners[owners == 0x7FFFFFFF] = NONE
    vertices = vertices.float().contiguous()
    texel = _texel_size(vertices, faces, twice)
    return Raster(owners.reshape(size, size), overlap, corners, vertices, faces, texel)


def _corners(uvs: Tensor, faces: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return corners (F, 6) int64 and faces, turned counter-clockwise, and twice the area (F,)."""
    fixed = (uvs.double().clamp(-1, 2) * (size * _UNIT)).round().long()
    corners = fixed[faces.long()]
    (ax, ay), (bx, by), (cx, cy) = (corners[:, i].unbind(1) for i in range(3))
    twice = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    turned = (twice < 0)[:, None]
    faces = torch.where(turned, faces[:, [0, 2, 1]], faces).contiguous()
    corners = torch.where(turned[..., None], corners[:, [0, 2, 1]], corners)
    return corners.reshape(-1, 6).contiguous(), faces, twice.abs()


def _run(
    kernel: Any, corners: Tensor, real: Tensor, size: int, reach: int, outputs: list[Any]
) -> None:
    """Launch `kernel` once for each row of texels within `reach` of each face that is real."""
    y = corners[:, 1::2]
    first = ((y.amin(1) - reach + _HALF - 1) >> 16).clamp(min=0)
    last = ((y.amax(1) + reach - _HALF) >> 16).clamp(max=size - 1)
    number = torch.where(real, (last - first + 1).clamp(min=0), 0)
    ends = number.cumsum(0)
    rows = int(ends[-1]) if len(ends) else 0
    given = [warp.from_torch(o) if isinstance(o, Tensor) else o for o in outputs]
    first_rows = first.int().contiguous()
    inputs = [warp.from_torch(t) for t in (corners, ends, first_rows)]
    launch(kernel, rows, [*inputs, size, *given], corners)


def _touch_band(
    corners: Tensor, real: Tensor, owners: Tensor, size: int, first: int, last: int
) -> None:
    """Write the nearest face of each texel of rows `first` to `last` - 1 that none covers."""
    nearest = torch.full(((last - first) * size,), _LARGEST, device=owners.device)
    _run(_touch, corners, real, size, _REACH, [first, last, owners, nearest])
    near = nearest != _LARGEST
    band = owners[first * size : last * size]
    band[near] = (-2 - (nearest[near] & 0xFFFFFFFF)).int()


def _texel_size(vertices: Tensor, faces: Tensor, twice: Tensor) -> float:
    a, b, c = (vertices[faces[:, i].long()].double() for i in range(3))
    area = float(torch.linalg.cross(b - a, c - a).norm(dim=1).sum())
    texels = float(twice.double().sum()) / _UNIT**2
    return math.sqrt(area / texels) if texels > 0 else 0.0
