"""The verbs run and show: a picture to a GLB on this machine, and an answer in words."""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import uuid
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, get_args
from urllib.parse import unquote, urlsplit

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from trellis_runtime.cli.console import err_console, out_console, require_writable
from trellis_runtime.contract.files import ANSWER, FORMATS, models_told
from trellis_runtime.contract.ladder import RUNGS
from trellis_runtime.contract.levels import LOWEST_LEVEL
from trellis_runtime.contract.request import (
    PRESETS,
    Resolution,
    TextureFormat,
    TextureSize,
)
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.delivery.fetch import fetch
from trellis_runtime.errors import FetchFailed
from trellis_runtime.settings import FetchLimits, Settings
from trellis_runtime.worker.worker import Worker

_ANYWHERE = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))  # the bucket is the operator's own


def add_run(parser: argparse.ArgumentParser) -> None:
    """Give `run` its options."""
    parser.add_argument("image", type=Path, help="PNG, JPEG, WebP, AVIF or HEIC")
    parser.add_argument("-o", "--output", type=Path, help="also copy the GLB to this file")
    parser.add_argument("--engine", choices=("trellis2", "embedded"), help="TRELLIS2_ENGINE")
    parser.add_argument("--preset", choices=tuple(PRESETS), help="a set of values to start from")
    parser.add_argument("--seed", type=int, help="0 to 2147483647; random when absent")
    parser.add_argument(
        "--resolution", type=int, choices=get_args(Resolution), help="cells a side of the geometry"
    )
    parser.add_argument(
        "--texture-size", type=int, choices=get_args(TextureSize), help="pixels a side"
    )
    parser.add_argument(
        "--texture-format", choices=get_args(TextureFormat), help="of the base colour"
    )
    parser.add_argument(
        "--decimation-target", type=int, metavar="FACES", help="most faces, 1000 to 2000000"
    )
    parser.add_argument("--no-remesh", action="store_true", help="keep the decoder's own surface")
    parser.add_argument("--keep-background", action="store_true", help="all of it is the object")
    parser.add_argument(
        "--max-degradation-level",
        type=int,
        metavar="LEVEL",
        help=f"lowest quality you accept, 0 (as asked, or fail) to {LOWEST_LEVEL}; see `ladder`",
    )
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        choices=[form for form in FORMATS if form != "glb"],
        help="also make a file of this format; may be given several times (docs/formats.md)",
    )
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.output:
        require_writable(args.output, "--output")
    settings = Settings.from_env()
    if args.engine:
        settings = settings.model_copy(update={"engine": args.engine})
    job = {"id": f"run-{uuid.uuid4().hex[:12]}", "input": _request_of(args)}
    quiet = settings.model_copy(
        update={"logging": settings.logging.model_copy(update={"level": "error"})}
    )
    worker = Worker.start(quiet)
    columns = (TextColumn("{task.description:<10}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err_console, transient=True) as bar:
        task = bar.add_task("image", total=1.0)

        def notify(update: dict[str, Any]) -> None:
            bar.update(task, description=update["stage"], completed=update["progress"])

        answer = asyncio.run(worker.handle(job, notify))
    worker.close()
    if args.json:
        out_console.print_json(json.dumps(answer))
    if "error" in answer:
        err_console.print(f"[red]{answer['error']}[/red]", highlight=False, soft_wrap=True)
        return 1
    if args.output:
        args.output.write_bytes(_model_of(answer))
    if not args.json:
        _print_card(answer, args.output)
    return 0


def _request_of(args: argparse.Namespace) -> dict[str, Any]:
    request: dict[str, Any] = {
        "image": base64.b64encode(args.image.read_bytes()).decode(),
        "output": {"delivery": "url"},
    }
    for name in ("preset", "seed", "resolution", "texture_size", "decimation_target",
                 "max_degradation_level"):  # fmt: skip
        if getattr(args, name) is not None:
            request[name] = getattr(args, name)
    if args.no_remesh:
        request["remesh"] = False
    if args.keep_background:
        request["background"] = "keep"
    if args.texture_format:
        request["output"]["texture_format"] = args.texture_format
    request["output"]["finishes"] = [
        {"name": f"model-{form}", "format": form} for form in dict.fromkeys(args.also)
    ]
    return request


def show(args: argparse.Namespace) -> int:
    """Print the answer that a job left in its folder."""
    answer = json.loads((args.folder / ANSWER.name).read_bytes())
    for model in models_told(answer):
        _print_card(answer | model, None)
    for variant in answer.get("variants", []):
        if variant["error"]:
            text = f"[yellow]seed {variant['seed']}: {variant['error']['text']}[/yellow]"
            out_console.print(text, highlight=False, soft_wrap=True)
    return 0


def _print_card(answer: dict[str, Any], copied_to: Path | None) -> None:
    """Print an answer in words; the last lines say where the files are and what was given up."""
    mesh, given = answer["mesh"], answer["degradation"]
    out_console.print(
        f"engine {answer['engine']['name']}, seed {answer['seed']}, "
        f"{mesh['vertices']:,} vertices, {mesh['faces']:,} faces, "
        f"texture {answer['texture']['size']} {answer['texture']['format']}, "
        f"{sum(answer['timings'].values()):.1f} s",
        highlight=False,
        soft_wrap=True,
    )
    for warning in answer.get("warnings", []):
        out_console.print(
            f"[yellow]{warning['code']}: {warning['text']}[/yellow]",
            highlight=False,
            soft_wrap=True,
        )
    for warning in mesh["warnings"]:
        out_console.print(f"[yellow]mesh: {warning}[/yellow]", highlight=False, soft_wrap=True)
    for attempt in given["attempts"]:
        out_console.print(
            f"[yellow]out of memory in {attempt['stage']} at rung {attempt['rung']}: "
            f"{attempt['error']}[/yellow]",
            highlight=False,
            soft_wrap=True,
        )
    for told in answer.get("files", []):
        _print_finish(told)
    preview = answer["preview"]
    out_console.print(f"GLB:     {copied_to or _shown(answer['glb_url'])}", soft_wrap=True)
    out_console.print(f"picture: {_shown(preview['url']) if preview else '-'}", soft_wrap=True)
    out_console.print(
        _degradation_line(given, bool(answer.get("warnings"))),
        highlight=False,
        soft_wrap=True,
    )


def _print_finish(told: dict[str, Any]) -> None:
    if told["error"]:
        text = f"[yellow]{told['file_name']}: {told['error']['text']}[/yellow]"
    else:
        size = " x ".join(f"{length:g}" for length in told["size_m"])
        text = f"{told['format']}:".ljust(9) + f"{_local_path(told['artifact']['url'])} ({size} m)"
    out_console.print(text, highlight=False, soft_wrap=True)


def _degradation_line(given: dict[str, Any], warned: bool) -> str:
    """Say what was given up for memory; a result with warnings is not called as asked."""
    if given["level"] == 0 and warned:
        return "degradation level: 0: memory sufficed; the warnings above say what to look at"
    words = "nothing was given up" if given["level"] == 0 else RUNGS[given["level"]].change
    kind = "lossless" if given["lossless"] else "lossy"
    return f"degradation level: {given['level']} ({given['rung']}, {kind}): {words}"


def _model_of(answer: dict[str, Any]) -> bytes:
    """Return the GLB: from this machine's folder, or by its link where a bucket is set.

    Raises `FetchFailed` where the link does not work, or the bucket has none to give.
    """
    url = answer["glb_url"]
    if url is None:
        key = answer["artifact"]["key"]
        raise FetchFailed(f"this bucket gives no links; the model is in it, at {key}")
    if (path := _local_path(url)) is not None:
        return path.read_bytes()
    anywhere = FetchLimits(timeout_s=600, allow_networks=_ANYWHERE)
    return fetch(url, answer["artifact"]["bytes"], anywhere, JobScope(""))


def _shown(url: str | None) -> str:
    """Return where a file lies: its path on this machine, or its link."""
    path = _local_path(url) if url else None
    return str(path) if path else url or "in the bucket, which gives no links"


def _local_path(url: str) -> Path | None:
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None
