"""From any triangles to closed shells on them: oriented outwards, manifold, nothing resampled.

    triangles ─► both sides of each, linked around edges (`sides`)
              ─► parts that enclose nothing dropped: inner walls, pockets, specks
              ─► insides of leaks dropped (rays: `visibility`), their rims capped (`caps`)
              ─► one vertex for each fan of corners; edges that would be doubled are split
              ─► copies of one place moved apart, outwards

A decoded surface has no orientation (its crossing flags are booleans), so that no sign of distance
can be had from it. A closed part of sides with positive volume bounds a solid; one with negative
volume bounds a hollow inside a solid, that nobody can see. An open sheet is both: its two sides are
one part of no volume, and it stays as a thin shell.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from trellis_runtime.engines.trellis2.baking.apart import move_apart
from trellis_runtime.engines.trellis2.baking.caps import (
    cap_loops,
    split_doubled,
    split_pillows,
)
from trellis_runtime.engines.trellis2.baking.connectivity import (
    boundary_and_nonmanifold_edges,
    connected_components,
    edge_keys,
    exact_sum_by,
    half_edges,
    numbered,
    vertex_normals,
)
from trellis_runtime.engines.trellis2.baking.sides import (
    Links,
    clean_face_numbers,
    clean_faces,
    corner_copies,
    joined_half_edges,
    link_sides,
    side_components,
    side_faces,
)
from trellis_runtime.engines.trellis2.baking.visibility import hidden_sides
from trellis_runtime.errors import MeshRejected

_THIN = 0.05  # voxels of mean thickness, below which a part of sides encloses nothing
_SPECK = 1e-5  # of all area: a smaller closed part is dropped, as upstream's clean-up does
_APART = 0.02  # voxels that copies of one place move, so that welding does not undo them
_BYTES_PER_FACE = 1000  # measured: 590 of a closed surface, 950 of an open one, which doubles


@dataclass(frozen=True, slots=True)
class ShellReport:
    """shells: closed parts that are left. dropped_inner and dropped_specks: parts that are not.

    thin_share: of the decoded area, faces of which both sides stayed. hidden_faces: sides dropped
    as the insides of leaks; enclosed_faces: those of closed parts that lie unseen within others.
    capped_loops: rims closed where those began.
    """

    shells: int
    dropped_inner: int = 0
    dropped_specks: int = 0
    thin_share: float = 0.0
    hidden_faces: int = 0
    enclosed_faces: int = 0
    capped_loops: int = 0

    def facts(self) -> dict[str, float]:
        """Return the report as fields of a log line."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Shells:
    """vertices (V, 3) float32 and faces (F, 3) int32: closed, oriented outwards, manifold."""

    vertices: Tensor
    faces: Tensor
    report: ShellReport


def shells_bytes(faces: int) -> int:
    """Return how much memory closing `faces` faces takes at its peak, beside the inputs."""
    return faces * _BYTES_PER_FACE


def close_surface(
    vertices: Tensor,
    faces: Tensor,
    voxel: float,
    *,
    min_thickness: float = 0.0,
    clear: Tensor | None = None,
) -> Shells:
    """Return closed shells on the surface of vertices (V, 3) and faces (F, 3), in any order.

    voxel: side of a voxel, in the mesh's units, by which thin is told from solid. min_thickness:
    what open sheets are thickened to, in the mesh's units, tapering to their rims; solids stay as
    they are. clear (F,) bool: faces that one sees through; what lies behind them is not hidden.
    Raises `MeshRejected` where nothing is left.
    """
    made, counts = _kept_sides(vertices, faces, voxel, clear)
    points = _moved_apart(made, min_thickness, _APART * voxel)
    return _finished(points, made.faces, **counts)


