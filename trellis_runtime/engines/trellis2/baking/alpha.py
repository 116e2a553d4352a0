"""How transparent an asset is: glTF's alpha mode, decided from its texels by area.

    texels' alpha ->  99.9 % over 0.95                     OPAQUE  (alpha is not written)
                      else: under 2 % in 0.1..0.9          MASK    (cut at 0.5)
                      else                                 BLEND   (translucent faces apart)

Charts are laid out at an even density, so a share of texels is a share of area. Blended surfaces
have to be sorted by whoever draws them, which engines do object by object: faces that are opaque
all over are therefore kept out of the blended primitive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trellis_runtime.contract.request import AlphaChoice
from trellis_runtime.engines.trellis2.baking.raster import Raster

AlphaMode = Literal["OPAQUE", "MASK", "BLEND"]

CUTOFF = 0.5
_OPAQUE = 0.95
_OPAQUE_SHARE = 0.999
_BETWEEN = (0.1, 0.9)
_BETWEEN_SHARE = 0.02
_ALPHA = 5  # attributes: base colour, metallic, roughness, alpha


@dataclass(frozen=True, slots=True)
class Transparency:
    """mode: glTF's. translucent (F,) bool: faces to be blended, None unless the mode is BLEND.

    opaque_share and between_share: of the area, with alpha over 0.95 and in 0.1..0.9.
    """

    mode: AlphaMode
    translucent: Tensor | None
    opaque_share: float
    between_share: float


def find_transparency(texels: Tensor, raster: Raster, choice: AlphaChoice = "auto") -> Transparency:
    """Return how transparent texels (S, S, 6) uint8 of `raster` are, unless `choice` says it."""
    alpha = texels[..., _ALPHA]
    opaque, between = _shares(alpha[raster.covered])
    mode = _decided(opaque, between) if choice == "auto" else _MODES[choice]
    translucent = translucent_faces(alpha, raster) if mode == "BLEND" else None
    return Transparency(mode, translucent, opaque, between)


_MODES: dict[str, AlphaMode] = {"opaque": "OPAQUE", "mask": "MASK", "blend": "BLEND"}


def vertex_transparency(alpha: Tensor, choice: AlphaChoice = "auto") -> AlphaMode:
    """Return the mode for alpha (V,) in 0..1 at the vertices, which count alike."""
    opaque, between = _shares((alpha.clamp(0, 1) * 255).round())
    return _decided(opaque, between) if choice == "auto" else _MODES[choice]


def all_opaque(alpha: Tensor) -> bool:
    """Whether all of alpha (N,) in 0..1 is opaque."""
    return bool((alpha > _OPAQUE).all())


def clear_alpha(alpha: Tensor, area: Tensor, choice: AlphaChoice = "auto") -> Tensor:
    """Return (F,) bool: with which alpha (F,) in 0..1 a face of area (F,) lets one see through it.

    With no mode that is cut or blended, none does; with MASK those under the cutoff, with BLEND
    those that are less than opaque.
    """
    weight = area.double() / area.double().sum().clamp(min=1e-30)
    low, high = _BETWEEN
    opaque = float((weight * (alpha > _OPAQUE)).sum())
    between = float((weight * ((alpha > low) & (alpha < high))).sum())
    mode = _decided(opaque, between) if choice == "auto" else _MODES[choice]
    limit = {"OPAQUE": -1.0, "MASK": CUTOFF, "BLEND": _OPAQUE}[mode]
    return alpha < limit


def translucent_faces(alpha: Tensor, raster: Raster) -> Tensor:
    """Return (F,) bool: faces that alpha (S, S) uint8 makes less than opaque anywhere.

    A face reads the texels that it covers and those around them, and those that it touches; one too
    small to have any reads those around its centre. Those around the touched are another chart's.
    """
    floor = (-torch.nn.functional.max_pool2d(-alpha[None, None].float(), 3, 1, 1))[0, 0]
    owner = raster.face_of
    shown = owner >= 0
    read = torch.where(raster.covered, floor, alpha.float())
    least = torch.full((len(raster.faces),), 256.0, device=alpha.device)
    least.scatter_reduce_(0, owner[shown].long(), read[shown], "amin")
    unseen = (least > 255).nonzero()[:, 0]
    centre = raster.texel_of_centre(unseen)
    least[unseen] = floor.reshape(-1)[centre]
    return least < 255 * _OPAQUE


def _shares(alpha: Tensor) -> tuple[float, float]:
    """Return the shares of bytes (N,) that are opaque, and that are in between; 1, 0 of none."""
    if len(alpha) == 0:
        return 1.0, 0.0
    low, high = (255 * share for share in _BETWEEN)
    between = ((alpha > low) & (alpha < high)).double().mean()
    return float((alpha > 255 * _OPAQUE).double().mean()), float(between)


def _decided(opaque: float, between: float) -> AlphaMode:
    if opaque >= _OPAQUE_SHARE:
        return "OPAQUE"
    return "MASK" if between < _BETWEEN_SHARE else "BLEND"
