"""The command line's parser, and what each of its verbs does."""

from __future__ import annotations

import argparse
import base64
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from trellis_runtime import __version__
from trellis_runtime.cli import bench, check, cold_start, stats
from trellis_runtime.cli.acceptance import add_acceptance
from trellis_runtime.cli.console import err_console, out_console, print_table, require_writable
from trellis_runtime.cli.cutout import add_cutout
from trellis_runtime.cli.run import add_run, show
from trellis_runtime.cli.verbs import describe
from trellis_runtime.cli.verify import add_verify
from trellis_runtime.contract.answer import result_schema
from trellis_runtime.contract.ladder import RUNGS
from trellis_runtime.contract.reports import error_schema, health_schema
from trellis_runtime.contract.request import (
    PRESETS,
    request_schema,
)
from trellis_runtime.errors import SetupFailed, WorkerError
from trellis_runtime.settings import Settings
from trellis_runtime.worker.worker import Worker

_EXAMPLES = """\
examples:
  python -m trellis_runtime run photo.jpg -o model.glb
  python -m trellis_runtime run photo.png --preset game_asset --seed 7
  python -m trellis_runtime cutout photo.jpg
  python -m trellis_runtime verify model.glb --image photo.jpg
  python -m trellis_runtime check
  python -m trellis_runtime schema request > request.schema.json

Variables of the environment are listed in docs/settings.md.
"""
_SCHEMAS = {
    "request": request_schema,
    "answer": result_schema,
    "error": error_schema,
    "health": health_schema,
}
_EVERY = "0.0.0.0"  # noqa: S104 - the platform calls from outside the container
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the process's exit code."""
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except (WorkerError, OSError) as err:
        code = err.code if isinstance(err, WorkerError) else "file"
        err_console.print(f"[red]{code}[/red]: {err}", highlight=False, soft_wrap=True)
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
    add_run(commands.add_parser("run", help="make a GLB from a picture on this machine"))
    add_cutout(commands.add_parser("cutout", help="show what of a picture would be modelled"))
    add_verify(commands.add_parser("verify", help="tell what a GLB is, and whether it is whole"))
    shower = commands.add_parser("show", help="show the answer that a job left in its folder")
    shower.add_argument("folder", type=Path, help="the job's folder, output/JOB_ID for one")
    shower.set_defaults(run=show)
    checker = commands.add_parser("check", help="what this machine can do, in one page")
    check.add_check(checker)
    add_acceptance(
        commands.add_parser(
            "acceptance", help="hold the GPU engine against upstream, once, on real weights"
        )
    )
    schema = commands.add_parser(
        "schema", help="print the JSON Schema of a request or of an answer"
    )
    schema.add_argument(
        "which", choices=tuple(_SCHEMAS), nargs="?", default="request", help="by default request"
    )
    schema.set_defaults(run=_schema)
    ladder = commands.add_parser("ladder", help="print what is given up when memory runs out")
    ladder.set_defaults(run=_ladder)
    summary = commands.add_parser("stats", help="sum up the worker's JSON log lines")
    summary.add_argument(
        "logs", type=Path, nargs="+", metavar="LOGFILE", help="what a worker wrote to its log"
    )
    summary.add_argument("--json", action="store_true", help="print the figures as JSON")
    summary.add_argument("--html", type=Path, metavar="FILE", help="also write a page with plots")
    summary.set_defaults(run=_stats)
    _add_server(commands.add_parser("serve", help="a page for this machine, and the HTTP form"))
    _add_bench(commands.add_parser("bench", help="time jobs or starts; the last line is JSON"))
    describe(commands)
    return parser


def _add_server(server: argparse.ArgumentParser) -> None:
    server.add_argument("--host", help="only this machine by default; on RunPod, every address")
    server.add_argument("--port", type=int, help="PORT, or 8000")
    server.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name under which callers reach it, beside localhost and numbers",
    )
    server.add_argument(
        "--token-file", type=Path, help="file with the token that callers must send"
    )
    server.set_defaults(run=_serve)


def _add_bench(bencher: argparse.ArgumentParser) -> None:
    bencher.add_argument(
        "what",
        nargs="?",
        choices=("jobs", "cold-start"),
        default="jobs",
        help="jobs: each stage of each preset; cold-start: fresh processes, the first preset",
    )
    bencher.add_argument("--runs", type=int, default=3, help="counted runs of each case")
    bencher.add_argument(
        "--presets", nargs="+", choices=tuple(PRESETS), default=list(PRESETS), help="which to time"
    )
    bencher.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    bencher.add_argument(
        "--picture",
        type=Path,
        default=Path("output/cold-start.svg"),
        help="where cold-start draws its phases",
    )
    bencher.add_argument("--image", type=Path, help="a picture; by default test_input.json's")
    bencher.set_defaults(run=_bench)


def _bench(args: argparse.Namespace) -> int:
    if args.what == "cold-start":
        return _bench_cold_start(args)
    if args.image:
        image = base64.b64encode(args.image.read_bytes()).decode()
    else:
        sample = Path(__file__).parents[2] / "test_input.json"
        image = json.loads(sample.read_bytes())["input"]["image"]
    settings = Settings.from_env()
    with tempfile.TemporaryDirectory() as folder:
        delivery = settings.delivery.model_copy(update={"output_dir": Path(folder)})
        quiet = settings.logging.model_copy(update={"level": "error"})
        worker = Worker.start(settings.model_copy(update={"delivery": delivery, "logging": quiet}))
        bench.run_bench(out_console, worker, image, args.presets, max(1, args.runs))
        worker.close()
    return 0


def _bench_cold_start(args: argparse.Namespace) -> int:
    if args.child:
        sys.stdout.write(json.dumps(cold_start.child(args.presets[0])) + "\n")
        return 0
    cases = cold_start.cases_for(Settings.from_env())
    report = cold_start.run_cold_start(
        out_console, cases, max(1, args.runs), args.presets[0], args.picture
    )
    out_console.print(json.dumps(report), soft_wrap=True, highlight=False, markup=False)
    return 0


def _serve(args: argparse.Namespace) -> int:
    try:
        from trellis_runtime.server.listen import listen
    except ImportError as err:
        raise SetupFailed(f"serve needs {err.name}: pip install 'trellis-runtime[serve]'") from None
    settings = Settings.from_env()
    platform = settings.platform
    host = args.host or (_EVERY if platform.endpoint_id else "127.0.0.1")
    port = args.port or platform.port or 8000
    token = args.token_file.read_text().strip() if args.token_file else None
    if not token and host not in _LOOPBACK and not platform.endpoint_id:
        raise SetupFailed(f"--host {host} is open to others: give --token-file FILE")
    err_console.print(f"http://{host}:{port}", style="bold")
    listen(settings, token, host, port, frozenset(n.lower() for n in [host, *args.allow_host]))
    return 0


def _stats(args: argparse.Namespace) -> int:
    if args.html:
        require_writable(args.html, "--html")
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
        stats.print_report(out_console, report)
    return 0


def _schema(args: argparse.Namespace) -> int:
    sys.stdout.write(json.dumps(_SCHEMAS[args.which](), indent=2) + "\n")
    return 0


def _ladder(_args: argparse.Namespace) -> int:
    table = Table("level", "rung", "lossless", "frees memory in", "change", title="The ladder")
    for rung in RUNGS:
        stages = ", ".join(sorted(rung.frees_memory_in)) or "-"
        table.add_row(
            str(rung.level), rung.name, "yes" if rung.lossless else "no", stages, rung.change
        )
    print_table(out_console, table)
    return 0
