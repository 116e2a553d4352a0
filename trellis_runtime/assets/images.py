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
import pi_heif
from PIL import Image, ImageCms

from trellis_runtime.assets.essentials import essentials
from trellis_runtime.contract.engine import Rgba
from trellis_runtime.errors import ImageRejected
from trellis_runtime.settings import ImageLimits

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "HEIF")
"""What is decoded; Pillow is told to try nothing else."""

pi_heif.register_heif_opener()
Image.MAX_IMAGE_PIXELS = None  # ours is checked from the header, and is a refusal, not a warning

# What decoders are known to raise on hostile bytes. MemoryError is among them: a header may lie.
DECODER_ERRORS = (
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


def within_side(pixels: Rgba, longest: int) -> Rgba:
    """Return the picture with no side longer than `longest` px, its proportions kept.

    Averages over areas, colours weighted by alpha (premultiplied).
    """
    height, width = pixels.shape[:2]
    if max(height, width) <= longest:
        return pixels
    scale = longest / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    premultiplied = Image.fromarray(pixels).convert("RGBa")
    return np.array(premultiplied.resize(size, Image.Resampling.BOX).convert("RGBA"))


def parse_base64(text: str, limits: ImageLimits, field: str = "image") -> bytes:
    """Return the bytes that base64 text or a data URI holds; raises `ImageRejected`.

    Either alphabet, with or without padding; blanks and line breaks anywhere; any parameters in the
    data URI's head as long as `base64` is the last.
    """
    text = text.strip()
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or head.rpartition(";")[2].strip().lower() != "base64":
            raise ImageRejected(
                f"{field} is a data URI without ';base64,' before its data", field=field
            )
    longest = (limits.max_bytes + 2) // 3 * 4
    if len(text) > longest * 1.05 + 64:  # room for line breaks
        raise ImageRejected(
            f"{field} has more than the limit of {limits.max_bytes} bytes", field=field
        )
    encoded = _base64_bytes("".join(text.split()))
    if encoded is None:
        raise ImageRejected(f"{field} is not valid base64", field=field)
    if len(encoded) > limits.max_bytes:
        raise ImageRejected(
            f"{field} has {len(encoded)} bytes; the limit is {limits.max_bytes}", field=field
        )
    return encoded


_STANDARD_ALPHABET = str.maketrans("-_", "+/")


def _base64_bytes(text: str) -> bytes | None:
    """Decode base64 in either alphabet (RFC 4648, 4 and 5), padded or not; None where it is none.

    A single character over a whole number of quads, or padding elsewhere than at the end, is an
    error: something has been cut off.
    """
    bare = text.translate(_STANDARD_ALPHABET).rstrip("=")
    if len(text) - len(bare) > 2 or len(bare) % 4 == 1:
        return None
    try:
        return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def decode_image(encoded: bytes, limits: ImageLimits, field: str = "image") -> Rgba:
    """Decode an image file to upright RGBA.

    An animation gives its first frame, a HEIC file of several pictures its primary one; CMYK,
    palette, grey and 16-bit pictures are converted, by their colour profile where they carry one,
    with the transparency that their mode has. Metadata is never a reason to refuse
    (`essentials.py`). Raises `ImageRejected` for anything that is no picture.
    """
    if not encoded:
        raise ImageRejected(f"{field} is empty", field=field)
    try:
        file = essentials(encoded)
        with Image.open(io.BytesIO(file.data), formats=FORMATS) as image:
            _require_size(image.size, limits, field)
            image.load()
            turn = _TURNS.get(_orientation(image))
            rgba = _to_rgba(image, file.profile or image.info.get("icc_profile"))
            pixels = np.array(rgba if turn is None else rgba.transpose(turn))
    except DECODER_ERRORS as err:
        raise ImageRejected(
            f"{field} is not a readable {', '.join(FORMATS)} picture ({type(err).__name__})",
            field=field,
        ) from None
    _require_size((pixels.shape[1], pixels.shape[0]), limits, field)  # a header may lie
    pixels = within_side(pixels, limits.max_side_px)
    if not pixels[..., 3].any():
        raise ImageRejected(f"{field} is fully transparent: there is no object", field=field)
    return pixels


_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by its Exif orientation (Exif 2.32, 4.6.4 A)."""


def _orientation(image: Image.Image) -> int:
    """Return the Exif orientation, 1 where there is none or it cannot be read."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except DECODER_ERRORS:
        return 1


def _require_size(size: tuple[int, int], limits: ImageLimits, field: str) -> None:
    """Refuse what is too large, too small, or too long to be put into a square.

    Engines make pictures square: `load_image` bounds the longer side to the root of the pixels
    that are accepted, and what would be too thin then is refused.
    """
    width, height = size
    if width * height > limits.max_pixels:
        raise ImageRejected(
            f"{field} is {width}x{height} px; the limit is {limits.max_pixels} pixels in all",
            field=field,
        )
    shrunk = min(size) * min(1.0, limits.max_side_px / max(size))
    if min(size) >= limits.min_side_px > shrunk:
        raise ImageRejected(
            f"{field} is {width}x{height} px, which is too long and thin: at the longest side that "
            f"is used, {limits.max_side_px} px, the other has less than {limits.min_side_px} px",
            field=field,
        )
    if min(size) < limits.min_side_px:
        raise ImageRejected(
            f"{field} is {width}x{height} px; the shortest side must have {limits.min_side_px} px",
            field=field,
        )


def _to_rgba(image: Image.Image, profile: bytes | None) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _from_deep_grey(image)
    alpha = _alpha(image)
    rgb = _to_srgb(image, profile)
    if alpha is not None:
        rgb.putalpha(alpha)
    return rgb.convert("RGBA")


def _alpha(image: Image.Image) -> Image.Image | None:
    """Return the transparency of any 8-bit mode: a channel, a palette's, or one clear colour."""
    if not image.has_transparency_data:
        return None
    clear = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(clear, tuple) and max(clear) > 255:
        # a 16-bit picture: its values have come as their upper bytes, the clear colour has not
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    return image.convert("RGBA").getchannel("A")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """Map 16-bit grey to 8 bits; Pillow's own conversion clips instead of scaling."""
    values = np.asarray(image, dtype=np.float64)
    scaled = np.clip(values / 257.0, 0, 255).round().astype(np.uint8)
    rgba = Image.fromarray(scaled).convert("RGBA")
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        rgba.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return rgba


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert by the profile; without one, or with a broken one, plainly."""
    plain = (image.convert("RGBA") if image.mode in ("P", "PA") else image).convert("RGB")
    if not profile:
        return plain
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        mode = {"RGB": "RGB", "CMYK": "CMYK", "GRAY": "L"}.get(space)
        if mode is None or (mode == "CMYK") != (image.mode == "CMYK"):
            return plain
        converted = ImageCms.profileToProfile(
            plain.convert(mode) if mode != "CMYK" else image,
            source,
            ImageCms.createProfile("sRGB"),
            outputMode="RGB",
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return plain
    return converted if converted is not None else plain
