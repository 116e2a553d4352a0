"""Which face covers each texel, by an exact rule, and where on the surface each texel lies.

    uvs -> corners in 1/65536 texel (int64) -> one thread a face and row of texels
        covered: centre inside by three integer edge functions, least face index wins
        touched: centre outside all faces, but within a texel of one: nearest face, then least index

An edge function e(p) = (b - a) x (p - a) (Pineda, A Parallel Algorithm for Polygon Rasterization,
SIGGRAPH 1988) is computed without rounding, in 64 bits up to textures of 8192. A centre on an edge
(e = 0) belongs to the side that the edge's direction names, and the two faces of an edge run along
it in opposite directions, so every centre on a shared edge belongs to exactly one of them (the
top-left rule of GPUs). Only integers are compared, and minima do not depend on the order of
threads, so a CPU and a GPU give the same answer, always.

Touched texels are what bilinear filtering reads beyond a chart's edge. Their place is the face's
plane continued (weights outside 0..1), which lies on the neighbour's side of a seam, rather than
the nearest point of the chart: the mean of the two sides is then right at the seam itself.

Long because coverage, interpolation and their kernels are one rule, judged together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trellis_runtime.engines.trellis2.baking.launch import launch
from trellis_runtime.engines.trellis2.baking.raster_kernels import (
    HALF,
    NONE,
    REACH,
    UNIT,
    cover,
    place,
    touch,
)

__all__ = ["NONE", "Raster", "rasterize"]

_STRAY = 2.0  # times the mean texel's size on the surface that a texel's distance may come to
_BYTES_PER_TEXEL = 8
_BYTES_PER_POINT = 64
_LARGEST = 0x7FFFFFFFFFFFFFFF
_FREE = 0x7FFFFFFF


@dataclass(frozen=True, slots=True)
class Raster:
    """A texture's texels and the faces that they show.

    owners (S, S) int32: the face whose inside holds the texel's centre; -2 - f where no face does
    but face f is the nearest within a texel (a gutter that filtering reads); `NONE` elsewhere. v
    grows downwards with the row. overlap: how often a centre is covered once more.
    """

    owners: Tensor
    overlap: int
    corners: Tensor
    vertices: Tensor
    faces: Tensor
    real: Tensor
    texel_size: float
    """Side of a mean texel on the surface, in the mesh's units."""

    @property
    def size(self) -> int:
        """Texels a side."""
        return len(self.owners)

    def to(self, device: torch.device) -> Raster:
        """Return the same on `device`."""
        return replace(
            self,
            owners=self.owners.to(device),
            corners=self.corners.to(device),
            vertices=self.vertices.to(device),
            faces=self.faces.to(device),
            real=self.real.to(device),
        )

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
        middle = self.corners[which].reshape(-1, 3, 2).sum(1) // (3 * UNIT)
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

    def points(
        self,
        texels: Tensor,
        offset: tuple[float, float] = (0.0, 0.0),
        owners: Tensor | None = None,
    ) -> Tensor:
        """Return the points (N, 3) float32 of `texels` (N,) int64, each of which has a place.

        offset: x and y, in texels from the centre. owners (N,) int32: whose plane the points are
        in, by default the texels' own.
        """
        if owners is None:
            owners = self.owners.reshape(-1)[texels]
        points = torch.empty((len(texels), 3), device=texels.device)
        shift = [round(part * UNIT) for part in offset]
        inputs = [
            self.corners,
            self.vertices,
            self.faces,
            texels,
            owners,
            self.size,
            *shift,
            _STRAY * self.texel_size,
        ]
        launch(place, len(texels), [*inputs, points])
        return points

    def owners_at(self, offset: tuple[float, float], first: int, last: int) -> Tensor:
        """Return the face (last - first, S) int32 that covers each texel's point at `offset`.

        offset: x and y, in texels from the centre. first, last: which rows. `NONE` where no face
        covers the point.
        """
        x, y = (round(part * UNIT) for part in offset)
        moved = self.corners - self.corners.new_tensor([x, y] * 3)
        return _covering(moved, self.real, self.size, first, last)[0]


