"""What a bake of ours must reach on each of the nine shapes: docs/quality.md has the figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Aim:
    """One figure of a row's side: `name` of the report, what it must be, and for which shapes."""

    name: str
    words: str
    reached: Callable[[Any], bool]
    closed_only: bool = False


AIMS: tuple[Aim, ...] = (
    Aim("area_ratio", "0.98 to 1.03", lambda v: 0.98 <= v <= 1.03, closed_only=True),
    Aim("distance_voxels", "at most 0.1", lambda v: v <= 0.1),
    Aim("boundary_edges", "0", lambda v: v == 0),
    Aim("nonmanifold_edges", "0", lambda v: v == 0),
    Aim("manifold3d", "NoError", lambda v: v == "NoError"),
    Aim("overlap", "at most 1e-5", lambda v: v <= 1e-5),
    Aim("psnr_db", "at least 55", lambda v: v >= 55),  # upstream has 37 to 53
    Aim("different", "1, the same bytes each time", lambda v: v == 1),
)


def missed(row: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence for each aim that a suite's row misses; a figure that is absent does."""
    ours = row["ours"] or {}
    if "error" in ours:
        yield f"{row['case']}: the bake failed: {ours['error']}"
        return
    for aim in AIMS:
        if aim.closed_only and not row["closed"]:
            continue
        value = ours.get(aim.name)
        if value is None or not aim.reached(value):
            yield f"{row['case']}: {aim.name} is {value}; it must be {aim.words}"
