"""What this machine can do, in one page, for people."""

from __future__ import annotations

import argparse
import importlib.util
import platform
import shutil
import subprocess
from dataclasses import replace
from typing import get_args

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trellis_runtime import __version__
from trellis_runtime.cli.console import out_console, print_table
from trellis_runtime.contract.ladder import Plan
from trellis_runtime.contract.request import Resolution, parse_request
from trellis_runtime.delivery.s3 import require_bucket
from trellis_runtime.delivery.storage import free_bytes
from trellis_runtime.engines.packages import NEEDED_PACKAGES
from trellis_runtime.errors import SetupFailed, WorkerError
from trellis_runtime.logs import configure_logging
from trellis_runtime.settings import Settings
from trellis_runtime.worker.warmup import picture

_NEAR = 0.5  # of what a type holds: half an overflow away


def add_check(parser: argparse.ArgumentParser) -> None:
    """Give `check` its options."""
    parser.add_argument(
        "--deep",
        action="store_true",
        help="also load the GPU engine, run a job up to its surface, and print the largest "
        "activation of each decoder's levels",
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="of --deep")
    parser.add_argument(
        "--resolution", type=int, choices=get_args(Resolution), default=512, help="of --deep"
    )
    parser.set_defaults(run=_check)


def _check(args: argparse.Namespace) -> int:
    settings = Settings.from_env()
    page = print_page(out_console, settings)
    deep = print_activations(out_console, settings, args) if args.deep else 0
    return max(page, deep)


def print_activations(console: Console, settings: Settings, args: argparse.Namespace) -> int:
    """Print how near each decoder's levels come to what their type holds; 1 when one is over."""
    try:
        from trellis_runtime.engines.trellis2 import Trellis2Engine
        from trellis_runtime.engines.trellis2.acceptance import largest_activations
    except ImportError as err:
        raise SetupFailed(f"check --deep needs {err.name}, which is not installed") from None
    configure_logging("error", settings.logging.format)
    engine = Trellis2Engine(settings.trellis2, device=args.device)
    engine.load(lambda _phase, _seconds: None)
    plan = Plan.as_asked(parse_request({"image": "-", "resolution": args.resolution}), seed=0)
    plan = replace(plan, offload=engine.wants_offload(plan))
    found, failure = largest_activations(engine, picture(), plan)
    table = Table("decoder", "level", "largest", "of its limit", title="Largest activations")
    for activation in found:
        share = activation.share
        color = "green" if share < _NEAR else "yellow" if share < 1 else "red"
        table.add_row(
            activation.model,
            activation.level,
            f"{activation.largest:.4g}",
            f"[{color}]{share:.1%}[/{color}]",
        )
    console.print(table)
    if failure is not None:
        console.print(f"[red]not_finite[/red]: {escape(failure)}", highlight=False, soft_wrap=True)
    return 0 if failure is None and all(a.share < 1 for a in found) else 1


def print_page(console: Console, settings: Settings) -> int:
    """Print the page; returns 1 when a worker with these settings could not serve."""
    rows = [
        ("version", f"{__version__}, Python {platform.python_version()}", True),
        ("engine asked for", settings.engine, True),
        ("embedded engine", "ready (any CPU)", True),
        _gpu_engine(settings),
        ("GPU", _gpu(), True),
        _disk(settings),
        _bucket(settings),
        (
            "jobs",
            f"{settings.jobs.max_concurrent} at once, {settings.jobs.max_queued} queued",
            True,
        ),
    ]
    table = Table("what", "found", "", title="trellis-runtime on this machine")
    for what, found, good in rows:
        table.add_row(what, found, "[green]ok[/green]" if good else "[red]no[/red]")
    print_table(console, table)
    return 0 if all(good for _, _, good in rows) else 1


def _gpu_engine(settings: Settings) -> tuple[str, str, bool]:
    absent = [name for name in NEEDED_PACKAGES if importlib.util.find_spec(name) is None]
    found = f"not installed: {', '.join(absent)}" if absent else "installed"
    return "trellis2 engine", found, not absent or settings.engine != "trellis2"


def _gpu() -> str:
    query = ["--query-gpu=name,memory.total,memory.free,driver_version", "--format=csv,noheader"]
    program = shutil.which("nvidia-smi")
    if program is None:
        return "none (nvidia-smi is not here)"
    try:
        done = subprocess.run(  # noqa: S603 - a fixed program with fixed arguments
            [program, *query], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError) as err:
        return f"nvidia-smi failed ({type(err).__name__})"
    return done.stdout.strip().replace("\n", "; ") or "none"


def _disk(settings: Settings) -> tuple[str, str, bool]:
    free = free_bytes(settings.delivery.output_dir) / 1024**3
    need = settings.jobs.min_free_disk_gb
    return "disk", f"{free:.1f} GiB free, a job needs {need:g}", free >= need


def _bucket(settings: Settings) -> tuple[str, str, bool]:
    if not settings.bucket.is_configured:
        return "bucket", f"none: results go to {settings.delivery.output_dir}/", True
    try:
        require_bucket(settings.bucket)
    except (SetupFailed, WorkerError) as err:
        return "bucket", str(err), False
    return "bucket", f"{settings.bucket.name}: writable", True
