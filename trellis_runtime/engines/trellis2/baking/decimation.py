"""Decimation by edge collapses, many at a time, on any device and always the same way.

    faces ─► vertices' quadrics, once
    rounds: edges, their costs ─► those that are cheapest around (and cheap enough)
                                  ─► link condition, flips, slivers ─► collapse ─► compact

An edge may go when its key is the least of all keys that lie within two steps of it (Jones and
Plassmann's independent sets): two edges that go in one round then share no neighbour, so that what
was checked for each stays true. Where one goes or is refused, its neighbourhood is closed and the
rest is asked again, a few times a round. A key is the cost, then the edge's number, scrambled, so
that equal costs do not form queues. The last round takes as many of the cheapest as are due: the
mesh ends with `target` faces, or one less where every collapse takes two.

An open sheet is here as one layer of faces, and is given its two sides and a strip along its rim
only afterwards (`sheets`): its faces and its boundary edges count as two faces each, so that every
collapse takes four, and up to three less may be left. Nothing looks at how its faces turn.

Costs are in `quadrics`. A collapse keeps the topology where the ends' common neighbours are just
the tips of the faces that go (the link condition: Dey, Edelsbrunner, Guha and Nekhayev, Topology
Preserving Edge Contraction, 1999).

Long because rounds, edges and what is around a vertex are one way down, judged together.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trellis_runtime.engines.trellis2.baking import decimation_kernels as kernels
from trellis_runtime.engines.trellis2.baking.connectivity import (
    BLOCK,
    boundary_and_nonmanifold_edges,
    sorted_edges,
    taken,
    vertex_blocks,
    without_unused,
)
from trellis_runtime.engines.trellis2.baking.kernel_types import NEVER
from trellis_runtime.engines.trellis2.baking.launch import launch
from trellis_runtime.engines.trellis2.baking.quadrics import NUMBERS

_PASSES = 4  # how often a round asks the edges that are left
_SHARE = 0.5  # of the faces due: as many of the cheapest edges may go in a round
_LEAST = 0.02  # of the faces, or what is due, goes in a round where anything can
_SLIVER = 0.01  # least evenness that a collapse may give a face: 1 is equilateral, 0 a line
_THINNEST = 1e-8  # evenness that is told from a line
_SAMPLES = 1 << 16  # costs that a round's bound is read off
_STRIP = 2  # faces along a boundary edge of a layer that is given two sides
_BYTES_PER_FACE, _BYTES_PER_HALF_EDGE = 180, 100


@dataclass(frozen=True, slots=True)
class Decimated:
    """vertices (V, 3) float32 and faces (F, 3) int32, and how many rounds it took.

    layer (V,) bool: vertices of sheets that are still one layer, where there were such.
    """

    vertices: Tensor
    faces: Tensor
    rounds: int
    layer: Tensor | None = None


def decimation_bytes(faces: int, block: int = BLOCK) -> int:
    """Return how much memory decimating `faces` faces takes at its peak, beside the inputs."""
    return faces * _BYTES_PER_FACE + min(block, 3 * faces) * _BYTES_PER_HALF_EDGE


def decimate(
    vertices: Tensor,
    faces: Tensor,
    target: int,
    *,
    layer: Tensor | None = None,
    progress: Callable[[int], None] | None = None,
    block: int = BLOCK,
) -> Decimated:
    """Return the mesh with at most `target` faces, or as few as its topology allows.

    vertices (V, 3) float32, faces (F, 3). Closed manifolds stay closed manifolds of the same genus;
    boundaries stay where they are as far as the budget allows. layer (V,) bool: vertices of sheets
    that will be given two sides; no face has some of these and some others. `progress` is told the
    number of faces after each round, sheets' as they will be. block: half-edges that are looked at
    at a time; it changes memory, and nothing of the result.
    """
    mesh = _Mesh.begin(vertices, faces, layer, block)
    rounds, share = 0, _SHARE
    while mesh.count > target:
        before = mesh.count
        mesh.collapse_round(target, share)
        rounds += 1
        if progress is not None:
            progress(mesh.count)
        if mesh.count < before:
            share = _SHARE
        elif share * (before - target) < before:
            share *= 4  # all of the edges, in the end
        elif mesh.sliver > 0.0:
            mesh.allow_slivers()
        else:
            break  # every edge that is left would change the topology, or fold a face
    return Decimated(mesh.vertices, mesh.faces, rounds, mesh.layer)


class _Mesh:
    """A mesh on its way down: vertices, faces, and a quadric for each vertex.

    count: faces that it will have once sheets' layers have two sides.
    """

    def __init__(self, vertices: Tensor, faces: Tensor, quadrics: Tensor, block: int) -> None:
        self.vertices, self.faces, self.quadrics = vertices, faces, quadrics
        self.sliver, self.block, self.count = _SLIVER, block, len(faces)
        self.layer: Tensor | None = None

    @classmethod
    def begin(cls, vertices: Tensor, faces: Tensor, layer: Tensor | None, block: int) -> _Mesh:
        a, b, c = faces.unbind(1)
        real = (a != b) & (b != c) & (c != a)
        quadrics = vertices.new_zeros((len(vertices), NUMBERS), dtype=torch.float64)
        clean = faces[real].int().contiguous()
        mesh = cls(vertices.float().clone().contiguous(), clean, quadrics, block)
        around = _Around.of(mesh.faces, len(mesh.vertices), block)
        rims = _rims(mesh.faces, len(mesh.vertices), block)
        given = [mesh.vertices, mesh.faces, around.starts, around.corners, rims]
        launch(kernels.vertex_quadrics, len(mesh.vertices), [*given, quadrics])
        if layer is not None:
            of_layer = taken(layer, mesh.faces[:, 0], block)
            rim = int((rims.reshape(-1, 3) * of_layer[:, None]).sum())
            mesh.layer, mesh.count = layer, mesh.count + int(of_layer.sum()) + _STRIP * rim
        return mesh

    def allow_slivers(self) -> None:
        """Let faces become thinner: long strips that are thin already stop everything else."""
        self.sliver = self.sliver * 0.1 if self.sliver > _THINNEST else 0.0

    def collapse_round(self, target: int, share: float) -> None:
        """Collapse an independent set of the cheapest edges, down to `target` faces at most.

        The bound follows what is due: near the end only the very cheapest go, as one by one.
        """
        edges = _Edges.of(self)
        around = _Around.of(self.faces, len(self.vertices), self.block)
        excess = self.count - target
        edges.bound(share * excess / self.count)
        closed = torch.zeros(len(self.vertices), dtype=torch.int32, device=self.faces.device)
        chosen = edges.ends.new_empty((0, 2), dtype=torch.int64)
        # Where many edges are refused, those behind them are asked too: a round ends with next to
        # nothing only when no edge is left to ask.
        due = max(1, int(min(excess, _LEAST * self.count) / 2))
        for asked in itertools.count():
            found = self._independent(edges, closed)
            if len(found) == 0 or (asked >= _PASSES and len(chosen) >= due):
                break
            places = self._places(edges, around, found, closed)
            chosen = torch.cat([chosen, torch.stack([found, places], 1)[places > 0]])
        if len(chosen):
            self._collapse(edges, chosen, excess)

    def _independent(self, edges: _Edges, closed: Tensor) -> Tensor:
        """Return edges (N,) int64 whose key is the least within two steps."""
        least = torch.full((len(self.vertices),), NEVER, device=closed.device)
        launch(kernels.least_key, len(edges), [edges.ends, edges.keys, closed, least])
        nearby = least.clone()
        launch(kernels.spread, len(edges), [edges.ends, least, nearby])
        wins = torch.empty(len(edges), dtype=torch.bool, device=closed.device)
        launch(kernels.winners, len(edges), [edges.ends, edges.keys, closed, nearby, wins])
        return wins.nonzero()[:, 0]

    def _places(self, edges: _Edges, around: _Around, which: Tensor, closed: Tensor) -> Tensor:
        """Return where (N,) each of the edges may collapse to, from 1; 0 for one that may not."""
        fine = torch.zeros(len(which), dtype=torch.int32, device=which.device)
        given = [self.vertices, self.faces, self.quadrics, around.starts, around.corners]
        given += [edges.ends, edges.boundary_vertices, edges.dearest]
        launch(kernels.check, len(which), [*given, self.sliver, which, fine, closed, edges.keys])
        return fine.long()

    def _collapse(self, edges: _Edges, chosen: Tensor, excess: int) -> None:
        """Collapse edges, the cheapest first, until `excess` faces are gone.

        chosen (N, 2) int64 are edges and their places.
        """
        chosen = chosen[edges.keys[chosen[:, 0]].argsort()]
        gone = self._gone(edges, chosen[:, 0]).cumsum(0)
        which, places = chosen[: int((gone < excess).sum()) + 1].unbind(1)
        self.count -= int(gone[len(which) - 1])
        which, places = which.contiguous(), places.int().contiguous()
        points = self.vertices.new_empty((len(which), 3))
        given = [self.vertices, self.quadrics, edges.ends, which, places, points]
        launch(kernels.merge, len(which), given)
        kept, lost = edges.ends[which].long().unbind(1)
        self.vertices[kept] = points
        into = torch.arange(len(self.vertices), dtype=torch.int32, device=which.device)
        into[lost] = kept.int()
        faces = taken(into, self.faces.reshape(-1), self.block).reshape(-1, 3)
        a, b, c = faces.unbind(1)
        self.faces = faces[(a != b) & (b != c) & (c != a)]
        self._compact()

    def _gone(self, edges: _Edges, which: Tensor) -> Tensor:
        """Return how many faces (N,) each collapse takes, a sheet's both sides and its strip's."""
        uses = edges.uses[which]
        if self.layer is None:
            return uses
        # Two faces of the layer; or one, and with it a boundary edge and its strip.
        return torch.where(self.layer[edges.ends[which, 0].long()], 2 + _STRIP, uses)

    def _compact(self) -> None:
        """Drop the vertices that no face uses any more."""
        self.faces, used = without_unused(self.faces, len(self.vertices), self.block)
        self.vertices, self.quadrics = self.vertices[used], self.quadrics[used]
        if self.layer is not None:
            self.layer = self.layer[used]


@dataclass(slots=True)
class _Edges:
    """ends (E, 2) int32, the lower first; uses (E,): how many faces share it; keys (E,) int64.

    boundary_vertices (V,) int32: whether an edge of one face ends there. dearest (1,) float32: what
    a collapse of this round may cost.
    """

    ends: Tensor
    uses: Tensor
    keys: Tensor
    boundary_vertices: Tensor
    dearest: Tensor

    def __len__(self) -> int:
        return len(self.ends)

    @classmethod
    def of(cls, mesh: _Mesh) -> _Edges:
        count, ends, uses = len(mesh.vertices), [], []
        for _, keys in sorted_edges(mesh.faces, count, mesh.block):
            edge, number = torch.unique_consecutive(keys, return_counts=True)
            ends.append(torch.stack([edge // count, edge % count], 1).int())
            uses.append(number.int())
        return cls._costed(mesh, torch.cat(ends), torch.cat(uses))

    @classmethod
    def _costed(cls, mesh: _Mesh, ends: Tensor, uses: Tensor) -> _Edges:
        rim = torch.zeros(len(mesh.vertices), dtype=torch.int32, device=ends.device)
        rim[ends[uses == 1].reshape(-1).long()] = 1
        costs = torch.empty(len(ends), device=ends.device)
        launch(kernels.cost, len(ends), [mesh.vertices, mesh.quadrics, ends, costs])
        return cls(ends, uses, _ordered(costs, mesh.block), rim, costs.new_full((1,), torch.inf))

    def bound(self, share: float) -> None:
        """Leave out all but about that share of the edges, the cheapest; sets `dearest`."""
        if share >= 1.0 or len(self) == 0:
            return
        step = max(1, len(self) // _SAMPLES)
        sample = self.keys[::step].sort().values
        bound = sample[int(len(sample) * share)]
        self.keys.masked_fill_(self.keys > bound, NEVER)
        self.dearest = (bound >> 32).int().view(torch.float32).reshape(1)


def _ordered(costs: Tensor, block: int) -> Tensor:
    """Return keys (E,) int64: a cost's bits, whose order is the costs', over a scrambled number."""
    keys = torch.empty(len(costs), dtype=torch.int64, device=costs.device)
    for start in range(0, len(costs), block):
        some = costs[start : start + block]
        number = torch.arange(start, start + len(some), device=costs.device)
        scrambled = (number * 2654435761) & 0xFFFFFFFF  # Knuth's multiplier is odd: one to one
        keys[start : start + block] = (some.view(torch.int32).long() << 32) | scrambled
    return keys


@dataclass(frozen=True, slots=True)
class _Around:
    """The corners at each vertex: corners (3 F,) int32, those of vertex v at starts[v : v + 1]."""

    starts: Tensor
    corners: Tensor

    @classmethod
    def of(cls, faces: Tensor, count: int, block: int) -> _Around:
        at = faces.reshape(-1)
        starts = torch.zeros(count + 1, dtype=torch.int32, device=at.device)
        starts[1:] = torch.bincount(at, minlength=count).cumsum(0)
        corners = []
        for which in vertex_blocks(at, count, block):
            corners.append(which[at[which].argsort(stable=True)].int())
        return cls(starts, torch.cat(corners))


def _rims(faces: Tensor, count: int, block: int) -> Tensor:
    """Return (3 F,) int32: half-edges that no other face shares."""
    rims = torch.zeros(3 * len(faces), dtype=torch.int32, device=faces.device)
    rims[boundary_and_nonmanifold_edges(faces, count, block)[0]] = 1
    return rims
