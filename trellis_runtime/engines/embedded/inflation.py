"""From a silhouette to a height field, coarse to fine.

The height is h = sqrt(u) where u solves  -laplace(u) = 4  inside the silhouette and u = 0 on its
outline: over a disc of radius r that is exactly the hemisphere h = sqrt(r^2 - x^2 - y^2), and any
other outline gets the rounded shape that its width suggests. Source: Baran and Lehtinen, "Notes on
Inflating Curves" (2009); see also Joshi and Carr, "Repousse" (2008).

The grid's outline is a staircase. Where the true outline runs is read from the silhouette's blurred
coverage (`outline_distance`); the outermost heights are set anew from it (`smooth_rim`), or the
steps would show as ripples, since a square root is steep at nought.

The equation is solved on a pyramid of grids, each starting from the coarser solution (the
cascadic multigrid of Bornemann and Deuflhard, 1996, with conjugate gradients as smoother).
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, cg
from scipy.special import ndtri

Mask = NDArray[np.bool_]
Field = NDArray[np.float64]

COARSE_CELLS = 32
"""Cells a side of the coarsest grid, where the solution is exact."""

_BLOCK_ROWS = 32
_TOLERANCE = 1e-6
_MAX_ITERATIONS = 400
_BLUR_CELLS = 1.2
_RIM_CELLS = 2.5
_LEAST_DISTANCE_CELLS = 0.3


def grid_mask(silhouette: Mask, cells: int) -> Mask:
    """Sample a silhouette on a grid of `cells` x `cells`, without corner-only contacts.

    Two cells that touch at a corner alone would make a vertex where the surface meets itself, so
    one of the empty cells beside the contact is filled, until there is none.
    """
    share = cv2.resize(silhouette.astype(np.float32), (cells, cells), interpolation=cv2.INTER_AREA)
    mask = np.zeros((cells + 2, cells + 2), bool)
    mask[1:-1, 1:-1] = share > 0.5
    while True:
        a, b, c, d = mask[:-1, :-1], mask[:-1, 1:], mask[1:, :-1], mask[1:, 1:]
        falling = a & d & ~b & ~c
        rising = b & c & ~a & ~d
        if not (falling.any() or rising.any()):
            return mask[1:-1, 1:-1].copy()
        mask[:-1, 1:] |= falling
        mask[:-1, :-1] |= rising


def inner_corners(mask: Mask) -> Mask:
    """Return the corners (cells + 1 a side) all of whose four cells are inside."""
    padded = np.pad(mask, 1)
    return padded[:-1, :-1] & padded[:-1, 1:] & padded[1:, :-1] & padded[1:, 1:]


def outline_distance(silhouette: Mask, cells: int) -> NDArray[np.float32]:
    """Return the signed distance to the outline at the corners, in cells, positive inside.

    A straight edge blurred by a Gaussian of deviation s has coverage Phi(d / s) at distance d, so
    d = s Phi^-1(coverage): exact there, and good to a fraction of a cell on any smooth outline.
    It saturates at about three cells.
    """
    area = cv2.resize(silhouette.astype(np.float32), (cells, cells), interpolation=cv2.INTER_AREA)
    soft = cv2.GaussianBlur(np.pad(area, 1), (0, 0), _BLUR_CELLS, borderType=cv2.BORDER_CONSTANT)
    corners = (soft[:-1, :-1] + soft[:-1, 1:] + soft[1:, :-1] + soft[1:, 1:]) / 4
    return (_BLUR_CELLS * ndtri(np.clip(corners, 0.008, 0.992))).astype(np.float32)


def smooth_rim(u: Field, distance: NDArray[np.float32]) -> Field:
    """Return `u` with its outermost values made proportional to the distance to the outline.

    Near the outline u is linear in the distance; its slope is averaged along the outline, which
    takes the staircase out of it.
    """
    inside = u > 0
    d = np.maximum(distance, _LEAST_DISTANCE_CELLS)
    trusted = inside & (distance > 1.0) & (distance < _RIM_CELLS)
    slope = cv2.GaussianBlur((trusted * u / d).astype(np.float32), (0, 0), 2.5)
    weight = cv2.GaussianBlur(trusted.astype(np.float32), (0, 0), 2.5)
    known = inside & (distance < _RIM_CELLS) & (weight > 0.02)
    slope /= np.maximum(weight, 1e-6)
    blend = np.clip(_RIM_CELLS - d[known], 0.0, 1.0)
    smoothed = u.copy()
    smoothed[known] = blend * slope[known] * d[known] + (1 - blend) * u[known]
    return smoothed


def solve(mask: Mask, guess: Field | None, *, by_rows: bool) -> Field:
    """Return u at the corners of `mask`'s grid, lengths in units of the grid's side.

    `guess` is a coarser solution. With `by_rows` the Laplacian is applied to blocks of rows: the
    same numbers from a smaller working set.
    """
    inside = inner_corners(mask)
    count = int(inside.sum())
    if count == 0:
        return np.zeros(inside.shape)
    cells = mask.shape[0]
    laplacian = _laplacian(inside, _BLOCK_ROWS if by_rows else inside.shape[0])
    operator = LinearOperator((count, count), matvec=laplacian, dtype=np.float64)
    start = None if guess is None else _resized(guess, inside.shape[0])[inside]
    right = np.full(count, 4.0 / cells**2)
    values, _ = cg(operator, right, x0=start, rtol=_TOLERANCE, maxiter=_MAX_ITERATIONS)
    u = np.zeros(inside.shape)
    u[inside] = np.maximum(values, 0.0)
    return u


def working_bytes(cells: int, *, by_rows: bool) -> int:
    """Bytes that `solve` allocates on a grid of `cells`: four vectors, and the stencil's copies."""
    corners = (cells + 1) ** 2
    stencil_rows = _BLOCK_ROWS if by_rows else cells + 1
    return 8 * (5 * corners + 3 * stencil_rows * (cells + 1))


def levels(cells: int) -> list[int]:
    """Return the grid sizes from coarse to `cells`, each about twice the one before."""
    sizes = [cells]
    while sizes[-1] > 2 * COARSE_CELLS:
        sizes.append((sizes[-1] + 1) // 2)
    return sizes[::-1]


def _laplacian(inside: Mask, block: int) -> Callable[[Field], Field]:
    side = inside.shape[0]
    grid = np.zeros((side + 2, side + 2))
    core = grid[1:-1, 1:-1]

    def apply(values: Field) -> Field:
        core[inside] = values
        out = np.empty(len(values))
        done = 0
        for top in range(0, side, block):
            rows = slice(top, min(top + block, side))
            lifted = slice(rows.start, rows.stop)
            below = slice(rows.start + 2, rows.stop + 2)
            middle = slice(rows.start + 1, rows.stop + 1)
            stencil = 4.0 * grid[middle, 1:-1]
            stencil -= grid[lifted, 1:-1]
            stencil -= grid[below, 1:-1]
            stencil -= grid[middle, :-2]
            stencil -= grid[middle, 2:]
            picked = stencil[inside[rows]]
            out[done : done + len(picked)] = picked
            done += len(picked)
        return out

    return apply


def _resized(field: Field, side: int) -> Field:
    """Resample corner values: corners of both grids coincide at the edges, so align them there."""
    at = np.linspace(0, field.shape[0] - 1, side, dtype=np.float32)
    x, y = np.meshgrid(at, at)
    return np.asarray(cv2.remap(field.astype(np.float32), x, y, cv2.INTER_LINEAR), dtype=np.float64)


def resample(field: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Resample corner values to `side` corners a side."""
    return _resized(field.astype(np.float64), side).astype(np.float32)
