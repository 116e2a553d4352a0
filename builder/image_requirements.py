"""Write what the image installs for the package: pyproject.toml's names, the lock's versions.

    python builder/image_requirements.py FOLDER OUT

FOLDER holds pyproject.toml, requirements.lock and requirements-gpu.txt; OUT gets requirements.txt
and constraints.txt. What requirements-gpu.txt pins is in neither: the image has it already, at that
version. Standard library only.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path


def project_name(requirement: str) -> str:
    """Return the normalised name of a requirement (PEP 503)."""
    stated = re.match(r"[A-Za-z0-9._-]+", requirement.strip())
    return re.sub(r"[-_.]+", "-", stated.group()).lower() if stated else ""


def read_pins(text: str) -> list[str]:
    """Return the requirement lines of a file of pins, comments left out."""
    lines = [line.split("#", 1)[0].strip() for line in text.splitlines()]
    return [line for line in lines if line]


def image_requirements(project: str, lock: str, gpu: str) -> tuple[list[str], list[str]]:
    """Return the project's dependencies, and those of its extra `formats`, at the lock's versions,
    and what else the lock pins.

    Lines keep their markers; the packages of `gpu` are in neither list. Raises `LookupError` for a
    dependency that neither the lock nor `gpu` pins.
    """
    already = {project_name(line) for line in read_pins(gpu)}
    pinned: dict[str, list[str]] = {}
    for line in read_pins(lock):
        pinned.setdefault(project_name(line), []).append(line)
    found = []
    stated = tomllib.loads(project)["project"]
    formats = stated.get("optional-dependencies", {}).get("formats", [])
    for dependency in stated["dependencies"] + formats:
        name = project_name(dependency)
        if name in already:
            continue
        if name not in pinned:
            raise LookupError(f"{name} is in pyproject.toml and not in requirements.lock")
        found += pinned.pop(name)
    others = [line for name, lines in pinned.items() if name not in already for line in lines]
    return found, others


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    names = ("pyproject.toml", "requirements.lock", "requirements-gpu.txt")
    found, others = image_requirements(*((args.folder / name).read_text() for name in names))
    (args.out / "requirements.txt").write_text("\n".join(found) + "\n")
    (args.out / "constraints.txt").write_text("\n".join(others) + "\n")


if __name__ == "__main__":
    main()
