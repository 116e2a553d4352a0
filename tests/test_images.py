"""Any bytes are a right picture or a clear refusal."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from tests.conftest import encoded, picture, pixels
from trellis_runtime.assets.images import decode_image, parse_base64
from trellis_runtime.errors import ImageRejected
from trellis_runtime.settings import ImageLimits

LIMITS = ImageLimits()
RED = (200, 30, 20)


def flat(color: object = RED, mode: str = "RGB", size: int = 64) -> Image.Image:
    return Image.new(mode, (size, size), color)  # type: ignore[arg-type]


@given(st.binary(max_size=400))
def test_any_bytes_are_an_image_or_a_clear_refusal(data: bytes) -> None:
    try:
        decode_image(data, LIMITS)
    except ImageRejected as err:
        assert err.field == "image"


@given(st.sampled_from(["PNG", "JPEG", "WEBP", "AVIF", "HEIF"]), st.data())
@settings(deadline=None, max_examples=150)
def test_damaged_files_are_images_or_clear_refusals(form: str, data: st.DataObject) -> None:
    whole = bytearray(encoded(flat(), form))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(whole)))
    try:
        decode_image(bytes(whole[:cut]), LIMITS)
    except ImageRejected as err:
        assert err.message


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "AVIF", "HEIF"])
def test_each_format_is_read(form: str) -> None:
    decoded = decode_image(encoded(flat(), form), LIMITS)
    assert decoded.shape == (64, 64, 4)
    assert np.abs(decoded[32, 32, :3].astype(int) - RED).max() <= 6
    assert (decoded[..., 3] == 255).all()


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_are_refused_by_name(form: str) -> None:
    with pytest.raises(ImageRejected, match="PNG, JPEG, WEBP, AVIF, HEIF"):
        decode_image(encoded(flat(), form), LIMITS)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "AVIF", "HEIF"])
def test_a_truncated_file_is_refused(form: str) -> None:
    whole = encoded(Image.effect_noise((200, 200), 90).convert("RGB"), form)
    with pytest.raises(ImageRejected):
        decode_image(whole[: len(whole) // 2], LIMITS)


def test_exif_rotation_is_applied() -> None:
    image = flat((255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 32, 64))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate 90 degrees clockwise to see it upright
    upright = decode_image(encoded(image, exif=exif), LIMITS)
    assert upright[5, 32, 0] == 0
    assert upright[60, 32, 0] == 255


def test_an_animation_gives_its_first_frame() -> None:
    frames = [flat(RED), flat((0, 0, 255))]
    for form in ("WEBP", "PNG"):
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:], lossless=True)
        assert tuple(decode_image(data, LIMITS)[0, 0, :3]) == RED


def test_a_cmyk_jpeg_is_converted() -> None:
    decoded = decode_image(encoded(flat((0, 255, 255, 0), "CMYK"), "JPEG"), LIMITS)
    assert decoded[0, 0, 0] > 200
    assert decoded[0, 0, 2] < 60


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    decoded = decode_image(encoded(Image.fromarray(ramp)), LIMITS)
    assert decoded[0, 0, 0] == 0
    assert 120 < decoded[32, 0, 0] < 135
    assert decoded[63, 63, 0] == 255


def test_16_bit_rgb_is_read() -> None:
    decoded = decode_image(_png_rgb16(64, (51400, 7710, 5140)), LIMITS)
    assert tuple(decoded[0, 0, :3]) == RED


def test_a_palette_with_transparency_keeps_its_alpha() -> None:
    image = flat(0, "P")
    image.putpalette([10, 20, 30, *RED])
    image.paste(1, (16, 16, 48, 48))
    decoded = decode_image(encoded(image, transparency=0), LIMITS)
    assert decoded[0, 0, 3] == 0
    assert tuple(decoded[32, 32]) == (*RED, 255)


def test_an_embedded_profile_is_honoured() -> None:
    image = flat((128, 128, 128))
    lab_like = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    same = decode_image(encoded(image, icc_profile=lab_like.tobytes()), LIMITS)
    assert abs(int(same[0, 0, 0]) - 128) <= 1
    broken = decode_image(encoded(image, icc_profile=b"not a profile at all"), LIMITS)
    assert broken[0, 0, 0] == 128


def test_an_all_transparent_picture_is_refused() -> None:
    with pytest.raises(ImageRejected, match="fully transparent"):
        decode_image(encoded(flat((1, 2, 3, 0), "RGBA")), LIMITS)


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    bomb = _png_header_only(60_000, 60_000)
    with pytest.raises(ImageRejected, match="60000x60000 px; the limit is 50000000"):
        decode_image(bomb, LIMITS)


def test_too_small_a_picture_is_refused() -> None:
    with pytest.raises(ImageRejected, match="8x8 px; the shortest side must have 32"):
        decode_image(encoded(flat(size=8)), LIMITS)


def test_alpha_survives() -> None:
    original = picture()
    assert np.array_equal(decode_image(encoded(original), LIMITS), pixels(original))


def test_base64_and_data_uris_are_read(photo: bytes) -> None:
    text = base64.b64encode(photo).decode()
    wrapped = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    forms = (
        text,
        wrapped,
        f"\n {text}\r\n",
        text.rstrip("="),
        text.replace("+", "-").replace("/", "_"),
        text.replace("+", "-").replace("/", "_").rstrip("="),
        f"data:image/png;base64,{text}",
        f"DATA:;BASE64,{text}",
        f"  data:image/png;base64,{text}",
        f"data:image/png; base64,{text}",
        f"data:image/png;charset=utf-8;base64 ,\n{wrapped}\n",
    )
    for form in forms:
        assert parse_base64(form, LIMITS) == photo


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("*** not base64 ***", "not valid base64"),
        ("data:image/png,abc", "without ';base64,'"),
        ("abcde", "not valid base64"),
        ("ab=c", "not valid base64"),
        ("abc===", "not valid base64"),
        ("data:image/png;base64;charset=x,abcd", "without ';base64,'"),
    ],
)
def test_what_is_not_base64_is_refused(text: str, words: str) -> None:
    with pytest.raises(ImageRejected, match=words):
        parse_base64(text, LIMITS)


def test_the_limit_on_bytes_holds_before_and_after_decoding() -> None:
    limits = ImageLimits(max_bytes=2000)
    with pytest.raises(ImageRejected, match="limit of 2000 bytes"):
        parse_base64("A" * 10_000, limits)
    with pytest.raises(ImageRejected, match="2001 bytes; the limit is 2000"):
        parse_base64(base64.b64encode(bytes(2001)).decode(), limits)


@given(st.text(max_size=200))
def test_any_text_is_bytes_or_a_clear_refusal(text: str) -> None:
    try:
        parse_base64(text, LIMITS)
    except ImageRejected as err:
        assert err.field == "image"


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(width: int, height: int, depth: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    out = io.BytesIO(b"\x89PNG\r\n\x1a\n")
    out.seek(0, io.SEEK_END)
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        out.write(_chunk(kind, body))
    return out.getvalue()


def _png_rgb16(size: int, color: tuple[int, int, int]) -> bytes:
    return _png(size, size, 16, (b"\0" + struct.pack(">3H", *color) * size) * size)


def _png_header_only(width: int, height: int) -> bytes:
    return _png(width, height, 8, bytes(100))
