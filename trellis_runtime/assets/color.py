"""The sRGB transfer curve, both ways. Source: IEC 61966-2-1:1999."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def srgb_to_linear(srgb: Floats) -> Floats:
    """Return linear light of encoded values, both 0..1."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(linear: Floats) -> Floats:
    """Return encoded values of linear light, both 0..1; negative light is encoded as linear."""
    powered = 1.055 * np.maximum(linear, 0) ** (1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, linear * 12.92, powered)
