"""Cells of a cubic grid as sorted keys, and the one way to find cells among them."""

from __future__ import annotations

import torch
from torch import Tensor


def cell_keys(cells: Tensor, side: int) -> Tensor:
    """Return a number (...,) int64 for each cell (..., 3) of a grid of `side`; x counts most."""
    cells = cells.long()
    return (cells[..., 0] * side + cells[..., 1]) * side + cells[..., 2]


def find(keys: Tensor, cells: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Look cells (..., 3) up among sorted `keys` (N,).

    Returns where they are (...,) int64, any place for one that is not there, and (...,) bool:
    whether they are. A cell outside the grid is not there.
    """
    inside = ((cells >= 0) & (cells < side)).all(dim=-1)
    wanted = cell_keys(cells, side)
    at = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    return at, inside & (keys[at] == wanted)
