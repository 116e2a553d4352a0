"""Which alpha channels are cut-outs, and what a cut-out tells about the picture: one home for both.

A cut-out says what the object is. Many alpha channels say nothing of the kind: one transparent
pixel, 254 everywhere, the rounded corners of a screenshot, the shadow around a window. Taken for a
cut-out, they make the whole rectangle the object. So alpha counts only when it cuts something out:

    alpha -> peak       its 99.5th percentile where it is not 0: glass at 120 everywhere is whole
          -> object     alpha >= peak / 2
          -> cleared    alpha <  peak / 10
          -> soft       what lies between: anti-aliased edges, shadows

    none       alpha is the same everywhere
    ignored    less than 2 % is cleared; or the object is a rectangle (it fills 95 % of its own
               box: rounded corners do) that has a fifth of the border, or a shadow (3 % is soft)
    cut_out    everything else; a plain rectangle, or a disc as large as the picture (a round
               avatar, or a coin), is taken with a warning

An ignored alpha channel is taken away: the picture is cropped to what it showed, the little that
was clear within is filled with the nearest colours, and the background is then removed as from any
photograph. Shares are of all pixels; they were chosen on the cases of tests/test_pictures_alpha.py.

Upstream (`Trellis2ImageTo3DPipeline.preprocess_image`) takes alpha for a cut-out where any of it is
below 255. Where ours differs, and why, is told in docs/pictures.md.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trellis_runtime.contract.engine import CutOut, Rgba
from trellis_runtime.errors import ImageRejected

Mask = NDArray[np.bool_]
Kind = Literal["none", "ignored", "cut_out"]

LEAST_OBJECT_PX = 8
"""A foreground whose longer side has fewer pixels than this is refused: it has no shape to see."""

_CLEARED_AT_LEAST = 0.02
_RECTANGULAR = 0.95
_BORDER_OF_A_PICTURE = 0.2
_SHADOW = 0.03
_ELLIPTICAL = 0.985


@dataclass(frozen=True, slots=True)
class Alpha:
    """What an alpha channel does: `object` (H, W), and shares of all pixels or of the border's."""

    kind: Kind
    peak: float
    object: Mask
    cleared: float
    soft: float
    border: float
    plain_shape: bool = False


def judge_alpha(alpha: NDArray[np.uint8]) -> Alpha:
    """Say whether `alpha` (H, W) cuts an object out; the module's head has the rule."""
    some = alpha[alpha > 0]
    if alpha.min() == alpha.max() or some.size == 0:
        return Alpha("none", float(alpha.max()), np.ones(alpha.shape, bool), 0.0, 0.0, 1.0)
    peak = float(np.percentile(some, 99.5))
    kept, clear = alpha >= peak / 2, alpha < peak / 10
    cleared, soft = float(clear.mean()), float((~kept & ~clear).mean())
    border = border_share(kept)
    box = kept[bounding_box(kept)]
    rectangle = float(box.mean()) >= _RECTANGULAR
    frame = rectangle and (border >= _BORDER_OF_A_PICTURE or soft >= _SHADOW)
    kind: Kind = "ignored" if cleared < _CLEARED_AT_LEAST or frame else "cut_out"
    plain = rectangle or (_spans(box, kept) and _is_ellipse(box))
    return Alpha(kind, peak, kept, cleared, soft, border, plain)


def settle_alpha(image: Rgba) -> tuple[Rgba, Alpha]:
    """Return `image` with an alpha that is either a cut-out, its peak at 255, or 255 everywhere.

    The second is cropped to what an ignored alpha channel showed. Raises `ImageRejected` for a
    cut-out of a pixel or two.
    """
    verdict = judge_alpha(image[..., 3])
    if verdict.kind == "cut_out":
        require_object(verdict.object)
        scaled = image.copy()
        scaled[..., 3] = np.minimum(image[..., 3] * (255.0 / verdict.peak), 255.0).round()
        return scaled, verdict
    shown = image
    if verdict.kind == "ignored":
        box = bounding_box(verdict.object)
        shown = image[box].copy()
        shown[..., :3] = nearest_fill(shown[..., :3], verdict.object[box])
    opaque = shown.copy()
    opaque[..., 3] = 255
    return opaque, verdict


