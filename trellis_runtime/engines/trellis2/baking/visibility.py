"""Which sides of a surface can be seen from outside: leaks told from sheets, contents from shells.

    sides, cut apart at rims and crowded edges   ─► parts ─► sample sides of each ─► rays to the sky
        a part of which hardly a ray escapes     ─► the inside of a leak: dropped, its rim capped
    sides, as they hang together                 ─► closed parts
        one of which no ray escapes              ─► lies within another: dropped

A hole that was not filled joins the outside of a body with its inside, so that neither can be told
by volume; nor can they where walls touch and the order of faces around an edge is wrong. What tells
a leak from the mouth of a vase is how wide it is, not how much sky it shows: forty pricks show more
than the neck of a bottle does. So a ray counts as escaping only if four more beside it do, two
voxels away: together they pass no round hole of under four voxels across, and no slit of under
2.8. Rays go in random directions of a side's half-space, the same ones on any device.

Faces that one sees through (`clear`) stop no ray where the question is what can be seen: what lies
in a glass stays. They do where it is what leaked: the glass's own inside is dropped as any other's.
"""

# No `from __future__ import annotations` here: Warp reads the kernel's annotations as types.

import torch
import warp
from torch import Tensor

from trellis_runtime.engines.trellis2.baking.connectivity import (
    Pairs,
    exact_sum_by,
    exact_sum_in_blocks,
    marked,
    numbered,
    taken,
)
from trellis_runtime.engines.trellis2.baking.launch import launch
from trellis_runtime.engines.trellis2.baking.nearest import Surface
from trellis_runtime.engines.trellis2.baking.sides import Links, side_components

_RAYS = 32  # from each sampled side
_SAMPLES = 32_768  # sides in all, shared out between the parts
_MOST, _FEWEST = 256, 16  # sides of one part
_LEAST_SHARE = 1e-3  # of all area: with less of it two-sided, nothing has leaked
_SMALL_PART = 1e-4  # of all area: smaller parts go as what they hang together with
_SKY = 0.03  # of the sides: a part of which fewer see the sky by a wide ray is inside
_BLACK = 1e-3  # of the thin rays: what sees less than that is not seen at all
_PRICKS = 0.03  # of the thin rays: what sees more than that stays, wide rays or not
_LIFT = 0.02  # voxels above its side that a ray starts
_WIDE = 2.5  # voxels between a ray and those beside it
_SPREADING = 16  # rounds, each of which reaches one small part further
_TREE_BYTES = 100  # of a tree for each link that is looked at at a time
_FAR = 4.0  # beyond a mesh in -0.5..0.5


@warp.func
def _stopped(mesh: warp.uint64, start: warp.vec3, along: warp.vec3, far: warp.float32) -> bool:
    return warp.mesh_query_ray(mesh, start, warp.normalize(along), far).result


