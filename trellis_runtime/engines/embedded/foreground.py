"""Which pixels are the object, and the square crop around them.

alpha that cuts out ----------------------------> mask       `assets/cutout.py` decides
else: U-2-Net -> p -> large pieces, small holes filled -> mask
mask -> box + margin -> square of at most `WORK_PX`, the background in the object's own colours
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from trellis_runtime.assets.cutout import (
    Alpha,
    Box,
    Mask,
    border_share,
    bounding_box,
    nearest_fill,
    require_object,
    settle_alpha,
    shares_of,
    shown_part,
    whole_picture,
)
from trellis_runtime.contract.engine import CutOut, Rgba
from trellis_runtime.engines.embedded.saliency import SaliencyNetwork, object_probability
from trellis_runtime.errors import ImageRejected

WORK_PX = 2048
"""Longest side of the crop that is kept; a 4096 texture holds two of them."""

_LEAST_WORK_PX = 1024
_FINE_BLUR, _OUTLINE_BLUR = 1 / 800, 1 / 300  # of the crop's side
_LEAST_THIN_PART = 2e-4  # of the crop's area: smaller ones are the outline's own wobble
_MARGIN_SHARE = 0.04
_LEAST_SHARE = 0.002
_MOST_SHARE = 0.985
_LEAST_PIECE = 0.05
_PINHOLE_SHARE, _DOUBTFUL_HOLE_SHARE, _DOUBT = 0.003, 0.03, 0.15
_CUTOUT_PX = 1024


@dataclass(frozen=True, slots=True)
class Foreground:
    """The object's crop: `rgb` (P, P, 3) uint8 sRGB and `mask` (P, P), P at most `WORK_PX`.

    Outside the mask `rgb` carries the object's own colours on.
    """

    rgb: NDArray[np.uint8]
    mask: Mask
    cutout: CutOut


def find_foreground(image: Rgba, background: str, network: SaliencyNetwork) -> Foreground:
    """Cut the object out: by alpha where that cuts one out, else by what the network marks.

    Raises `ImageRejected` when there is no object, or nothing but object.
    """
    if background == "keep":
        whole = whole_picture(image)
        mask = np.zeros(whole.shape[:2], bool)
        top, left = (whole.shape[0] - image.shape[0]) // 2, (whole.shape[1] - image.shape[1]) // 2
        mask[top : top + image.shape[0], left : left + image.shape[1]] = True
        frame = shares_of(slice(-top, whole.shape[0] - top), slice(-left, whole.shape[1] - left),
                          image.shape[:2])  # fmt: skip
        return _crop(whole, mask.astype(np.float32), "keep", None, 0.0, frame)
    settled, alpha = settle_alpha(image)
    if alpha.kind == "cut_out":
        return _crop(
            settled[..., :3], (settled[..., 3] / 255).astype(np.float32), "alpha", alpha, 0.0,
            (0.0, 0.0, 1.0, 1.0),
        )  # fmt: skip
    rgb = np.ascontiguousarray(settled[..., :3])
    probability = object_probability(network, rgb)
    mask = coherent_object(probability)
    _require_plausible(mask)
    require_object(mask)
    doubtful = (probability > 0.2) & (probability < 0.8)
    soft = np.where(mask, np.maximum(probability, 0.51), np.minimum(probability, 0.49))
    uncertain = float(doubtful.sum() / mask.sum())
    return _crop(rgb, soft, "model", alpha, uncertain, shown_part(image, alpha))


def coherent_object(probability: NDArray[np.float32]) -> Mask:
    """Return the pixels above 1/2, small pieces left out, and holes filled that are none.

    A pinhole is filled; so is a small hole of which the network was in doubt (the eye of a duck).
    """
    mask = _large_pieces(probability > 0.5)
    area = int(mask.sum())
    if area == 0:
        return mask
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        (~mask).astype(np.uint8), connectivity=4
    )
    outside = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    doubt = np.bincount(labels.ravel(), probability.ravel(), count)
    shares = stats[:, cv2.CC_STAT_AREA] / area
    doubt = doubt / np.maximum(stats[:, cv2.CC_STAT_AREA], 1)
    fill = (shares < _PINHOLE_SHARE) | ((shares < _DOUBTFUL_HOLE_SHARE) & (doubt > _DOUBT))
    fill[outside] = False
    fill[labels[mask]] = False
    return mask | fill[labels]


def _large_pieces(mask: Mask) -> Mask:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=4
    )
    if count < 2:
        return np.zeros_like(mask)
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    kept = np.asarray(areas >= _LEAST_PIECE * areas.max())
    kept[0] = False
    return np.asarray(kept[labels])


def _require_plausible(mask: Mask) -> None:
    share = float(mask.mean())
    if not _LEAST_SHARE <= share <= _MOST_SHARE:
        raise ImageRejected(
            f"the foreground found covers {share:.1%} of image (limits: {_LEAST_SHARE:.1%} and "
            f"{_MOST_SHARE:.1%}); send a picture with a transparent background, or background: "
            "'keep'",
            field="image",
        )


def _crop(
    rgb: NDArray[np.uint8],
    soft: NDArray[np.float32],
    source: Literal["alpha", "model", "keep"],
    alpha: Alpha | None,
    uncertain: float,
    frame: Box,
) -> Foreground:
    """Cut the object out of `rgb`, which shows `frame` of the picture as it was sent."""
    mask = soft > 0.5
    rows, cols = bounding_box(mask)
    object_rgb = nearest_fill(np.ascontiguousarray(rgb[rows, cols]), mask[rows, cols])
    square_rgb, square_mask = _square(object_rgb, soft[rows, cols])
    cutout = CutOut(
        rgba=_shown(square_rgb, square_mask),
        source=source,
        share=float(mask.mean()),
        border=border_share(mask),
        longer_px=max(rows.stop - rows.start, cols.stop - cols.start),
        uncertain=uncertain,
        alpha_ignored=alpha is not None and alpha.kind == "ignored",
        plain_shape=source == "alpha" and alpha is not None and alpha.plain_shape,
        box=shares_of(*_squared(rows, cols, square_mask.shape[0]), rgb.shape[:2], frame),
    )
    return Foreground(square_rgb, square_mask, cutout)


def _squared(rows: slice, cols: slice, side: int) -> tuple[slice, slice]:
    """Return the rows and columns that `_square`'s `side` pixels show, its margin included."""
    height, width = rows.stop - rows.start, cols.stop - cols.start
    whole = _size_in_square((height, width))
    scale = max(height, width) / max(whole)
    top, left = ((side - length) // 2 * scale for length in whole)
    span = side * scale
    first, start = round(rows.start - top), round(cols.start - left)
    return slice(first, round(first + span)), slice(start, round(start + span))


def _size_in_square(shape: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width to which `_square` scales an object's box of `shape`."""
    room = 1 + 2 * _MARGIN_SHARE
    longer = max(shape)
    longest = round(min(max(longer, _LEAST_WORK_PX / room), WORK_PX / room))
    height, width = (max(1, round(length * longest / longer)) for length in shape)
    return height, width


def _square(rgb: NDArray[np.uint8], soft: NDArray[np.float32]) -> tuple[NDArray[np.uint8], Mask]:
    """Scale the object's box to fit `WORK_PX`, then put it in the middle of a square.

    In this order: the square of a picture of 24000 x 64 would take 1.7 GB. A small box is
    enlarged before its outline is drawn, so that the outline does not follow its pixels.
    """
    room = 1 + 2 * _MARGIN_SHARE
    height, width = _size_in_square((soft.shape[0], soft.shape[1]))
    if (height, width) != soft.shape:
        how = cv2.INTER_AREA if max(height, width) < max(soft.shape) else cv2.INTER_CUBIC
        rgb = np.asarray(cv2.resize(rgb, (width, height), interpolation=how), np.uint8)
        soft = cv2.resize(soft, (width, height), interpolation=how)
    side = min(WORK_PX, int(np.ceil(max(height, width) * room)))
    top, left = (side - height) // 2, (side - width) // 2
    around = ((top, side - height - top), (left, side - width - left))
    return np.pad(rgb, (*around, (0, 0)), mode="edge"), _smooth_outline(np.pad(soft, around))


def _smooth_outline(soft: NDArray[np.float32]) -> Mask:
    """Return the mask with the wobble of its outline taken out, thin parts left as they are.

    A height goes with the root of the distance to the outline, so that a wobble of a pixel would
    show as ripples all over the side.
    """
    side = soft.shape[0]
    fine = cv2.GaussianBlur(soft, (0, 0), side * _FINE_BLUR) > 0.5
    smooth = cv2.GaussianBlur(soft, (0, 0), side * _OUTLINE_BLUR) > 0.5
    radius = round(2.5 * side * _OUTLINE_BLUR)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    thick = cv2.morphologyEx(fine.astype(np.uint8), cv2.MORPH_OPEN, disc) > 0
    thin = (fine & ~thick).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(thin, connectivity=8)
    parts = stats[:, cv2.CC_STAT_AREA] > _LEAST_THIN_PART * side * side
    parts[0] = False
    return np.asarray(smooth | parts[labels])


def _shown(rgb: NDArray[np.uint8], mask: Mask) -> Rgba:
    """Return the cut-out for people to look at, at most `_CUTOUT_PX` a side."""
    side = min(_CUTOUT_PX, rgb.shape[0])
    small = cv2.resize(rgb, (side, side), interpolation=cv2.INTER_AREA)
    alpha = cv2.resize(mask.astype(np.uint8) * 255, (side, side), interpolation=cv2.INTER_AREA)
    return np.dstack([small, alpha])
