"""Metadata never decides: a good picture is taken whatever stands beside its pixels."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from tests.conftest import ROOT, encoded, picture, pixels
from trellis_runtime.assets.essentials import essentials
from trellis_runtime.assets.images import decode_image
from trellis_runtime.errors import ImageRejected
from trellis_runtime.settings import ImageLimits

DATA = ROOT / "tests/data"
LIMITS = ImageLimits()
MUG = picture(96)
TURNED = {  # orientation: how the stored picture was made from the upright one
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def chunk(kind: bytes, body: bytes, *, good: bool = True) -> bytes:
    crc = zlib.crc32(kind + body) ^ (0 if good else 1)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


def with_chunk(png: bytes, added: bytes) -> bytes:
    """Put a chunk after the header, where decoders meet it first."""
    return png[:33] + added + png[33:]


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


BOMB = zlib.compress(bytes(40_000_000), 9)
ANCILLARY = {
    "tEXt without a zero": chunk(b"tEXt", b"no separator"),
    "tEXt damaged": chunk(b"tEXt", b"Comment\0words", good=False),
    "tEXt of 3 MB": chunk(b"tEXt", b"Comment\0" + bytes(3_000_000)),
    "zTXt bomb": chunk(b"zTXt", b"Comment\0\0" + BOMB),
    "zTXt cut": chunk(b"zTXt", b"Comment\0\0" + BOMB[:100]),
    "zTXt of an unknown method": chunk(b"zTXt", b"Comment\0\7abc"),
    "iTXt bomb": chunk(b"iTXt", b"Comment\0\1\0\0\0" + BOMB),
    "iTXt damaged": chunk(b"iTXt", b"Comment\0\1\0", good=False),
    "iCCP bomb": chunk(b"iCCP", b"p\0\0" + BOMB),
    "iCCP cut": chunk(b"iCCP", b"p\0\0" + BOMB[:50]),
    "iCCP of nonsense": chunk(b"iCCP", b"p\0\0" + zlib.compress(b"nonsense")),
    "iCCP without a zero": chunk(b"iCCP", b"profile"),
    "iCCP of an unknown method": chunk(b"iCCP", b"p\0\7abc"),
    "pHYs short": chunk(b"pHYs", b"\0"),
    "gAMA short": chunk(b"gAMA", b""),
    "cHRM short": chunk(b"cHRM", b"\0\0"),
    "sRGB empty": chunk(b"sRGB", b""),
    "tIME short": chunk(b"tIME", b"\0"),
    "eXIf of nonsense": chunk(b"eXIf", b"nonsense"),
    "eXIf damaged": chunk(b"eXIf", b"II*\0", good=False),
    "unknown ancillary": chunk(b"quUx", bytes(100), good=False),
}


@pytest.mark.parametrize("name", ANCILLARY)
def test_no_ancillary_chunk_refuses_a_png(name: str) -> None:
    file = with_chunk(encoded(MUG), ANCILLARY[name])
    assert np.array_equal(decode_image(file, LIMITS), pixels(MUG))


SEGMENTS = {
    "XMP of nonsense": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b"<" * 900),
    "Exif of nonsense": segment(0xE1, b"Exif\0\0nonsense"),
    "Exif whose tags lie outside": segment(
        0xE1, b"Exif\0\0II*\0\x08\0\0\0\x02\0\x1a\x01\x05\0\x01\0\0\0\xff\xff\xff\x7f"
    ),
    "Photoshop cut": segment(0xED, b"Photoshop 3.0\x008BIM\x04"),
    "MPF cut": segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff"),
    "ICC of nonsense": segment(0xE2, b"ICC_PROFILE\0\1\1nonsense"),
    "ICC with a part missing": segment(0xE2, b"ICC_PROFILE\0\1\7nonsense"),
    "comment": segment(0xFE, bytes(60_000)),
    "Adobe short": segment(0xEE, b"Adobe"),
}


@pytest.mark.parametrize("name", SEGMENTS)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_no_segment_refuses_a_jpeg(name: str) -> None:
    plain = encoded(MUG.convert("RGB"), "JPEG")
    file = plain[:2] + SEGMENTS[name] + plain[2:]
    assert np.array_equal(decode_image(file, LIMITS), decode_image(plain, LIMITS))


@pytest.mark.parametrize("name", ["png_itxt_big.png", "png_ztxt_big.png", "png_text_badcrc.png"])
def test_the_files_that_were_refused_are_read(name: str) -> None:
    assert decode_image((DATA / name).read_bytes(), LIMITS).shape == (256, 256, 4)


@pytest.mark.parametrize("name", ["exif_rational.jpg", "exif_two_rationals.jpg"])
def test_a_denominator_of_nought_does_not_hide_the_orientation(name: str) -> None:
    data = (DATA / name).read_bytes()
    with Image.open(io.BytesIO(data)) as stored:
        turned = np.asarray(stored.convert("RGB").transpose(Image.Transpose.ROTATE_270))
    assert np.array_equal(decode_image(data, LIMITS)[..., :3], turned)


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "AVIF"])  # HEIF turns by its own box
def test_every_orientation_in_every_format(form: str, orientation: int) -> None:
    upright = Image.new("RGB", (96, 64), (250, 250, 250))
    upright.paste((200, 0, 0), (0, 0, 32, 32))
    turn = TURNED[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if turn is None else upright.transpose(turn)
    shown = decode_image(encoded(stored, form, exif=exif, quality=95), LIMITS)
    assert shown.shape[:2] == (64, 96)
    assert np.abs(shown[..., :3].astype(int) - np.asarray(upright)).mean() < 8


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_leaves_the_picture(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode_image(encoded(MUG, exif=exif), LIMITS), pixels(MUG))


def test_a_profile_is_still_honoured_and_a_broken_critical_chunk_still_refused() -> None:
    swapped = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    file = encoded(MUG, icc_profile=swapped)
    assert essentials(file).profile == swapped
    assert np.abs(decode_image(file, LIMITS).astype(int) - pixels(MUG)).max() <= 1
    cut = encoded(MUG)[:-200]
    with pytest.raises(ImageRejected):
        decode_image(cut, LIMITS)


def test_a_grey_profile_serves_a_grey_picture_with_alpha() -> None:
    grey = Image.new("LA", (64, 64), (100, 255))
    grey.putpixel((0, 0), (100, 0))
    rgb_profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    decoded = decode_image(encoded(grey, icc_profile=rgb_profile), LIMITS)
    assert tuple(decoded[0, 0]) == (100, 100, 100, 0)
    assert tuple(decoded[5, 5]) == (100, 100, 100, 255)


def test_text_that_is_in_order_changes_nothing() -> None:
    info = PngInfo()
    info.add_text("Title", "a mug")
    info.add_itxt("Description", "a mug " * 1000, zip=True)
    assert np.array_equal(decode_image(encoded(MUG, pnginfo=info), LIMITS), pixels(MUG))


def test_a_heic_file_gives_its_primary_picture() -> None:
    first, second = Image.new("RGB", (64, 64), (220, 0, 0)), Image.new("RGB", (64, 64), (0, 0, 220))
    for primary, blue in ((0, False), (1, True)):
        buffer = io.BytesIO()
        heif = pillow_heif.from_pillow(first)
        heif.add_from_pillow(second)
        heif.save(buffer, primary_index=primary)
        shown = decode_image(buffer.getvalue(), LIMITS)[32, 32]
        assert (shown[2] > shown[0]) == blue


def _deep_png(kind: int, rows: np.ndarray, clear: bytes = b"") -> bytes:  # type: ignore[type-arg]
    """A 16-bit PNG of 64 x 64, colour type `kind`, with a tRNS chunk where `clear` is given."""
    header = struct.pack(">IIBBBBB", 64, 64, 16, kind, 0, 0, 0)
    body = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header)]
    parts += [chunk(b"tRNS", clear)] if clear else []
    parts += [chunk(b"IDAT", zlib.compress(body)), chunk(b"IEND", b"")]
    return b"".join(parts)


def test_transparency_of_16_bit_pictures() -> None:
    grey = np.full((64, 64), 30_000)
    grey[:10] = 12_345
    clear = decode_image(_deep_png(0, grey, struct.pack(">H", 12_345)), LIMITS)
    assert (clear[:10, :, 3] == 0).all()
    assert (clear[10:, :, 3] == 255).all()
    assert clear[20, 0, 0] == round(30_000 / 257)

    color = np.full((64, 64, 3), 40_000)
    color[:10] = (51_400, 7_710, 5_140)
    clear = decode_image(_deep_png(2, color, struct.pack(">3H", 51_400, 7_710, 5_140)), LIMITS)
    assert (clear[:10, :, 3] == 0).all()
    assert (clear[10:, :, 3] == 255).all()

    rgba = np.full((64, 64, 4), 65_535)
    rgba[:10, :, 3] = 0
    rgba[10:20, :, 3] = 32_896
    clear = decode_image(_deep_png(6, rgba), LIMITS)
    assert [int(clear[y, 0, 3]) for y in (5, 15, 25)] == [0, 128, 255]

    grey_alpha = np.full((64, 64, 2), 65_535)
    grey_alpha[:10, :, 1] = 0
    clear = decode_image(_deep_png(4, grey_alpha), LIMITS)
    assert [int(clear[y, 0, 3]) for y in (5, 25)] == [0, 255]


def test_the_grey_picture_that_lost_its_transparency() -> None:
    decoded = decode_image((DATA / "grey16_trns.png").read_bytes(), LIMITS)
    assert (decoded[..., 3] == 0).mean() == pytest.approx(0.75)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA"])
def test_transparency_of_every_8_bit_mode(mode: str) -> None:
    """The upper half is clear, the lower is not."""
    if mode in ("LA", "PA", "RGBA"):
        image = Image.new("RGBA", (64, 64), (180, 180, 180, 255))
        image.paste((180, 180, 180, 0), (0, 0, 64, 32))
        image = image.convert("LA" if mode == "LA" else "RGBA")
        data = encoded(image if mode != "PA" else image.quantize(8))
    else:
        clear: object = {"1": 0, "L": 7, "P": 0, "RGB": (7, 7, 7)}[mode]
        image = Image.new(mode, (64, 64), {"1": 1, "L": 180, "P": 1, "RGB": (180,) * 3}[mode])
        if mode == "P":
            image.putpalette([7, 7, 7, 180, 180, 180])
        image.paste(clear, (0, 0, 64, 32))  # type: ignore[arg-type]
        data = encoded(image, transparency=clear)
    decoded = decode_image(data, LIMITS)
    assert (decoded[:32, :, 3] == 0).all()
    assert (decoded[32:, :, 3] == 255).all()
