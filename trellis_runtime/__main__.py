"""The command line: `python -m trellis_runtime --help`."""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args
from urllib.parse import unquote, urlsplit

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from trellis_runtime import __version__
from trellis_runtime.cli import bench, check, cold_start, stats
from trellis_runtime.contract.ladder import RUNGS
from trellis_runtime.contract.request import (
    PRESETS,
    Resolution,
    TextureFormat,
    TextureSize,
    request_schema,
    result_schema,
)
from trellis_runtime.errors import SetupFailed, WorkerError
from trellis_runtime.settings import Settings
from trellis_runtime.worker.worker import Worker

_EXAMPLES = """\
examples:
  python -m trellis_runtime run photo.jpg -o model.glb
  python -m trellis_runtime run photo.png --preset game_asset --seed 7
  python -m trellis_runtime check
  python -m trellis_runtime schema request > request.schema.json

Variables of the environment are listed in docs/settings.md.
"""
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_out = Console()
_err = Console(stderr=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the process's exit code."""
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except (WorkerError, OSError) as err:
        code = err.code if isinstance(err, WorkerError) else "file"
        _err.print(f"[red]{code}[/red]: {err}", highlight=False)
        return 2 if isinstance(err, SetupFailed) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trellis_runtime",
        description="One image in, one textured PBR GLB out.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="make a GLB from a picture on this machine"))
    show = commands.add_parser("show", help="show the answer that a job left in its folder")
    show.add_argument("folder", type=Path, help="the job's folder, output/JOB_ID for one")
    show.set_defaults(run=_show)
    checker = commands.add_parser("check", help="what this machine can do, in one page")
    checker.set_defaults(run=lambda _args: check.print_page(_out, Settings.from_env()))
    schema = commands.add_parser("schema", help="print the JSON Schema of a request or an answer")
    schema.add_argument("which", choices=("request", "answer"), nargs="?", default="request")
    schema.set_defaults(run=_schema)
    ladder = commands.add_parser("ladder", help="print what is given up when memory runs out")
    ladder.set_defaults(run=_ladder)
    summary = commands.add_parser("stats", help="sum up the worker's JSON log lines")
    summary.add_argument("logs", type=Path, nargs="+", metavar="LOGFILE")
    summary.add_argument("--json", action="store_true", help="print the figures as JSON")
    summary.add_argument("--html", type=Path, metavar="FILE", help="also write a page with plots")
    summary.set_defaults(run=_stats)
    server = commands.add_parser("serve", help="a page for this machine, and the HTTP form")
    server.add_argument("--host", default="127.0.0.1", help="only this machine by default")
    server.add_argument("--port", type=int, default=8000)
    server.add_argument(
        "--token-file", type=Path, help="file with the token that callers must send"
    )
    server.set_defaults(run=_serve)
    bencher = commands.add_parser("bench", help="time jobs or starts; the last line is JSON")
    bencher.add_argument(
        "what",
        nargs="?",
        choices=("jobs", "cold-start"),
        default="jobs",
        help="jobs: each stage of each preset; cold-start: fresh processes, the first preset",
    )
    bencher.add_argument("--runs", type=int, default=3, help="counted runs of each case")
    bencher.add_argument("--presets", nargs="+", choices=tuple(PRESETS), default=list(PRESETS))
    bencher.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    bencher.add_argument(
        "--picture",
        type=Path,
        default=Path("output/cold-start.svg"),
        help="where cold-start draws its phases",
    )
    bencher.add_argument("--image", type=Path, help="a picture; by default test_input.json's")
    bencher.set_defaults(run=_bench)
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", type=Path, help="PNG, JPEG, WebP, AVIF or HEIC")
    parser.add_argument("-o", "--output", type=Path, help="also copy the GLB to this file")
    parser.add_argument("--engine", choices=("trellis2", "embedded"), help="TRELLIS2_ENGINE")
    parser.add_argument("--preset", choices=tuple(PRESETS), help="a set of values to start from")
    parser.add_argument("--seed", type=int, help="0 to 2147483647; random when absent")
    parser.add_argument("--resolution", type=int, choices=get_args(Resolution))
    parser.add_argument("--texture-size", type=int, choices=get_args(TextureSize))
    parser.add_argument("--texture-format", choices=get_args(TextureFormat))
    parser.add_argument("--decimation-target", type=int, metavar="FACES", help="1000 to 2000000")
    parser.add_argument("--no-remesh", action="store_true", help="keep the decoder's own surface")
    parser.add_argument("--keep-background", action="store_true", help="all of it is the object")
    parser.add_argument(
        "--max-degradation-level",
        type=int,
        metavar="LEVEL",
        help="lowest quality you accept, 0 (as asked, or fail) to 12; see `ladder`",
    )
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    settings = Settings.from_env()
    if args.engine:
        settings = settings.model_copy(update={"engine": args.engine})
    job = {"id": f"run-{uuid.uuid4().hex[:12]}", "input": _request_of(args)}
    quiet = settings.model_copy(
        update={"logging": settings.logging.model_copy(update={"level": "error"})}
    )
    worker = Worker.start(quiet)
    columns = (TextColumn("{task.description:<10}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_err, transient=True) as bar:
        task = bar.add_task("image", total=1.0)

        def notify(update: dict[str, Any]) -> None:
            bar.update(task, description=update["stage"], completed=update["progress"])

        answer = asyncio.run(worker.handle(job, notify))
    worker.close()
    if args.json:
        _out.print_json(json.dumps(answer))
    if "error" in answer:
        _err.print(f"[red]{answer['error']}[/red]", highlight=False)
        return 1
    if args.output:
        args.output.write_bytes(_local_path(answer["glb_url"]).read_bytes())
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
    return request


def _show(args: argparse.Namespace) -> int:
    _print_card(json.loads((args.folder / "answer.json").read_bytes()), None)
    return 0


def _print_card(answer: dict[str, Any], copied_to: Path | None) -> None:
    """Print an answer in words; the last lines say where the files are and what was given up."""
    mesh, given = answer["mesh"], answer["degradation"]
    _out.print(
        f"engine {answer['engine']['name']}, seed {answer['seed']}, "
        f"{mesh['vertices']:,} vertices, {mesh['faces']:,} faces, "
        f"texture {answer['texture']['size']} {answer['texture']['format']}, "
        f"{sum(answer['timings'].values()):.1f} s",
        highlight=False,
    )
    for warning in mesh["warnings"]:
        _out.print(f"[yellow]mesh: {warning}[/yellow]", highlight=False)
    for attempt in given["attempts"]:
        _out.print(
            f"[yellow]out of memory in {attempt['stage']} at rung {attempt['rung']}: "
            f"{attempt['error']}[/yellow]",
            highlight=False,
        )
    preview = answer["preview"]
    _out.print(f"GLB:     {copied_to or _local_path(answer['glb_url'])}", soft_wrap=True)
    _out.print(f"picture: {_local_path(preview['url']) if preview else '-'}", soft_wrap=True)
    words = "nothing was given up" if given["level"] == 0 else RUNGS[given["level"]].change
    kind = "lossless" if given["lossless"] else "lossy"
    _out.print(
        f"degradation level: {given['level']} ({given['rung']}, {kind}): {words}",
        highlight=False,
        soft_wrap=True,
    )


def _local_path(url: str) -> Path:
    return Path(unquote(urlsplit(url).path))


def _bench(args: argparse.Namespace) -> int:
    if args.what == "cold-start":
        return _bench_cold_start(args)
    if args.image:
        image = base64.b64encode(args.image.read_bytes()).decode()
    else:
        sample = Path(__file__).parent.parent / "test_input.json"
        image = json.loads(sample.read_bytes())["input"]["image"]
    settings = Settings.from_env()
    with tempfile.TemporaryDirectory() as folder:
        delivery = settings.delivery.model_copy(update={"output_dir": Path(folder)})
        quiet = settings.logging.model_copy(update={"level": "error"})
        worker = Worker.start(settings.model_copy(update={"delivery": delivery, "logging": quiet}))
        bench.run_bench(_out, worker, image, args.presets, max(1, args.runs))
        worker.close()
    return 0


def _bench_cold_start(args: argparse.Namespace) -> int:
    if args.child:
        sys.stdout.write(json.dumps(cold_start.child(args.presets[0])) + "\n")
        return 0
    cases = cold_start.cases_for(Settings.from_env())
    report = cold_start.run_cold_start(
        _out, cases, max(1, args.runs), args.presets[0], args.picture
    )
    _out.print(json.dumps(report), soft_wrap=True, highlight=False, markup=False)
    return 0


def _serve(args: argparse.Namespace) -> int:
    try:
        import uvicorn

        from trellis_runtime.server import create_app
    except ImportError as err:
        raise SetupFailed(f"serve needs {err.name}: pip install 'trellis-runtime[serve]'") from None
    token = args.token_file.read_text().strip() if args.token_file else None
    if not token and args.host not in _LOOPBACK:
        raise SetupFailed(f"--host {args.host} is open to others: give --token-file FILE")
    app = create_app(Settings.from_env(), token)
    _err.print(f"http://{args.host}:{args.port}", style="bold")
    uvicorn.run(
        app, host=args.host, port=args.port, log_level="warning", timeout_graceful_shutdown=5
    )
    return 0


def _stats(args: argparse.Namespace) -> int:
    counted = stats.Stats()
    for path in args.logs:
        with path.open("rb") as lines:
            counted.read(lines)
    report = counted.report()
    if args.html:
        args.html.write_text(stats.html_report(report))
    if args.json:
        sys.stdout.write(json.dumps(report, indent=1) + "\n")
    else:
        stats.print_report(_out, report)
    return 0


def _schema(args: argparse.Namespace) -> int:
    schema = request_schema() if args.which == "request" else result_schema()
    sys.stdout.write(json.dumps(schema, indent=2) + "\n")
    return 0


def _ladder(_args: argparse.Namespace) -> int:
    table = Table("level", "rung", "lossless", "frees memory in", "change", title="The ladder")
    for rung in RUNGS:
        stages = ", ".join(sorted(rung.relieves)) or "-"
        table.add_row(
            str(rung.level), rung.name, "yes" if rung.lossless else "no", stages, rung.change
        )
    _out.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