def rasterize(
    vertices: Tensor, faces: Tensor, uvs: Tensor, size: int, budget: int = 256 << 20
) -> Raster:
    """Return which face each texel of a texture of `size` a side shows.

    vertices (V, 3) and uvs (V, 2) float, u to the right and v down, in 0..1; faces (F, 3). The
    bands of rows that touched texels are sought in take at most `budget` bytes; what stays is 4
    bytes a texel and 72 a face.
    """
    faces = faces.int().contiguous()
    # Which way a face turns is looked up in UV; `faces` are turned with it, for weights to fit.
    corners, faces, twice = _corners(uvs, faces, size)
    real = twice != 0
    owners, overlap = _covering(corners, real, size, 0, size)
    rows = max(1, budget // (_BYTES_PER_TEXEL * size))
    for start in range(0, size, rows):
        _touch_band(corners, real, owners, size, start, min(size, start + rows))
    vertices = vertices.float().contiguous()
    texel = _texel_size(vertices, faces, twice)
    return Raster(owners, overlap, corners, vertices, faces, real, texel)


def _covering(
    corners: Tensor, real: Tensor, size: int, first: int, last: int
) -> tuple[Tensor, int]:
    """Return who covers the centres of rows `first` to `last` - 1, and how often once more."""
    owners = torch.full((last - first, size), _FREE, dtype=torch.int32, device=corners.device)
    hits = torch.zeros(1, dtype=torch.int64, device=corners.device)
    _run(cover, corners, real, size, 0, (first, last), [owners, hits])
    free = owners == _FREE
    owners.masked_fill_(free, NONE)
    return owners, int(hits) - (owners.numel() - int(free.sum()))


def _corners(uvs: Tensor, faces: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return corners (F, 6) int64 and faces, turned counter-clockwise, and twice the area (F,)."""
    fixed = (uvs.double().nan_to_num(0.0).clamp(-1, 2) * (size * UNIT)).round().long()
    corners = fixed[faces.long()]
    (ax, ay), (bx, by), (cx, cy) = (corners[:, i].unbind(1) for i in range(3))
    twice = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    turned = (twice < 0)[:, None]
    faces = torch.where(turned, faces[:, [0, 2, 1]], faces).contiguous()
    corners = torch.where(turned[..., None], corners[:, [0, 2, 1]], corners)
    return corners.reshape(-1, 6).contiguous(), faces, twice.abs()


def _run(
    kernel: Any,
    corners: Tensor,
    real: Tensor,
    size: int,
    reach: int,
    rows: tuple[int, int],
    outputs: list[Tensor],
) -> None:
    """Launch `kernel` once for each row of texels within `reach` of each face that is real.

    rows: the first, and the one after the last.
    """
    y = corners[:, 1::2]
    first = ((y.amin(1) - reach + HALF - 1) >> 16).clamp(min=rows[0])
    last = ((y.amax(1) + reach - HALF) >> 16).clamp(max=rows[1] - 1)
    number = torch.where(real, (last - first + 1).clamp(min=0), 0)
    ends = number.cumsum(0)
    threads = int(ends[-1]) if len(ends) else 0
    first_rows = first.int().contiguous()
    given = [output.reshape(-1) for output in outputs]
    launch(kernel, threads, [corners, ends, first_rows, size, rows[0], *given])


def _touch_band(
    corners: Tensor, real: Tensor, owners: Tensor, size: int, first: int, last: int
) -> None:
    """Write the nearest face of each texel of rows `first` to `last` - 1 that none covers."""
    nearest = torch.full(((last - first) * size,), _LARGEST, device=owners.device)
    _run(touch, corners, real, size, REACH, (first, last), [owners, nearest])
    near = nearest != _LARGEST
    band = owners[first:last].reshape(-1)
    band[near] = (-2 - (nearest[near] & 0xFFFFFFFF)).int()


def _texel_size(vertices: Tensor, faces: Tensor, twice: Tensor) -> float:
    a, b, c = (vertices[faces[:, i].long()].double() for i in range(3))
    area = float(torch.linalg.cross(b - a, c - a).norm(dim=1).sum())
    texels = float(twice.double().sum()) / UNIT**2
    return math.sqrt(area / texels) if texels > 0 else 0.0
