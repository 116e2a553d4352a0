"""The timed parts of a job, in order; which of them an engine runs."""

from __future__ import annotations

from enum import StrEnum


class Stage(StrEnum):
    """The timed parts of a job, in order."""

    IMAGE = "image"
    CONDITION = "condition"
    STRUCTURE = "structure"
    SHAPE = "shape"
    TEXTURE = "texture"
    DECODE = "decode"
    BAKE = "bake"
    FINISH = "finish"
    LATENTS = "latents"
    EXPORT = "export"
    PREVIEW = "preview"
    STORE = "store"


ENGINE_STAGES = (
    Stage.CONDITION,
    Stage.STRUCTURE,
    Stage.SHAPE,
    Stage.TEXTURE,
    Stage.DECODE,
    Stage.BAKE,
)
"""The stages that an engine runs, each repeatable alone from the products of those before it."""
