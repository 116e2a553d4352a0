"""How large a model will be at least, by what was asked alone.

A face is three indices of four bytes, or of two up to 65,535 vertices; a vertex is a position and
a normal of three floats, and two texture coordinates. A closed triangle mesh has half as many
vertices as faces (Euler: V - E + F = 2 and 2 E = 3 F), and seams of the texture only add to them.

Whether a mesh has as many faces as asked depends on how many the engine finds before it decimates:
the surface grows as the square of the resolution. Objects that fill little of the picture have
fewer, and are refused with the others: what is refused depends on the request alone, so that a
caller can know it beforehand.
"""

from __future__ import annotations

from trellis_runtime.contract.request import GenerationRequest

_INDEX_BYTES, _SHORT_INDEX_BYTES, _SHORT_VERTICES = 4, 2, 65_535
_VERTEX_BYTES = (3 + 3 + 2) * 4
_FACES_PER_CELL = 0.3
"""Faces found for each cell of a square of the grid's side, at least: 0.49 on the embedded engine
for test_input.json's duck at 512, and several on the GPU engine (docs/benchmarks.md)."""


def least_glb_bytes(request: GenerationRequest) -> int:
    """Return the bytes of geometry that a model of this request has, textures not counted."""
    faces = min(request.decimation_target, int(_FACES_PER_CELL * request.resolution**2))
    vertices = faces // 2
    index = _SHORT_INDEX_BYTES if vertices <= _SHORT_VERTICES else _INDEX_BYTES
    return faces * 3 * index + vertices * _VERTEX_BYTES


def faces_within(size: int) -> int:
    """Return the most faces whose geometry alone has `size` bytes, in whole ten thousands."""
    return size // (3 * _INDEX_BYTES + _VERTEX_BYTES // 2) // 10_000 * 10_000
