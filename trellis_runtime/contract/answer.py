"""The wire contract's other half: what a job is answered."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field, TypeAdapter

from trellis_runtime.contract.files import FileFormat
from trellis_runtime.contract.levels import LOWEST_LEVEL
from trellis_runtime.contract.quality import QualityReport, RejectedSeed
from trellis_runtime.contract.wire import WireModel


class Artifact(WireModel):
    """A delivered file: `url`, `base64`, or `bucket` and `key` where no URL can be signed."""

    url: str | None = None
    base64: str | None = None
    bucket: str | None = None
    key: str | None = None
    bytes: int = Field(ge=0)
    sha256: str
    content_type: str
    expires_at: str | None = Field(None, description="ISO 8601, UTC; null: does not expire.")


class AnswerWarning(WireModel):
    """A reason to look at the result before using it: `code` for programs, `text` for people."""

    code: str
    text: str


class Attempt(WireModel):
    """One stage that ran out of memory."""

    stage: str
    rung: str = Field(description="The rung at which it failed.")
    error: str
    vram_free_bytes: int | None
    seconds: float


class SkippedRung(WireModel):
    """A rung that was not taken on the way down."""

    rung: str
    reason: str


class Degradation(WireModel):
    """What was asked, what was given, and what happened in between."""

    level: int = Field(ge=0, le=LOWEST_LEVEL)
    lossless: bool
    rung: str
    requested: dict[str, Any]
    effective: dict[str, Any]
    attempts: list[Attempt]
    skipped: list[SkippedRung] = Field(
        default_factory=list, description="Rungs passed over, mildest first, and why."
    )


class MeshReport(WireModel):
    """Facts about the delivered mesh; topology is counted after welding by position."""

    vertices: int
    faces: int
    components: int
    boundary_edges: int
    nonmanifold_edges: int
    degenerate_faces: int
    bounds: list[list[float]]
    warnings: list[str]


class TextureReport(WireModel):
    """Facts about the delivered textures; size 0 means colours at the vertices."""

    size: int
    format: str


class Overlap(WireModel):
    """What `timings` alone would not tell of work side by side."""

    waited: dict[str, float] = Field(
        {}, description="Seconds of each stage in timings that it waited for another job."
    )
    beside: dict[str, float] = Field(
        {},
        description="Seconds of work on other threads beside the stages, in no timing of theirs.",
    )


class Vram(WireModel):
    """The card's memory over the job, as the driver sees it: use by a job beside it included."""

    peak_bytes: int
    total_bytes: int


class EngineInfo(WireModel):
    """Which engine answered. `synthetic` means that its weights are random: a rehearsal."""

    name: str
    versions: dict[str, str] = Field({})
    synthetic: bool = False
    attention: str | None = None
    card: str | None = None


class FinishError(WireModel):
    """Why one finish was not made; the others and the model are not touched by it."""

    code: str = Field(description="As of an answer that is an error.")
    text: str
    retryable: bool = Field(description="Whether the same finish can succeed when asked again.")


class FinishedFile(WireModel):
    """One of output.finishes: either `artifact` and the facts about it, or `error`."""

    name: str = Field(description="As the request has it.")
    format: FileFormat = Field(description="As the request has it.")
    file_name: str = Field(description="The file's name in the job's folder.")
    artifact: Artifact | None = Field(None, description="Where the file is; null with an error.")
    error: FinishError | None = Field(None, description="Why it was not made; null with a file.")
    faces: int | None = Field(None, ge=0, description="Triangles in the file.")
    mesh: MeshReport | None = Field(
        None, description="Counted before the file was scaled; bounds are the asset's own."
    )
    texture: TextureReport | None = Field(
        None, description="Of this file; size 0 where it has none."
    )
    quality: QualityReport | None = Field(
        None, description="Of this file's mesh and texture; null where the engine measures none."
    )
    size_m: list[float] | None = Field(
        None, description="Metres along x, y and z of the file's own axes."
    )
    unit: Literal["metre", "millimetre"] | None = Field(
        None, description="What one unit of the file's coordinates is."
    )
    up_axis: Literal["y", "z"] | None = Field(None, description="Which axis is up in the file.")
    compression: str | None = Field(None, description="Of a glb's geometry.")
    hulls: int | None = Field(
        None, ge=1, description="Convex hulls in a file of format hulls, each a node of its own."
    )
    oom_quality_degradation_level: int | None = Field(
        None, ge=0, le=LOWEST_LEVEL, description="The ladder's level that this file was made at."
    )
    seconds: float = Field(0.0, ge=0, description="What this file added to the job.")
    warnings: list[AnswerWarning] = Field(
        default_factory=list, description="Reasons to look at this file before using it."
    )


