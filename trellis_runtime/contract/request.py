"""The wire contract: what a job may ask.

`parse_request` turns a job's JSON into a frozen `GenerationRequest` or raises `InvalidInput`.
The JSON Schema files in `docs/schema/` are written from these models.

Long because it lists the fields of one request, each beside what it says to JSON Schema.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from trellis_runtime.contract.files import FINISH_NAME, FORMATS, FileFormat
from trellis_runtime.contract.levels import LOWEST_LEVEL
from trellis_runtime.contract.quality import QualityCheck
from trellis_runtime.contract.refusals import refusal
from trellis_runtime.contract.wire import WireModel
from trellis_runtime.errors import InvalidInput

MAX_SEED = 2**31 - 1
Resolution = Literal[512, 1024, 1536]
TextureSize = Literal[512, 1024, 2048, 4096, 8192]
TextureFormat = Literal["png", "webp", "jpeg"]
Shell = Literal["closed", "double_sided", "remeshed"]
AlphaChoice = Literal["auto", "opaque", "mask", "blend"]
DeliveryChoice = Literal["auto", "url", "inline", "upload"]
Compression = Literal["none", "draco", "meshopt"]
SizeAxis = Literal["longest", "x", "y", "z"]
Pivot = Literal["made", "center", "bottom"]
UpAxis = Literal["auto", "y", "z"]
DetailMap = Literal["normal", "occlusion"]
MOST_FINISHES = 8
MOST_HULLS = 64
USUAL_HULLS = 16
MOST_VARIANTS = 8


_LONGEST_URL = 8192
_HTTP_URL = r"^\s*[hH][tT][tT][pP][sS]?://[^\s/?#]"
_DATA_URI = r"^\s*[dD][aA][tT][aA]:"


class RequestModel(WireModel):
    """A part of a request: strict, but a value may come in any of its usual spellings.

    JSON has one kind of number, so 7.0 and 1e5 are integers, as JSON Schema says.
    """

    @model_validator(mode="before")
    @classmethod
    def _whole_numbers(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {key: _whole(value) for key, value in data.items()}


def _whole(value: Any) -> Any:
    if isinstance(value, list):
        return [_whole(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


Share = Annotated[float, Field(ge=0, le=1)]


_STEPS = "Euler steps; the time of the stage grows with them."
_GUIDANCE_STRENGTH = "How strongly the picture guides; 1: no guidance."
_GUIDANCE_RESCALE = "Pulls guided values back to the spread of unguided ones; 0: not at all."
_GUIDANCE_INTERVAL = "The part of the way, 0 to 1, in which guidance is used."
_RESCALE_T = "How much of the time is spent early, on the coarse form; 1: evenly."


class Sampler(RequestModel):
    """One flow model's sampler (rectified flow, Euler, guidance within an interval)."""

    steps: int = Field(12, ge=1, le=50, description=_STEPS)
    guidance_strength: float = Field(7.5, ge=0, le=10, description=_GUIDANCE_STRENGTH)
    guidance_rescale: float = Field(0.5, ge=0, le=1, description=_GUIDANCE_RESCALE)
    guidance_interval: Annotated[tuple[Share, Share], Field(strict=False)] = Field(
        (0.6, 1.0), description=_GUIDANCE_INTERVAL
    )
    rescale_t: float = Field(3.0, ge=1, le=6, description=_RESCALE_T)

    @field_validator("guidance_interval")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("must be two numbers a, b with 0 <= a <= b <= 1")
        return value


class SparseStructureSampler(Sampler):
    """Defaults of the sparse structure stage, as upstream."""

    guidance_rescale: float = Field(0.7, ge=0, le=1, description=_GUIDANCE_RESCALE)
    rescale_t: float = Field(5.0, ge=1, le=6, description=_RESCALE_T)


class TextureSampler(Sampler):
    """Defaults of the texture stage, as upstream."""

    guidance_strength: float = Field(1.0, ge=0, le=10, description=_GUIDANCE_STRENGTH)
    guidance_rescale: float = Field(0.0, ge=0, le=1, description=_GUIDANCE_RESCALE)
    guidance_interval: Annotated[tuple[Share, Share], Field(strict=False)] = Field(
        (0.6, 0.9), description=_GUIDANCE_INTERVAL
    )


