"""The verb verify: what a GLB of ours is, whether it is whole, and whether it can be made again."""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from trellis_runtime.assets.glb_format import CONTENT_HASH
from trellis_runtime.assets.glb_reader import read_document, read_textures
from trellis_runtime.cli.console import err_console, out_console
from trellis_runtime.contract.files import MODEL
from trellis_runtime.contract.request import HULLS
from trellis_runtime.errors import GlbRejected
from trellis_runtime.settings import Settings
from trellis_runtime.worker.worker import Worker

_FACTS = ("engine", "worker_version", "seed", "degradation_level", "finish")
_ASKED = ("preset", "resolution", "decimation_target", "texture_size", "shell", "alpha_mode")
_JOB = "verify"


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Give `verify` its options."""
    parser.add_argument("file", type=Path, help="a GLB that a worker made")
    parser.add_argument(
        "--image",
        type=Path,
        help="the picture that it was made of: the file is made again here, and compared",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=verify)


def verify(args: argparse.Namespace) -> int:
    """Print the report on a file; returns 1 where something in it does not hold.

    Raises `GlbRejected` for a file that is no GLB, or holds no recipe.
    """
    data = args.file.read_bytes()
    document, blob = read_document(data)
    recipe = recipe_of(document)
    report: dict[str, Any] = {name: recipe[name] for name in _FACTS if name in recipe}
    report["versions"] = recipe.get("versions", {})
    asked = recipe.get("request", {})
    report["request"] = {name: asked[name] for name in _ASKED if asked.get(name) is not None}
    report |= _counts(document) | {"whole": _sha256(blob) == recipe.get(CONTENT_HASH)}
    if args.image is not None:
        report |= _compared(args.image.read_bytes(), data, recipe)
    if args.json:
        sys.stdout.write(json.dumps(report, indent=1) + "\n")
    else:
        _print(report)
    return 0 if all(report.get(name, True) for name in ("whole", "same_picture", "same")) else 1


def recipe_of(document: dict[str, Any]) -> dict[str, Any]:
    """Return what a file says of its making; raises `GlbRejected` where it says nothing."""
    asset = document.get("asset")
    extras = asset.get("extras") if isinstance(asset, dict) else None
    if not isinstance(extras, dict) or not isinstance(extras.get("request"), dict):
        raise GlbRejected("the file holds no recipe: it is not ours, or an older worker's")
    return extras


def request_of(recipe: dict[str, Any], image: bytes) -> dict[str, Any]:
    """Return the job's input that makes a file again, from its recipe and its picture."""
    request = dict(recipe["request"])
    output = dict(request.get("output", {}))
    name = recipe.get("finish")
    wanted = [f for f in output.get("finishes", []) if f.get("name") == name]
    output |= {"delivery": "url", "preview": False, "turntable": False, "cutout": False,
               "finishes": wanted}  # fmt: skip
    if wanted or name in (None, HULLS):
        output["lods"] = []  # it is none of them
    if wanted or name != HULLS:
        output["hulls"] = None
    return request | {
        "image": base64.b64encode(image).decode(),
        "seed": recipe.get("seed"),
        "retry_seeds": 0,
        "output": output,
    }


def _compared(image: bytes, data: bytes, recipe: dict[str, Any]) -> dict[str, Any]:
    """Make a file again and say how the two differ."""
    if _sha256(image) != recipe.get("input_sha256"):
        return {"same_picture": False}
    made = _made_again(recipe, image)
    if isinstance(made, str):
        return {"same_picture": True, "same": False, "failed": made}
    same = read_document(made)[1] == read_document(data)[1]
    facts: dict[str, Any] = {"same_picture": True, "same": same}
    if not facts["same"]:
        facts["again"] = _counts(read_document(made)[0])
        facts["base_color_mean_difference"] = _color_difference(data, made)
    return facts


def _made_again(recipe: dict[str, Any], image: bytes) -> bytes | str:
    """Return the file's bytes, made by this machine's engine, or why it was not made."""
    engine = recipe.get("engine")
    if engine not in ("trellis2", "embedded"):
        return f"there is no engine {str(engine)[:40]!r} here"
    settings = Settings.from_env().model_copy(update={"engine": engine})
    with tempfile.TemporaryDirectory() as folder:
        delivery = settings.delivery.model_copy(update={"output_dir": Path(folder)})
        quiet = settings.logging.model_copy(update={"level": "error"})
        local = {"delivery": delivery, "logging": quiet, "bucket": type(settings.bucket)()}
        worker = Worker.start(settings.model_copy(update=local))
        try:
            job = {"id": _JOB, "input": request_of(recipe, image)}
            answer = asyncio.run(worker.handle(job))
        finally:
            worker.close()
        if "error" in answer:
            return str(answer["error"])
        named = {t["name"]: t["file_name"] for t in answer["files"] if t["artifact"]}
        name = named.get(recipe.get("finish"), MODEL.name)
        return (Path(folder) / _JOB / name).read_bytes()


def _counts(document: dict[str, Any]) -> dict[str, Any]:
    """Return triangles and bounds, as the file's accessors state them."""
    try:
        accessors, faces, points = document["accessors"], 0, []
        for mesh in document["meshes"]:
            for primitive in mesh["primitives"]:
                faces += int(accessors[primitive["indices"]]["count"]) // 3
                points.append(accessors[primitive["attributes"]["POSITION"]])
        low = np.min([accessor["min"] for accessor in points], axis=0)
        high = np.max([accessor["max"] for accessor in points], axis=0)
        return {"faces": faces, "bounds": [low.round(6).tolist(), high.round(6).tolist()]}
    except (LookupError, TypeError, ValueError, AttributeError):
        raise GlbRejected("its accessors are not as glTF has them") from None


def _color_difference(first: bytes, second: bytes) -> float | None:
    """Return the mean difference of two files' base colours, 0 to 255; None where none compares."""
    one, other = read_textures(first)[0], read_textures(second)[0]
    if one is None or other is None or one.size != other.size:
        return None
    pair = [np.asarray(image.convert("RGB"), np.float64) for image in (one, other)]
    return round(float(np.abs(pair[0] - pair[1]).mean()), 4)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _print(report: dict[str, Any]) -> None:
    words = {
        "whole": ("whole: geometry and textures are as they were written",
                  "NOT whole: geometry or textures were changed after it was written"),
        "same_picture": ("the picture is the one that it was made of",
                         "the picture is NOT the one that it was made of"),
        "same": ("made again, byte for byte the same", "made again, NOT the same"),
    }  # fmt: skip
    for name, value in report.items():
        if name in words:
            good, bad = words[name]
            text = f"[green]{good}[/green]" if value else f"[red]{bad}[/red]"
        else:
            text = f"{name}: {value}"
        (out_console if name not in words or value else err_console).print(
            text, highlight=False, soft_wrap=True
        )
