"""Views of a mesh that show how it is built: its wires from close by, and what a cut lays open.

Rays are traced by Embree, as in the previews. A cut starts each ray at the plane instead of at the
eye, so that nothing is changed in the mesh: faces seen from outside are grey, those seen from
behind orange. Where the plane meets faces a line is drawn; a surface that is there once has one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from trellis_runtime.assets.glb_reader import GlbContent
from trellis_runtime.assets.preview import Camera

Floats = NDArray[np.float64]

_YAW = -24.0
_FINE = 2  # rays a pixel in each direction
_FRONT, _BACK = np.array([150.0, 163.0, 178.0]), np.array([244.0, 132.0, 42.0])
_PAPER, _WIRE, _LINE = np.array([252.0, 252.0, 250.0]), np.array([26.0, 32.0, 44.0]), (150, 10, 40)
_WIRE_PX = 1.0


@dataclass(frozen=True, slots=True)
class Window:
    """Which part of a picture is drawn: `zoom` times as large, around `at` (x, y) in 0..1."""

    zoom: float = 1.0
    at: tuple[float, float] = (0.5, 0.5)


@dataclass(frozen=True, slots=True)
class _Hits:
    """What rays met: faces (N,), -1 for nothing; weights (N, 3); distance (N,) along each ray."""

    face: NDArray[np.int64]
    weights: Floats
    distance: Floats


class View:
    """A mesh and a camera; meshes that are to be compared take the camera of one of them."""

    def __init__(self, content: GlbContent, camera: Camera | None = None) -> None:
        self.camera = camera or Camera.around(content.positions, _YAW)
        self._corners = content.positions.astype(np.float64)[content.faces]
        self._embree = EmbreeScene()
        TriangleMesh(
            self._embree, content.positions.astype(np.float32), content.faces.astype(np.int32)
        )
        low, high = content.positions.min(0), content.positions.max(0)
        self._depth = float((((low + high) / 2) - self.camera.position) @ self.camera.forward)

    def wires(self, size: int, window: Window) -> Image.Image:
        """Return a picture of the faces and their edges."""
        wide = size * _FINE
        rays = self._rays(wide, window)
        hits = self._hits(rays, 0.0)
        colors = self._colors(rays, hits)
        met = hits.face >= 0
        colors[met] = np.where(
            self._on_edge(hits, met, wide, window)[:, None], _WIRE, colors[met] * 0.4 + 0.6 * 235
        )
        return _averaged(colors, size)

    def cut(self, size: int, window: Window, depth: float | None = None) -> Image.Image:
        """Return a picture of what lies behind a plane that faces the camera, and its section.

        depth: how far the plane is from the camera, by default as far as the mesh's middle.
        """
        depth = self.middle if depth is None else depth
        rays = self._rays(size * _FINE, window)
        colors = self._colors(rays, self._hits(rays, depth))
        picture = _averaged(colors, size)
        draw = ImageDraw.Draw(picture)
        line = 1 if window.zoom < 2 else 3
        for a, b in self.section(depth, size, window):
            draw.line([tuple(a), tuple(b)], fill=_LINE, width=line)
        return picture

    @property
    def middle(self) -> float:
        """How far the mesh's middle is from the camera, along its view."""
        return self._depth

    def section(self, depth: float, size: int, window: Window) -> Floats:
        """Return the segments (N, 2, 2), in pixels, in which faces cut the plane at `depth`."""
        height = (self._corners - self.camera.position) @ self.camera.forward - depth
        cut = (height.min(1) < 0) & (height.max(1) >= 0)
        corners, height = self._corners[cut], height[cut]
        ends = []
        for k in range(3):
            a, b = height[:, k], height[:, (k + 1) % 3]
            share = np.where((a < 0) != (b < 0), a / np.where(a == b, 1, a - b), np.nan)
            ends.append(corners[:, k] + share[:, None] * (corners[:, (k + 1) % 3] - corners[:, k]))
        points = np.stack(ends, 1)
        crossed = ~np.isnan(points[..., 0])
        return self._pixels(points[crossed].reshape(-1, 2, 3), size, window)

    def place_of(self, pixels: Floats, size: int) -> tuple[float, float]:
        """Return where pixels (2,) of a whole picture are, as a window has it."""
        return float(pixels[0] / size), float(pixels[1] / size)

    def _pixels(self, points: Floats, size: int, window: Window) -> Floats:
        away = points - self.camera.position
        far = away @ self.camera.forward * self.camera.reach
        x, y = away @ self.camera.right / far, away @ self.camera.up / far
        whole = np.stack([(x + 1) / 2, (1 - y) / 2], -1)
        return np.asarray(((whole - np.array(window.at)) * window.zoom + 0.5) * size)

    def _rays(self, wide: int, window: Window) -> Floats:
        """Return directions (wide * wide, 3), one unit long along the camera's view."""
        steps = ((np.arange(wide) + 0.5) / wide - 0.5) / window.zoom
        x = (2 * (window.at[0] + steps) - 1) * self.camera.reach
        y = (1 - 2 * (window.at[1] + steps)) * self.camera.reach
        across, along = np.meshgrid(x, y)
        view = self.camera
        return np.asarray(
            view.forward + across.reshape(-1, 1) * view.right + along.reshape(-1, 1) * view.up
        )

    def _hits(self, rays: Floats, start: float) -> _Hits:
        origins = (self.camera.position + rays * start).astype(np.float32)
        found = self._embree.run(origins, rays.astype(np.float32), output=1)
        u, v = found["u"].astype(np.float64), found["v"].astype(np.float64)
        weights = np.stack([1 - u - v, u, v], 1)
        return _Hits(found["primID"].astype(np.int64), weights, found["tfar"] + start)

    def _colors(self, rays: Floats, hits: _Hits) -> Floats:
        colors = np.tile(_PAPER, (len(rays), 1))
        met = hits.face >= 0
        corners = self._corners[hits.face[met]]
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        length = np.linalg.norm(normal, axis=1) * np.linalg.norm(rays[met], axis=1)
        facing = -(normal * rays[met]).sum(1) / np.maximum(length, 1e-30)
        color = np.where((facing >= 0)[:, None], _FRONT, _BACK)
        colors[met] = color * (0.42 + 0.58 * np.abs(facing))[:, None]
        return colors

    def _on_edge(
        self, hits: _Hits, met: NDArray[np.bool_], wide: int, window: Window
    ) -> NDArray[np.bool_]:
        """Return, of the rays that met a face, (N,) bool: which did so on one of its edges."""
        corners = self._corners[hits.face[met]]
        edges = np.linalg.norm(corners[:, [2, 0, 1]] - corners[:, [1, 2, 0]], axis=2)
        twice = np.linalg.norm(
            np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1
        )
        away = hits.weights[met] * twice[:, None] / np.maximum(edges, 1e-30)
        pixel = 2 * self.camera.reach / (wide * window.zoom) * hits.distance[met]
        return np.asarray(away.min(1) < _WIRE_PX * pixel)


def _averaged(colors: Floats, size: int) -> Image.Image:
    blocks = colors.reshape(size, _FINE, size, _FINE, 3).mean(axis=(1, 3))
    return Image.fromarray(np.clip(blocks, 0, 255).round().astype(np.uint8))
