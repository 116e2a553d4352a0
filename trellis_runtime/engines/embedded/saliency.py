"""Where the object of a photograph is: a small network, twice, and edges that follow the picture.

    picture --320 px--> U-2-Net (small) --> p, coarse            "something is about here"
    crop around p > 1/2 --320 px--> U-2-Net --> p, finer         only where it agrees with the first
    p, picture --> guided filter --> p whose edges are the picture's, (H, W), 0..1

Sources: Qin et al., "U2-Net" (Pattern Recognition, 2020), weights in `models/`; He, Sun and Tang,
"Guided Image Filtering" (PAMI, 2013): within each window the result is a linear function of the
guide, a * I + b, by least squares.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

MODEL = Path(__file__).parent / "models/u2netp.onnx"

Floats = NDArray[np.float32]

_INPUT_PX = 320
_MEAN, _SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as it was trained
_REFINED_PX = 1024
_CROP_MARGIN = 0.15
_CROP_WORTH = 0.75
_AGREEMENT = 0.6
_GUIDE_RADIUS, _GUIDE_EPSILON = 6, 1e-4


class SaliencyNetwork:
    """The network, loaded once. One forward pass at a time: OpenCV's networks hold their state."""

    def __init__(self, path: Path = MODEL) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._net: Any = None

    def load(self) -> None:
        """Read the weights, where that has not been done."""
        with self._lock:
            self._ensure()

    def _ensure(self) -> Any:
        if self._net is None:
            self._net = cv2.dnn.readNetFromONNX(str(self._path))
        return self._net

    def probability(self, rgb: NDArray[np.uint8]) -> Floats:
        """Return how likely each pixel of `rgb` (H, W, 3) is the object: (H, W), 0..1."""
        height, width = rgb.shape[:2]
        scaled = np.asarray(
            cv2.resize(rgb, (_INPUT_PX, _INPUT_PX), interpolation=cv2.INTER_AREA), np.float32
        )
        scaled /= max(float(scaled.max()), 1.0)
        blob = ((scaled - _MEAN) / _SPREAD).transpose(2, 0, 1)[None].astype(np.float32)
        with self._lock:
            net = self._ensure()
            net.setInput(blob)
            # the first output fuses the other six, which are for training
            found = np.array(net.forward(net.getUnconnectedOutLayersNames()[0])[0, 0])
        grown = cv2.resize(found, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.clip(grown, 0.0, 1.0)


def object_probability(network: SaliencyNetwork, rgb: NDArray[np.uint8]) -> Floats:
    """Return how likely each pixel is the object, edges as the picture has them: (H, W), 0..1."""
    height, width = rgb.shape[:2]
    scale = min(1.0, _REFINED_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)
    coarse = network.probability(small)
    fine = _guided(_closer_look(network, small, coarse), small)
    return np.asarray(cv2.resize(fine, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)


def _closer_look(network: SaliencyNetwork, rgb: NDArray[np.uint8], coarse: Floats) -> Floats:
    """Look again at the crop around what was found, where that is much smaller than the picture."""
    rows, cols = _box_with_margin(coarse > 0.5)
    crop_share = max(
        (rows.stop - rows.start) / rgb.shape[0], (cols.stop - cols.start) / rgb.shape[1]
    )
    if not 0 < crop_share < _CROP_WORTH:
        return coarse
    closer = network.probability(np.ascontiguousarray(rgb[rows, cols]))
    before, after = coarse[rows, cols] > 0.5, closer > 0.5
    if (before & after).sum() < _AGREEMENT * (before | after).sum():
        return coarse
    merged = np.zeros_like(coarse)
    merged[rows, cols] = closer
    return merged


def _box_with_margin(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    slices = []
    for axis in (1, 0):
        found = np.nonzero(mask.any(axis=axis))[0]
        if len(found) == 0:
            return slice(0, 0), slice(0, 0)
        start, stop = int(found[0]), int(found[-1]) + 1
        margin = max(8, round(_CROP_MARGIN * (stop - start)))
        slices.append(slice(max(0, start - margin), min(mask.shape[1 - axis], stop + margin)))
    return slices[0], slices[1]


def _guided(p: Floats, rgb: NDArray[np.uint8]) -> Floats:
    """Filter `p` with the picture's brightness as the guide, where `p` is in doubt."""
    guide = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), np.float32) / np.float32(255)
    mean_i, mean_p = _box(guide), _box(p)
    covariance = _box(guide * p) - mean_i * mean_p
    variance = _box(guide * guide) - mean_i * mean_i
    a = np.asarray(covariance / (variance + _GUIDE_EPSILON), np.float32)
    b = np.asarray(mean_p - a * mean_i, np.float32)
    return np.clip(_box(a) * guide + _box(b), 0.0, 1.0).astype(np.float32)


def _box(values: Floats) -> Floats:
    side = 2 * _GUIDE_RADIUS + 1
    return np.asarray(cv2.blur(values, (side, side)), np.float32)
