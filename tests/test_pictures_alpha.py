"""An alpha channel counts when it cuts an object out, and only then: the same for both engines."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from tests.conftest import picture, pixels
from trellis_runtime.assets.cutout import judge_alpha, settle_alpha, whole_picture
from trellis_runtime.assets.warnings import cutout_warnings
from trellis_runtime.engines.embedded.foreground import find_foreground
from trellis_runtime.engines.embedded.saliency import SaliencyNetwork
from trellis_runtime.engines.trellis2.picture import cut_out
from trellis_runtime.errors import ImageRejected

Rgba = np.ndarray  # type: ignore[type-arg]
NETWORK = SaliencyNetwork()
SIZE = 400


def scene(size: int = SIZE) -> Rgba:
    """A mug on a wall, opaque: what should be modelled is the mug."""
    return pixels(picture(size, alpha=False)).copy()


def mug_mask(size: int = SIZE) -> Rgba:
    return pixels(picture(size))[..., 3] > 0


def one_transparent_pixel(image: Rgba) -> None:
    image[0, 0, 3] = 0


def alpha_254(image: Rgba) -> None:
    image[..., 3] = 254


def alpha_120(image: Rgba) -> None:
    image[..., 3] = 120


def rounded_corners(image: Rgba, share: float = 0.1) -> None:
    mask = Image.new("L", image.shape[1::-1], 0)
    box = [0, 0, image.shape[1] - 1, image.shape[0] - 1]
    ImageDraw.Draw(mask).rounded_rectangle(box, share * image.shape[1], fill=255)
    image[..., 3] = np.asarray(mask)


def app_icon_corners(image: Rgba) -> None:
    rounded_corners(image, 0.22)


def top_row_transparent(image: Rgba) -> None:
    image[0, :, 3] = 0


def letterbox(image: Rgba) -> None:
    image[: SIZE // 10, :, 3] = 0
    image[-SIZE // 10 :, :, 3] = 0


def speckled(image: Rgba) -> None:
    image[::16, ::16, 3] = 0


NO_CUT_OUTS = [
    one_transparent_pixel,
    alpha_254,
    alpha_120,
    rounded_corners,
    app_icon_corners,
    top_row_transparent,
    letterbox,
    speckled,
]


def window_with_shadow() -> Rgba:
    """A picture in the middle of a transparent margin, with a soft shadow around it."""
    alpha = Image.new("L", (SIZE + 80, SIZE + 80), 0)
    alpha.paste(150, (50, 50, SIZE + 40, SIZE + 40))
    alpha = alpha.filter(ImageFilter.GaussianBlur(10))
    alpha.paste(255, (40, 40, SIZE + 40, SIZE + 40))
    image = np.zeros((SIZE + 80, SIZE + 80, 4), np.uint8)
    image[40:-40, 40:-40, :3] = scene()[..., :3]
    image[..., 3] = np.asarray(alpha)
    return image


def glass() -> Rgba:
    """The mug alone, its alpha 120 all over."""
    image = pixels(picture(SIZE)).copy()
    image[..., 3] = np.where(image[..., 3] > 0, 120, 0)
    return image


@pytest.mark.parametrize("change", NO_CUT_OUTS, ids=lambda change: change.__name__)
def test_alpha_that_cuts_nothing_out_is_ignored(change: Callable[[Rgba], None]) -> None:
    image = scene()
    change(image)
    verdict = judge_alpha(image[..., 3])
    assert verdict.kind in ("ignored", "none")
    settled, _ = settle_alpha(image)
    assert (settled[..., 3] == 255).all()
    found = find_foreground(image, "auto", NETWORK)
    assert found.cutout.source == "model"
    assert found.cutout.share < 0.6, "the mug and not the whole rectangle"
    warned = "alpha_ignored" in [w.code for w in cutout_warnings(found.cutout)]
    assert warned == (verdict.kind == "ignored")


@pytest.mark.parametrize("change", NO_CUT_OUTS, ids=lambda change: change.__name__)
def test_the_gpu_engine_has_the_same_rule(change: Callable[[Rgba], None]) -> None:
    image = scene()
    change(image)
    asked = []

    def remove(rgb: Image.Image) -> Image.Image:
        asked.append(rgb.size)
        out = rgb.convert("RGBA")
        alpha = cv2.resize(mug_mask().astype(np.uint8) * 255, rgb.size)
        out.putalpha(Image.fromarray(alpha))
        return out

    made, cutout = cut_out(image, "auto", remove)
    assert len(asked) == 1
    assert made.mode == "RGBA"
    assert cutout.source == "model"
    assert cutout.alpha_ignored == (judge_alpha(image[..., 3]).kind == "ignored")


def test_a_windows_shadow_is_no_cut_out() -> None:
    settled, verdict = settle_alpha(window_with_shadow())
    assert verdict.kind == "ignored"
    assert settled.shape[:2] == (SIZE, SIZE), "the shadow's margin is cropped away"
    found = find_foreground(window_with_shadow(), "auto", NETWORK)
    assert 0.1 < found.cutout.share < 0.6


@pytest.mark.parametrize("engine", ["embedded", "trellis2"])
def test_a_true_cut_out_is_taken(engine: str) -> None:
    image = pixels(picture(SIZE))
    if engine == "embedded":
        cutout = find_foreground(image, "auto", NETWORK).cutout
    else:
        _, cutout = cut_out(image, "auto", lambda _: pytest.fail("no matting is needed"))
    assert cutout.source == "alpha"
    assert cutout.share == pytest.approx(mug_mask().mean(), abs=0.01)
    assert not cutout_warnings(cutout)


@pytest.mark.parametrize("engine", ["embedded", "trellis2"])
def test_glass_at_alpha_120_is_an_object_in_full_colour(engine: str) -> None:
    if engine == "embedded":
        cutout = find_foreground(glass(), "auto", NETWORK).cutout
    else:
        made, cutout = cut_out(glass(), "auto", lambda _: pytest.fail("no matting is needed"))
        assert np.asarray(made)[..., 3].max() == 255
    assert cutout.source == "alpha"
    assert cutout.share == pytest.approx(mug_mask().mean(), abs=0.01)


def test_a_loose_bright_pixel_does_not_hide_glass() -> None:
    image = glass()
    image[5, 5, 3] = 255
    _, verdict = settle_alpha(image)
    assert verdict.object.mean() == pytest.approx(mug_mask().mean(), abs=0.01)


@pytest.mark.parametrize(
    ("shape", "box", "warned"),
    [
        ("rectangle", [40, 80, 320, 380], True),
        ("ellipse", [0, 0, SIZE - 1, SIZE - 1], True),  # a round avatar
        ("ellipse", [40, 80, 320, 380], False),  # a ball
    ],
)
def test_a_plain_shape_is_taken_with_a_warning(shape: str, box: list[int], warned: bool) -> None:
    image = scene()
    mask = Image.new("L", (SIZE, SIZE), 0)
    getattr(ImageDraw.Draw(mask), shape)(box, fill=255)
    image[..., 3] = np.asarray(mask)
    for cutout in (
        find_foreground(image, "auto", NETWORK).cutout,
        cut_out(image, "auto", lambda _: pytest.fail("no matting"))[1],
    ):
        assert cutout.source == "alpha"
        assert ("alpha_plain_shape" in [w.code for w in cutout_warnings(cutout)]) == warned


@pytest.mark.parametrize("side", [1, 2, 7])
def test_a_cut_out_of_a_few_pixels_is_the_callers_fault(side: int) -> None:
    image = scene()
    image[..., 3] = 0
    image[100 : 100 + side, 100 : 100 + side, 3] = 255
    with pytest.raises(ImageRejected, match=f"{side} px long; at least 8"):
        find_foreground(image, "auto", NETWORK)
    with pytest.raises(ImageRejected, match=f"{side} px long; at least 8"):
        cut_out(image, "auto", lambda picture: picture)


def test_keep_pads_to_a_square_on_black_for_both_engines() -> None:
    image = scene()[100:200]  # 400 x 100
    image[:, 300:, 3] = 0
    image[:, 300:, :3] = (0, 255, 0)  # hidden colours stay hidden
    whole = whole_picture(image)
    assert whole.shape == (400, 400, 3)
    assert not whole[:150].any()
    assert not whole[150:250, 300:].any()
    assert np.array_equal(whole[150:250, :300], image[:, :300, :3])
    made, cutout = cut_out(image, "keep", lambda _: pytest.fail("nothing is removed"))
    assert made.mode == "RGB"
    assert np.array_equal(np.asarray(made), whole)
    assert cutout.source == "keep"
    kept = find_foreground(image, "keep", NETWORK)
    rows, cols = np.nonzero(kept.mask.any(axis=1))[0], np.nonzero(kept.mask.any(axis=0))[0]
    assert len(cols) == pytest.approx(4 * len(rows), rel=0.02), "not squashed"


def test_matting_that_keeps_everything_needs_no_crop() -> None:
    made, cutout = cut_out(scene(), "auto", lambda rgb: rgb.convert("RGBA"))
    assert made.mode == "RGB"  # upstream's crop would remove the background again
    assert "covers_picture" in [w.code for w in cutout_warnings(cutout)]


def test_colours_under_alpha_0_do_not_bleed() -> None:
    large = pixels(picture(3000)).copy()
    hidden = large[..., 3] == 0
    green = large.copy()
    green[hidden, :3] = (0, 255, 0)
    made, _ = cut_out(green, "auto", lambda _: pytest.fail("no matting"))
    shown = np.asarray(made).astype(int)
    excess = (shown[..., 1] - shown[..., 0]) * shown[..., 3] / 255  # as upstream puts it on black
    assert excess.max() <= 2
    found = find_foreground(green, "auto", NETWORK)
    inside = found.rgb[found.mask].astype(int)
    assert (inside[:, 1] - inside[:, 0]).max() < 0, "the mug is red everywhere"
    assert np.array_equal(found.rgb, find_foreground(large, "auto", NETWORK).rgb)


def test_a_very_long_picture_makes_no_square_of_its_length() -> None:
    long = np.zeros((64, 24_000, 4), np.uint8)
    long[16:48, :, :3] = (200, 60, 50)
    long[16:48, 100:-100, 3] = 230
    found = find_foreground(long, "auto", NETWORK)
    assert found.rgb.shape[0] <= 2048
