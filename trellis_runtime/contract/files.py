"""The files of a result: their names, their types, and the answer's fields that tell of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

FileFormat = Literal["glb", "usdz", "obj", "ply", "stl", "3mf", "hulls", "maps"]


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


@dataclass(frozen=True, slots=True)
class FormatFacts:
    """What a format of a finished file is like.

    suffix       of the file's name; content_type as the answer states it
    textures     pictures on the surface; without them a file has colours at its vertices, or none
    encodings    of textures that the format takes; empty without textures
    y_up_only    whether the format says itself that +Y is up
    up           the axis that is up unless the caller says otherwise
    per_metre    units of the file in one metre: 1000 where a file is in millimetres
    printed      whether it is made for printers: closed, in millimetres, no colours
    has_mesh     whether there is something in it that has a size and a place
    packages     import name -> distribution, of the libraries that write it
    """

    suffix: str
    content_type: str
    textures: bool = False
    encodings: tuple[str, ...] = ()
    y_up_only: bool = False
    up: Literal["y", "z"] = "y"
    per_metre: float = 1.0
    printed: bool = False
    has_mesh: bool = True
    packages: tuple[tuple[str, str], ...] = ()


FORMATS: dict[FileFormat, FormatFacts] = {
    "glb": FormatFacts(
        "glb", MODEL.content_type, True, encodings=("png", "webp", "jpeg"), y_up_only=True
    ),
    "usdz": FormatFacts(
        "usdz",
        "model/vnd.usdz+zip",
        True,
        encodings=("png", "jpeg"),
        y_up_only=True,
        packages=(("pxr", "usd-core"),),
    ),
    "obj": FormatFacts("zip", "application/zip", True, encodings=("png", "jpeg")),
    "ply": FormatFacts("ply", "application/octet-stream"),
    "stl": FormatFacts("stl", "model/stl", up="z", per_metre=1000.0, printed=True),
    "3mf": FormatFacts("3mf", "model/3mf", up="z", per_metre=1000.0, printed=True),
    "hulls": FormatFacts(
        "glb", MODEL.content_type, y_up_only=True, packages=(("vhacdx", "vhacdx"),)
    ),
    "maps": FormatFacts(
        "zip", "application/zip", True, encodings=("png", "webp", "jpeg"), has_mesh=False
    ),
}
"""Every format of a finished file."""

if tuple(FORMATS) != get_args(FileFormat):
    raise TypeError("FORMATS and FileFormat name different formats")

FINISH_NAME = r"^[a-z0-9][a-z0-9_-]{0,31}$"
"""What a finish may be called: its file's name without the suffix."""

COMPRESSION_PACKAGES: dict[str, tuple[tuple[str, str], ...]] = {
    "none": (),
    "draco": (("DracoPy", "DracoPy"),),
    "meshopt": (("wasmtime", "wasmtime"),),
}
"""Import name -> distribution, of the libraries that compress a GLB's geometry."""


def finished_file(name: str, form: FileFormat) -> ResultFile:
    """Return the file of the finish `name`; beside the others in its job's folder."""
    facts = FORMATS[form]
    return ResultFile("", f"{name}.{facts.suffix}", facts.content_type)


VARIANT_NAME = r"^v[0-7]$"
"""What a variant is called."""

_OF_VARIANT = re.compile(r"v[0-7]-(.+)")


def variant_name(number: int) -> str:
    """Return what variant `number` (from 0) is called in the answer."""
    return f"v{number}"


def in_variant(variant: str, file_name: str) -> str:
    """Return the name, in its job's folder, of a variant's file."""
    return f"{variant}-{file_name}"


def file_called(file_name: str) -> ResultFile | None:
    """Return the file that a job can leave under `file_name`, None where it leaves none."""
    found = _called(file_name)
    of_variant = _OF_VARIANT.fullmatch(file_name)
    if found is None and of_variant is not None and of_variant[1] != ANSWER.name:
        found = _called(of_variant[1])
    return found and replace(found, name=file_name)


def _called(file_name: str) -> ResultFile | None:
    if known := RESULT_FILES.get(file_name):
        return known
    stem, _, suffix = file_name.rpartition(".")
    forms = [form for form, facts in FORMATS.items() if facts.suffix == suffix]
    return finished_file(stem, forms[0]) if forms and re.fullmatch(FINISH_NAME, stem) else None


def files_told(answer: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the artifact of each file that an answer (JSON) tells of, the GLB last."""
    for told in answer.get("files") or []:
        if told.get("artifact"):
            yield told["file_name"], told["artifact"]
    for file in reversed(ARTIFACTS):  # a model in place says that all is there
        if answer.get(file.field):
            yield file.name, answer[file.field]
    for variant in answer.get("variants") or []:
        named = {told["file_name"] for told in variant.get("files") or []}
        for name, artifact in files_told(variant):
            yield name if name in named else in_variant(variant["name"], name), artifact


def models_told(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what an answer (JSON) tells of each model: itself, or those of its variants."""
    if "variants" not in answer:
        return [answer]
    return [variant for variant in answer["variants"] if not variant.get("error")]