def _kept_sides(
    vertices: Tensor, faces: Tensor, voxel: float, clear: Tensor | None
) -> tuple[_Assembled, dict[str, float]]:
    """Return the mesh of those sides that bound something and can be seen, and what was counted."""
    chosen = clean_face_numbers(faces, len(vertices))
    faces, clear = faces[chosen].long(), None if clear is None else clear[chosen]
    if len(faces) == 0:
        raise MeshRejected("the decoded surface has no face with an area; another seed may help")
    links = link_sides(vertices, faces)
    kept, dropped, specks = _enclosing(vertices, faces, links, voxel)
    both = kept[0::2] & kept[1::2]
    area = _areas(vertices, faces)
    thin = float((area * both).sum() / area.sum().clamp(min=1e-30))
    hidden, enclosed = hidden_sides(vertices, faces, links, kept, area, voxel, clear)
    kept = kept & ~hidden & ~enclosed
    if not bool(kept.any()):
        raise MeshRejected(
            "no part of the decoded surface encloses anything; another seed may help"
        )
    made = _assembled(vertices, faces, links, kept)
    counts = {"thin_share": thin, "hidden_faces": int(hidden.sum()), "capped_loops": made.loops}
    within = int(enclosed.sum())
    return made, counts | {
        "dropped_inner": dropped,
        "dropped_specks": specks,
        "enclosed_faces": within,
    }


def repair_shells(vertices: Tensor, faces: Tensor, voxel: float) -> Shells:
    """Return the oriented shells of vertices (V, 3) and faces (F, 3) mended after decimation.

    Faces keep their direction. Where an edge has more than two faces or a vertex several fans, they
    come apart; where a hole has opened it is capped; vertices that have met move apart.
    """
    faces = clean_faces(faces, len(vertices))
    boundary, crowded = boundary_and_nonmanifold_edges(faces, len(vertices))
    if len(boundary) or len(crowded) or _pinched(faces, len(vertices)):
        links = link_sides(vertices, faces)
        kept = torch.arange(2 * len(faces), device=faces.device) % 2 == 0
        made = _assembled(vertices, faces, links, kept)
        vertices, faces = _moved_apart(made, 0.0, _APART * voxel), made.faces
    return _finished(move_apart(vertices.float(), faces, _APART * voxel), faces)


