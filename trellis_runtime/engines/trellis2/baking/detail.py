"""Normal map and ambient occlusion: what the decoded surface has and a few faces have not.

    texel ─► its point and frame (N, T, B) on the small mesh ─► nearest place of the decoded surface
          ─► smooth normal there ─► in the frame ─► bytes ─► gutters ─► normal
          ─► rays from there to the sky ─► mean over 4 x 4 texels ─► bytes ─► gutters ─► occlusion

The decoded surface's triangles face either way, so a vertex has no mean normal. It has the sum of
a n n' over its faces (area a, unit normal n), which no sign changes. That matrix times the normal
of the face that was hit is the mean of the neighbours' normals, each turned to the face's side and
weighed by the cosine to it: round where the surface is round, and sharp across an edge of a box.

The normal is written in the very frame that the file holds (`tangents`): N and T as a renderer
interpolates and normalises them, B = w (N x T). N and T need not be square to each other there, and
the 2 x 2 system of both is solved, so that x T + y B + z N is the normal and nothing near it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from trellis_runtime.contract.request import DetailMap
from trellis_runtime.engines.trellis2.baking.connectivity import exact_sum_by, face_normals
from trellis_runtime.engines.trellis2.baking.detail_kernels import (
    TILE,
    open_sky,
    surface_normals,
)
from trellis_runtime.engines.trellis2.baking.gutters import fill_gutters
from trellis_runtime.engines.trellis2.baking.launch import launch
from trellis_runtime.engines.trellis2.baking.nearest import Surface
from trellis_runtime.engines.trellis2.baking.raster import NONE, Raster
from trellis_runtime.engines.trellis2.baking.texels import as_bytes

_NEAR_VOXELS = 3.0
_FAR = 10.0  # beyond any two points of a mesh in -0.5..0.5
_LIFT_VOXELS = 0.5  # above the surface that rays start: its own noise is no shadow
_HALO = TILE // 2  # rows beside a band that its own means depend on
_REACH = 3.0  # texels on the surface: the farthest of a tile whose rays count for a texel
_ALIKE = 0.7  # cosine between two texels' normals
_BYTES_PER_TEXEL = 320
_BYTES_PER_FACE = 24  # twelve numbers for every two faces
_BLOCK = 1 << 18


@dataclass(frozen=True, slots=True)
class Frames:
    """normals (V, 3), unit, and tangents (V, 4) of the small mesh, as the file has them."""

    normals: Tensor
    tangents: Tensor

    def to(self, device: torch.device) -> Frames:
        """Return the same on `device`."""
        return Frames(self.normals.to(device), self.tangents.to(device))


@dataclass(frozen=True, slots=True)
class Detail:
    """normal (S, S, 3) and occlusion (S, S, 1) uint8, where asked; gutters are filled."""

    normal: Tensor | None = None
    occlusion: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Full:
    """The decoded surface, and its faces that stop light, which may be the same."""

    surface: Surface
    opaque: Surface
    resolution: int


def bake_detail(
    raster: Raster,
    frames: Frames,
    full: Full,
    maps: tuple[DetailMap, ...],
    budget: int = 256 << 20,
) -> Detail:
    """Return `maps` of the texels of `raster`, in bands of about `budget` bytes.

    Raises `OutOfVram` where a tree over the surface does not fit.
    """
    size, device = raster.size, raster.owners.device
    tensors = normal_tensors(full.surface.vertices, full.surface.faces)
    made = {name: torch.zeros((size, size, _CHANNELS[name]), dtype=torch.uint8, device=device)
            for name in maps}  # fmt: skip
    for first, last, start, end in _bands(size, budget):
        band = _Band.of(raster, frames, full, tensors, first, last)
        kept = slice(start - first, end - first)
        if "normal" in made:
            made["normal"][start:end] = band.spread(band.encoded())[kept]
        if "occlusion" in made:
            made["occlusion"][start:end] = as_bytes(band.sky()[kept])
    return Detail(**{name: fill_gutters(texels, raster.shown) for name, texels in made.items()})


_CHANNELS: dict[DetailMap, int] = {"normal": 3, "occlusion": 1}


def detail_bytes(faces: int, size: int, maps: tuple[DetailMap, ...]) -> int:
    """Return how many bytes `bake_detail` takes beside its surface's tree and its bands."""
    if not maps:
        return 0
    return _BYTES_PER_FACE * faces + sum(2 * _CHANNELS[name] for name in maps) * size**2


def normal_tensors(vertices: Tensor, faces: Tensor) -> Tensor:
    """Return the sums of a n n' over each vertex's faces, (V, 6) float32: xx, xy, xz, yy, yz, zz.

    The faces may turn either way.
    """
    sums = torch.zeros((len(vertices), 6), device=vertices.device)
    for part in torch.split(faces.long(), _BLOCK):
        long = face_normals(vertices.double(), part)
        x, y, z = (long / long.norm(dim=1, keepdim=True).clamp(min=1e-30).sqrt()).unbind(1)
        products = torch.stack([x * x, x * y, x * z, y * y, y * z, z * z], 1)
        owners, repeated = part.reshape(-1), products.repeat_interleave(3, 0)
        used, compact = owners.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        sums[used] += exact_sum_by(compact, repeated, len(used)).float()
    return sums


