"""Pictures of a finished GLB, ray cast on the CPU: a preview, a thumbnail, a turntable.

The file's own bytes are rendered, not what they were made from, so the picture shows what a viewer
would: geometry, normals with their map, base colour, roughness and occlusion. Rays are traced by
Embree. Shading is Lambert's diffuse plus a GGX highlight (Walter et al., 2007) from one key light
with shadow, over a hemisphere of soft light.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from numpy.typing import NDArray
from PIL import Image

from trellis_runtime.assets.color import linear_to_srgb, srgb_to_linear
from trellis_runtime.assets.glb_reader import GlbContent

SIZE_PX = 512
THUMBNAIL_PX = 256
TURNTABLE_PX = 320
TURNTABLE_FRAMES = 36

_TURN_MS = 3600
_OVERSAMPLING = 2
_YAW_DEGREES, _PITCH_DEGREES = -24.0, 14.0
_FIELD_OF_VIEW_DEGREES = 30.0
_KEY_LIGHT = np.array([-0.45, 0.75, 0.6])
_KEY, _SKY, _GROUND = 2.1, np.array([0.62, 0.66, 0.72]), np.array([0.34, 0.31, 0.29])
_BACKGROUND_TOP, _BACKGROUND_BOTTOM = np.array([0.93, 0.94, 0.95]), np.array([0.74, 0.76, 0.79])

Vectors = NDArray[np.float64]


def render(content: GlbContent, size: int = SIZE_PX) -> bytes:
    """Return a PNG of `size` x `size` px of a file's content, seen from a fixed view."""
    scene = _Scene(content)
    buffer = io.BytesIO()
    _frame(scene, _YAW_DEGREES, size, _OVERSAMPLING).save(buffer, "PNG")
    return buffer.getvalue()


def thumbnail(png: bytes) -> bytes:
    """Return a rendered picture as a small WebP."""
    picture = Image.open(io.BytesIO(png)).resize((THUMBNAIL_PX,) * 2, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=82, method=4)
    return buffer.getvalue()


def turntable(
    content: GlbContent, step: Callable[[int, int], None] = lambda _done, _of: None
) -> bytes:
    """Return an animated WebP of one turn around a file's content, 36 frames in 3.6 s.

    `step` is called before each frame with its number and how many there are.
    """
    scene = _Scene(content)
    frames = []
    for number in range(TURNTABLE_FRAMES):
        step(number, TURNTABLE_FRAMES)
        yaw = _YAW_DEGREES + 360 * number / TURNTABLE_FRAMES
        frames.append(_frame(scene, yaw, TURNTABLE_PX, 1))
    buffer = io.BytesIO()
    frames[0].save(
        buffer,
        "WEBP",
        save_all=True,
        append_images=frames[1:],
        duration=_TURN_MS // TURNTABLE_FRAMES,
        loop=0,
        quality=80,
        method=2,
    )
    return buffer.getvalue()


def _frame(scene: _Scene, yaw: float, size: int, oversampling: int) -> Image.Image:
    camera = Camera.around(scene.content.positions, yaw)
    wide = size * oversampling
    colors = np.concatenate([scene.trace(camera, rows, wide) for rows in _bands(wide)])
    averaged = colors.reshape(size, oversampling, size, oversampling, 3).mean(axis=(1, 3))
    return Image.fromarray(_to_srgb(averaged))


def _bands(rows: int, height: int = 128) -> list[range]:
    return [range(top, min(top + height, rows)) for top in range(0, rows, height)]


