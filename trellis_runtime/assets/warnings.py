"""Reasons to look at a result before using it: from the cut-out, the mesh, and both together.

code                when
alpha_ignored       the alpha channel cut nothing out (`assets/cutout.py`), so it was not used
alpha_plain_shape   it kept a plain rectangle, or a disc as large as the picture: a frame, perhaps
cutout_uncertain    the background remover was unsure of more than 35 % of the object's pixels
covers_picture      more than 95 % of the picture is object
tiny_object         the object is less than 64 px long
small_object        it covers less than 3 % of the picture
touches_border      more than 4 % of the picture's border is object: something may be cut off
several_pieces      the cut-out has separate pieces, each at least 1 % of the largest
mesh_in_pieces      the mesh has more than 20 pieces: debris, perhaps
quality_...         a check of `contract/quality.py` that the asset fails: `quality_distance`, say
silhouette_differs  seen from the front, the mesh covers less than 60 % of what it and the cut-out
                    cover together (intersection over union, boxes aligned)
"""

from __future__ import annotations

import cv2
import numpy as np

from trellis_runtime.assets.cutout import Mask, bounding_box
from trellis_runtime.contract.answer import AnswerWarning, MeshReport
from trellis_runtime.contract.engine import Asset, CutOut

_UNSURE_SHARE = 0.35
_SMALL_SHARE = 0.03
_TINY_PX = 64
_WHOLE_SHARE = 0.95
_TOUCHING_SHARE = 0.04
_PIECE_SHARE = 0.01
_MESH_PIECES = 20
_LEAST_OVERLAP = 0.6
_GRID = 128


def result_warnings(asset: Asset, report: MeshReport, cutout: CutOut | None) -> list[AnswerWarning]:
    """Return what a caller should know before using a result; empty where all is well."""
    found = [] if cutout is None else cutout_warnings(cutout)
    if report.components > _MESH_PIECES:
        found.append(
            AnswerWarning(
                code="mesh_in_pieces",
                text=f"the mesh has {report.components} separate pieces; some may be debris",
            )
        )
    if asset.quality is not None:
        told = asset.quality.warnings()
        found += [AnswerWarning(code=f"quality_{name}", text=text) for name, text in told.items()]
    if cutout is not None and (overlap := silhouette_overlap(asset, cutout)) < _LEAST_OVERLAP:
        found.append(
            AnswerWarning(
                code="silhouette_differs",
                text=f"seen from the front, model and cut-out share {overlap:.0%} of their outline",
            )
        )
    return found


def silhouette_overlap(asset: Asset, cutout: CutOut) -> float:
    """Return the intersection over union of the mesh, seen along -z, and the cut-out, 0 to 1.

    Both are scaled so that the longer side of their box fills a grid of 128 cells.
    """
    solid = cutout.rgba[..., 3] >= 128
    if not solid.any() or len(asset.faces) == 0:
        return 0.0
    seen, meant = _front(asset), _aligned(solid[bounding_box(solid)])
    return float((seen & meant).sum() / (seen | meant).sum())


def _aligned(box: Mask) -> Mask:
    height, width = box.shape
    scale = _GRID / max(height, width)
    rows, cols = max(1, round(height * scale)), max(1, round(width * scale))
    small = cv2.resize(box.astype(np.float32), (cols, rows), interpolation=cv2.INTER_AREA) > 0.5
    grid = np.zeros((_GRID, _GRID), bool)
    top, left = (_GRID - rows) // 2, (_GRID - cols) // 2
    grid[top : top + rows, left : left + cols] = small
    return grid


def _front(asset: Asset) -> Mask:
    """Return which cells the mesh covers: small faces as points, large ones filled."""
    xy = asset.vertices[:, :2].astype(np.float64) * [1.0, -1.0]
    low, high = xy.min(axis=0), xy.max(axis=0)
    at = (xy - (low + high) / 2) * (_GRID - 1) / max(float((high - low).max()), 1e-9)
    at += (_GRID - 1) / 2
    corners = at[asset.faces.astype(np.int64)]
    large = (corners.max(axis=1) - corners.min(axis=1)).max(axis=1) > 1.0
    grid = np.zeros((_GRID, _GRID), np.uint8)
    points = np.round(np.concatenate([at, corners.mean(axis=1)])).astype(np.int64)
    grid[points[:, 1], points[:, 0]] = 1
    for triangle in np.round(corners[large]).astype(np.int32):
        cv2.fillConvexPoly(grid, triangle, 1)
    return grid > 0


def pieces(mask: Mask, least_share: float = _PIECE_SHARE) -> int:
    """Count the separate pieces of `mask`, those below `least_share` of the largest left out."""
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count < 2:
        return 0
    areas = stats[1:, cv2.CC_STAT_AREA]
    return int((areas >= least_share * areas.max()).sum())


def cutout_warnings(cutout: CutOut) -> list[AnswerWarning]:
    """Return what a caller should know of the cut-out before trusting the model made from it."""
    checks = (_alpha_warning, _extent_warning, _size_warning, _border_warning, _pieces_warning)
    found = [check(cutout) for check in checks]
    return [warning for warning in found if warning is not None]


def _alpha_warning(cutout: CutOut) -> AnswerWarning | None:
    if cutout.alpha_ignored:
        return AnswerWarning(
            code="alpha_ignored",
            text="the picture's alpha channel cuts no object out; its background was removed "
            "as from a picture without one",
        )
    if cutout.plain_shape:
        return AnswerWarning(
            code="alpha_plain_shape",
            text="the picture's alpha channel keeps a plain rectangle or disc; if that is a frame "
            "and not the object, send the picture without alpha",
        )
    return None


def _extent_warning(cutout: CutOut) -> AnswerWarning | None:
    if cutout.source == "model" and cutout.uncertain > _UNSURE_SHARE:
        return AnswerWarning(
            code="cutout_uncertain",
            text=f"{cutout.uncertain:.0%} of the foreground is a guess: object and background are "
            "hard to tell apart; send a picture with a transparent background",
        )
    if cutout.source != "keep" and cutout.share > _WHOLE_SHARE:
        return AnswerWarning(
            code="covers_picture",
            text=f"the foreground covers {cutout.share:.0%} of the picture: hardly anything was "
            "taken for background",
        )
    return None


def _size_warning(cutout: CutOut) -> AnswerWarning | None:
    if cutout.longer_px < _TINY_PX:
        return AnswerWarning(
            code="tiny_object",
            text=f"the object is {cutout.longer_px} px long; from fewer than {_TINY_PX} px there "
            "is little detail to take",
        )
    if cutout.share < _SMALL_SHARE:
        return AnswerWarning(
            code="small_object",
            text=f"the object covers {cutout.share:.1%} of the picture; crop closer to it for "
            "more detail",
        )
    return None


def _border_warning(cutout: CutOut) -> AnswerWarning | None:
    if cutout.source == "keep" or cutout.border <= _TOUCHING_SHARE:
        return None
    return AnswerWarning(
        code="touches_border",
        text=f"the object touches {cutout.border:.0%} of the picture's border: what lies outside "
        "the picture is missing",
    )


def _pieces_warning(cutout: CutOut) -> AnswerWarning | None:
    count = pieces(cutout.rgba[..., 3] >= 128)
    if count < 2:
        return None
    return AnswerWarning(
        code="several_pieces",
        text=f"the foreground has {count} separate pieces; a model is made of all of them",
    )
