"""Colours for front and back, and their baking into textures."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from trellis_runtime.assets.cutout import nearest_fill
from trellis_runtime.engines.embedded.foreground import Foreground
from trellis_runtime.engines.embedded.inflation import Mask
from trellis_runtime.engines.embedded.surface import Charts, Floats

Pixels = NDArray[np.uint8]

_BLOCK_ROWS = 128
_SIDE_BAND, _SIDE_BLUR = 0.05, 1 / 80
_SEAM_BAND, _BACK_BLUR = 0.12, 1 / 28
_SMOOTH_ROUGHNESS, _ROUGH_ROUGHNESS = 0.45, 0.92


def front_colors(foreground: Foreground) -> Pixels:
    """Return the photo with the object's own colours carried outwards over the background.

    The outermost pixels of a cut-out mix with what was behind it, so they are left out. The next
    few cover the sides, where a pixel is drawn out to a streak, so they lose their detail.
    """
    thickness = max(1, foreground.mask.shape[0] // 160)
    kernel = np.ones((2 * thickness + 1, 2 * thickness + 1), np.uint8)
    solid = cv2.erode(foreground.mask.astype(np.uint8), kernel).astype(bool)
    if not solid.any():
        solid = foreground.mask
    soft = _blur_within(foreground.rgb, solid, _SIDE_BLUR)
    side = _near_outline(foreground.mask, _SIDE_BAND)
    return nearest_fill(_mixed(foreground.rgb, soft, side), solid)


def back_colors(front: Pixels, mask: Mask, seed: int) -> Pixels:
    """Return a plausible back: the front's colours without its details, in a little variation.

    Nothing in one photo says what is behind; large areas of colour carry over best. Towards the
    outline it becomes the front, so that the two meet without a seam.
    """
    side = front.shape[0]
    soft = _blur_within(front, mask, _BACK_BLUR)
    noise = np.random.default_rng(seed).normal(0.0, 1.0, (8, 8)).astype(np.float32)
    field = cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    varied = np.clip(soft * (0.96 + 0.03 * field[..., None]), 0, 255).astype(np.uint8)
    return _mixed(varied, front, _near_outline(mask, _SEAM_BAND))


def _near_outline(mask: Mask, band: float) -> Floats:
    """Return 1 on and outside the outline, falling smoothly to 0 `band` of the side within."""
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    t = np.clip(distance / (band * mask.shape[0]), 0.0, 1.0)
    return (1 - t * t * (3 - 2 * t)).astype(np.float32)


def _mixed(inner: Pixels, outer: Pixels, weight: Floats) -> Pixels:
    w = weight[..., None]
    return (inner * (1 - w) + outer * w).round().astype(np.uint8)


def _blur_within(rgb: Pixels, mask: Mask, share: float) -> Pixels:
    """Blur by a Gaussian of `share` of the side that takes in the mask's pixels alone.

    A blur so wide leaves nothing that a quarter of the pixels could not hold.
    """
    side = rgb.shape[0]
    small = min(side, 256)
    area = cv2.resize(mask.astype(np.float32), (small, small), interpolation=cv2.INTER_AREA)
    kept = rgb * mask[..., None]
    color = cv2.resize(kept, (small, small), interpolation=cv2.INTER_AREA).astype(np.float32)
    weight = cv2.GaussianBlur(area, (0, 0), share * small) + 1e-4
    blurred = cv2.GaussianBlur(color, (0, 0), share * small) / weight[..., None]
    grown = cv2.resize(np.clip(blurred, 0, 255), (side, side), interpolation=cv2.INTER_LINEAR)
    return grown.round().astype(np.uint8)


def luminance_relief(foreground: Foreground, side: int) -> Floats:
    """Return a band-passed luminance at `side` x `side`, about -1..1: where the photo has form."""
    grey = cv2.cvtColor(front_colors(foreground), cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    small = cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA)
    band = cv2.GaussianBlur(small, (0, 0), 1.2) - cv2.GaussianBlur(small, (0, 0), side / 24)
    return np.clip(band / 0.25, -1, 1).astype(np.float32)


def bake(
    front: Pixels, back: Pixels, charts: Charts, size: int, *, by_rows: bool
) -> tuple[Pixels, Pixels]:
    """Return the base colour (sRGB) and glTF's packed metallic-roughness, (size, size, 3) each.

    With `by_rows` the lookup runs over blocks of rows: the same texels from a smaller working set.
    """
    sources = tuple(_near_scale(image, charts.scale * size) for image in (front, back))
    base = np.empty((size, size, 3), np.uint8)
    packed = np.empty_like(base)
    for rows in _blocks(size, _BLOCK_ROWS if by_rows else size):
        base[rows] = _texels(sources, charts, size, rows)
        packed[rows] = _metallic_roughness(base[rows])
    return base, packed


def bake_bytes(size: int, *, by_rows: bool) -> int:
    """Bytes that `bake` allocates: both textures, and the maps of the rows in hand."""
    rows = min(size, _BLOCK_ROWS) if by_rows else size
    return 2 * 3 * size * size + rows * size * (2 * 4 + 5 * 4 + 3 + 3)


def _metallic_roughness(base: Pixels) -> Pixels:
    """Guess glTF's packed map: G roughness, B metallic.

    One photo says little of materials: what is bright and grey is taken for a highlight of
    something smooth, and nothing for metal.
    """
    high = base.max(axis=2).astype(np.float32) / 255
    low = base.min(axis=2).astype(np.float32) / 255
    gloss = np.clip((high - 0.8) / 0.2, 0, 1) * np.clip(1 - (high - low) / 0.15, 0, 1)
    packed = np.zeros_like(base)
    roughness = _ROUGH_ROUGHNESS - gloss * (_ROUGH_ROUGHNESS - _SMOOTH_ROUGHNESS)
    packed[..., 1] = (roughness * 255).round().astype(np.uint8)
    return packed


def at_vertices(front: Pixels, back: Pixels, xy: Floats, is_back: NDArray[np.bool_]) -> Pixels:
    """Return the colours (V, 3) of points of the crop, from the front's or the back's picture."""
    side = front.shape[0]
    cols = np.clip(((xy[:, 0] + 0.5) * side).astype(np.int64), 0, side - 1)
    rows = np.clip(((0.5 - xy[:, 1]) * side).astype(np.int64), 0, side - 1)
    return np.where(is_back[:, None], back[rows, cols], front[rows, cols])


def _texels(sources: tuple[Pixels, ...], charts: Charts, size: int, rows: slice) -> Pixels:
    v = (np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5) / size
    u = (np.arange(size, dtype=np.float32) + 0.5) / size
    along = v if charts.stacked else u
    second = along >= 0.5
    place = np.asarray(charts.places, np.float32)[second.astype(np.int64)]
    x = (u - (place[:, 0] if not charts.stacked else 0.5)) / charts.scale + charts.centre_xy[0]
    y = (v - (place[:, 1] if charts.stacked else 0.5)) / charts.scale - charts.centre_xy[1]
    out = np.empty((len(v), size, 3), np.uint8)
    for source, chosen in zip(sources, (~second, second), strict=True):
        side = source.shape[0]
        cols = (x + 0.5) * side - 0.5
        lines = (y + 0.5) * side - 0.5
        cols, lines = (cols, lines[chosen]) if charts.stacked else (cols[chosen], lines)
        if len(cols) == 0 or len(lines) == 0:
            continue
        at_x, at_y = np.meshgrid(cols.astype(np.float32), lines.astype(np.float32))
        part = cv2.remap(source, at_x, at_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        if charts.stacked:
            out[chosen] = part
        else:
            out[:, chosen] = part
    return out


def _blocks(total: int, block: int) -> Iterator[slice]:
    for start in range(0, total, block):
        yield slice(start, min(start + block, total))


def _near_scale(image: Pixels, pixels_per_unit: float) -> Pixels:
    """Shrink a source that is finer than its texels, or it would alias."""
    side = max(64, round(pixels_per_unit))
    if side >= image.shape[0]:
        return image
    return np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA), np.uint8)