def _bands(size: int, budget: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield bands of rows: the first and the last + 1 to compute, and those of them to keep."""
    rows = max(4 * _HALO, budget // (_BYTES_PER_TEXEL * size)) - 2 * _HALO
    for start in range(0, size, rows):
        end = min(size, start + rows)
        yield max(0, start - _HALO), min(size, end + _HALO), start, end


@dataclass(frozen=True, slots=True)
class _Band:
    """Some rows of texels: those that show something (N,), and what lies there on both surfaces."""

    raster: Raster
    full: Full
    rows: int
    texels: Tensor  # (N,) int64 in the whole texture
    within: Tensor  # (N,) int64 in the band
    owners: Tensor  # (N,) int32: faces of the small mesh
    frame: tuple[Tensor, Tensor, Tensor]  # N, T (N, 3) unit, w (N, 1)
    places: Tensor  # (N, 3) on the decoded surface
    normals: Tensor  # (N, 3) unit, of the decoded surface

    @classmethod
    def of(
        cls, raster: Raster, frames: Frames, full: Full, tensors: Tensor, first: int, last: int
    ) -> _Band:
        rows = raster.face_of[first:last].reshape(-1)
        within = (rows != NONE).nonzero()[:, 0]
        texels, owners = within + first * raster.size, rows[within].long()
        normal = _interpolated(raster, frames.normals, texels)
        tangent = _interpolated(raster, frames.tangents[:, :3], texels)
        sign = frames.tangents[raster.faces[owners, 0].long(), 3:]
        points = raster.points(texels)
        places, found = _nearest_normals(full, tensors, points, normal)
        frame = normal, tangent, sign
        return cls(raster, full, last - first, texels, within, owners, frame, places, found)

    def spread(self, values: Tensor) -> Tensor:
        """Return values (N, C) at their texels of the band (rows, S, C), zero elsewhere."""
        size = self.raster.size
        out = values.new_zeros((self.rows * size, values.shape[1]))
        out[self.within] = values
        return out.reshape(self.rows, size, -1)

    def encoded(self) -> Tensor:
        """Return the normals in the texels' frames as bytes (N, 3): red T, green B, blue N."""
        normal, tangent, sign = self.frame
        bitangent = torch.linalg.cross(normal, tangent) * sign
        skew = (normal * tangent).sum(1, keepdim=True)
        up = (self.normals * normal).sum(1, keepdim=True)
        along = (self.normals * tangent).sum(1, keepdim=True)
        over = (self.normals * bitangent).sum(1, keepdim=True)
        square = (1 - skew * skew).clamp(min=1e-6)  # also the length of B, squared
        x, y, z = (along - up * skew) / square, over / square, (up - along * skew) / square
        return as_bytes(normalize(torch.cat([x, y, z], 1), dim=1) / 2 + 0.5)

    def sky(self) -> Tensor:
        """Return the share of the sky (rows, S, 1) that each texel sees, as its tile has it."""
        sky = torch.empty(len(self.texels), device=self.texels.device)
        if len(sky):
            lift = _LIFT_VOXELS / self.full.resolution
            given = [self.places, self.normals, self.texels, self.raster.size, lift, _FAR]
            launch(open_sky, len(sky), [self.full.opaque.bvh_id(), *given, sky])
        near = (_REACH * self.raster.texel_size) ** 2
        return _tile_means(self.spread(sky[:, None]), self.spread(self._where()), near)

    def _where(self) -> Tensor:
        """Return place, normal and 1 (N, 7) of each texel."""
        return torch.cat([self.places, self.normals, torch.ones_like(self.places[:, :1])], 1)


def _interpolated(raster: Raster, vectors: Tensor, texels: Tensor) -> Tensor:
    """Return unit vectors (N, 3) at texels, between those (V, 3) of the small mesh's vertices."""
    field = replace(raster, vertices=vectors.float().contiguous())
    return normalize(field.points(texels), dim=1)


def _nearest_normals(
    full: Full, tensors: Tensor, points: Tensor, facing: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the nearest places (N, 3) of the decoded surface, and its normals there (N, 3)."""
    places, normals = torch.empty_like(points), torch.empty_like(points)
    if len(points):
        vectors, near = [points.contiguous(), facing.contiguous()], _NEAR_VOXELS / full.resolution
        given = [full.surface.bvh_id(), full.surface.faces, tensors, *vectors, near, _FAR]
        launch(surface_normals, len(points), [*given, places, normals])
    return places, normals


def _tile_means(values: Tensor, where: Tensor, near: float) -> Tensor:
    """Return values (R, S, 1), each the mean of those around it that lie on the same ground.

    where (R, S, 7): place, normal, 1 where something shows. Five texels each way with half the
    weight at the ends: a tile of four, and as much on either side.
    """
    total, weight = torch.zeros_like(values), torch.zeros_like(values)
    ends = range(-_HALO, _HALO + 1)
    for dy in ends:
        for dx in ends:
            there = _moved(where, dy, dx)
            apart = (there[..., :3] - where[..., :3]).square().sum(2, keepdim=True)
            alike = (there[..., 3:6] * where[..., 3:6]).sum(2, keepdim=True) > _ALIKE
            share = 0.5 ** ((abs(dy) == _HALO) + (abs(dx) == _HALO))
            part = share * there[..., 6:] * (apart <= near * (dy * dy + dx * dx)) * alike
            total += _moved(values, dy, dx) * part
            weight += part
    return total / weight.clamp(min=1e-6)


def _moved(values: Tensor, dy: int, dx: int) -> Tensor:
    """Return values (R, S, C) of which each is that of the texel dy rows and dx columns on."""
    rows, columns = (
        (torch.arange(length, device=values.device) + by).clamp(0, length - 1)
        for length, by in ((values.shape[0], dy), (values.shape[1], dx))
    )
    return values[rows][:, columns]
