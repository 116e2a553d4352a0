"""No function over 50 lines, and no file over 300 without a reason in its first lines.

    python -m checks.sizes

Tests are as long as their subject needs; any other long file states its reason in its opening
docstring, on a line that begins "Long because". Prints the median, the 90th percentile and the
longest function; exit code 1 where a limit is passed.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("trellis_runtime", "benchmarks", "builder", "checks", "examples", "tests")
FUNCTION_LINES, FILE_LINES = 50, 300
REASON = "Long because"


@dataclass(frozen=True, slots=True)
class Function:
    """A function, its place and its lines, from `def` to its end."""

    name: str
    path: Path
    line: int
    lines: int


def functions(path: Path, source: str) -> Iterator[Function]:
    """Yield every function of a file, methods and inner ones included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            yield Function(node.name, path, node.lineno, lines)


def problems(path: Path, source: str) -> Iterator[str]:
    """Yield what is too long in a file."""
    lines = 0 if path.parts[0] == "tests" else source.count("\n")  # a test's home is its subject's
    reason = ast.get_docstring(ast.parse(source)) or ""
    if lines > FILE_LINES and REASON not in reason:
        yield f"{path}: {lines} lines; over {FILE_LINES} its docstring must say '{REASON} ...'"
    for function in functions(path, source):
        if function.lines > FUNCTION_LINES:
            yield f"{path}:{function.line}: {function.name} has {function.lines} lines"


def share(lengths: list[int], part: float) -> int:
    """Return the length that `part` of the functions do not exceed."""
    return sorted(lengths)[min(len(lengths) - 1, int(part * len(lengths)))]


def main() -> int:
    """Print the figures and what is too long."""
    files = {
        path.relative_to(ROOT): path.read_text()
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
    }
    found = [line for path, source in files.items() for line in problems(path, source)]
    product = [
        function
        for path, source in files.items()
        if path.parts[0] == "trellis_runtime"
        for function in functions(path, source)
    ]
    lengths = [function.lines for function in product]
    longest = max(product, key=lambda function: function.lines)
    print(*found, sep="\n", end="\n" if found else "")
    print(
        f"trellis_runtime: {len(product)} functions; median {share(lengths, 0.5)} lines, "
        f"90 % have at most {share(lengths, 0.9)}, the longest {longest.lines} "
        f"({longest.path}:{longest.line})"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