class Samplers(RequestModel):
    """The three samplers of a job."""

    sparse_structure: SparseStructureSampler = SparseStructureSampler()
    shape: Sampler = Sampler()
    texture: TextureSampler = TextureSampler()


def _trim(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def _image_schema(schema: dict[str, Any]) -> None:
    """An address in `image` is held to what `image_url` is held to."""
    schema["if"] = {"pattern": _HTTP_URL}
    schema["then"] = {"maxLength": _LONGEST_URL}


def _image_url_schema(schema: dict[str, Any]) -> None:
    schema["anyOf"] = [
        {"pattern": _HTTP_URL, "maxLength": _LONGEST_URL},
        {"pattern": _DATA_URI},
    ]


def _needs(condition: dict[str, Any], outcome: dict[str, Any]) -> dict[str, Any]:
    return {"if": {"properties": condition, "required": list(condition)}, "then": outcome}


_NOT_THE_CALLERS = frozenset(
    ("host", "content-length", "transfer-encoding", "connection", "expect", "upgrade", "te",
     "trailer", "keep-alive", "proxy-connection")
)  # fmt: skip
"""Headers that say how a request is carried, and to whom."""

HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}$")]
HeaderValue = Annotated[str, Field(pattern=r"^[!-~]([ -~]*[!-~])?$", max_length=2000)]

_Faces = Annotated[int, Field(ge=1_000, le=2_000_000)]
_Hulls = Annotated[int, Field(ge=1, le=MOST_HULLS)]
_Metres = Annotated[float, Field(ge=1e-3, le=1e3)]


_PLACED = ("size_m", "size_axis", "pivot")


def _rule_of_place() -> dict[str, Any]:
    """What has no mesh has no size and lies nowhere."""
    without = [name for name, facts in FORMATS.items() if not facts.has_mesh]
    nowhere: dict[str, Any] = {field: {"type": "null"} for field in _PLACED}
    outcome = {"properties": nowhere | {"up_axis": {"const": "auto"}}}
    return _needs({"format": {"enum": without}}, outcome)


def _finish_rules() -> Any:
    textured = [name for name, facts in FORMATS.items() if facts.textures]
    y_up = [name for name, facts in FORMATS.items() if facts.y_up_only]
    glb = [name for name, facts in FORMATS.items() if facts.suffix == FORMATS["glb"].suffix]
    with_format = {"required": ["format"]}
    return [
        _needs(
            {"format": {"enum": [name for name in FORMATS if name not in textured]}},
            {
                "properties": {
                    **{f: {"type": "null"} for f in ("texture_size", "texture_format")},
                    "maps": {"anyOf": [{"type": "null"}, {"maxItems": 0}]},
                }
            },
        ),
        *(
            _needs(
                {"format": {"const": name}},
                {"properties": {"texture_format": {"enum": [*FORMATS[name].encodings, None]}}},
            )
            for name in textured
        ),
        {
            "if": {"properties": {"format": {"enum": y_up}}},
            "then": {"properties": {"up_axis": {"enum": ["auto", "y"]}}},
        },
        _rule_of_place(),
        {
            "if": with_format | {"properties": {"format": {"not": {"const": "glb"}}}},
            "then": {"properties": {"compression": {"type": "null"}}},
        },
        {
            "if": {"properties": {"format": {"enum": glb}}},
            "then": {"properties": {"name": {"not": {"const": "model"}}}},
        },
        {
            "if": with_format | {"properties": {"format": {"const": "hulls"}}},
            "then": {"properties": {"decimation_target": {"type": "null"}}},
            "else": {"properties": {"hulls": {"type": "null"}}},
        },
    ]


