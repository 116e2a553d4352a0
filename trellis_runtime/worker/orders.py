"""Finishes with nothing left open: the caller's words for each, else the request's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from trellis_runtime.assets.formats import require_compression, require_packages
from trellis_runtime.assets.placement import Placement
from trellis_runtime.contract.files import (
    FORMATS,
    FileFormat,
    FormatFacts,
)
from trellis_runtime.contract.ladder import Plan
from trellis_runtime.contract.request import (
    USUAL_HULLS,
    Compression,
    DetailMap,
    Finish,
    GenerationRequest,
    Output,
    TextureFormat,
)

_PRINTED_M = 0.1
"""The longest side of a file for printers, unless the caller gives another."""


@dataclass(frozen=True, slots=True)
class Order:
    """A finish with nothing left open."""

    name: str
    format: FileFormat
    decimation_target: int
    texture_size: int
    texture_format: TextureFormat
    compression: Compression
    placement: Placement
    maps: tuple[DetailMap, ...] = ()
    hulls: int = USUAL_HULLS

    @property
    def facts(self) -> FormatFacts:
        return FORMATS[self.format]

    def plan(self, requested: Plan) -> Plan:
        """Return how this file is to be baked, of the sampling that `requested` asked for."""
        wanted = replace(
            requested,
            decimation_target=self.decimation_target,
            texture_size=self.texture_size if self.facts.textures else 0,
            maps=self.maps,
        )
        if not self.facts.printed:
            return wanted
        closed: dict[str, Any] = {"shell": "closed", "remesh": True}
        return replace(wanted, **closed)


def settle(finish: Finish, request: GenerationRequest) -> Order:
    """Return `finish` with the request's own values where it has none."""
    output, facts = request.output, FORMATS[finish.format]
    texture_format = finish.texture_format or output.texture_format
    if facts.encodings and texture_format not in facts.encodings:
        texture_format = "png"
    compression: Compression = "none"
    if finish.format == "glb":
        compression = finish.compression or output.compression
    return Order(
        finish.name,
        finish.format,
        finish.decimation_target or request.decimation_target,
        finish.texture_size or request.texture_size,
        texture_format,
        compression,
        _placement(finish, output),
        (output.maps if finish.maps is None else finish.maps) if facts.textures else (),
        finish.hulls or USUAL_HULLS,
    )


def _placement(finish: Finish, output: Output) -> Placement:
    facts = FORMATS[finish.format]
    size_m = finish.size_m or output.size_m or (_PRINTED_M if facts.printed else None)
    return Placement(
        size_m,
        finish.size_axis or output.size_axis,
        finish.pivot or output.pivot,
        facts.up if finish.up_axis == "auto" else finish.up_axis,
        facts.per_metre,
    )


def require_writable(output: Output) -> None:
    """Raise `InvalidInput` where what one of the files needs is absent."""
    require_compression(output.compression, "output.compression")
    if output.hulls is not None:
        require_packages(FORMATS["hulls"].packages, "hulls", "output.hulls")
    for number, finish in enumerate(output.finishes):
        field = f"output.finishes.{number}"
        require_packages(
            FORMATS[finish.format].packages, f"format {finish.format!r}", f"{field}.format"
        )
        require_compression(finish.compression or "none", f"{field}.compression")
