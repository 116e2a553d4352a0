"""From any triangles to closed shells on them: oriented outwards, manifold, nothing resampled.

    triangles ─► both sides of each, linked around edges (`sides`)
              ─► parts that enclose nothing dropped: inner walls, pockets, specks
              ─► insides of leaks dropped (rays: `visibility`), their rims capped (`caps`)
              ─► open sheets cut off, one layer each (`sheets`)
              ─► the rest, a vertex for each fan of corners, copies moved apart (`assembly`)
                                      [here the bake decimates]
              ─► what came open mended; sheets given two sides and a strip along their rims

A decoded surface has no orientation (its crossing flags are booleans), so that no sign of distance
can be had from it. A closed part of sides with positive volume bounds a solid; one with negative
volume bounds a hollow inside a solid, that nobody can see. An open sheet is both: its two sides are
one part of no volume, and it stays as a thin shell. Its sides are made from one layer at the very
end, so that both have the same triangles and cannot pass through each other.

Long because closing and mending share what assembles sides and what judges the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from trellis_runtime.engines.trellis2.baking.apart import move_apart
from trellis_runtime.engines.trellis2.baking.assembly import (
    Mesh,
    assembled,
    copied,
    moved_apart,
    roots,
)
from trellis_runtime.engines.trellis2.baking.components import component_labels
from trellis_runtime.engines.trellis2.baking.connectivity import (
    BLOCK,
    Pairs,
    boundary_and_nonmanifold_edges,
    exact_sum_in_blocks,
    face_areas,
    marked,
    numbered,
    sorted_edges,
    taken,
    without_unused,
)
from trellis_runtime.engines.trellis2.baking.sheets import (
    both_sides,
    layer_of,
    sheet_faces,
    together,
)
from trellis_runtime.engines.trellis2.baking.sides import (
    Links,
    are_clean,
    clean_faces,
    link_sides,
    side_components,
)
from trellis_runtime.engines.trellis2.baking.visibility import hidden_sides
from trellis_runtime.errors import MeshRejected

_THIN = 0.05  # voxels of mean thickness, below which a part of sides encloses nothing
_SPECK = 1e-5  # of all area: a smaller closed part is dropped, as upstream's clean-up does
_APART = 0.02  # voxels that copies of one place move, so that welding does not undo them
_BYTES_PER_FACE = 260  # measured: 150 of a closed surface, 242 of sheets that cannot be cut off
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


@dataclass(frozen=True, slots=True)
class Layered:
    """`Shells` whose open sheets are still one layer of faces, turned anyhow.

    layer (V,) bool: their vertices; None where there is no sheet. No face has both kinds.
    """

    vertices: Tensor
    faces: Tensor
    layer: Tensor | None
    report: ShellReport


def shells_bytes(faces: int, block: int = BLOCK) -> int:
    """Return how much memory closing `faces` faces takes at its peak, beside the inputs.

    It is that of sheets that stay with solids, both sides; others take two thirds at most.
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

    They are those of `close_solids`, its sheets given their two sides at once.
    """
    some = close_solids(
        vertices, faces, voxel, min_thickness=min_thickness, clear=clear, block=block
    )
    if some.layer is None:
        return Shells(some.vertices, some.faces, some.report)
    made = repair_shells(some.vertices, some.faces, voxel, block, some.layer, min_thickness)
    return replace(made, report=replace(some.report, shells=made.report.shells))


def close_solids(
    vertices: Tensor,
    faces: Tensor,
    voxel: float,
    *,
    target: int | None = None,
    min_thickness: float = 0.0,
    clear: Tensor | None = None,
    block: int = BLOCK,
) -> Layered:
    """Return the surface of vertices (V, 3) and faces (F, 3), in any order: solids closed, sheets
    as one layer.

    voxel: side of a voxel, in the mesh's units, by which thin is told from solid. target: faces
    that decimation will leave, by which sheets are judged; all, where it is not given.
    min_thickness: what sheets that are not cut off are thickened to, in the mesh's units, tapering
    to their rims; solids stay as they are. clear (F,) bool: faces that one sees through; what lies
    behind them is not hidden. block: half-edges that are looked at at a time; it changes memory,
    and nothing of the result. Raises `MeshRejected` where nothing is left.
    """
    links, kept, counts = _kept_sides(vertices, faces, voxel, clear, block)
    left = 1.0 if target is None else min(1.0, target / int(kept.sum()))
    chosen, sheets = sheet_faces(links, kept, len(vertices), left), None
    if bool(chosen.any()):
        sheets = layer_of(vertices, links.faces[chosen], block)
        kept = kept.reshape(-1, 2)[~chosen].reshape(-1)
        links = link_sides(vertices, links.faces[~chosen], block)
    del chosen
    if not bool(kept.any()):  # sheets and nothing else
        report = ShellReport(0, **counts)  # type: ignore[arg-type]
        return _with_sheets(Shells(vertices[:0].float(), faces[:0].int(), report), sheets, block)
    copies = copied(vertices, links, kept)
    del links, kept
    made = assembled(copies, block)
    del copies
    points = moved_apart(made, min_thickness, _APART * voxel, block)
    solids = _finished(points, made.faces, block, capped_loops=made.loops, **counts)
    return _with_sheets(solids, sheets, block)


def _with_sheets(solids: Shells, sheets: Mesh | None, block: int) -> Layered:
    if sheets is None:
        return Layered(solids.vertices, solids.faces, None, solids.report)
    vertices, faces = together((solids.vertices, solids.faces), sheets)
    layer = torch.arange(len(vertices), device=vertices.device) >= len(solids.vertices)
    parts = solids.report.shells + _parts(sheets[1], len(sheets[0]), block)
    return Layered(vertices, faces, layer, replace(solids.report, shells=parts))


def _kept_sides(
    vertices: Tensor, faces: Tensor, voxel: float, clear: Tensor | None, block: int
) -> tuple[Links, Tensor, dict[str, float]]:
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
    counts = {
        "thin_share": thin,
        "hidden_faces": int(hidden.sum()),
        "dropped_inner": dropped,
        "dropped_specks": specks,
        "enclosed_faces": int(enclosed.sum()),
    }
    return links, kept, counts


def repair_shells(
    vertices: Tensor,
    faces: Tensor,
    voxel: float,
    block: int = BLOCK,
    layer: Tensor | None = None,
    min_thickness: float = 0.0,
) -> Shells:
    """Return the oriented shells of vertices (V, 3) and faces (F, 3) mended after decimation.

    Faces keep their direction. Where an edge has more than two faces or a vertex several fans, they
    come apart; where a hole has opened it is capped; vertices that have met move apart. layer (V,)
    bool: vertices of sheets, which are given two sides, `min_thickness` from each other.
    """
    if layer is None:
        vertices, faces = _mended(vertices, faces, voxel, block)
    else:
        of_layer, far = taken(layer, faces[:, 0], block), max(_APART * voxel, min_thickness / 2)
        solids = _mended(*_alone(vertices, faces[~of_layer], block), voxel, block)
        sheets = both_sides(*_alone(vertices, faces[of_layer], block), far, block)
        vertices, faces = together(solids, sheets)
    return _finished(move_apart(vertices.float(), faces, _APART * voxel, block), faces, block)


def _alone(vertices: Tensor, faces: Tensor, block: int) -> Mesh:
    faces, used = without_unused(faces, len(vertices), block)
    return vertices[used], faces


def _mended(vertices: Tensor, faces: Tensor, voxel: float, block: int) -> Mesh:
    """Return closed, oriented shells as a manifold again, if they are none."""
    if len(faces) == 0:
        return vertices, faces
    faces = clean_faces(faces, len(vertices), block)
    boundary, crowded = boundary_and_nonmanifold_edges(faces, len(vertices), block)
    if len(boundary) or len(crowded) or _pinched(faces, len(vertices), block):
        links = link_sides(vertices, faces, block)
        kept = torch.arange(2 * len(faces), device=faces.device) % 2 == 0
        made = assembled(copied(vertices, links, kept), block)
        vertices, faces = moved_apart(made, 0.0, _APART * voxel, block), made.faces
    return vertices, faces


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

    fans = component_labels(pairs, 3 * len(faces), faces.device)
    return len(roots(fans)) != int(marked(faces, count, block).sum())


def _finished(points: Tensor, faces: Tensor, block: int, **counts: float) -> Shells:
    """Return the shells, or raise `MeshRejected` where they are not what was promised."""
    boundary, crowded = boundary_and_nonmanifold_edges(faces, len(points), block)
    if len(boundary) or len(crowded) or _pinched(faces, len(points), block):
        raise MeshRejected(
            f"the surface could not be closed: {len(boundary)} open edges and "
            f"{len(crowded) // 2} crowded ones are left; shell: 'double_sided' keeps it open"
        )

    shells = _parts(faces, len(points), block)
    return Shells(points.float(), faces.int(), ShellReport(shells, **counts))  # type: ignore[arg-type]


def _parts(faces: Tensor, count: int, block: int) -> int:
    """Return how many parts faces (F, 3) of `count` vertices make."""

    def pairs() -> Pairs:
        for part in torch.split(faces, block):
            yield part[:, 0], part[:, 1]
            yield part[:, 1], part[:, 2]

    labels = component_labels(pairs, count, faces.device)
    return int(marked(faces, count, block)[roots(labels)].sum())