class Finish(RequestModel):
    """One more file of the same asset; what is left out is as the request has it."""

    model_config = ConfigDict(json_schema_extra={"allOf": _finish_rules()})

    name: str = Field(
        pattern=FINISH_NAME,
        description="The file's name, without its suffix: at most 32 small letters, digits, - and "
        "_; each once in a request. The plain GLB is called model, so no other GLB can be.",
    )
    format: FileFormat = Field(
        "glb",
        description="glb; usdz (for Quick Look); obj (a zip with OBJ, MTL and textures); ply "
        "(colours at the vertices); stl, 3mf (for printers: one closed surface in millimetres); "
        "hulls (a GLB of convex hulls, for collisions); maps (a zip of the GLB's textures).",
    )
    decimation_target: _Faces | None = Field(
        None, description="Most faces of this file's mesh; null: as the request."
    )
    texture_size: TextureSize | None = Field(
        None,
        description="Pixels a side of this file's textures; null: as the request. glb, usdz, obj, "
        "maps.",
    )
    texture_format: TextureFormat | None = Field(
        None,
        description="Of the base colour; null: as output.texture_format, png where the format "
        "knows no webp. webp: glb and maps.",
    )
    compression: Compression | None = Field(
        None, description="Of a glb's geometry; null: as output.compression. glb alone."
    )
    size_m: _Metres | None = Field(
        None,
        description="Length along size_axis, in metres; null: as output.size_m, else 0.1 for stl "
        "and 3mf and the model's own metre for the others.",
    )
    size_axis: SizeAxis | None = Field(
        None, description="What size_m is measured along; null: as output.size_axis."
    )
    pivot: Pivot | None = Field(
        None, description="Where the file's origin lies; null: as output.pivot."
    )
    hulls: _Hulls | None = Field(
        None,
        description="At most how many convex hulls a file of format hulls has (1 to 64); null: 16.",
    )
    maps: Annotated[tuple[DetailMap, ...], Field(strict=False)] | None = Field(
        None,
        max_length=2,
        json_schema_extra={"uniqueItems": True},
        description="Of detail, for formats with textures; null: as output.maps.",
    )
    up_axis: UpAxis = Field(
        "auto",
        description="Which axis is up in the file; auto: z for stl and 3mf, y for the others. "
        "glb and usdz are y-up by their own rules.",
    )

    @model_validator(mode="after")
    def _maps_and_hulls_fit(self) -> Finish:
        facts, form = FORMATS[self.format], self.format
        if self.maps and not facts.textures:
            raise ValueError(f"maps are not used with format {form!r}, which has no textures")
        _require_apart(self.maps or ())
        if self.hulls is not None and form != "hulls":
            raise ValueError(f"hulls is for format 'hulls', not {form!r}")
        if self.decimation_target is not None and form == "hulls":
            raise ValueError(
                "decimation_target is not used with format 'hulls': they are the GLB's"
            )
        return self

    @model_validator(mode="after")
    def _fits_its_format(self) -> Finish:
        facts, form = FORMATS[self.format], self.format
        if not facts.textures and (self.texture_size or self.texture_format):
            field = "texture_size" if self.texture_size else "texture_format"
            raise ValueError(f"{field} is not used with format {form!r}, which has no textures")
        if self.texture_format and self.texture_format not in facts.encodings:
            known = ", ".join(facts.encodings)
            raise ValueError(
                f"texture_format is {self.texture_format!r}; format {form!r} takes {known}"
            )
        if self.compression is not None and form != "glb":
            raise ValueError(f"compression is for format 'glb', not {form!r}")
        if facts.y_up_only and self.up_axis == "z":
            raise ValueError(f"up_axis is 'z'; format {form!r} is y-up by its own rules")
        if not facts.has_mesh:
            self._require_no_place()
        if self.name == "model" and facts.suffix == FORMATS["glb"].suffix:
            raise ValueError("name 'model' is the plain GLB's")
        return self

    def _require_no_place(self) -> None:
        stated = [field for field in _PLACED if getattr(self, field) is not None]
        stated += ["up_axis"] if self.up_axis != "auto" else []
        if stated:
            raise ValueError(f"{stated[0]} is not used with format {self.format!r}: it has no mesh")


HULLS = "hulls"
"""The name of the file that `output.hulls` asks for, without its suffix."""


def _hulls_finish(most: int) -> Finish:
    return Finish(name=HULLS, format="hulls", hulls=most)


