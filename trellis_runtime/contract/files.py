"""The files of a result: their names, their types, and the answer's fields that tell of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ResultFile:
    """One file beside the others in a job's folder.

    `field` is the answer's field that tells of it, empty for the answer itself.
    """

    field: str
    name: str
    content_type: str


MODEL = ResultFile("artifact", "model.glb", "model/gltf-binary")
PREVIEW = ResultFile("preview", "preview.png", "image/png")
THUMBNAIL = ResultFile("thumbnail", "thumbnail.webp", "image/webp")
TURNTABLE = ResultFile("turntable", "turntable.webp", "image/webp")
CUTOUT = ResultFile("cutout", "cutout.png", "image/png")
ANSWER = ResultFile("", "answer.json", "application/json")
"""Kept beside the model: should the platform lose it on the way, the folder still tells all."""

ARTIFACTS = (MODEL, PREVIEW, THUMBNAIL, TURNTABLE, CUTOUT)
"""The files that an answer tells of."""

RESULT_FILES = {file.name: file for file in (*ARTIFACTS, ANSWER)}
"""Every file that a job can leave, by its name."""