@dataclass(frozen=True, slots=True)
class Camera:
    """An eye at `position` (3,), with unit vectors (3,) to its right, upwards and to the front."""

    position: Vectors
    right: Vectors
    up: Vectors
    forward: Vectors

    @property
    def reach(self) -> float:
        """Half of what is seen, across, at one unit before the eye."""
        return float(np.tan(np.radians(_FIELD_OF_VIEW_DEGREES / 2)))

    @classmethod
    def around(cls, points: NDArray[np.float32], yaw_degrees: float) -> Camera:
        """Look at the middle of `points` from where all of them are in view."""
        low, high = points.min(axis=0), points.max(axis=0)
        centre = (low + high).astype(np.float64) / 2
        radius = float(np.linalg.norm(points - centre, axis=1).max()) or 1.0
        yaw, pitch = np.radians([yaw_degrees, _PITCH_DEGREES])
        back = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
        right = np.cross([0.0, 1.0, 0.0], back)
        right /= np.linalg.norm(right)
        distance = 1.02 * radius / np.sin(np.radians(_FIELD_OF_VIEW_DEGREES / 2))
        return cls(centre + back * distance, right, np.cross(back, right), -back)

    def rays(self, rows: range, size: int) -> Vectors:
        """Return unit directions through the pixels of `rows`, (len(rows) * size, 3)."""
        across = ((np.arange(size) + 0.5) / size * 2 - 1) * self.reach
        along = (1 - (np.asarray(rows) + 0.5) / size * 2) * self.reach
        x, y = np.meshgrid(across, along)
        directions = self.forward + x[..., None] * self.right + y[..., None] * self.up
        return _unit(directions.reshape(-1, 3))


class _Scene:
    def __init__(self, content: GlbContent) -> None:
        self.content = content
        self._embree = EmbreeScene()
        TriangleMesh(
            self._embree, content.positions.astype(np.float32), content.faces.astype(np.int32)
        )
        self._base = _pixels(content.base_color)
        self._rough = _pixels(content.metallic_roughness)
        self._bumps = _pixels(content.normal_map)
        self._occlusion = _pixels(content.occlusion)

    def trace(self, camera: Camera, rows: range, size: int) -> Vectors:
        """Return linear colours (len(rows), size, 3)."""
        directions = camera.rays(rows, size)
        origins = np.broadcast_to(camera.position, directions.shape)
        hits = self._embree.run(origins.astype(np.float32), directions.astype(np.float32), output=1)
        colors = _background(rows, size)
        seen = hits["primID"] >= 0
        if seen.any():
            weights = _barycentric(hits["u"][seen], hits["v"][seen])
            points = origins[seen] + directions[seen] * hits["tfar"][seen, None]
            colors[seen] = self._shade(hits["primID"][seen], weights, points, directions[seen])
        return colors.reshape(len(rows), size, 3)

    def _shade(
        self, faces: NDArray[np.int32], weights: Vectors, points: Vectors, directions: Vectors
    ) -> Vectors:
        corners = self.content.faces[faces]
        flat = self._face_normals(corners)
        normals = flat
        if self.content.normals is not None:
            normals = _unit(np.einsum("nk,nkd->nd", weights, self.content.normals[corners]))
            normals = self._bumped(normals, corners, weights)
        away = (np.einsum("nd,nd->n", flat, directions) > 0)[:, None]
        flat, normals = np.where(away, -flat, flat), np.where(away, -normals, normals)
        base, roughness, open_sky = self._material(corners, weights)
        light = _unit(_KEY_LIGHT[None])[0]
        lit = self._reaches_light(points + flat * 1e-3, light)
        lambert = np.clip(normals @ light, 0, None) * lit
        sky = 0.5 + 0.5 * normals[:, 1:2]
        soft = (_SKY * sky + _GROUND * (1 - sky)) * open_sky[:, None]
        highlight = _ggx(normals, -directions, light, roughness) * lambert
        return (
            base * (soft + _KEY * lambert[:, None] / np.pi * 1.4) + 0.04 * highlight[:, None] * _KEY
        )

    def _bumped(self, normals: Vectors, corners: NDArray[np.int64], weights: Vectors) -> Vectors:
        """Return normals (N, 3) as the normal map has them, where there is one, and tangents."""
        tangents, uvs = self.content.tangents, self.content.uvs
        if tangents is None or uvs is None or self._bumps is None:
            return normals
        along = _unit(np.einsum("nk,nkd->nd", weights, tangents[corners][..., :3]))
        over = np.cross(normals, along) * tangents[corners[:, 0], 3:]
        at = np.einsum("nk,nkd->nd", weights, uvs[corners])
        x, y, z = (_bilinear(self._bumps, at) * 2 - 1).T[..., None]
        return _unit(along * x + over * y + normals * z)

    def _face_normals(self, corners: NDArray[np.int64]) -> Vectors:
        a, b, c = (self.content.positions[corners[:, i]].astype(np.float64) for i in range(3))
        return _unit(np.cross(b - a, c - a))

    def _reaches_light(self, points: Vectors, light: Vectors) -> NDArray[np.bool_]:
        directions = np.broadcast_to(light, points.shape)
        blocked = self._embree.run(points.astype(np.float32), directions.astype(np.float32))
        return np.asarray(blocked < 0)

    def _material(
        self, corners: NDArray[np.int64], weights: Vectors
    ) -> tuple[Vectors, NDArray[np.float64], NDArray[np.float64]]:
        """Return base colour (N, 3), linear, roughness and the open share of the sky (N,)."""
        base = np.full((len(corners), 3), 0.75)
        roughness, open_sky = np.full(len(corners), 0.9), np.ones(len(corners))
        if self.content.colors is not None:
            base = np.einsum("nk,nkd->nd", weights, self.content.colors[corners][..., :3])
        if self.content.uvs is not None:
            uv = np.einsum("nk,nkd->nd", weights, self.content.uvs[corners])
            if self._base is not None:
                base = srgb_to_linear(_bilinear(self._base, uv))
            if self._rough is not None:
                roughness = _bilinear(self._rough, uv)[:, 1]
            if self._occlusion is not None:
                open_sky = _bilinear(self._occlusion, uv)[:, 0]
        return base, roughness, open_sky


