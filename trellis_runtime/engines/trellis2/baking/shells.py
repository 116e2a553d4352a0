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

Long because closing and mending share what assembles sides and what judges the result.
"""

from __future__ import annotations

from collections.abc import Callable
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
    BLOCK,
    Pairs,
    boundary_and_nonmanifold_edges,
    component_labels,
    exact_sum_in_blocks,
    face_areas,
    marked,
    numbered,
    sorted_edges,
    taken,
    vertex_normals,
)
from trellis_runtime.engines.trellis2.baking.sides import (
    Links,
    are_clean,
    clean_faces,
    corner_copies,
    joined_half_edges,
    kept_places,
    link_sides,
    side_components,
    turned_over,
)
from trellis_runtime.engines.trellis2.baking.visibility import hidden_sides
from trellis_runtime.errors import MeshRejected

_THIN = 0.05  # voxels of mean thickness, below which a part of sides encloses nothing
_SPECK = 1e-5  # of all area: a smaller closed part is dropped, as upstream's clean-up does
_APART = 0.02  # voxels that copies of one place move, so that welding does not undo them
_BYTES_PER_FACE = 260  # measured: 150 of a closed surface, 242 of an open one, which doubles
_BYTES_PER_LINK = 100


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


def shells_bytes(faces: int, block: int = BLOCK) -> int:
    """Return how much memory closing `faces` faces takes at its peak, beside the inputs.

    It is that of an open surface, whose both sides stay; a closed one takes two thirds.
    """
    return faces * _BYTES_PER_FACE + min(block, 3 * faces) * _BYTES_PER_LINK


def close_surface(
    vertices: Tensor,
    faces: Tensor,
    voxel: float,
    *,
    min_thickness: float = 0.0,
    clear: Tensor | None = None,
    block: int = BLOCK,
) -> Shells:
    """Return closed shells on the surface of vertices (V, 3) and faces (F, 3), in any order.

    voxel: side of a voxel, in the mesh's units, by which thin is told from solid. min_thickness:
    what open sheets are thickened to, in the mesh's units, tapering to their rims; solids stay as
    they are. clear (F,) bool: faces that one sees through; what lies behind them is not hidden.
    block: half-edges that are looked at at a time; it changes memory, and nothing of the result.
    Raises `MeshRejected` where nothing is left.
    """
    copies, counts = _kept_sides(vertices, faces, voxel, clear, block)
    made = _assembled(copies, block)
    del copies
    points = _moved_apart(made, min_thickness, _APART * voxel, block)
    return _finished(points, made.faces, block, capped_loops=made.loops, **counts)


def _kept_sides(
    vertices: Tensor, faces: Tensor, voxel: float, clear: Tensor | None, block: int
) -> tuple[_Copies, dict[str, float]]:
    """Return those sides that bound something and can be seen, and what was counted."""
    chosen = are_clean(faces, len(vertices), block)
    faces, clear = faces[chosen].int(), None if clear is None else clear[chosen]
    if len(faces) == 0:
        raise MeshRejected("the decoded surface has no face with an area; another seed may help")
    links = link_sides(vertices, faces, block)
    area = face_areas(vertices, faces, block)
    kept, dropped, specks = _enclosing(vertices, links, area, voxel)
    both = kept[0::2] & kept[1::2]
    thin = float((area * both).sum() / area.sum().clamp(min=1e-30))
    hidden, enclosed = hidden_sides(vertices, links, kept, area, voxel, clear)
    kept = kept & ~hidden & ~enclosed
    if not bool(kept.any()):
        raise MeshRejected(
            "no part of the decoded surface encloses anything; another seed may help"
        )
    counts = {"thin_share": thin, "hidden_faces": int(hidden.sum())}
    within = int(enclosed.sum())
    return _copied(vertices, links, kept), counts | {
        "dropped_inner": dropped,
        "dropped_specks": specks,
        "enclosed_faces": within,
    }


def repair_shells(vertices: Tensor, faces: Tensor, voxel: float, block: int = BLOCK) -> Shells:
    """Return the oriented shells of vertices (V, 3) and faces (F, 3) mended after decimation.

    Faces keep their direction. Where an edge has more than two faces or a vertex several fans, they
    come apart; where a hole has opened it is capped; vertices that have met move apart.
    """
    faces = clean_faces(faces, len(vertices), block)
    boundary, crowded = boundary_and_nonmanifold_edges(faces, len(vertices), block)
    if len(boundary) or len(crowded) or _pinched(faces, len(vertices), block):
        links = link_sides(vertices, faces, block)
        kept = torch.arange(2 * len(faces), device=faces.device) % 2 == 0
        made = _assembled(_copied(vertices, links, kept), block)
        vertices, faces = _moved_apart(made, 0.0, _APART * voxel, block), made.faces
    return _finished(move_apart(vertices.float(), faces, _APART * voxel, block), faces, block)


def orient_double_sided(
    vertices: Tensor, faces: Tensor, block: int = BLOCK
) -> tuple[Tensor, Tensor]:
    """Return vertices, and faces (F', 3) int32 that turn alike wherever that can be.

    The surface stays open. Faces that hang together over edges of two turn so that they enclose
    more than nothing; what cannot be oriented (a Moebius band) stays as it was.
    """
    faces = clean_faces(faces, len(vertices), block)
    links = link_sides(vertices, faces, block)
    part, count = numbered(side_components(links, plain=True), block)
    area = face_areas(vertices, faces, block)
    volume = exact_sum_in_blocks(_side_values(vertices, faces, area, part, block), count)[:, 0]
    front, back = part[0::2], part[1::2]
    turned = taken(volume, back, block) > taken(volume, front, block)
    same = taken(volume, back, block) == taken(volume, front, block)
    turned = torch.where(same, back < front, turned)  # flat: the part that was numbered first
    return vertices.float(), torch.where(turned[:, None], faces[:, [0, 2, 1]], faces).int()


def _enclosing(
    vertices: Tensor, links: Links, area: Tensor, voxel: float
) -> tuple[Tensor, int, int]:
    """Return which sides (2 F,) bool bound a solid or a sheet; inner parts and specks dropped."""
    part, count = numbered(side_components(links), links.block)
    values = _side_values(vertices, links.faces, area, part, links.block)
    sums = exact_sum_in_blocks(values, count)
    inner = sums[:, 0] <= -_THIN * voxel * sums[:, 1]
    speck = ~inner & (sums[:, 1] < 2 * _SPECK * float(area.sum()))
    if bool((inner | speck).all()):
        speck = torch.zeros_like(speck)
    return taken(~(inner | speck), part, links.block), int(inner.sum()), int(speck.sum())


def _side_values(
    vertices: Tensor, faces: Tensor, area: Tensor, part: Tensor, block: int
) -> Callable[[], Pairs]:
    """Return what gives each side's part and, (N, 2), the signed volume between it and the mesh's
    middle and its area, some sides at a time.
    """
    middle = vertices.double().mean(0)

    def blocks() -> Pairs:
        step = max(1, block // 3)
        for start in range(0, len(faces), step):
            some = slice(start, start + step)
            a, b, c = (vertices[faces[some, i].long()].double() - middle for i in range(3))
            volume = (a * torch.linalg.cross(b, c)).sum(1) / 6
            sides = torch.stack([volume, area[some], -volume, area[some]], 1).reshape(-1, 2)
            yield part[2 * start : 2 * (start + step)], sides

    return blocks


@dataclass(frozen=True, slots=True)
class _Copies:
    """The kept sides as a mesh, copies still together and loops still open.

    points (V, 3), faces (F, 3) int32, joined (P, 2) int32: half-edges that face each other. source
    (V,): which vertex each is a copy of. sheet and solid (V,) bool: whether a two-sided, a
    one-sided face has it.
    """

    points: Tensor
    faces: Tensor
    joined: Tensor
    source: Tensor
    sheet: Tensor
    solid: Tensor


@dataclass(frozen=True, slots=True)
class _Assembled:
    """A closed manifold mesh of kept sides: points (V, 3), faces (F, 3) int32, loops capped.

    source (V,): as `_Copies` has it, -1 for those that were made here; sheet, solid: likewise.
    """

    points: Tensor
    faces: Tensor
    source: Tensor
    sheet: Tensor
    solid: Tensor
    loops: int


def _copied(vertices: Tensor, links: Links, kept: Tensor) -> _Copies:
    """Return the mesh of the kept sides (2 F,) bool: one vertex for each fan of their corners."""
    block, place = links.block, kept_places(kept)
    joined = joined_half_edges(links, kept, place)
    labels = corner_copies(links, kept, place)
    del place
    sides = kept.nonzero()[:, 0].int()
    corner = _roots(labels)
    origin = links.faces[sides[corner // 3].long() // 2, corner % 3]
    made, count = numbered(labels, block)
    del labels
    made = turned_over(sides, made.reshape(-1, 3))
    both = taken(kept[0::2] & kept[1::2], sides // 2, block)
    sheet, solid = marked(made[both], count, block), marked(made[~both], count, block)
    return _Copies(taken(vertices, origin, block), made, joined, origin, sheet, solid)


def _roots(labels: Tensor) -> Tensor:
    """Return the things (P,) int64 whose label (N,) is their own number: one of each part."""
    own = torch.arange(len(labels), device=labels.device, dtype=labels.dtype)
    return (labels == own).nonzero()[:, 0]


def _assembled(copies: _Copies, block: int) -> _Assembled:
    """Return the mesh with loops capped, pillows and doubled edges split: closed and manifold."""
    origin = copies.source
    mesh, joined = cap_loops(copies.points, copies.faces, copies.joined, block)
    loops = len(mesh[0]) - len(origin)
    mesh = split_doubled(*split_pillows(*mesh, joined, block), block)
    new = len(mesh[0]) - len(origin)
    source = torch.cat([origin, origin.new_full((new,), -1)])
    flags = (copies.sheet, copies.solid)
    sheet, solid = (torch.cat([flag, flag.new_zeros(new)]) for flag in flags)
    return _Assembled(*mesh, source, sheet, solid, loops)


def _moved_apart(mesh: _Assembled, thickness: float, least: float, block: int) -> Tensor:
    """Return points (V, 3) where copies of one vertex stand apart.

    Each moves outwards, into the air that its faces share, so that a sheet has two sides and
    solids that touch along an edge are joined there; sheets to half of `thickness` each, where no
    solid is at them. What meets even then is moved on.
    """
    points = mesh.points
    uses = torch.bincount(mesh.source[mesh.source >= 0], minlength=1)
    copied = (mesh.source >= 0) & (taken(uses, mesh.source.clamp(min=0), block) > 1)
    if not bool(copied.any()):
        return move_apart(points.float(), mesh.faces, least, block)
    far = torch.where(mesh.sheet & ~mesh.solid, max(least, thickness / 2), least)
    far = (far * copied)[:, None].float()
    points = points + vertex_normals(points, mesh.faces, block) * far
    return move_apart(points.float(), mesh.faces, least, block)


def _pinched(faces: Tensor, count: int, block: int) -> bool:
    """Whether the corners at some vertex of a closed manifold make more than one fan."""
    order = [faces.new_empty(0, dtype=torch.int32)]
    for some, _ in sorted_edges(faces, count, block):
        a, b = some[0::2], some[1::2]
        # The two half-edges of an edge run against each other: start of one is end of the other.
        if not bool((faces[a // 3, a % 3] == faces[b // 3, (b + 1) % 3]).all()):
            return True  # two faces that run alike along their edge: to be turned or parted
        order.append(some.int())
    edges = torch.cat(order).reshape(-1, 2)
    del order

    def pairs() -> Pairs:
        for part in torch.split(edges, block):
            nexts = part // 3 * 3 + (part + 1) % 3
            yield part[:, 0], nexts[:, 1]
            yield nexts[:, 0], part[:, 1]

    fans = component_labels(pairs, 3 * len(faces), faces.device, block)
    return len(_roots(fans)) != int(marked(faces, count, block).sum())


def _finished(points: Tensor, faces: Tensor, block: int, **counts: float) -> Shells:
    """Return the shells, or raise `MeshRejected` where they are not what was promised."""
    boundary, crowded = boundary_and_nonmanifold_edges(faces, len(points), block)
    if len(boundary) or len(crowded) or _pinched(faces, len(points), block):
        raise MeshRejected(
            f"the surface could not be closed: {len(boundary)} open edges and "
            f"{len(crowded) // 2} crowded ones are left; shell: 'double_sided' keeps it open"
        )

    def pairs() -> Pairs:
        for part in torch.split(faces, block):
            yield part[:, 0], part[:, 1]
            yield part[:, 1], part[:, 2]

    labels = component_labels(pairs, len(points), faces.device, block)
    shells = int(marked(faces, len(points), block)[_roots(labels)].sum())
    return Shells(points.float(), faces.int(), ShellReport(shells, **counts))  # type: ignore[arg-type]