class Output(RequestModel):
    """How the result is delivered."""

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [
                _needs(
                    {"delivery": {"const": "upload"}},
                    {"required": ["upload_url"], "properties": {"upload_url": {"type": "string"}}},
                ),
                _needs(
                    {"delivery": {"enum": ["url", "inline"]}},
                    {"properties": {"upload_url": {"type": "null"}}},
                ),
                _needs(
                    {"upload_headers": {"minProperties": 1}},
                    {"required": ["upload_url"], "properties": {"upload_url": {"type": "string"}}},
                ),
            ]
        }
    )

    delivery: DeliveryChoice = Field(
        "auto",
        description="auto: upload_url when there is one, else a bucket, else a local file on a "
        "local run, else inline; url: a bucket, or a local file on a local run; inline: base64 in "
        "the answer; upload: PUT to upload_url.",
    )
    upload_url: Annotated[str, Field(json_schema_extra={"pattern": _HTTP_URL})] | None = Field(
        None, max_length=_LONGEST_URL, description="Presigned URL (http, https) that takes a PUT."
    )
    upload_headers: dict[HeaderName, HeaderValue] = Field(
        {},
        max_length=20,
        description="Headers of that PUT, as they were signed: Content-Type or x-amz-acl, say. "
        "Without them a signed Content-Type is model/gltf-binary.",
    )
    texture_format: TextureFormat = Field(
        "png",
        description="Of the base colour; webp makes the file need EXT_texture_webp. The "
        "metallic-roughness map is always lossless.",
    )
    preview: bool = Field(
        True, description="Whether a rendered picture and a thumbnail come with the GLB."
    )
    turntable: bool = Field(
        False, description="Whether an animated WebP of one turn comes with the GLB."
    )
    cutout: bool = Field(
        False,
        description="Whether what of the picture was modelled comes with the GLB, as a PNG.",
    )

    compression: Compression = Field(
        "none",
        description="Of the GLB's geometry. draco: a tenth of the bytes; the file then needs "
        "KHR_draco_mesh_compression. meshopt: a sixth, and many times faster to read; it needs "
        "EXT_meshopt_compression and KHR_mesh_quantization. Both keep lengths to a 16,000th of "
        "its size.",
    )
    size_m: _Metres | None = Field(
        None,
        description="The model's length along size_axis, in metres (0.001 to 1000); null: as it "
        "is made, at most a metre a side.",
    )
    size_axis: SizeAxis = Field(
        "longest",
        description="What size_m is measured along, in the GLB's axes: x across, y up, z to the "
        "viewer; longest: the longest of them.",
    )
    pivot: Pivot = Field(
        "made",
        description="Where the file's origin lies. made: the middle of the cube it was made in; "
        "center: of its box; bottom: of its box's lower side.",
    )
    maps: Annotated[tuple[DetailMap, ...], Field(strict=False)] = Field(
        (),
        max_length=2,
        json_schema_extra={"uniqueItems": True},
        description="Baked from the full surface besides base colour and metallic-roughness. "
        "normal: a tangent-space normal map, with tangents in the file; occlusion: ambient "
        "occlusion, in the red of metallic-roughness.",
    )
    finishes: Annotated[tuple[Finish, ...], Field(strict=False)] = Field(
        (),
        max_length=MOST_FINISHES,
        description="More files of the same asset, made from the same sampling: at most 8, each "
        "with a name of its own. The answer's files tells of them.",
    )
    lods: Annotated[tuple[_Faces, ...], Field(strict=False)] = Field(
        (),
        max_length=MOST_FINISHES,
        description="Levels of detail: the most faces of each, largest first. Each is one more GLB "
        "with a texture of its own, lod0, lod1, ... in the answer's files, behind the finishes; "
        "finishes and lods are at most 8 together.",
    )

    hulls: _Hulls | None = Field(
        None,
        description="At most how many convex hulls stand for the model in a physics engine (1 to "
        "64), in a GLB of their own: hulls in the answer's files, behind the others; null: none.",
    )

    _trimmed = field_validator("upload_url", mode="before")(_trim)

    @field_validator("upload_headers")
    @classmethod
    def _headers_of_the_caller(cls, value: dict[str, str]) -> dict[str, str]:
        names = [name.lower() for name in value]
        if ours := sorted(_NOT_THE_CALLERS & set(names)):
            raise ValueError(f"{ours[0]} is the worker's own header")
        if len(set(names)) < len(names):
            raise ValueError("a header is stated twice")
        return value

    @property
    def all_finishes(self) -> tuple[Finish, ...]:
        """The finishes, one for each level of detail, and one for hulls."""
        levels = (
            Finish(name=f"lod{number}", decimation_target=faces)
            for number, faces in enumerate(self.lods)
        )
        hulls = () if self.hulls is None else (_hulls_finish(self.hulls),)
        return (*self.finishes, *levels, *hulls)

    @field_validator("maps")
    @classmethod
    def _each_map_once(cls, maps: tuple[DetailMap, ...]) -> tuple[DetailMap, ...]:
        _require_apart(maps)
        return maps

    @field_validator("lods")
    @classmethod
    def _largest_first(cls, lods: tuple[int, ...]) -> tuple[int, ...]:
        if any(after >= before for before, after in pairwise(lods)):
            raise ValueError("each level must have fewer faces than the one before")
        return lods

    @model_validator(mode="after")
    def _few_and_named_apart(self) -> Output:
        if (count := len(self.all_finishes)) > MOST_FINISHES:
            raise ValueError(
                f"finishes, lods and hulls are {count} together; at most {MOST_FINISHES} are made"
            )
        ours = {finish.name for finish in self.all_finishes[len(self.finishes) :]}
        if taken := sorted(ours & {finish.name for finish in self.finishes}):
            owner = "hulls have" if taken[0] == HULLS else "lods have"
            raise ValueError(f"the name {taken[0]!r} is given twice: {owner} it")
        return self

    @field_validator("finishes")
    @classmethod
    def _named_once(cls, finishes: tuple[Finish, ...]) -> tuple[Finish, ...]:
        names = [finish.name for finish in finishes]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"the name {twice[0]!r} is given twice")
        return finishes

    @model_validator(mode="after")
    def _upload_needs_url(self) -> Output:
        if self.upload_url is not None:
            _require_http_url(self.upload_url, "upload_url")
        if self.upload_url is None and self.upload_headers:
            raise ValueError("upload_headers need an upload_url")
        if self.delivery == "upload" and self.upload_url is None:
            raise ValueError("delivery 'upload' needs upload_url")
        if self.delivery in ("url", "inline") and self.upload_url is not None:
            raise ValueError(f"upload_url is not used with delivery {self.delivery!r}")
        return self


