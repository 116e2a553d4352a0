"""Whether every model stays on the card: the sums, apart from any card.

    weights of all models  +  the most that one stage takes beside them  <  what is available

A stage's own peak is that of its sampling, decoding and bake, by resolution, or that of the
background remover's pass, which runs before them while all models are there. The remover is counted
where one is loaded, whatever the next picture is: the engine decides before it sees one.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30

WORKING_BYTES = {512: 3 * GIB, 1024: 6 * GIB, 1536: 10 * GIB}
"""Upstream's torch peaks above its resident weights were 1.4, 3.5 and 7.2 GiB on an H200; the rest
is room for what Warp allocates outside torch."""

REMOVER_WORKING_BYTES = 4 * GIB
"""BiRefNet's pass at 1024 px in float32, above its weights; an estimate, not measured here."""

START_RESOLUTION = 1024
"""The resolution that a start makes room for: a request's default."""


@dataclass(frozen=True, slots=True)
class Placement:
    """What has to lie on a card beside what is there: bytes of weights, and of one stage's work."""

    absent_bytes: int
    has_remover: bool

    def needed_bytes(self, resolution: int, background: str = "auto") -> int:
        """Return the bytes that a job takes at its peak with every model resident."""
        working = WORKING_BYTES[resolution]
        if self.has_remover and background != "keep":
            working = max(working, REMOVER_WORKING_BYTES)
        return self.absent_bytes + working

    def fits(self, available: int, resolution: int, background: str = "auto") -> bool:
        """Whether a job has room in `available` bytes with every model resident."""
        return available > self.needed_bytes(resolution, background)
