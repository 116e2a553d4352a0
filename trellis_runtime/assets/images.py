"""From what a caller sent to an upright RGBA picture, inside limits.

Everything that can be refused cheaply is refused first: the length of the base64 text before it
is decoded, the format by its magic bytes, the pixels by the header before any is decompressed.
"""

from __future__ import annotations

import base64
import binascii
import io
import struct

import numpy as np
import pillow_heif
from PIL import Image, ImageCms, ImageOps

from trellis_runtime.contract.engine import Rgba
from trellis_runtime.errors import ImageRejected
from trellis_runtime.settings import ImageLimits

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "HEIF")
"""What is decoded; Pillow is told to try nothing else."""

pillow_heif.register_heif_opener()
Image.MAX_IMAGE_PIXELS = None  # ours is checked from the header, and is a refusal, not a warning

# What decoders are known to raise on hostile bytes. MemoryError is among them: a header may lie.
_DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    MemoryError,
    struct.error,
    ImageCms.PyCMSError,
)


def parse_base64(text: str, limits: ImageLimits) -> bytes:
    """Return the bytes that base64 text or a data URI holds; raises `ImageRejected`."""
    if text[:5].lower() == "data:":
        header, comma, text = text.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise ImageRejected(
                "image is a data URI without ';base64,' before its data", field="image"
            )
    longest = (limits.max_bytes + 2) // 3 * 4
    if len(text) > longest * 1.05 + 64:  # room for line breaks
        raise ImageRejected(
            f"image has more than the limit of {limits.max_bytes} bytes", field="image"
        )
    try:
        encoded = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ImageRejected("image is not valid base64", field="image") from None
    if len(encoded) > limits.max_bytes:
        raise ImageRejected(
            f"image has {len(encoded)} bytes; the limit is {limits.max_bytes}", field="image"
        )
    return encoded


def decode_image(encoded: bytes, limits: ImageLimits, field: str = "image") -> Rgba:
    """Decode an image file to upright RGBA.

    An animation gives its first frame; CMYK, palette, grey and 16-bit pictures are converted, by
    their colour profile where they carry one. Raises `ImageRejected` for anything else.
    """
    if not encoded:
        raise ImageRejected(f"{field} is empty", field=field)
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            _require_size(image.size, limits, field)
            image.seek(0)
            image.load()
            upright = ImageOps.exif_transpose(image)
            pixels = np.array(_to_rgba(upright))
    except _DECODER_ERRORS as err:
        raise ImageRejected(
            f"{field} is not a readable {', '.join(FORMATS)} picture ({type(err).__name__})",
            field=field,
        ) from None
    if not pixels[..., 3].any():
        raise ImageRejected(f"{field} is fully transparent: there is no object", field=field)
    return pixels


def _require_size(size: tuple[int, int], limits: ImageLimits, field: str) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise ImageRejected(
            f"{field} is {width}x{height} px; the limit is {limits.max_pixels} pixels in all",
            field=field,
        )
    if min(size) < limits.min_side_px:
        raise ImageRejected(
            f"{field} is {width}x{height} px; the shortest side must have {limits.min_side_px} px",
            field=field,
        )


def _to_rgba(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _from_deep_grey(image)
    has_alpha = image.has_transparency_data
    alpha = image.convert("RGBA").getchannel("A") if has_alpha else None
    rgb = _to_srgb(image)
    if alpha is not None:
        rgb.putalpha(alpha)
    return rgb.convert("RGBA")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """Map 16-bit grey to 8 bits; Pillow's own conversion clips instead of scaling."""
    values = np.asarray(image, dtype=np.float64)
    scaled = np.clip(values / 257.0, 0, 255).round().astype(np.uint8)
    return Image.fromarray(scaled).convert("RGBA")


def _to_srgb(image: Image.Image) -> Image.Image:
    """Convert by the embedded profile; without one, or with a broken one, plainly."""
    plain = image.convert("RGB")
    profile = image.info.get("icc_profile")
    if not profile:
        return plain
    source = image if image.mode in ("RGB", "CMYK", "L") else plain
    try:
        converted = ImageCms.profileToProfile(
            source,
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            outputMode="RGB",
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return plain
    return converted if converted is not None else plain