class Kept(WireModel):
    """What was kept of a job for a later one with finish_of."""

    id: str = Field(description="What finish_of has to name.")
    place: Literal["bucket", "folder"] = Field(
        description="folder: this worker's own disk, so another worker does not find it."
    )
    bytes: int = Field(ge=0)
    sha256: str
    expires_at: str = Field(description="ISO 8601, UTC; it may go earlier with its place.")


class _Model(WireModel):
    """What is told of one model that was made."""

    glb_url: str | None
    artifact: Artifact
    preview: Artifact | None
    thumbnail: Artifact | None = None
    turntable: Artifact | None = None
    cutout: Artifact | None = Field(
        None, description="What of the picture was modelled, as a PNG; with output.cutout."
    )
    warnings: list[AnswerWarning] = Field(
        default_factory=list,
        description="Reasons to look at the result before using it; empty when there are none.",
    )
    files: list[FinishedFile] = Field(
        default_factory=list,
        description="One entry for each of output.finishes, lods and hulls, in this order.",
    )
    seed: int
    oom_quality_degradation_level: int
    degradation: Degradation
    mesh: MeshReport
    texture: TextureReport
    quality: QualityReport | None = Field(
        None, description="Measured against what was decoded; null where the engine does not."
    )
    rejected_seeds: list[RejectedSeed] = Field(
        [], description="Seeds tried before this one, and the checks that their assets failed."
    )
    timings: dict[str, float]
    vram: Vram | None
    kept: Kept | None = Field(None, description="With keep; null without.")


class _Job(WireModel):
    """What is told of a job, whatever it made."""

    job_id: str
    engine: EngineInfo
    worker_version: str
    overlap: Overlap | None = Field(
        None, description="null: nothing ran side by side, so timings say all."
    )
    init: dict[str, float]


class GenerationResult(_Model, _Job):
    """The answer to a job that succeeded."""

    finish_of: str | None = Field(
        None, description="The job whose latents were finished; null where a picture was sampled."
    )


class Variant(_Model):
    """One variant of a job with variants or seeds: as a plain job with its seed is answered."""

    name: str = Field(description="v0, v1, ...: its files are NAME-model.glb and so on.")
    error: None = None


class FailedVariant(WireModel):
    """A variant that was not made; the others are not touched by it."""

    name: str
    seed: int
    error: FinishError


class VariantsResult(_Job):
    """The answer to a job with variants or seeds of which at least one was made."""

    variants: list[Variant | FailedVariant] = Field(
        description="One entry for each seed, in their order; `error` is null where it was made."
    )
    timings: dict[str, float] = Field(description="Of the whole job, the variants' own included.")


Answer = GenerationResult | VariantsResult
ANSWERS: TypeAdapter[GenerationResult | VariantsResult] = TypeAdapter(Answer)
"""Reads an answer's JSON."""


def parse_answer(text: str | bytes) -> dict[str, Any]:
    """Return the answer to a job that succeeded, as JSON has it; `text` comes from elsewhere.

    Fields that this version does not know stay in it: a newer worker may have written it. Raises
    `ValueError` where a field that it does know is missing or of another kind, and on what no JSON
    can hold.
    """
    ANSWERS.validate_json(text, extra="ignore")
    told: dict[str, Any] = json.loads(text, parse_constant=_no_number)
    return told


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def result_schema() -> dict[str, Any]:
    """Return the JSON Schema of a successful answer."""
    return GenerationResult.model_json_schema(mode="serialization")


def variants_schema() -> dict[str, Any]:
    """Return the JSON Schema of a successful answer to a job with variants or seeds."""
    return VariantsResult.model_json_schema(mode="serialization")
