"""Textures as the bytes of pictures."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trellis_runtime.contract.request import TextureFormat


def encode_image(
    pixels: NDArray[np.uint8], form: TextureFormat, *, is_data: bool
) -> tuple[bytes, str]:
    """Return one texture (H, W), (H, W, 3) or (H, W, 4), encoded, and the format that it got.

    Data maps never lose a bit. A failing encoder gives way to PNG.
    """
    image = Image.fromarray(np.ascontiguousarray(pixels))
    options: dict[str, Any] = {"compress_level": 4}
    if form == "webp":
        # quality 40, method 2: half as long to twice as long again, for 0 to 20 % less
        options = {"lossless": True, "quality": 10, "method": 1, "exact": True}
        if not is_data:
            options = {"quality": 95, "method": 2, "exact": True}  # 4: twice the time, 2 % less
    elif form == "jpeg":
        if is_data or image.mode == "RGBA":
            form = "png"  # JPEG has neither exact values nor alpha
        else:
            options = {"quality": 95, "subsampling": 0, "optimize": True}
    buffer = io.BytesIO()
    try:
        image.save(buffer, form, **options)
    except (OSError, ValueError):  # WebP was seen to fail on a 4096 texture: "encoding error 6"
        if form == "png":
            raise
        return encode_image(pixels, "png", is_data=is_data)
    return buffer.getvalue(), form
