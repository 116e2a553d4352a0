"""From the picture that was sent to the one that upstream crops: `assets/cutout.py`'s rules.

keep      whole picture on black, padded to a square -> 1024 px at most
cut-out   alpha, its peak at 255 -> 1024 px at most -> upstream's crop
else      colours alone -> 1024 px at most -> matting -> upstream's crop
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from trellis_runtime.assets.cutout import (
    border_share,
    bounding_box,
    judge_alpha,
    require_object,
    settle_alpha,
    whole_picture,
)
from trellis_runtime.contract.engine import CutOut, Rgba
from trellis_runtime.errors import ImageRejected

_LONGEST_PX = 1024  # upstream's
_ALPHA_OF_OBJECT = 0.8 * 255  # upstream's own bound for the crop


def cut_out(
    image: Rgba, background: str, remove: Callable[[Image.Image], Image.Image]
) -> tuple[Image.Image, CutOut]:
    """Return the picture for the model, and what of the sent one it shows.

    RGB when all of it is object, else RGBA to be cropped. `remove` is called where the background
    has to go: RGB in, RGBA of the same size out. Raises `ImageRejected` where no object is left.
    """
    if background == "keep":
        whole = Image.fromarray(whole_picture(image))
        shown = Image.fromarray(image)
        everything = CutOut(np.asarray(_bounded(shown)), "keep", 1.0, 1.0, max(image.shape[:2]))
        return _bounded(whole), everything
    settled, alpha = settle_alpha(image)
    # Pillow scales RGBA with premultiplied colours: what lies under alpha 0 does not bleed.
    picture = _bounded(Image.fromarray(settled))
    if alpha.kind != "cut_out":
        picture = remove(picture.convert("RGB"))
    pixels = np.asarray(picture)
    kept = pixels[..., 3] > _ALPHA_OF_OBJECT
    if not kept.any():
        raise ImageRejected(
            "no foreground was found in image; send a picture with a transparent background, "
            "or background: 'keep'",
            field="image",
        )
    require_object(kept)
    if pixels[..., 3].min() == 255:  # upstream's crop would take this for a picture without alpha
        picture = Image.fromarray(whole_picture(pixels))
    rows, cols = bounding_box(kept)
    scale = max(settled.shape[:2]) / max(pixels.shape[:2])
    unsure = (pixels[..., 3] > 51) & (pixels[..., 3] < 204)
    return picture, CutOut(
        rgba=pixels[rows, cols],
        source="alpha" if alpha.kind == "cut_out" else "model",
        share=float(kept.mean()),
        border=border_share(kept),
        longer_px=round(max(rows.stop - rows.start, cols.stop - cols.start) * scale),
        uncertain=float(unsure.sum() / kept.sum()),
        alpha_ignored=alpha.kind == "ignored",
        plain_shape=alpha.kind == "cut_out" and alpha.plain_shape,
    )


def needs_remover(image: Rgba, background: str) -> bool:
    """Whether `cut_out` will call its `remove` for this picture."""
    return background != "keep" and judge_alpha(image[..., 3]).kind != "cut_out"


def _bounded(picture: Image.Image) -> Image.Image:
    """Return a picture with its longer side at most 1024, as upstream."""
    scale = min(1.0, _LONGEST_PX / max(picture.size))
    size = max(1, int(picture.width * scale)), max(1, int(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS)
