"""Textures as PNG: any decoder gives the same pixels back, and the filter is one that helps."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.test_glb import ball
from trellis_runtime.assets.glb_reader import inspect_glb
from trellis_runtime.assets.glb_writer import encode_glb
from trellis_runtime.assets.png import best_filter, encode_png, filtered

DICE = np.random.default_rng(3)


def decoded(data: bytes) -> np.ndarray:  # type: ignore[type-arg]
    image = Image.open(io.BytesIO(data))
    image.verify()  # checks every chunk's sum
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def smooth(side: int, axis: int) -> np.ndarray:  # type: ignore[type-arg]
    """A ramp of small steps with a little noise along one axis, and much along the other."""
    steps = DICE.integers(0, 3, (side, side, 3)).cumsum(axis=axis) % 256
    return (steps + DICE.integers(0, 256, (1, side, 1) if axis == 0 else (side, 1, 1))).astype(
        np.uint8
    )


@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 5, 4), (5, 300, 1), (64, 64, 3), (300, 2, 4)])
def test_every_pixel_comes_back(shape: tuple[int, int, int]) -> None:
    pixels = DICE.integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(decoded(encode_png(pixels)), pixels)


@pytest.mark.parametrize(("axis", "kind"), [(0, 2), (1, 1)])
def test_a_texture_gets_the_filter_along_which_it_is_smooth(axis: int, kind: int) -> None:
    pixels = smooth(128, axis)
    rows = pixels.reshape(128, -1)
    assert best_filter(rows, 3) == kind
    data = encode_png(pixels)
    assert np.array_equal(decoded(data), pixels)
    assert len(data) < 0.7 * len(zlib.compress(rows.tobytes()))


def test_a_flat_texture_needs_no_filter() -> None:
    rows = np.tile(np.array([9, 8, 7], np.uint8), (64, 64))
    assert filtered(rows, 3, best_filter(rows, 3)).shape == (64, 193)
    assert len(encode_png(rows.reshape(64, 64, 3))) < 200


def test_slices_that_are_not_contiguous_are_as_good() -> None:
    pixels = DICE.integers(0, 256, (32, 32, 4), dtype=np.uint8)
    assert np.array_equal(decoded(encode_png(pixels[..., :3])), pixels[..., :3])


def test_a_large_data_map_is_a_png_beside_webp() -> None:
    large = np.zeros((2049, 2049, 3), np.uint8)
    report = inspect_glb(encode_glb(ball(metallic_roughness=large), "webp", {}).data)
    assert report.errors == []
    assert [form for form, *_ in report.images] == ["WEBP", "PNG"]