def orient_double_sided(vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
    """Return vertices, and faces (F', 3) int32 that turn alike wherever that can be.

    The surface stays open. Faces that hang together over edges of two turn so that they enclose
    more than nothing; what cannot be oriented (a Moebius band) stays as it was.
    """
    faces = clean_faces(faces, len(vertices))
    links = link_sides(vertices, faces)
    part, count = numbered(side_components(links, len(faces), links.plain))
    volume = exact_sum_by(part, _side_volumes(vertices, faces)[:, None], count)[:, 0]
    front, back = part[0::2], part[1::2]
    turned = volume[back] > volume[front]
    same = volume[back] == volume[front]  # flat: the part that was numbered first
    turned = torch.where(same, back < front, turned)
    return vertices.float(), torch.where(turned[:, None], faces[:, [0, 2, 1]], faces).int()


def _enclosing(
    vertices: Tensor, faces: Tensor, links: Links, voxel: float
) -> tuple[Tensor, int, int]:
    """Return which sides (2 F,) bool bound a solid or a sheet; inner parts and specks dropped."""
    part, count = numbered(side_components(links, len(faces)))
    volume = _side_volumes(vertices, faces)
    area = _areas(vertices, faces).repeat_interleave(2)
    sums = exact_sum_by(part, torch.stack([volume, area], 1), count)
    inner = sums[:, 0] <= -_THIN * voxel * sums[:, 1]
    speck = ~inner & (sums[:, 1] < 2 * _SPECK * float(area.sum() / 2))
    if bool((inner | speck).all()):
        speck = torch.zeros_like(speck)
    return ~(inner | speck)[part], int(inner.sum()), int(speck.sum())


def _side_volumes(vertices: Tensor, faces: Tensor) -> Tensor:
    """Return, side by side (2 F,), the signed volume between each side and the mesh's middle."""
    middle = vertices.double().mean(0)
    a, b, c = ((vertices[faces[:, i]].double() - middle) for i in range(3))
    volume = (a * torch.linalg.cross(b, c)).sum(1) / 6
    return torch.stack([volume, -volume], 1).reshape(-1)


def _areas(vertices: Tensor, faces: Tensor) -> Tensor:
    a, b, c = (vertices[faces[:, i]].double() for i in range(3))
    return torch.linalg.cross(b - a, c - a).norm(dim=1) / 2


@dataclass(frozen=True, slots=True)
class _Assembled:
    """A mesh of kept sides: points (V, 3), faces (F, 3) int64, and how many loops were capped.

    source (V,) int64: which vertex each is a copy of, -1 for those that were made here. sheet and
    solid (V,) bool: whether a two-sided, a one-sided face has it.
    """

    points: Tensor
    faces: Tensor
    source: Tensor
    sheet: Tensor
    solid: Tensor
    loops: int


def _assembled(vertices: Tensor, faces: Tensor, links: Links, kept: Tensor) -> _Assembled:
    """Return the mesh of the kept sides (2 F,) bool: closed and manifold, copies still together."""
    sides = side_faces(corner_copies(links, len(faces), kept))
    source = side_faces(faces.repeat_interleave(2, 0).reshape(-1))
    used, made = sides[kept].unique(return_inverse=True)  # type: ignore[no-untyped-call]
    origin = torch.empty(len(used), dtype=torch.int64, device=faces.device)
    origin[made.reshape(-1)] = source[kept].reshape(-1)
    both = (kept[0::2] & kept[1::2]).repeat_interleave(2)[kept]
    sheet, solid = _used_by(made[both], len(used)), _used_by(made[~both], len(used))
    mesh, joined = cap_loops(vertices[origin], made, joined_half_edges(links, kept))
    loops = len(mesh[0]) - len(origin)
    mesh = split_doubled(*split_pillows(*mesh, joined))
    new = len(mesh[0]) - len(origin)
    source = torch.cat([origin, origin.new_full((new,), -1)])
    sheet, solid = (torch.cat([flags, flags.new_zeros(new)]) for flags in (sheet, solid))
    return _Assembled(*mesh, source, sheet, solid, loops)


def _used_by(faces: Tensor, count: int) -> Tensor:
    used = torch.zeros(count, dtype=torch.bool, device=faces.device)
    used[faces.reshape(-1)] = True
    return used


def _moved_apart(mesh: _Assembled, thickness: float, least: float) -> Tensor:
    """Return points (V, 3) where copies of one vertex stand apart.

    Each moves outwards, into the air that its faces share, so that a sheet has two sides and
    solids that touch along an edge are joined there; sheets to half of `thickness` each, where no
    solid is at them. What meets even then is moved on.
    """
    points = mesh.points
    uses = torch.bincount(mesh.source[mesh.source >= 0], minlength=1)
    copied = (mesh.source >= 0) & (uses[mesh.source.clamp(min=0)] > 1)
    if not bool(copied.any()):
        return move_apart(points.float(), mesh.faces, least)
    far = torch.where(mesh.sheet & ~mesh.solid, max(least, thickness / 2), least)
    far = (far * copied)[:, None].float()
    points = points + vertex_normals(points, mesh.faces) * far
    return move_apart(points.float(), mesh.faces, least)


def _pinched(faces: Tensor, count: int) -> bool:
    """Whether the corners at some vertex of a closed manifold make more than one fan."""
    order = edge_keys(faces, count).argsort(stable=True)
    a, b = order[0::2], order[1::2]
    # The two half-edges of an edge run against each other: start of one is end of the other.
    nexts = a // 3 * 3 + (a + 1) % 3, b // 3 * 3 + (b + 1) % 3
    if not bool((faces.reshape(-1)[a] == faces.reshape(-1)[nexts[1]]).all()):
        return True  # two faces that run alike along their edge: to be turned or parted
    first, second = torch.cat([a, nexts[0]]), torch.cat([nexts[1], b])
    fans = connected_components(first, second, 3 * len(faces))
    return len(fans.unique()) != len(faces.unique())  # type: ignore[no-untyped-call]


def _finished(points: Tensor, faces: Tensor, **counts: float) -> Shells:
    """Return the shells, or raise `MeshRejected` where they are not what was promised."""
    boundary, crowded = boundary_and_nonmanifold_edges(faces, len(points))
    if len(boundary) or len(crowded) or _pinched(faces, len(points)):
        raise MeshRejected(
            f"the surface could not be closed: {len(boundary)} open edges and "
            f"{len(crowded) // 2} crowded ones are left; shell: 'double_sided' keeps it open"
        )
    ends = half_edges(faces)
    labels = connected_components(ends[:, 0], ends[:, 1], len(points))
    shells = len(labels[faces[:, 0]].unique())  # type: ignore[no-untyped-call]
    return Shells(points.float(), faces.int(), ShellReport(shells, **counts))  # type: ignore[arg-type]
