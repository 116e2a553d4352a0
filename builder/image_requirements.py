"""Write what the image installs for the package: pyproject.toml's names, at one version each.

    python builder/image_requirements.py FOLDER TOOLKIT OUT

FOLDER holds pyproject.toml, requirements.lock, requirements-gpu.txt and toolkits/. OUT gets
`requirements.txt`, the dependencies of the worker, of its formats and of `serve`, and
`constraints.txt`, every pin: the lock's, or the GPU files' where those have the package too.
Standard library only.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path

EXTRAS = ("formats", "serve")
"""Optional dependencies that the image installs."""


def project_name(requirement: str) -> str:
    """Return the normalised name of a requirement (PEP 503)."""
    stated = re.match(r"[A-Za-z0-9._-]+", requirement.strip())
    return re.sub(r"[-_.]+", "-", stated.group()).lower() if stated else ""


def read_pins(text: str) -> list[str]:
    """Return the requirement lines of a file of pins; comments and pip's options are left out."""
    lines = [line.split("#", 1)[0].strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("-")]


def image_requirements(project: str, lock: str, *gpu: str) -> tuple[list[str], list[str]]:
    """Return the names of the project's dependencies, and every pin that holds in the image.

    A package of `gpu`, the texts of requirements-gpu.txt and of a toolkit, has the version stated
    there. Raises `LookupError` for a dependency that nothing pins.
    """
    pinned = _by_name(lock) | _by_name("\n".join(gpu))
    stated = tomllib.loads(project)["project"]
    wanted = list(stated["dependencies"])
    for extra in EXTRAS:
        wanted += stated.get("optional-dependencies", {}).get(extra, [])
    names = [project_name(dependency) for dependency in wanted]
    for name in names:
        if name not in pinned:
            raise LookupError(f"{name} is in pyproject.toml and not in requirements.lock")
    return names, [line for lines in pinned.values() for line in lines]


def _by_name(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in read_pins(text):
        found.setdefault(project_name(line), []).append(line)
    return found


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("toolkit", help="a file's name in toolkits/, without its ending")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    names = (
        "pyproject.toml",
        "requirements.lock",
        "requirements-gpu.txt",
        f"toolkits/{args.toolkit}.txt",
    )
    found, pins = image_requirements(*((args.folder / name).read_text() for name in names))
    (args.out / "requirements.txt").write_text("\n".join(found) + "\n")
    (args.out / "constraints.txt").write_text("\n".join(pins) + "\n")


if __name__ == "__main__":
    main()
