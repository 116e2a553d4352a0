"""UV unwrapping: from a surface to charts without overlap, packed into one texture at one density.

    surface -> `segmentation`   charts whose normals lie in a cone, few and compact
            -> `flattening`     each laid flat with little stretch, none over itself
            -> `atlas_packing`  all in one square, at least the padding apart

All of it runs on the tensors' device but for the search for places, which is a few threads' work
on the CPU. The same surface on the same device always gives the same bytes.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

from torch import Tensor

from trellis_runtime.engines.trellis2.baking.atlas_packing import pack
from trellis_runtime.engines.trellis2.baking.chart_set import signed_areas
from trellis_runtime.engines.trellis2.baking.connectivity import face_normals
from trellis_runtime.engines.trellis2.baking.flattening import Resolution, lay_flat
from trellis_runtime.engines.trellis2.baking.segmentation import segment
from trellis_runtime.engines.trellis2.device.baton import HostWork

_DENSEST = 0.75  # of the texture, that charts might cover: what they are checked for
_NEGLIGIBLE_TEXELS = 1e-3
_NEGLIGIBLE_SHARE = 1e-2  # of the mean face's area
_BYTES_PER_FACE = 900
_BYTES_PER_TEXEL = 40


@dataclass(frozen=True, slots=True)
class Layout:
    """A surface cut into charts, with texture coordinates.

    `uvs` are 0..1; the texel in row i and column j of a texture of n x n has its centre at
    u = (j + 0.5) / n, v = (i + 0.5) / n. Faces turn left in (u, v), as they do seen from outside.
    """

    vertices: Tensor  # (V, 3) float32: a vertex once for each chart that it is in
    faces: Tensor  # (F, 3) int64 into them, grouped by chart, corners in the order given
    uvs: Tensor  # (V, 2) float32
    source: Tensor  # (V,) int64: each vertex before the cut
    face: Tensor  # (F,) int64: each face's place among the faces given
    chart: Tensor  # (F,) int64, ascending
    count: int  # of charts
    utilization: float  # share of the texture that charts cover
    redone: int  # charts that had to be cut further, as they lay over themselves or were too long
    texels_per_unit: float  # of the mesh; the same in every chart


def unwrap(
    vertices: Tensor,
    faces: Tensor,
    texture_size: int,
    *,
    padding: int | None = None,
    on_host: HostWork = nullcontext,
) -> Layout:
    """Return texture coordinates for a surface of at least one face.

    vertices (V, 3) float, faces (F, 3) integer, on one device. `padding` is how many texels of a
    texture of `texture_size` x `texture_size` lie between two charts, and half as many at the
    border: a 512th of the side, at least 2, where it is not given. It is less where so many charts
    would leave no room for what they show. `on_host` is entered for the search for places. Any
    triangles will do: open, not manifold, without area.
    """
    vertices, faces = vertices.float(), faces.long()
    normalized, unit = _normalized(vertices, faces)
    resolution = _resolution(texture_size, len(faces))
    texel_area = 1 / resolution.texels_per_unit**2
    chart, count = segment(normalized, faces, texel_area, resolution.negligible)
    charts, flat, redone = lay_flat(normalized, faces, chart, count, resolution)
    uvs, density = pack(flat, charts, texture_size, padding, on_host)
    return Layout(
        vertices=vertices[charts.source],
        faces=charts.faces,
        uvs=uvs,
        source=charts.source,
        face=charts.face,
        chart=charts.chart,
        count=charts.count,
        utilization=float(signed_areas(uvs.double(), charts.faces).abs().sum()),
        redone=redone,
        texels_per_unit=density * texture_size * unit,
    )


def unwrap_bytes(faces: int, texture_size: int) -> int:
    """Return how many bytes of the device's memory `unwrap` takes at most, beyond its inputs."""
    return faces * _BYTES_PER_FACE + texture_size**2 * _BYTES_PER_TEXEL


def _normalized(vertices: Tensor, faces: Tensor) -> tuple[Tensor, float]:
    """Return the vertices moved to the origin and scaled to a surface of area 1, and the scale."""
    used = vertices[faces.reshape(-1)].double()
    low, high = used.amin(0), used.amax(0)
    area = float(face_normals(vertices.double(), faces).norm(dim=1).sum() / 2)
    longest = float((high - low).max())
    if area <= 1e-12 * longest**2:
        area = longest**2
    scale = area**-0.5 if area > 0 else 1.0
    return ((vertices.double() - (low + high) / 2) * scale).float(), scale


def _resolution(texture_size: int, faces: int) -> Resolution:
    """Return what a texture of this size shows of a surface of area 1."""
    side = _DENSEST**-0.5
    texels_per_unit = texture_size / side
    negligible = min(_NEGLIGIBLE_TEXELS / texels_per_unit**2, _NEGLIGIBLE_SHARE / faces)
    return Resolution(texels_per_unit, side, negligible)


__all__ = ["Layout", "unwrap", "unwrap_bytes"]
