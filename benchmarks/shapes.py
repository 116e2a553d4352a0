"""Shapes that the bake is judged on, as the decoder would give them.

Each is a list of fields (`dual_grid.Part`): parts with windows, holes, sheets and thin things, from
which `dual_grid` makes unoriented triangles and voxels; colours are waves of the position. Long, as
it is a list: nine shapes and the few fields they are built from.

Long because each shape is a function of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.dual_grid import Bools, Floats, Ints, Part, dual_grid, pricked, triangles

_SHIFT = np.array([0.00031, -0.00017, 0.00023], np.float32)  # no surface passes a lattice point


@dataclass(frozen=True, slots=True)
class Shape:
    """What the decoders give.

    vertices (V, 3) float32 in -0.5..0.5; faces (F, 3) int32, not oriented; coords (L, 3) int32 in
    cells of `resolution` a side; attributes (L, 6) float32 in 0..1: base colour, metallic,
    roughness, alpha. `closed`: whether the surface bounds a solid, pricked holes aside.
    """

    name: str
    resolution: int
    closed: bool
    vertices: Floats
    faces: NDArray[np.int32]
    coords: NDArray[np.int32]
    attributes: Floats


# ---------------------------------------------------------------------------------------- the set


def make_shape(
    name: str,
    resolution: int,
    *,
    pricks: int = 0,
    jitter: float = 0.0,
    alpha: str = "opaque",
    seed: int = 0,
) -> Shape:
    """Return the shape called `name` (one of `SHAPES`), voxelised at `resolution` cells a side.

    pricks: how many small holes, a cell or two wide, are made in it. jitter: standard deviation
    of noise on the vertices, in cells. alpha: "opaque", "mask" (a pattern of holes) or "blend" (a
    translucent half). The same arguments give the same arrays.
    """
    closed, build = SHAPES[name]
    rng = np.random.default_rng(seed)
    cells, vertices, quads = dual_grid(build(1.0 / resolution), resolution)
    if pricks:
        quads = pricked(quads, vertices, pricks, rng)
    if jitter:
        vertices = vertices + rng.normal(0, jitter, vertices.shape)
    centres = ((cells + 0.5) / resolution - 0.5).astype(np.float32)
    return Shape(
        name,
        resolution,
        closed,
        (vertices / resolution - 0.5).astype(np.float32),
        triangles(vertices, quads, rng),
        cells.astype(np.int32),
        attributes_at(centres, alpha),
    )


def cached_shape(folder: Path, name: str, resolution: int, **options: Any) -> Shape:
    """Return `make_shape` of the same arguments, kept as .npz in `folder` for the next time."""
    wishes = "".join(f"_{key}-{value}" for key, value in sorted(options.items()))
    path = folder / f"{name}_{resolution}{wishes}.npz"
    if not path.exists():
        shape = make_shape(name, resolution, **options)
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            arrays = ("vertices", "faces", "coords", "attributes")
            np.savez(file, **{key: getattr(shape, key) for key in arrays})
        return shape
    kept = np.load(path)
    closed = SHAPES[name][0]
    return Shape(name, resolution, closed, **{key: kept[key] for key in kept.files})


def attributes_at(points: Floats, alpha: str = "opaque") -> Floats:
    """Return attributes (N, 6) of points (N, 3): waves of some 1/6 and 1/15 of the box's side."""
    x, y, z = points.T.astype(np.float32)
    along = np.stack([x + 0.4 * y - 0.2 * z, y - 0.5 * z + 0.3 * x, z + 0.6 * x - 0.3 * y], 1)
    color = 0.5 + 0.32 * np.sin(38 * along) + 0.1 * np.sin(95 * along[:, [1, 2, 0]] + 1)
    metallic = 0.5 + 0.4 * np.sin(20 * x) * np.cos(20 * z)
    roughness = 0.55 + 0.35 * np.cos(25 * y)
    opacity = {
        "opaque": np.ones_like(x),
        "mask": (np.sin(60 * x) * np.sin(60 * y) * np.sin(60 * z) < 0.4).astype(np.float32),
        "blend": np.clip(0.5 + 60 * x, 0.35, 1.0).astype(np.float32),
    }[alpha]
    rest = np.stack([metallic, roughness, opacity], 1)
    return np.clip(np.concatenate([color, rest], 1), 0, 1).astype(np.float32)


# ----------------------------------------------------------------------------------------- fields


def _one(low: float = -0.49, high: float = 0.49) -> Floats:
    return np.array([[[low] * 3, [high] * 3]], np.float32)


def _around(centres: Floats, radii: Floats) -> Floats:
    """Return boxes (P, 2, 3) of balls."""
    reach = np.asarray(radii, np.float32)[:, None] * 1.02 + 0.003
    return np.clip(np.stack([centres - reach, centres + reach], 1), -0.495, 0.495)


def _rotations(count: int, rng: np.random.Generator) -> Floats:
    """Return rotations (P, 3, 3), uniform."""
    q, r = np.linalg.qr(rng.normal(size=(count, 3, 3)))
    return np.asarray(q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None], np.float32)