def _require_apart(maps: tuple[DetailMap, ...]) -> None:
    if len(set(maps)) < len(maps):
        raise ValueError(f"the map {maps[0]!r} is given twice")


PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"resolution": 512, "texture_size": 1024, "decimation_target": 200_000},
    "balanced": {"resolution": 1024, "texture_size": 2048, "decimation_target": 500_000},
    # The settings of https://github.com/microsoft/TRELLIS.2/issues/92
    "game_asset": {
        "resolution": 1536,
        "texture_size": 4096,
        "decimation_target": 800_000,
        "sampler": {
            "sparse_structure": {"steps": 12, "guidance_strength": 7.5},
            "shape": {"steps": 24, "guidance_strength": 6.5},
            "texture": {"steps": 36, "guidance_strength": 3.0},
        },
    },
}


_SOURCES = ("image", "image_url", "finish_of")


def _only(given: str) -> dict[str, Any]:
    """Return the schema of a request that names `given` and no other source."""
    properties = {name: {"type": "null"} for name in _SOURCES}
    return {"required": [given], "properties": properties | {given: {"type": "string"}}}


_IS_SEVERAL: dict[str, Any] = {
    "anyOf": [
        {"required": ["variants"], "properties": {"variants": {"type": "integer"}}},
        {"required": ["seeds"], "properties": {"seeds": {"minItems": 1}}},
    ]
}
_NO_UPLOAD = {
    "properties": {"upload_url": {"type": "null"}, "upload_headers": {"maxProperties": 0}}
}
_SEVERAL_RULES: list[dict[str, Any]] = [
    {
        "if": _IS_SEVERAL,
        "then": {"properties": {"retry_seeds": {"const": 0}, "output": _NO_UPLOAD}},
    },
    {
        "if": {"required": ["seeds"], "properties": {"seeds": {"minItems": 1}}},
        "then": {"properties": {"seed": {"type": "null"}, "variants": {"type": "null"}}},
    },
]

FINISHABLE = frozenset(
    ("finish_of", "decimation_target", "texture_size", "remesh", "remesh_band", "shell",
     "min_thickness", "alpha_mode", "strict", "max_degradation_level", "output")
)  # fmt: skip
"""What a job that finishes another one's latents may state; all else was settled by that one."""

