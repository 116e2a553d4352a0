"""The command line: `python -m trellis_runtime --help`."""

from __future__ import annotations

import sys

_WHERE = (
    "In the project's folder, `make run` installs what is needed; then it is\n"
    "    .venv/bin/python -m trellis_runtime ...\n"
)


def main() -> int:
    """Run one command; says in words what is missing where it cannot."""
    if sys.version_info < (3, 11):  # noqa: UP036 - whoever runs it elsewhere is told so
        version = ".".join(map(str, sys.version_info[:2]))
        sys.stderr.write(f"Python 3.11 or newer is needed; this is {version}. {_WHERE}")
        return 2
    try:
        from trellis_runtime.cli.parser import main as run
    except ModuleNotFoundError as err:
        sys.stderr.write(
            f"The package {err.name!r} is not installed for {sys.executable}. {_WHERE}"
        )
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(main())
