"""What was measured of a baked asset, the checks on it, and which of them a job may insist on."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from trellis_runtime.contract.wire import WireModel
from trellis_runtime.errors import MeshRejected

QualityCheck = Literal[
    "area",
    "distance",
    "open",
    "nonmanifold",
    "shells",
    "thin",
    "density",
    "overlap",
    "stretch",
    "texture",
    "dark",
    "faces",
]
QUALITY_CHECKS: tuple[QualityCheck, ...] = get_args(QualityCheck)

_AREA = (0.9, 1.1)
_DISTANCE, _FAR_DISTANCE = 0.25, 2.0
_SHELLS = 1000
_DENSITY = (0.8, 1.25)
_OVERLAP = 1e-5
_STRETCH = 1.1
_PSNR_DB = 35.0
_DARK = 1e-4


class QualityReport(WireModel):
    """Facts about a baked asset, measured against the surface and voxels that were decoded.

    Distances are in voxels, densities in shares of the median. Texture figures are null where the
    colours are at the vertices.
    """

    area_ratio: float = Field(description="Area over that of the decoded surface.")
    distance_voxels: float = Field(description="Mean, from the asset to the decoded surface.")
    distance_p99_voxels: float
    missed_voxels: float = Field(
        description="Mean, from the decoded surface to the asset; inner walls left out count."
    )
    boundary_edges: int = Field(description="After welding at a millionth of the size.")
    nonmanifold_edges: int
    shells: int = Field(description="Parts that share no vertex after welding.")
    thin_parts: int = Field(description="Closed shells that are thinner than 1.5 voxels.")
    faces_asked: int
    faces: int
    alpha_mode: str
    charts: int | None = None
    density_min: float | None = Field(None, description="Of charts with more than 20 faces.")
    density_median: float | None = Field(None, description="Texels along one unit of length.")
    density_max: float | None = None
    overlap: float | None = Field(None, description="Share of covered texels with two faces.")
    utilization: float | None = Field(None, description="Share of texels that a face covers.")
    stretch: float | None = Field(None, description="Sander's L2, 1 where nothing is stretched.")
    psnr_db: float | None = Field(None, description="Base colour against the voxels'.")
    dark_texels: float | None = Field(
        None, description="Share of points that show black where the voxels do not."
    )

    def warnings(self) -> dict[QualityCheck, str]:
        """Return what is wrong, in words, by the name of its check."""
        return _shape_warnings(self) | _texture_warnings(self)


class RejectedSeed(WireModel):
    """A seed whose asset failed a check that the job insisted on."""

    seed: int
    checks: list[QualityCheck]
    quality: QualityReport


def require_quality(report: QualityReport, strict: tuple[QualityCheck, ...]) -> None:
    """Raise `MeshRejected` where `report` fails one of the checks `strict`."""
    failed = failed_checks(report, strict)
    if failed:
        warnings = report.warnings()
        raise MeshRejected("; ".join(f"{name}: {warnings[name]}" for name in failed))


def failed_checks(report: QualityReport, strict: tuple[QualityCheck, ...]) -> list[QualityCheck]:
    """Return those of the checks `strict` that `report` fails, in the order of `QUALITY_CHECKS`."""
    warnings = report.warnings()
    return [name for name in QUALITY_CHECKS if name in strict and name in warnings]


def retry_seed(seed: int, attempt: int) -> int:
    """Return the seed of retry `attempt` (1, 2, ...): the next ones, within a seed's 31 bits."""
    return (seed + attempt) % 2**31


def _shape_warnings(r: QualityReport) -> dict[QualityCheck, str]:
    thin = f"{r.thin_parts} closed parts are thinner than 1.5 voxels; they may vanish in print"
    checks: list[tuple[QualityCheck, bool, str]] = [
        (
            "area",
            not _AREA[0] <= r.area_ratio <= _AREA[1],
            f"the surface has {r.area_ratio:.2f} times the decoded one's area; about 2 means "
            "that open sheets became thin closed shells",
        ),
        (
            "distance",
            r.distance_voxels > _DISTANCE or r.distance_p99_voxels > _FAR_DISTANCE,
            f"the surface is {r.distance_voxels:.2f} voxels off the decoded one in the mean, "
            f"{r.distance_p99_voxels:.2f} for the farthest hundredth",
        ),
        ("open", r.boundary_edges > 0, f"{r.boundary_edges} edges have one face: not closed"),
        (
            "nonmanifold",
            r.nonmanifold_edges > 0,
            f"{r.nonmanifold_edges} edges have more than two faces",
        ),
        ("shells", r.shells > _SHELLS, f"the surface falls into {r.shells} parts"),
        ("thin", r.thin_parts > 0, thin),
        (
            "faces",
            r.faces > r.faces_asked,
            f"{r.faces} faces were made where {r.faces_asked} were asked",
        ),
    ]
    return {name: text for name, wrong, text in checks if wrong}


def _texture_warnings(r: QualityReport) -> dict[QualityCheck, str]:
    low, high = r.density_min or 1.0, r.density_max or 1.0
    overlap, stretch, dark = r.overlap or 0.0, r.stretch or 1.0, r.dark_texels or 0.0
    psnr = _PSNR_DB if r.psnr_db is None else r.psnr_db
    checks: list[tuple[QualityCheck, bool, str]] = [
        (
            "density",
            low < _DENSITY[0] or high > _DENSITY[1],
            f"charts have {low:.2f} to {high:.2f} times the median texel density",
        ),
        ("overlap", overlap > _OVERLAP, f"{overlap:.2%} of the texels are covered twice"),
        ("stretch", stretch > _STRETCH, f"the texture is stretched {stretch:.2f} times"),
        ("texture", psnr < _PSNR_DB, f"the texture is {psnr:.1f} dB from the voxels' colours"),
        ("dark", dark > _DARK, f"{dark:.2%} of the surface is black where its voxels are not"),
    ]
    return {name: text for name, wrong, text in checks if wrong}
