"""Where the command line prints: results to standard output, all else to standard error."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from trellis_runtime.errors import InvalidInput

out_console = Console()
err_console = Console(stderr=True)

_ANY_WIDTH = 10_000


def print_table(console: Console, table: Table) -> None:
    """Print a table as wide as it is: a number and its unit stay on one line, also in a file."""
    options = console.options.update(max_width=_ANY_WIDTH)
    width = max(console.width, Measurement.get(console, options, table).maximum)
    Console(file=console.file, width=width, force_terminal=console.is_terminal).print(table)


def require_writable(path: Path, option: str) -> None:
    """Raise `InvalidInput` unless a file can be written at `path`; asked before the work."""
    folder = path.absolute().parent
    if path.is_dir():
        why = "is a folder; give the name of a file"
    elif not folder.is_dir():
        why = f"cannot be written: there is no folder {folder}"
    elif not os.access(path if path.exists() else folder, os.W_OK):
        why = "cannot be written: this user may not"
    else:
        return
    raise InvalidInput(f"{option} {path} {why}", field=option)
