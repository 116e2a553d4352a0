"""Draw the local page's example pictures, ray marched from distance functions.

    python builder/make_examples.py

The project's own pictures, so that they can be shipped. Source of the distance functions: Quilez,
"Distance functions" (iquilezles.org); of the method: Hart, "Sphere Tracing" (1996).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from builder import make_sample
from builder.make_sample import smooth_min, sphere

Floats = NDArray[np.float64]
Colour = tuple[float, float, float]
Shape = Callable[[Floats], Floats]
Part = tuple[Shape, Colour]
OUT = Path(__file__).parent.parent / "trellis_runtime/server/static/examples"
SIZE, STEPS, SHINE = 512, 110, 60

RED, CREAM, GREEN, LEAF = (0.78, 0.1, 0.07), (0.93, 0.87, 0.72), (0.2, 0.5, 0.22), (0.32, 0.6, 0.2)
CLAY, STEEL, TEAL, WHITE = (0.72, 0.36, 0.2), (0.6, 0.63, 0.68), (0.1, 0.5, 0.53), (0.92,) * 3
BLACK, GOLD, PINK, WAFFLE = (0.04,) * 3, (0.95, 0.66, 0.12), (0.93, 0.52, 0.6), (0.8, 0.55, 0.26)
BROWN = (0.28, 0.15, 0.08)


def ball(x: float, y: float, z: float, *radii: float) -> Shape:
    """Return the distance to an ellipsoid with one radius or three."""
    return lambda p: sphere(p, (x, y, z), radii if len(radii) == 3 else (radii[0],) * 3)


def box(x: float, y: float, z: float, a: float, b: float, c: float, r: float = 0.04) -> Shape:
    """Return the distance to a box of half-sides a, b, c with edges rounded by `r`."""

    def distance(p: Floats) -> Floats:
        q = np.abs(p - np.array((x, y, z))) - np.array((a, b, c)) + r
        outside = np.linalg.norm(np.maximum(q, 0), axis=-1)
        return np.asarray(outside + np.minimum(q.max(axis=-1), 0) - r)

    return distance


def cone(y: float, height: float, low: float, high: float) -> Shape:
    """Return the distance to an upright cone, `height` up and down from y."""

    def distance(p: Floats) -> Floats:
        radius = np.hypot(p[..., 0], p[..., 2])
        along = (p[..., 1] - y) / height
        side = radius - (low + (high - low) * np.clip(along * 0.5 + 0.5, 0, 1))
        slope = np.hypot(1.0, (low - high) / (2 * height))
        return np.asarray(np.maximum(side / slope, (np.abs(along) - 1) * height))

    return distance


def rod(a: Colour, b: Colour, r: float) -> Shape:
    """Return the distance to a rod of radius `r` from `a` to `b`, its ends round."""
    start, line = np.array(a), np.array(b) - np.array(a)

    def distance(p: Floats) -> Floats:
        along = np.clip((p - start) @ line / (line @ line), 0, 1)
        return np.asarray(np.linalg.norm(p - start - along[..., None] * line, axis=-1) - r)

    return distance


def joined(k: float, *shapes: Shape) -> Shape:
    """Return the distance to shapes that flow into each other over `k`."""

    def distance(p: Floats) -> Floats:
        found = shapes[0](p)
        for shape in shapes[1:]:
            found = smooth_min(found, shape(p), k)
        return found

    return distance


def cut(shape: Shape, away: Shape) -> Shape:
    """Return the distance to `shape` without what of it lies in `away`."""
    return lambda p: np.asarray(np.maximum(shape(p), -away(p)))


def scenes() -> dict[str, list[Part]]:
    """Return the parts of each picture, by its name."""
    cap = cut(ball(0, 0.08, 0, 0.72, 0.58, 0.6), box(0, -0.72, 0, 2, 0.72, 2, 0))
    spots = [(ball(x, y, z, r), CREAM) for x, y, z, r in (
        (0.02, 0.38, 0.5, 0.13), (-0.42, 0.24, 0.42, 0.1), (0.4, 0.3, 0.4, 0.09),
        (-0.2, 0.58, 0.26, 0.09), (0.24, 0.56, 0.3, 0.07), (-0.06, 0.12, 0.6, 0.07))]  # fmt: skip
    stem = joined(0.1, cone(-0.35, 0.42, 0.25, 0.17), ball(0, -0.7, 0, 0.3, 0.14, 0.3))
    column = joined(0.08, rod((0, -0.3, 0), (0, 0.55, 0), 0.23),
                    rod((0.2, -0.05, 0), (0.46, -0.02, 0), 0.11),
                    rod((0.46, 0, 0), (0.46, 0.3, 0), 0.11),
                    rod((-0.2, 0.1, 0), (-0.43, 0.12, 0), 0.1),
                    rod((-0.43, 0.12, 0), (-0.43, 0.46, 0), 0.1))  # fmt: skip
    pot = joined(0.02, cone(-0.62, 0.2, 0.26, 0.36), cone(-0.42, 0.06, 0.41, 0.41))
    eyes = [(ball(x, 0.5, 0.33, 0.085), BLACK) for x in (-0.17, 0.17)]
    arms = joined(0.03, *(rod((s * 0.42, 0.02, 0), (s * 0.6, -0.3, 0.08), 0.075) for s in (-1, 1)))
    legs = joined(0.01, *(box(s * 0.19, -0.72, 0.04, 0.14, 0.13, 0.2, 0.05) for s in (-1, 1)))
    hull = ball(0, 0.1, 0, 0.3, 0.78, 0.3)
    fins = joined(0.02, *(rod((s * 0.2, -0.3, 0), (s * 0.46, -0.72, 0), 0.075) for s in (-1, 1)),
                  rod((0, -0.3, 0.2), (0, -0.7, 0.4), 0.07))  # fmt: skip
    return {
        "mushroom": [(cap, RED), (stem, CREAM), *spots],
        "cactus": [(column, GREEN), (pot, CLAY), (ball(0, 0.8, 0.02, 0.09), PINK),
                   (cone(-0.37, 0.02, 0.36, 0.36), BROWN)],
        "robot": [(box(0, 0.5, 0, 0.38, 0.24, 0.3, 0.1), TEAL),
                  (box(0, -0.18, 0, 0.4, 0.4, 0.28, 0.1), STEEL), (arms, STEEL), (legs, TEAL),
                  *eyes, (box(0, -0.12, 0.27, 0.2, 0.15, 0.04, 0.03), GOLD),
                  (rod((0, 0.7, 0), (0, 0.85, 0), 0.025), STEEL), (ball(0, 0.88, 0, 0.06), RED)],
        "rocket": [(hull, WHITE), (cut(ball(0, 0.1, 0, 0.305, 0.785, 0.305),
                                       box(0, -0.5, 0, 2, 1.0, 2, 0)), RED), (fins, RED),
                   (ball(0, 0.22, 0.25, 0.13, 0.13, 0.06), STEEL),
                   (ball(0, 0.22, 0.28, 0.09, 0.09, 0.06), TEAL)],
        "ice-cream": [(cone(-0.4, 0.5, 0.03, 0.36), WAFFLE),
                      (joined(0.08, ball(0, 0.22, 0, 0.42, 0.36, 0.42),
                              ball(0.26, 0.08, 0.16, 0.16), ball(-0.24, 0.07, 0.2, 0.17),
                              ball(0.02, 0.04, 0.3, 0.15)), PINK),
                      (ball(0.04, 0.66, 0, 0.3, 0.27, 0.3), CREAM),
                      (ball(0.06, 0.95, 0, 0.1), RED)],
    }  # fmt: skip


def draw(parts: list[Part], size: int, wall: Colour) -> NDArray[np.uint8]:
    """Return a picture (size, size, 3) of `parts`, seen a little from above."""
    axis = ((np.arange(size) + 0.5) / size * 2 - 1) * 1.12
    x, y = np.meshgrid(axis, -axis)
    tilt, turn = 0.22, 0.32
    origin, forward = turned(np.stack([x, y, np.full_like(x, 2.5)], -1), tilt, turn), turned(
        np.array((0.0, 0.0, -1.0)), tilt, turn)  # fmt: skip
    p = origin
    for _ in range(STEPS):
        p = p + forward * np.min([part(p) for part, _ in parts], axis=0)[..., None] * 0.8
    near = np.stack([part(p) for part, _ in parts], axis=-1)
    hit = near.min(axis=-1) < 0.01
    back = np.array(wall) * (0.86 + 0.16 * y[..., None] - 0.1 * (x**2 + y**2)[..., None])
    lit = shade(
        p, near.argmin(axis=-1), parts, -forward, turned(np.array((-0.45, 0.72, 0.6)), tilt, turn)
    )
    picture = np.where(hit[..., None], lit, back)
    grain = np.random.default_rng(7).normal(0, 0.005, picture.shape)
    return (np.clip(picture + grain, 0, 1) * 255).round().astype(np.uint8)


def shade(
    p: Floats, which: NDArray[np.int64], parts: list[Part], eye: Floats, light: Floats
) -> Floats:
    """Return colours at surface points: diffuse, sky, a highlight and a darker underside."""
    step = 2e-3

    def distance(at: Floats) -> Floats:
        nearest: Floats = np.min([part(at) for part, _ in parts], axis=0)
        return nearest

    slopes = [distance(p + step * axis) - distance(p - step * axis) for axis in np.eye(3)]
    normal = np.stack(slopes, -1)
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9)
    light = light / np.linalg.norm(light)
    half = (light + eye) / np.linalg.norm(light + eye)
    diffuse = np.clip(normal @ light, 0, 1)[..., None]
    colours = np.array([colour for _, colour in parts])[which]
    highlight = np.clip(normal @ half, 0, 1)[..., None] ** SHINE
    return np.asarray(
        colours * (0.3 + 0.2 * (0.5 + 0.5 * normal[..., 1:2]) + 0.6 * diffuse) + 0.25 * highlight
    )


def turned(p: Floats, tilt: float, turn: float) -> Floats:
    """Return points or directions turned about x, then about y (radians)."""
    a, b, c, d = np.cos(tilt), np.sin(tilt), np.cos(turn), np.sin(turn)
    about_x = np.stack(
        [p[..., 0], a * p[..., 1] + b * p[..., 2], a * p[..., 2] - b * p[..., 1]], -1
    )
    return np.stack([c * about_x[..., 0] + d * about_x[..., 2], about_x[..., 1],
                     c * about_x[..., 2] - d * about_x[..., 0]], -1)  # fmt: skip


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", metavar="NAME", help="draw this picture alone")
    only = parser.parse_args().only
    OUT.mkdir(parents=True, exist_ok=True)
    walls = ((0.75, 0.82, 0.88), (0.93, 0.86, 0.76), (0.9, 0.9, 0.92), (0.66, 0.74, 0.86),
             (0.8, 0.9, 0.87))  # fmt: skip
    for (name, parts), wall in zip(scenes().items(), walls, strict=True):
        if only in (None, name):
            Image.fromarray(draw(parts, SIZE, wall)).save(OUT / f"{name}.webp", quality=82)
    if only in (None, "duck"):
        Image.fromarray(make_sample.draw(SIZE)).save(OUT / "duck.webp", quality=82)


if __name__ == "__main__":
    main()
