"""Kept sides become a mesh: one vertex for each fan of their corners, closed and manifold.

kept sides ─► a vertex for each fan ─► loops capped, pillows and doubled edges split (`caps`)
           ─► copies of one place moved apart, outwards
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trellis_runtime.engines.trellis2.baking.apart import move_apart
from trellis_runtime.engines.trellis2.baking.caps import (
    cap_loops,
    split_doubled,
    split_pillows,
)
from trellis_runtime.engines.trellis2.baking.connectivity import (
    marked,
    numbered,
    taken,
    vertex_normals,
)
from trellis_runtime.engines.trellis2.baking.sides import (
    Links,
    corner_copies,
    joined_half_edges,
    kept_places,
    turned_over,
)

Mesh = tuple[Tensor, Tensor]
"""Points (V, 3) and faces (F, 3) int32."""


@dataclass(frozen=True, slots=True)
class Copies:
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
class Assembled:
    """A closed manifold mesh of kept sides: points (V, 3), faces (F, 3) int32, loops capped.

    source (V,): as `Copies` has it, -1 for those that were made here; sheet, solid: likewise.
    """

    points: Tensor
    faces: Tensor
    source: Tensor
    sheet: Tensor
    solid: Tensor
    loops: int


def copied(vertices: Tensor, links: Links, kept: Tensor) -> Copies:
    """Return the mesh of the kept sides (2 F,) bool: one vertex for each fan of their corners."""
    block, place = links.block, kept_places(kept)
    joined = joined_half_edges(links, kept, place)
    labels = corner_copies(links, kept, place)
    del place
    sides = kept.nonzero()[:, 0].int()
    corner = roots(labels)
    origin = links.faces[sides[corner // 3].long() // 2, corner % 3]
    made, count = numbered(labels, block)
    del labels
    made = turned_over(sides, made.reshape(-1, 3))
    both = taken(kept[0::2] & kept[1::2], sides // 2, block)
    sheet, solid = marked(made[both], count, block), marked(made[~both], count, block)
    return Copies(taken(vertices, origin, block), made, joined, origin, sheet, solid)


def roots(labels: Tensor) -> Tensor:
    """Return the things (P,) int64 whose label (N,) is their own number: one of each part."""
    own = torch.arange(len(labels), device=labels.device, dtype=labels.dtype)
    return (labels == own).nonzero()[:, 0]


def assembled(copies: Copies, block: int) -> Assembled:
    """Return the mesh with loops capped, pillows and doubled edges split: closed and manifold."""
    origin = copies.source
    mesh, joined = cap_loops(copies.points, copies.faces, copies.joined, block)
    loops = len(mesh[0]) - len(origin)
    mesh = split_doubled(*split_pillows(*mesh, joined, block), block)
    new = len(mesh[0]) - len(origin)
    source = torch.cat([origin, origin.new_full((new,), -1)])
    flags = (copies.sheet, copies.solid)
    sheet, solid = (torch.cat([flag, flag.new_zeros(new)]) for flag in flags)
    return Assembled(*mesh, source, sheet, solid, loops)


def moved_apart(mesh: Assembled, thickness: float, least: float, block: int) -> Tensor:
    """Return points (V, 3) where copies of one vertex stand apart.

    Each moves outwards, into the air that its faces share, so that a sheet has two sides and
    solids that touch along an edge are joined there; sheets to half of `thickness` each, where no
    solid is at them. What meets even then is moved on.
    """
    points = mesh.points
    uses = torch.bincount(mesh.source[mesh.source >= 0], minlength=1)
    several = (mesh.source >= 0) & (taken(uses, mesh.source.clamp(min=0), block) > 1)
    if not bool(several.any()):
        return move_apart(points.float(), mesh.faces, least, block)
    far = torch.where(mesh.sheet & ~mesh.solid, max(least, thickness / 2), least)
    far = (far * several)[:, None].float()
    points = points + vertex_normals(points, mesh.faces, block) * far
    return move_apart(points.float(), mesh.faces, least, block)