@warp.kernel(enable_backward=False)
def _escaping(
    mesh: warp.uint64,
    origins: warp.array(dtype=warp.vec3),  # type: ignore[valid-type]
    normals: warp.array(dtype=warp.vec3),  # type: ignore[valid-type]
    directions: warp.array(dtype=warp.vec3),  # type: ignore[valid-type]
    rays: warp.int32,
    wide: warp.float32,
    free: warp.array(dtype=warp.int32),  # type: ignore[valid-type]
) -> None:
    """free: lowered to 0 where the ray is stopped, to 1 where only one beside it is."""
    i = warp.tid()
    origin = origins[i // rays]
    along = directions[i]
    far = warp.float32(_FAR)
    if free[i] == 0 or _stopped(mesh, origin, along, far):
        free[i] = 0  # perhaps by another part of the surface
        return
    if free[i] == 1:
        return
    free[i] = 1
    # Those beside it start where one gets to within the same air: else they begin beyond the wall.
    normal = normals[i // rays]
    if _stopped(mesh, origin, normal, wide):
        return
    middle = origin + normal * wide
    across = warp.vec3(1.0, 0.0, 0.0)
    if warp.abs(along[0]) > 0.7:
        across = warp.vec3(0.0, 1.0, 0.0)
    u = warp.normalize(warp.cross(along, across)) * wide
    v = warp.cross(along, u)
    for k in range(4):
        beside = warp.where(k // 2 == 0, u, v) * warp.where(k % 2 == 0, 1.0, -1.0)
        if _stopped(mesh, middle, beside, wide):
            return
        if _stopped(mesh, middle + beside, along, far):
            return
    free[i] = 2


def hidden_sides(
    vertices: Tensor,
    links: Links,
    kept: Tensor,
    area: Tensor,
    voxel: float,
    clear: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return which kept sides (2 F,) bool are the insides of leaks, and which lie within others.

    area (F,) float64: of the faces. clear (F,) bool: faces that one sees through, None for none.
    No ray is sent where hardly any face kept both its sides and all that is kept hangs together.
    """
    view = _View(vertices, links.faces, area, voxel, clear, links.block)
    leaked, bright = _leaked(view, links, kept)
    return leaked, _enclosed(view, links, kept & ~leaked, bright)


class _View:
    """Rays from the sides of a surface; the trees over its faces are built when first needed."""

    def __init__(
        self,
        vertices: Tensor,
        faces: Tensor,
        area: Tensor,
        voxel: float,
        clear: Tensor | None,
        block: int,
    ) -> None:
        self.vertices, self.faces, self.voxel = vertices.float(), faces, voxel
        self.area, self.clear, self.block = area, clear, block
        self._all = self._opaque = Surface(self.vertices, faces)
        if clear is not None:
            self._opaque = Surface(self.vertices, faces[~clear])

    def of_parts(
        self, part: Tensor, asked: Tensor, count: int, *, through: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return, part by part (count,): the share of rays that escape from its `asked` sides, the
        share of sides of which a wide one does, and whether it was large enough to be asked.

        part (2 F,): which part a side belongs to. through: whether rays pass clear faces.
        """
        area = exact_sum_in_blocks(lambda: self._areas(part, asked), count)[:, 0]
        large = area > _SMALL_PART * float(self.area.sum())
        sides = _sampled(part, asked & taken(large, part, self.block), count, self.block)
        free = self._free(sides, self._opaque if through else self._all)
        found = torch.stack([(free > 0).double().mean(1), (free > 1).any(1).double()], 1)
        owner = part[sides].long()
        number = torch.bincount(owner, minlength=count).clamp(min=1)
        shares = exact_sum_by(owner, found, count) / number[:, None]
        return shares[:, 0], shares[:, 1], large

    def _areas(self, part: Tensor, asked: Tensor) -> Pairs:
        """Yield asked sides' parts (N,) and areas (N, 1), some at a time."""
        for start in range(0, len(part), self.block):
            some = asked[start : start + self.block].nonzero()[:, 0] + start
            # The leading zero: sums are asked for the largest of each block, and it may have none.
            zero = self.area.new_zeros(1)
            yield (
                torch.cat([part[:1], part[some]]),
                torch.cat([zero, self.area[some // 2]])[:, None],
            )

    def _free(self, sides: Tensor, among: Surface) -> Tensor:
        """Return how free (N, rays) int32 the rays of each side are: 0 where one is stopped, 1
        where only one beside it is, 2 where none is.
        """
        free = torch.full((len(sides) * _RAYS,), 2, dtype=torch.int32, device=sides.device)
        if len(free) == 0 or len(among.faces) == 0:
            return free.reshape(-1, _RAYS)
        a, b, c = (self.vertices[self.faces[sides // 2, i].long()] for i in range(3))
        normal = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=1)
        normal = torch.where((sides % 2 == 1)[:, None], -normal, normal).contiguous()
        origins = ((a + b + c) / 3 + normal * (_LIFT * self.voxel)).contiguous()
        directions = _directions(normal)
        given = [origins, normal, directions, _RAYS, _WIDE * self.voxel, free]
        for tree in among.trees(self.block * _TREE_BYTES):
            launch(_escaping, len(free), [tree.id, *given])
        return free.reshape(-1, _RAYS)


def _leaked(view: _View, links: Links, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Return which sides (2 F,) bool of two-sided faces are the insides of leaks, and which are
    known to see the sky.
    """
    twice = kept[0::2] & kept[1::2]
    none = torch.zeros_like(kept)
    if float(view.area[twice].sum()) < _LEAST_SHARE * float(view.area.sum()):
        return none, none
    both = twice.repeat_interleave(2)
    part, count = numbered(side_components(links, plain=True), view.block)
    thin, wide, asked = view.of_parts(part, both, count)
    dark = asked & (wide < _SKY) & (thin < _PRICKS)
    black = asked & (wide < _SKY) & (thin < _BLACK)
    if view.clear is not None:
        dark, black = _seen_through(view, view.clear, part, both, dark, black)
    bright = taken(asked & (wide >= _SKY), part, view.block) & both
    if not bool(dark.any()):
        return none, bright
    leaked = both & taken(_as_their_neighbours(links, part, dark, asked), part, view.block)
    # A face that is dark on both sides is a sheet in a shadow: it stays, unless it is black.
    shadow = leaked & leaked.reshape(-1, 2).flip(1).reshape(-1)
    return leaked & (~shadow | taken(black, part, view.block)), bright


def _seen_through(
    view: _View, clear: Tensor, part: Tensor, both: Tensor, dark: Tensor, black: Tensor
) -> tuple[Tensor, Tensor]:
    """Return which parts (count,) bool are dark and which are black, those apart that are seen
    through clear faces: with the opaque ones of their own sides not dark, with any not black.
    """
    opaque = both & ~clear.repeat_interleave(2)
    thin, wide, asked = view.of_parts(part, opaque, len(dark), through=True)
    dark = dark & ~(asked & ((wide >= _SKY) | (thin >= _PRICKS)))
    thin, wide, asked = view.of_parts(part, both, len(dark), through=True)
    return dark, black & ~(asked & ((wide >= _SKY) | (thin >= _BLACK)))


def _as_their_neighbours(links: Links, part: Tensor, dark: Tensor, asked: Tensor) -> Tensor:
    """Return which parts (count,) are dark, where those not asked go as their links' majority."""
    votes = torch.where(dark, 1, -1) * asked
    for _ in range(_SPREADING):
        heard = torch.zeros_like(votes)
        for some in links.parts():
            first, second = (part[sides].long() for sides in links.sides(some))
            heard.index_add_(0, first, votes[second])
            heard.index_add_(0, second, votes[first])
        following = torch.where(asked, votes, heard.sign())
        if torch.equal(following, votes):
            break
        votes = following
    return votes > 0


def _enclosed(view: _View, links: Links, kept: Tensor, bright: Tensor) -> Tensor:
    """Return which sides (2 F,) bool belong to closed parts that cannot be seen at all."""
    part, count = numbered(side_components(links, kept), view.block)
    known = marked(part[bright & kept], count, view.block)
    none = torch.zeros_like(kept)
    if int(marked(part[kept], count, view.block).sum()) < 2:
        return none
    asked = kept & ~taken(known, part, view.block)
    thin, wide, large = view.of_parts(part, asked, count, through=True)
    unseen = large & (wide == 0) & (thin < _PRICKS)
    hidden = kept & taken(unseen, part, view.block)
    return none if bool((hidden == kept).all()) else hidden


def _sampled(part: Tensor, asked: Tensor, count: int, block: int) -> Tensor:
    """Return sides (N,) int64, evenly by number from each part; a small part's more than once."""
    size = torch.zeros(count, dtype=torch.int64, device=part.device)
    for start in range(0, len(part), block):
        some = part[start : start + block][asked[start : start + block]]
        size += torch.bincount(some, minlength=count)
    there = size.nonzero()[:, 0]
    if len(there) == 0:
        return there
    each = min(max(_SAMPLES // len(there), _FEWEST), _MOST)
    within = torch.arange(each, device=part.device)[None] * size[there, None] // each
    chosen, before = torch.zeros_like(within), torch.zeros_like(size)
    for start in range(0, len(part), block):
        sides = asked[start : start + block].nonzero()[:, 0] + start
        sides = sides[part[sides].argsort(stable=True)]
        number = torch.bincount(part[sides], minlength=count)
        at = within - before[there, None]  # among this block's sides of the part
        here = (at >= 0) & (at < number[there, None])
        begin = (number.cumsum(0) - number)[there, None]
        chosen[here] = sides[(begin + at)[here]]
        before += number
    return chosen.reshape(-1)


def _directions(normal: Tensor) -> Tensor:
    """Return directions (N * rays, 3) in the half-spaces of normals (N, 3), evenly spread."""
    generator = torch.Generator().manual_seed(0)  # on the CPU: the same rays on any device
    drawn = torch.randn((len(normal), _RAYS, 3), generator=generator).to(normal.device)
    drawn = torch.nn.functional.normalize(drawn, dim=2)
    facing = (drawn * normal[:, None]).sum(2, keepdim=True)
    return (drawn * torch.where(facing < 0, -1.0, 1.0)).reshape(-1, 3).contiguous()
