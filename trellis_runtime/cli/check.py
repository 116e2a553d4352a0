"""What this machine can do, in one page, for people."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess

from rich.console import Console
from rich.table import Table

from trellis_runtime import __version__
from trellis_runtime.cli.console import print_table
from trellis_runtime.delivery.s3 import require_bucket
from trellis_runtime.delivery.storage import free_bytes
from trellis_runtime.engines.packages import GPU_PACKAGES
from trellis_runtime.errors import SetupFailed, WorkerError
from trellis_runtime.settings import Settings


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
    absent = [name for name in GPU_PACKAGES if importlib.util.find_spec(name) is None]
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