_SETTLED: dict[str, Any] = {
    **{name: {"type": "null"} for name in ("seed", "preset", "variants", "keep")},
    "seeds": {"maxItems": 0},
    **dict.fromkeys(("resolution", "sampler", "retry_seeds", "background"), False),
    "output": {"properties": {"cutout": {"const": False}}},
}


class GenerationRequest(RequestModel):
    """One image in, one GLB out."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [_only(name) for name in _SOURCES],
            "allOf": [
                *_SEVERAL_RULES,
                _needs({"finish_of": {"type": "string"}}, {"properties": _SETTLED}),
            ],
        }
    )

    image: Annotated[str, Field(json_schema_extra=_image_schema)] | None = Field(
        None,
        description="The picture: base64 (either alphabet) or a data URI. An address is taken as "
        "if it were in image_url.",
    )
    image_url: Annotated[str, Field(json_schema_extra=_image_url_schema)] | None = Field(
        None,
        description="The picture: an http or https address of at most 8192 characters. A data URI "
        "is taken as if it were in image.",
    )
    finish_of: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        description="Instead of a picture: the id of a job that kept its latents (kept.id in its "
        "answer). New files are made of them; what is left out is as that job had it, but for "
        "output.",
    )
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="Random when absent; always in the answer."
    )
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, le=MAX_SEED)], ...], Field(strict=False)] = (
        Field(
            (),
            max_length=MOST_VARIANTS,
            json_schema_extra={"uniqueItems": True},
            description="One variant for each of these seeds, at most 8; the answer then has "
            "variants.",
        )
    )
    variants: int | None = Field(
        None,
        ge=1,
        le=MOST_VARIANTS,
        description="So many variants, of seed and the seeds behind it; the answer then has "
        "variants.",
    )
    keep: Literal["latents"] | None = Field(
        None,
        description="latents: what was sampled is kept for a while, for finish_of; kept in the "
        "answer says how long.",
    )
    preset: Literal["fast", "balanced", "game_asset"] | None = Field(
        None, description="A set of values; explicit fields win over it."
    )
    resolution: Resolution = Field(1024, description="Cells a side of the geometry.")
    sampler: Samplers = Samplers()
    decimation_target: int = Field(
        500_000, ge=1_000, le=2_000_000, description="Most faces of the mesh."
    )
    texture_size: TextureSize = Field(2048, description="Pixels a side of each texture.")
    remesh: bool = Field(True, description="false: as shell double_sided, whatever shell says.")
    remesh_band: int = Field(1, ge=1, le=4, description="Width of the remeshing band, in cells.")
    shell: Shell = Field(
        "closed",
        description="closed: closed shells on the decoded surface; double_sided: the decoded "
        "surface as it is, open where it is open; remeshed: rebuilt on a grid, which lies a cell "
        "off the surface.",
    )
    min_thickness: float = Field(
        0.0,
        ge=0,
        le=0.05,
        description="What open sheets are thickened to, as a share of the asset's unit cube.",
    )
    alpha_mode: AlphaChoice = Field(
        "auto",
        description="How transparency is drawn. auto: opaque, cut out or blended, by the share of "
        "the texture that is translucent.",
    )
    strict: Annotated[tuple[QualityCheck, ...], Field(strict=False)] = Field(
        (), description="Quality checks whose warnings become an error (mesh_rejected)."
    )
    retry_seeds: int = Field(
        0, ge=0, le=3, description="How many more seeds to try where a strict check fails."
    )
    background: Literal["auto", "keep"] = Field(
        "auto", description="auto: removed unless the picture has alpha; keep: all is object."
    )
    max_degradation_level: int = Field(
        LOWEST_LEVEL,
        ge=0,
        le=LOWEST_LEVEL,
        description="Lowest quality you accept; 0: as asked, or fail.",
    )
    output: Output = Output()

    @model_validator(mode="before")
    @classmethod
    def _preset_first(cls, data: Any) -> Any:
        preset = PRESETS.get(str(data.get("preset"))) if isinstance(data, dict) else None
        return _merged(preset, data) if preset else data

    @model_validator(mode="before")
    @classmethod
    def _picture_in_its_field(cls, data: Any) -> Any:
        """Move a data URI from `image_url` to `image`, and an address the other way."""
        if not isinstance(data, dict):
            return data
        image, url = data.get("image"), data.get("image_url")
        if image is None and isinstance(url, str):
            return data | ({"image": url, "image_url": None} if re.match(_DATA_URI, url)
                           else {"image_url": url.strip()})  # fmt: skip
        if url is None and isinstance(image, str) and re.match(_HTTP_URL, image[:64]):
            return data | {"image": None, "image_url": image.strip()}
        return data

    @model_validator(mode="after")
    def _one_source(self) -> GenerationRequest:
        given = [name for name in _SOURCES if getattr(self, name) is not None]
        if not given:
            raise ValueError("exactly one of image and image_url is needed; neither was given")
        if given == ["image", "image_url"]:
            raise ValueError("exactly one of image and image_url is needed; both were given")
        if len(given) > 1:
            raise ValueError(f"{given[0]} is not used with finish_of, which needs no picture")
        if self.image_url is not None:
            if len(self.image_url) > _LONGEST_URL:
                raise ValueError(f"image_url has more than {_LONGEST_URL} characters")
            _require_http_url(self.image_url, "image_url")
        return self

    @model_validator(mode="after")
    def _finishes_what_was_kept(self) -> GenerationRequest:
        if self.finish_of is None:
            return self
        stated = [
            f for f in self.model_fields_set - FINISHABLE if getattr(self, f) not in (None, ())
        ]
        if stated:
            raise ValueError(
                f"{min(stated)} is not used with finish_of: it was settled when the latents were "
                "sampled"
            )
        if self.output.cutout:
            raise ValueError("output.cutout is not used with finish_of: no picture is kept")
        return self

    @model_validator(mode="after")
    def _seeds_of_variants(self) -> GenerationRequest:
        if not self.is_several:
            return self
        if self.seeds and (self.seed is not None or self.variants is not None):
            other = "variants" if self.seed is None else "seed"
            raise ValueError(f"{other} is not used with seeds, which names each variant's own")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds names a seed twice, which makes the same model twice")
        if self.retry_seeds:
            raise ValueError(
                f"retry_seeds is {self.retry_seeds}; with variants it must be 0: each seed is a "
                "variant of its own"
            )
        if self.output.upload_url is not None:
            raise ValueError("output.upload_url takes one model, not variants; use a bucket")
        return self

    @property
    def is_several(self) -> bool:
        """Whether the answer is one of variants, if only of one."""
        return self.variants is not None or bool(self.seeds)

    @property
    def names_its_seeds(self) -> bool:
        """Whether the same request samples the same again, and so fails in the same way."""
        return self.seed is not None or bool(self.seeds) or self.finish_of is not None

    def seeds_from(self, first: int) -> tuple[int, ...]:
        """Return each variant's seed, where `first` is that of a request that lists none."""
        if self.seeds:
            return self.seeds
        return tuple((first + number) % (MAX_SEED + 1) for number in range(self.variants or 1))

    def of_one(self, seed: int) -> GenerationRequest:
        """Return the request of a job for one variant alone."""
        return self.model_copy(update={"seed": seed, "seeds": (), "variants": None})

    def finishing(self, first: GenerationRequest) -> GenerationRequest:
        """Return `first`, whose latents were kept, with all that this request states itself."""
        stated = {name: getattr(self, name) for name in self.model_fields_set}
        return first.model_copy(update=stated | {"output": self.output})


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over` on top, objects merged field by field."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(below, dict) and isinstance(value, dict)
        merged[key] = _merged(below, value) if both else value  # type: ignore[arg-type]
    return merged


def _require_http_url(url: str, field: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        usable = usable and re.match(_HTTP_URL, url) is not None
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f"{field} must be an http or https address with a host")


def _kind(value: object) -> str:
    """Return the name that JSON has for a value."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a text", list: "a list"}
    return names.get(type(value), "something else")


def parse_request(payload: object) -> GenerationRequest:
    """Return the request that `payload` (the job's `input`) states.

    Raises `InvalidInput` that names the field, the value and the limit.
    """
    if not isinstance(payload, dict):
        raise InvalidInput(f"input must be a JSON object, not {_kind(payload)}", field="input")
    try:
        return GenerationRequest.model_validate(payload)
    except ValidationError as err:
        raise refusal(err) from None
    except RecursionError:
        raise InvalidInput("input is nested too deeply", field="input") from None


def request_schema() -> dict[str, Any]:
    """Return the JSON Schema of a job's `input`."""
    return GenerationRequest.model_json_schema()