def _local(points: Floats, which: Ints, centres: Floats, turns: Floats) -> Floats:
    return np.asarray(np.einsum("nij,nj->ni", turns[which], points - centres[which]))


def _length(*parts: Any) -> Any:
    return np.sqrt(sum(part * part for part in parts))


def _box(points: Any, half: Any) -> Any:
    """Signed distance to a box of half sides `half` around the origin."""
    beyond = np.abs(points) - half
    outside = _length(*np.maximum(beyond, 0).T)
    return outside + np.minimum(beyond.max(1), 0)


def _cylinder(points: Any, radius: float, half: float, axis: int = 2) -> Any:
    across = [points[:, i] for i in range(3) if i != axis]
    return np.maximum(_length(*across) - radius, np.abs(points[:, axis]) - half)


def _smooth_min(a: Any, b: Any, width: float) -> Any:
    h = np.maximum(width - np.abs(a - b), 0) / width
    return np.minimum(a, b) - h * h * width / 4


# ----------------------------------------------------------------------------------------- shapes


def _perforated_sheet(_: float) -> list[Part]:
    def field(p: Floats, _: Ints) -> Floats:
        return np.asarray((p[:, 2] - 0.06 * np.sin(7 * p[:, 0]) * np.cos(5 * p[:, 1])) / 1.13)

    def keep(p: Floats, _: Ints) -> Bools:
        pitch = 0.07
        inside = np.abs(p[:, :2]).max(1) < 0.44
        away = p[:, :2] / pitch - np.round(p[:, :2] / pitch)
        return np.asarray(inside & (_length(*away.T) * pitch > 0.016))

    return [Part(field, _one(), keep)]


def _thin_tubes(cell: float) -> list[Part]:
    rng = np.random.default_rng(3)
    count, tube = 14, max(0.0055, 2.2 * cell)
    turns, centres = _rotations(count, rng), rng.uniform(-0.14, 0.14, (count, 3)).astype(np.float32)
    radii = rng.uniform(0.12, 0.31, count).astype(np.float32)

    def rings(p: Floats, which: Ints) -> Floats:
        x, y, z = _local(p, which, centres, turns).T
        return np.asarray(_length(_length(x, y) - radii[which], z) - tube)

    return [Part(rings, _around(centres, radii + tube))]


def _grid_of_parts(count: int, rng: np.random.Generator) -> Floats:
    at = np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    spots = rng.permutation(at)[:count]
    return np.asarray((spots - 1.5) * 0.235 + rng.uniform(-0.012, 0.012, (count, 3)), np.float32)


def _many_parts(_: float) -> list[Part]:
    rng = np.random.default_rng(4)
    count = 60
    centres, turns = _grid_of_parts(count, rng), _rotations(count, rng)
    half = rng.uniform(0.015, 0.058, (count, 3)).astype(np.float32)
    round_ones = np.arange(count) % 2 == 0

    def field(p: Floats, which: Ints) -> Floats:
        local = _local(p, which, centres, turns)
        ball = _length(*local.T) - half[which, 0] - 0.03
        return np.asarray(np.where(round_ones[which], ball, _box(local, half[which])))

    reach = np.where(round_ones, half[:, 0] + 0.03, np.linalg.norm(half, axis=1))
    return [Part(field, _around(centres, reach.astype(np.float32)))]


def _bolts(p: Any) -> Any:
    """Signed distance to eight bolt holes through a flange."""
    holes = np.full(len(p), np.inf, np.float32)
    for angle in np.arange(8) * np.pi / 4:
        away = p - np.array([0.31 * np.cos(angle), 0.31 * np.sin(angle), 0], np.float32)
        holes = np.minimum(holes, _length(away[:, 0], away[:, 1]) - 0.032)
    return holes


def _mechanical_part(_: float) -> list[Part]:
    def field(p: Floats, _: Ints) -> Floats:
        p = p - _SHIFT
        flange = _cylinder(p - np.array([0, 0, -0.3], np.float32), 0.4, 0.045)
        hub = _cylinder(p - np.array([0, 0, 0.05], np.float32), 0.17, 0.33)
        ribs = np.minimum(
            _box(p - np.array([0, 0, -0.1], np.float32), np.array([0.3, 0.02, 0.2])),
            _box(p - np.array([0, 0, -0.1], np.float32), np.array([0.02, 0.3, 0.2])),
        )
        solid = np.minimum(np.minimum(flange, hub), ribs)
        bore = np.minimum(_length(p[:, 0], p[:, 1]) - 0.1, _bolts(p))
        slot = _box(p - np.array([0, 0, 0.35], np.float32), np.array([0.5, 0.035, 0.12]))
        return np.asarray(np.maximum(solid, -np.minimum(bore, slot)), np.float32)

    return [Part(field, _one())]


def _gyroid(_: float) -> list[Part]:
    frequency = np.float32(2 * np.pi * 1.6)

    def field(p: Floats, _: Ints) -> Floats:
        a, b = np.sin(frequency * p), np.cos(frequency * p)
        wave = np.abs((a * b[:, [1, 2, 0]]).sum(1)) - 0.3  # a wall of even thickness
        return np.asarray(np.maximum(wave / (frequency * 1.75), _length(*p.T) - 0.4), np.float32)

    return [Part(field, _one())]


