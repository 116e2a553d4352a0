"""Which pixels are the object, and the square crop around them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from trellis_runtime.contract.engine import Rgba
from trellis_runtime.errors import ImageRejected

Mask = NDArray[np.bool_]

WORK_PX = 2048
"""Longest side of the crop that is kept; a 4096 texture holds two of them."""

_GRABCUT_PX = 512
_ALPHA_THRESHOLD = 128
_BORDER_SHARE = 0.03
_MARGIN_SHARE = 0.04
_LEAST_SHARE = 0.002
_MOST_SHARE = 0.985


@dataclass(frozen=True, slots=True)
class Foreground:
    """The object's crop: `rgb` (P, P, 3) uint8 sRGB and `mask` (P, P), P at most `WORK_PX`."""

    rgb: NDArray[np.uint8]
    mask: Mask


def find_foreground(image: Rgba, background: str, seed: int) -> Foreground:
    """Cut the object out: by alpha where there is one, else by GrabCut seeded from the border.

    Source: Rother, Kolmogorov, Blake, "GrabCut" (SIGGRAPH 2004), as in OpenCV. Raises
    `ImageRejected` when there is no object, or nothing but object.
    """
    rgb = image[..., :3]
    if background == "keep":
        mask = np.ones(rgb.shape[:2], bool)
    elif (image[..., 3] < 255).any():
        mask = image[..., 3] >= _ALPHA_THRESHOLD
        _require_object(mask, most=1.0)
    else:
        mask = _grabcut(np.ascontiguousarray(rgb), seed)
        _require_object(mask, most=_MOST_SHARE)
    return _square_crop(rgb, mask)


def _require_object(mask: Mask, most: float) -> None:
    share = float(mask.mean())
    if not _LEAST_SHARE <= share <= most:
        raise ImageRejected(
            f"the foreground found covers {share:.1%} of image (limits: {_LEAST_SHARE:.1%} and "
            f"{most:.1%}); send a picture with a transparent background, or background: 'keep'",
            field="image",
        )


def _grabcut(rgb: NDArray[np.uint8], seed: int) -> Mask:
    height, width = rgb.shape[:2]
    scale = min(1.0, _GRABCUT_PX / max(height, width))
    small = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    frame = max(2, round(_BORDER_SHARE * min(small.shape[:2])))
    labels = np.full(small.shape[:2], cv2.GC_PR_FGD, np.uint8)
    labels[_far_from_border_colours(small, frame) < 1.0] = cv2.GC_PR_BGD
    labels[:frame] = labels[-frame:] = cv2.GC_BGD
    labels[:, :frame] = labels[:, -frame:] = cv2.GC_BGD
    if not (labels == cv2.GC_PR_FGD).any():
        return np.zeros((height, width), bool)
    cv2.setRNGSeed(seed)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(small, labels, None, *models, 5, cv2.GC_INIT_WITH_MASK)
    found = _without_specks((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD))
    grown = cv2.resize(found.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return grown > 0.5


def _far_from_border_colours(rgb: NDArray[np.uint8], frame: int) -> NDArray[np.float32]:
    """Distance of each pixel's colour to the nearest of the border's, in units of their spread."""
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB).astype(np.float32)
    border = np.concatenate(
        [
            lab[:frame].reshape(-1, 3),
            lab[-frame:].reshape(-1, 3),
            lab[:, :frame].reshape(-1, 3),
            lab[:, -frame:].reshape(-1, 3),
        ]
    )
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    k = min(4, len(border))
    cv2.setRNGSeed(0)
    _, label, centres = cv2.kmeans(border, k, None, criteria, 1, cv2.KMEANS_PP_CENTERS)
    spread = np.linalg.norm(border - centres[label.ravel()], axis=1)
    unit = max(12.0, float(np.percentile(spread, 99)))
    distances = [np.linalg.norm(lab - centre, axis=2) for centre in centres]
    return (np.min(distances, axis=0) / unit).astype(np.float32)


def _without_specks(mask: Mask) -> Mask:
    """Keep the pieces that have at least a twentieth of the largest one's area; fill pinholes."""
    kernel = np.ones((3, 3), np.uint8)
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, kernel)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(closed, connectivity=4)
    if count < 2:
        return np.zeros_like(mask)
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    kept = np.asarray(areas >= 0.05 * areas.max())
    kept[0] = False
    return np.asarray(kept[labels])


def _square_crop(rgb: NDArray[np.uint8], mask: Mask) -> Foreground:
    rows, cols = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    top, bottom, left, right = rows[0], rows[-1] + 1, cols[0], cols[-1] + 1
    side = int(np.ceil(max(bottom - top, right - left) * (1 + 2 * _MARGIN_SHARE)))
    y, x = (top + bottom - side) // 2, (left + right - side) // 2
    crop = np.zeros((side, side, 3), np.uint8)
    inside = np.zeros((side, side), bool)
    y0, x0 = max(0, y), max(0, x)
    y1, x1 = min(mask.shape[0], y + side), min(mask.shape[1], x + side)
    crop[y0 - y : y1 - y, x0 - x : x1 - x] = rgb[y0:y1, x0:x1]
    inside[y0 - y : y1 - y, x0 - x : x1 - x] = mask[y0:y1, x0:x1]
    if side <= WORK_PX:
        return Foreground(crop, inside)
    small = cv2.resize(crop, (WORK_PX, WORK_PX), interpolation=cv2.INTER_AREA)
    share = cv2.resize(inside.astype(np.float32), (WORK_PX, WORK_PX), interpolation=cv2.INTER_AREA)
    return Foreground(np.asarray(small, np.uint8), share > 0.5)