def _barycentric(u: NDArray[np.float32], v: NDArray[np.float32]) -> Vectors:
    return np.stack([1 - u - v, u, v], axis=1).astype(np.float64)


def _ggx(normals: Vectors, view: Vectors, light: Vectors, roughness: Vectors) -> Vectors:
    """Return the microfacet distribution D with a simple visibility term."""
    half = _unit(view + light)
    alpha2 = np.clip(roughness, 0.08, 1.0) ** 4
    cosine2 = np.clip(np.einsum("nd,nd->n", normals, half), 0, 1) ** 2
    return np.asarray(alpha2 / (np.pi * (cosine2 * (alpha2 - 1) + 1) ** 2))


def _background(rows: range, size: int) -> NDArray[np.float64]:
    along = np.repeat(np.asarray(rows) / size, size)[:, None]
    return srgb_to_linear(_BACKGROUND_TOP * (1 - along) + _BACKGROUND_BOTTOM * along)


def _pixels(image: Image.Image | None) -> NDArray[np.uint8] | None:
    return None if image is None else np.asarray(image.convert("RGB"))


def _bilinear(pixels: NDArray[np.uint8], uv: Vectors) -> Vectors:
    """Sample (height, width, 3) bytes at glTF texture coordinates, clamped; returns 0..1."""
    height, width = pixels.shape[:2]
    x = np.clip(uv[:, 0] * width - 0.5, 0, width - 1)
    y = np.clip(uv[:, 1] * height - 0.5, 0, height - 1)
    x0, y0 = x.astype(np.int64), y.astype(np.int64)
    x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1)
    fx, fy = (x - x0)[:, None], (y - y0)[:, None]
    top = pixels[y0, x0] * (1 - fx) + pixels[y0, x1] * fx
    bottom = pixels[y1, x0] * (1 - fx) + pixels[y1, x1] * fx
    return np.asarray((top * (1 - fy) + bottom * fy) / 255)


def _unit(vectors: Vectors) -> Vectors:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-20))


def _to_srgb(linear: Vectors) -> NDArray[np.uint8]:
    # A soft shoulder keeps lit whites from clipping flat.
    mapped = np.where(linear < 0.7, linear, 0.7 + 0.3 * np.tanh((linear - 0.7) / 0.3))
    return (np.clip(linear_to_srgb(mapped), 0, 1) * 255).round().astype(np.uint8)