def _closed_smooth(_: float) -> list[Part]:
    def field(p: Floats, _: Ints) -> Floats:
        p = p - _SHIFT
        ball = _length(p[:, 0], p[:, 1], p[:, 2] + 0.08) - 0.24
        ring = _length(_length(p[:, 0], p[:, 1]) - 0.34, p[:, 2] - 0.02) - 0.075
        head = _length(p[:, 0] - 0.07, p[:, 1], p[:, 2] - 0.26) - 0.13
        return np.asarray(_smooth_min(_smooth_min(ball, head, 0.1), ring, 0.12), np.float32)

    return [Part(field, _one())]


def _open_vase(_: float) -> list[Part]:
    def field(p: Floats, _: Ints) -> Floats:
        p = p - _SHIFT
        profile = 0.22 + 0.11 * np.sin(5.5 * p[:, 2] + 0.9) + 0.012 * np.sin(40 * p[:, 2])
        wall = (_length(p[:, 0], p[:, 1]) - profile) / 1.5
        return np.asarray(np.maximum(wall, -0.42 - p[:, 2]), np.float32)

    def keep(p: Floats, _: Ints) -> Bools:
        return np.asarray(p[:, 2] < 0.41)

    return [Part(field, _one(), keep)]


def _windows(p: Any) -> Any:
    """Signed distance to three bars along the axes: they cut windows into shells."""
    x, y, z = p.T
    pairs = [_length(x, y), _length(y, z), _length(z, x)]
    return np.minimum(np.minimum(pairs[0], pairs[1]), pairs[2]) - 0.075


def _nested(cell: float) -> list[Part]:
    rng = np.random.default_rng(6)
    radii, wall = np.array([0.36, 0.25, 0.14], np.float32), max(0.011, 2.5 * cell)
    turns, thickness = _rotations(4, rng), max(0.004, 1.6 * cell)
    around = rng.normal(size=(4, 3))
    centres = (around / np.linalg.norm(around, axis=1)[:, None] * 0.305).astype(np.float32)

    def shells(p: Floats, which: Ints) -> Floats:
        p = p - _SHIFT
        shell = np.abs(_length(*p.T) - radii[which]) - wall
        return np.asarray(np.maximum(shell, -_windows(p)), np.float32)

    def plates(p: Floats, which: Ints) -> Floats:
        local = _local(p, which, centres, turns)
        return np.asarray(_box(local, np.array([0.026, 0.026, thickness], np.float32)))

    balls = _around(np.zeros((3, 3), np.float32), radii + np.float32(wall))
    return [Part(shells, balls), Part(plates, _around(centres, np.full(4, 0.05, np.float32)))]


def _plant(cell: float) -> list[Part]:
    rng = np.random.default_rng(7)
    count = 2600
    turns = _rotations(count, rng)
    spread = rng.normal(size=(count, 3))
    spread /= np.linalg.norm(spread, axis=1)[:, None]
    centres = (spread * rng.uniform(0.12, 0.42, (count, 1))).astype(np.float32)
    half = np.stack([rng.uniform(0.018, 0.038, count), rng.uniform(0.004, 0.01, count)], 1)
    half = np.maximum(half, 1.3 * cell).astype(np.float32)

    def leaves(p: Floats, which: Ints) -> Floats:
        x, _, z = _local(p, which, centres, turns).T
        return np.asarray((z - 6 * x * x) / 1.12)

    def inside(p: Floats, which: Ints) -> Bools:
        x, y, _ = _local(p, which, centres, turns).T
        return np.asarray(_length(x / half[which, 0], y / half[which, 1]) < 1)

    stems = 24
    ways = rng.normal(size=(stems, 3))
    tips = (ways / np.linalg.norm(ways, axis=1)[:, None] * 0.4).astype(np.float32)
    width = max(0.005, 1.6 * cell)

    def stalks(p: Floats, which: Ints) -> Floats:
        tip = tips[which]
        share = np.clip((p * tip).sum(1) / (tip * tip).sum(1), 0, 1)
        return np.asarray(_length(*(p - share[:, None] * tip).T) - width)

    reach = _around(centres, np.array(half[:, 0]))
    ends = np.stack([np.minimum(tips, 0), np.maximum(tips, 0)], 1)
    grown = np.array([[[-1.0], [1.0]]], np.float32) * np.float32(width + 0.004)
    return [Part(leaves, reach, inside), Part(stalks, ends + grown)]


SHAPES: dict[str, tuple[bool, Callable[[float], list[Part]]]] = {
    "perforated_sheet": (False, _perforated_sheet),
    "thin_tubes": (True, _thin_tubes),
    "many_parts": (True, _many_parts),
    "mechanical_part": (True, _mechanical_part),
    "gyroid": (True, _gyroid),
    "closed_smooth": (True, _closed_smooth),
    "open_vase": (False, _open_vase),
    "nested": (True, _nested),
    "plant": (False, _plant),
}
"""Each shape's name: whether it is closed, and its parts for a cell of this size."""
