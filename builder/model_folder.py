"""What the model folder's scripts share: its sources, its record, and what may be wrong with it.

The package reads the record (`trellis_runtime/engines/model_record.py`); here it is written, on
machines that have no package.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RECORD = "SOURCES.json"
"""Lies in the folder: which commit of which repository each file came from, and its SHA-256."""

_LONGEST_HEADER = 100_000_000  # safetensors' own limit


@dataclass(frozen=True, slots=True)
class Source:
    """One repository that files come from."""

    name: str
    repo: str
    revision: str
    folder: str
    files: list[str]
    gated: str | None
    replacement: str | None


def read_sources(path: Path) -> list[Source]:
    """Return the sources of a models.json."""
    return [Source(**entry) for entry in json.loads(path.read_text())["sources"]]


def digest(path: Path) -> str:
    """Return a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_record(folder: Path, commits: dict[str, str], sources: list[Source]) -> None:
    """Write down what the folder was made of."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": digest(path)}
        for path in model_files(folder)
    }
    record = {
        "sources": [asdict(s) | {"commit": commits[s.name]} for s in sources],
        "files": files,
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")


def model_files(folder: Path) -> list[Path]:
    """Return the folder's files, its record and the hub's own notes left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name != RECORD and ".cache" not in path.parts
    )


def rewrite_pipeline(folder: Path, present: set[str]) -> None:
    """Point pipeline.json at the local folders.

    Upstream names other repositories there, which its loader would fetch at start.
    """
    path = folder / "pipeline.json"
    config: dict[str, Any] = json.loads(path.read_text())
    args = config["args"]
    args["image_cond_model"]["args"]["model_name"] = "dinov3"
    if "rembg" in present:
        args["rembg_model"]["args"]["model_name"] = "rembg"
    outside = "microsoft/TRELLIS-image-large/"
    args["models"] = {
        name: where.replace(outside, "trellis-image-large/", 1)
        for name, where in args["models"].items()
    }
    path.write_text(json.dumps(config, indent=1) + "\n")


def structure_problems(folder: Path) -> Iterator[str]:
    """Yield what is wrong inside a folder's files, whatever its record says; reads no weights."""
    for path in sorted(folder.rglob("*.safetensors")):
        if reason := _bad_header(path):
            yield f"{path} is damaged: {reason}"
    yield from _unreferenced(folder)


def _unreferenced(folder: Path) -> Iterator[str]:
    try:
        models = json.loads((folder / "pipeline.json").read_text())["args"]["models"]
    except (OSError, ValueError, KeyError, TypeError) as err:
        yield f"{folder / 'pipeline.json'} names no models ({err})"
        return
    for name, where in models.items():
        for suffix in (".json", ".safetensors"):
            if not (folder / f"{where}{suffix}").is_file():
                yield f"pipeline.json names {where}{suffix} ({name}), which is not in {folder}"


def _bad_header(path: Path) -> str | None:
    """Return what is wrong with a safetensors file's header and length, None when all fits."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else _LONGEST_HEADER + 1
        if length > min(_LONGEST_HEADER, size):
            return "its header does not fit into it"
        try:
            header = json.loads(file.read(length))
            tensors = [entry for name, entry in header.items() if name != "__metadata__"]
            ends = [entry["data_offsets"][1] for entry in tensors]
        except (ValueError, TypeError, LookupError, AttributeError):
            return "its header is not one of safetensors"
    if max(ends, default=0) + 8 + length != size:
        return "its length does not fit its header"
    return None
