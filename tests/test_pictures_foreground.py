"""The embedded engine finds the object of an ordinary picture, and follows its outline."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from tests.conftest import ROOT, picture, pixels
from trellis_runtime.assets.images import decode_image
from trellis_runtime.contract.engine import Asset
from trellis_runtime.contract.ladder import Plan
from trellis_runtime.contract.request import parse_request
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import ENGINE_STAGES
from trellis_runtime.engines.embedded import EmbeddedEngine, texture
from trellis_runtime.engines.embedded.foreground import coherent_object, find_foreground
from trellis_runtime.engines.embedded.saliency import SaliencyNetwork, object_probability
from trellis_runtime.errors import ImageRejected
from trellis_runtime.settings import ImageLimits

NETWORK = SaliencyNetwork()
SIZE = 480
Array = np.ndarray[Any, Any]


def duck() -> Array:
    job = json.loads((ROOT / "test_input.json").read_bytes())["input"]
    return decode_image(base64.b64decode(job["image"].rpartition(",")[2]), ImageLimits())


def noise(rng: np.random.Generator) -> Array:
    return rng.integers(0, 256, (SIZE, SIZE, 3))


def stripes(_: np.random.Generator) -> Array:
    bars = (np.arange(SIZE) // 24 % 2)[None, :, None]
    return np.where(bars, (235, 225, 200), (60, 90, 70)) * np.ones((SIZE, 1, 1), int)


def sky(rng: np.random.Generator) -> Array:
    ramp = np.linspace(1, 0, SIZE)[:, None, None]
    return (ramp * (90, 150, 230) + (1 - ramp) * (90, 110, 60)) * np.ones((1, SIZE, 1))


def clutter(rng: np.random.Generator) -> Array:
    coarse = rng.integers(60, 200, (9, 9, 3)).astype(np.float32)
    return cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)


def red_wall(rng: np.random.Generator) -> Array:
    """Nearly the mug's own hue: no colour model tells them apart."""
    return np.array((150, 70, 62)) + rng.normal(0, 8, (SIZE, SIZE, 3))


def intersection_over_union(a: Array, b: Array) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize(
    "background", [noise, stripes, sky, clutter, red_wall], ids=lambda made: made.__name__
)
def test_an_object_before_any_background(background: Any) -> None:
    rng = np.random.default_rng(3)
    mug = pixels(picture(SIZE))
    truth = mug[..., 3] > 127
    scene = np.where(truth[..., None], mug[..., :3], np.clip(background(rng), 0, 255))
    found = object_probability(NETWORK, scene.astype(np.uint8))
    assert intersection_over_union(coherent_object(found), truth) > 0.85


def test_the_ducks_eye_is_no_hole() -> None:
    mask = find_foreground(duck(), "auto", NETWORK).mask
    count, _ = cv2.connectedComponents((~mask).astype(np.uint8), connectivity=4)
    assert count == 2, "one outside and no hole"


def test_a_true_hole_stays_open() -> None:
    mug = pixels(picture(SIZE, alpha=False))
    mask = find_foreground(mug, "auto", NETWORK).mask
    _, _, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    holes = sorted(stats[1:, cv2.CC_STAT_AREA] / mask.sum())[:-1]
    assert len(holes) == 1
    assert holes[0] > 0.02


def test_small_pieces_go_and_doubtful_holes_are_filled() -> None:
    probability = np.zeros((200, 200), np.float32)
    probability[40:160, 40:160] = 0.95
    probability[60:75, 60:75] = 0.3  # doubtful: part of the object
    probability[100:115, 100:115] = 0.01  # sure: a hole
    probability[5:12, 5:12] = 0.95  # a loose speck
    mask = coherent_object(probability)
    assert mask[65, 65]
    assert not mask[105, 105]
    assert not mask[8, 8]


@pytest.mark.parametrize("value", [0, 128, 255])
def test_an_empty_wall_has_no_object(value: int) -> None:
    wall = np.full((200, 200, 4), value, np.uint8)
    wall[..., 3] = 255
    with pytest.raises(ImageRejected, match="foreground"):
        find_foreground(wall, "auto", NETWORK)


def test_the_cut_out_is_the_same_every_time() -> None:
    first, second = (find_foreground(duck(), "auto", SaliencyNetwork()) for _ in range(2))
    assert np.array_equal(first.mask, second.mask)


def disc(size: int = 300) -> Array:
    y, x = np.mgrid[0:size, 0:size] - size / 2 + 0.5
    image = np.zeros((size, size, 4), np.uint8)
    image[..., :3] = (180, 90, 60)
    image[..., 3] = np.clip((size * 0.4 - np.hypot(x, y) + 0.5) * 255, 0, 255)
    return image


def asset_of(image: Array, **changes: Any) -> Asset:
    request = {"image": "x", "resolution": 512, "texture_size": 512, "decimation_target": 2_000_000}
    plan = Plan.as_asked(parse_request(request), 1)
    generation = EmbeddedEngine().begin(image, plan)
    for stage in ENGINE_STAGES:
        generation.run(stage, replace(plan, **changes), JobScope("x"))
    return generation.asset()


def rim_radii(asset: Asset) -> Array:
    """Distances from the axis of the vertices where the disc is thinnest."""
    thin = np.abs(asset.vertices[:, 2]) < 1.01 * np.abs(asset.vertices[:, 2]).min()
    return np.hypot(asset.vertices[thin, 0], asset.vertices[thin, 1])


def test_the_outline_has_no_steps() -> None:
    """A disc's outline is round to a tenth of a grid cell; the staircase is off by half of one."""
    cell = 1 / 256
    assert rim_radii(asset_of(disc())).std() < 0.1 * cell
    assert rim_radii(asset_of(disc(), remesh=False)).std() > 0.2 * cell


def test_the_side_has_no_ripples() -> None:
    """Close to a disc's outline the surface stands at one height all around."""
    asset = asset_of(disc())
    radius = np.hypot(asset.vertices[:, 0], asset.vertices[:, 1])
    rim = rim_radii(asset).mean()
    ring = (np.abs(radius - (rim - 1 / 256)) < 0.25 / 256) & (asset.vertices[:, 2] > 0)
    heights = asset.vertices[ring, 2]
    expected = np.sqrt(np.maximum(rim**2 - radius[ring] ** 2, 0))
    ratio = heights / expected
    assert ring.sum() > 100
    assert ratio.std() / ratio.mean() < 0.03


def test_front_and_back_meet_in_one_colour() -> None:
    foreground = find_foreground(duck(), "auto", NETWORK)
    front = texture.front_colors(foreground)
    back = texture.back_colors(front, foreground.mask, 1)
    inner = cv2.erode(foreground.mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    outline = foreground.mask & ~inner
    difference = np.abs(front.astype(int) - back)
    assert difference[outline].mean() < 1
    assert difference[foreground.mask].mean() > 3, "the back is not the front again"


def test_sides_lose_the_detail_that_would_be_drawn_out() -> None:
    image = disc(600)
    image[..., :3] = np.random.default_rng(1).integers(0, 256, (600, 600, 3))
    foreground = find_foreground(image, "auto", NETWORK)
    front = texture.front_colors(foreground).astype(float)
    distance = cv2.distanceTransform(foreground.mask.astype(np.uint8), cv2.DIST_L2, 5)
    detail = np.abs(front - cv2.GaussianBlur(front, (0, 0), 2)).mean(axis=2)
    side = foreground.rgb.shape[0]
    near = (distance > 0) & (distance < 0.01 * side)
    far = distance > 0.1 * side
    assert detail[near].mean() < 0.35 * detail[far].mean()