def whole_picture(image: Rgba) -> NDArray[np.uint8]:
    """Return `background: keep`'s picture (S, S, 3): all of it object, padded to a square on black.

    Nothing is removed and nothing squashed, whichever the engine; what is transparent is black.
    """
    alpha = image[..., 3:].astype(np.uint16)
    on_black = ((image[..., :3] * alpha + 127) // 255).astype(np.uint8)
    height, width = on_black.shape[:2]
    side = max(height, width)
    square = np.zeros((side, side, 3), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = on_black
    return square


def require_object(mask: Mask) -> None:
    """Raise `ImageRejected` where `mask` has too few pixels to be an object."""
    rows, cols = bounding_box(mask)
    longer = max(rows.stop - rows.start, cols.stop - cols.start)
    if longer < LEAST_OBJECT_PX:
        raise ImageRejected(
            f"the foreground found is {longer} px long; at least {LEAST_OBJECT_PX} are needed. "
            "Send a larger picture of the object, or background: 'keep'",
            field="image",
        )


def bounding_box(mask: Mask) -> tuple[slice, slice]:
    """Return the rows and columns that hold all of `mask`; empty slices when it holds nothing."""
    rows, cols = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    if len(rows) == 0:
        return slice(0, 0), slice(0, 0)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)


Box = tuple[float, float, float, float]


def shown_part(image: Rgba, alpha: Alpha) -> Box:
    """Return what of `image` `settle_alpha` leaves: left, top, right, bottom as shares."""
    if alpha.kind != "ignored":
        return (0.0, 0.0, 1.0, 1.0)
    rows, cols = bounding_box(alpha.object)
    return shares_of(rows, cols, image.shape[:2])


def shares_of(
    rows: slice, cols: slice, shape: tuple[int, ...], part: Box = (0.0, 0.0, 1.0, 1.0)
) -> Box:
    """Return rows and columns of a picture of `shape` as shares of the one that it is `part` of."""
    left, top, right, bottom = part
    across, down = (right - left) / shape[1], (bottom - top) / shape[0]
    return (
        left + cols.start * across,
        top + rows.start * down,
        left + cols.stop * across,
        top + rows.stop * down,
    )


def border_share(mask: Mask) -> float:
    """Return the share of the picture's outermost pixels that `mask` holds."""
    ring = np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]])
    return float(ring.mean())


def nearest_fill(rgb: NDArray[np.uint8], solid: Mask) -> NDArray[np.uint8]:
    """Return `rgb` with each pixel outside `solid` in the colour of the nearest one inside."""
    if solid.all() or not solid.any():
        return rgb
    _, labels = cv2.distanceTransformWithLabels(
        (~solid).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    colors = np.zeros((int(labels.max()) + 1, 3), np.uint8)
    colors[labels[solid]] = rgb[solid]
    return np.asarray(colors[labels])


def _spans(box: Mask, picture: Mask) -> bool:
    """Whether a box reaches all four sides of the picture, to a fiftieth."""
    return all(b >= 0.98 * whole for b, whole in zip(box.shape, picture.shape, strict=True))


def _is_ellipse(box: Mask) -> bool:
    """Whether `box` is the ellipse that its own sides inscribe: a round avatar, or a coin."""
    height, width = box.shape
    y, x = np.mgrid[0:height, 0:width]
    across, along = (x + 0.5) / width * 2 - 1, (y + 0.5) / height * 2 - 1
    disc = across**2 + along**2 <= 1
    return float((box & disc).sum()) >= _ELLIPTICAL * float((box | disc).sum())


def cutout_png(cutout: CutOut) -> bytes:
    """Return the cut-out as a PNG with alpha."""
    buffer = io.BytesIO()
    Image.fromarray(cutout.rgba).save(buffer, "PNG")
    return buffer.getvalue()
