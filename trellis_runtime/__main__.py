"""The command line: `python -m trellis_runtime --help`."""

from __future__ import annotations

import sys

from trellis_runtime.cli.parser import main

if __name__ == "__main__":
    sys.exit(main())
