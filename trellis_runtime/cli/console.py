"""Where the command line prints: results to standard output, all else to standard error."""

from __future__ import annotations

from rich.console import Console

out_console = Console()
err_console = Console(stderr=True)
