"""Draw the sample picture of `test_input.json`: a rubber duck, ray marched from distance functions.

The project's own picture, so that it can be shipped: run `python builder/make_sample.py OUT.jpg`.
Source of the method: Hart, "Sphere Tracing" (1996); smooth minimum by Inigo Quilez.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float64]
SIZE = 640
STEPS = 90
YELLOW, ORANGE, BLACK, WHITE = (0.95, 0.72, 0.08), (0.92, 0.35, 0.05), (0.03,) * 3, (0.9,) * 3


def sphere(p: Floats, centre: tuple[float, ...], radii: tuple[float, ...]) -> Floats:
    """Return about the distance of points to an ellipsoid."""
    q = (p - np.array(centre)) / np.array(radii)
    return np.asarray((np.linalg.norm(q, axis=-1) - 1.0) * min(radii))


def smooth_min(a: Floats, b: Floats, k: float) -> Floats:
    """Return the minimum of two distances, blended over `k`."""
    h = np.clip(0.5 + 0.5 * (b - a) / k, 0, 1)
    return np.asarray(b * (1 - h) + a * h - k * h * (1 - h))


def parts(p: Floats) -> Floats:
    """Return distances to the duck's parts, (..., 4): body, beak, pupil, white of the eye."""
    body = sphere(p, (0.0, -0.28, 0.0), (0.62, 0.42, 0.46))
    body = smooth_min(body, sphere(p, (0.5, -0.08, 0.0), (0.2, 0.22, 0.16)), 0.18)
    body = smooth_min(body, sphere(p, (-0.26, 0.32, 0.0), (0.33, 0.33, 0.32)), 0.12)
    wing = sphere(p, (0.12, -0.24, 0.38), (0.3, 0.19, 0.13))
    body = smooth_min(body, wing, 0.04)
    beak = sphere(p, (-0.6, 0.25, 0.06), (0.17, 0.055, 0.13))
    beak = smooth_min(beak, sphere(p, (-0.57, 0.3, 0.06), (0.13, 0.05, 0.1)), 0.05)
    white = sphere(p, (-0.4, 0.42, 0.25), (0.075, 0.085, 0.06))
    pupil = sphere(p, (-0.425, 0.425, 0.285), (0.045, 0.05, 0.04))
    return np.stack([body, beak, pupil, white], axis=-1)


def draw(size: int) -> NDArray[np.uint8]:
    """Return the picture, (size, size, 3)."""
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = np.meshgrid(axis * 0.95, -axis * 0.95)
    p = np.stack([x, y, np.full_like(x, 2.0)], axis=-1)
    forward = np.array([0.0, 0.0, -1.0])
    for _ in range(STEPS):
        p = p + forward * parts(p).min(axis=-1, keepdims=True) * 0.85
    hit = parts(p).min(axis=-1) < 0.004
    wall = 0.62 + 0.12 * y[..., None] + np.array([0.02, 0.04, 0.07]) * np.ones((size, size, 1))
    picture = np.where(hit[..., None], shade(p), wall)
    grain = np.random.default_rng(7).normal(0, 0.006, picture.shape)
    return (np.clip(picture + grain, 0, 1) * 255).round().astype(np.uint8)


def shade(p: Floats) -> Floats:
    """Return colours at surface points: diffuse, a highlight and a darker underside."""
    normal = gradient(p)
    light = np.array([-0.45, 0.7, 0.65]) / np.linalg.norm([-0.45, 0.7, 0.65])
    half = light + np.array([0.0, 0.0, 1.0])
    half /= np.linalg.norm(half)
    colors = np.array([YELLOW, ORANGE, BLACK, WHITE])[parts(p).argmin(axis=-1)]
    diffuse = np.clip(normal @ light, 0, 1)[..., None]
    sky = 0.5 + 0.5 * normal[..., 1:2]
    highlight = np.clip(normal @ half, 0, 1)[..., None] ** 60
    return np.asarray(colors * (0.28 + 0.25 * sky + 0.55 * diffuse) + 0.35 * highlight)


def gradient(p: Floats) -> Floats:
    """Return unit normals by central differences."""
    step = 1e-3
    parts_of = [
        parts(p + step * axis).min(axis=-1) - parts(p - step * axis).min(axis=-1)
        for axis in np.eye(3)
    ]
    normal = np.stack(parts_of, axis=-1)
    return np.asarray(normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9))


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=SIZE, help="pixels a side")
    args = parser.parse_args()
    Image.fromarray(draw(args.size)).save(args.out, quality=88)


if __name__ == "__main__":
    main()
