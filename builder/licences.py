"""What the image is made of, and under which licences: NOTICE and docs/licences.md.

    python builder/licences.py [--metadata FOLDER]      # a part of `make docs`

Packages are read from what is installed, starting at pyproject.toml and the GPU files, and kept in
package_licences.json: an environment for tests has not all of the image's packages, nor at its
versions, so a record changes only where the image's own version is at hand. A package that is new
and only in the image is read from FOLDER, where `pip install --target FOLDER` put it. What is no
Python package, and what metadata says wrongly or not at all, stands in licences.json, by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

sys.path.insert(0, str(Path(__file__).parent.parent))

from builder.image_requirements import image_requirements, project_name, read_pins
from builder.toolkits import DEFAULT

ROOT = Path(__file__).parent.parent
HAND_KEPT = ROOT / "builder/licences.json"
RECORDS = ROOT / "builder/package_licences.json"
PAGE = ROOT / "docs/licences.md"
NOTICE = ROOT / "NOTICE"

IMAGE = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": "3.12.3",
    "python_version": "3.12",
    "sys_platform": "linux",
}
"""The image's environment, for the markers of requirements."""

_NAMED = {
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "3-Clause BSD License": "BSD-3-Clause",
    "GNU General Public License v3 or later (GPLv3+)": "GPL-3.0-or-later",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
}


@dataclass(frozen=True, slots=True)
class Package:
    """A Python package of the image: its licence (SPDX), and the packages that it needs."""

    name: str
    licence: str
    requires: tuple[str, ...]


def hand_kept() -> dict[str, Any]:
    """Return licences.json: `decided`, `not_packages` and `accepted`."""
    content: dict[str, Any] = json.loads(HAND_KEPT.read_text())
    return content


def records() -> dict[str, Package]:
    """Return package_licences.json, by name."""
    stated = json.loads(RECORDS.read_text()) if RECORDS.exists() else {}
    return {
        name: Package(name, entry["licence"], tuple(entry["requires"]))
        for name, entry in stated.items()
    }


def licence_of(found: metadata.Distribution, decided: dict[str, Any]) -> str:
    """Return a distribution's licence as an SPDX expression, as far as its metadata names one.

    In this order: what licences.json decides, the expression, the classifiers, the licence's name.
    Several classifiers are a choice, as those who state them mean it. Empty where nothing is named.
    """
    name = project_name(found.metadata["Name"])
    if name in decided:
        return str(decided[name][0])
    if "License-Expression" in found.metadata:
        return found.metadata["License-Expression"]
    classified = [
        _NAMED.get(label := line.rpartition(" :: ")[2], label)
        for line in found.metadata.get_all("Classifier") or []
        if line.startswith("License ::")
    ]
    stated = "".join(found.metadata.get_all("License") or []).strip().splitlines()[:1]
    return " OR ".join(sorted(set(classified))) or "".join(_NAMED.get(s, s) for s in stated)


def packages(folder: Path | None = None) -> dict[str, Package]:
    """Return every package of the image, by name: from what is installed, else from the records.

    Raises `LookupError` for one that is in neither.
    """
    texts = [(ROOT / name).read_text() for name in _FILES]
    names, pins = image_requirements(*texts)
    todo = [(name, "") for name in (*names, *map(project_name, read_pins("\n".join(texts[2:]))))]
    versions = dict(_pinned(pins))
    known, decided = records(), hand_kept()["decided"]
    found: dict[str, Package] = {}
    seen = set()
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        package = _package(name, extras, folder, versions.get(name), known, decided)
        before = found.get(name)
        needed = sorted({*package.requires, *(before.requires if before else ())})
        found[name] = Package(name, package.licence, tuple(needed))
        todo += [(need.partition("[")[0], need.partition("[")[2].rstrip("]")) for need in needed]
    return dict(sorted(found.items()))


_FILES = (
    "pyproject.toml",
    "requirements.lock",
    "builder/requirements-gpu.txt",
    f"builder/toolkits/{DEFAULT.name}.txt",
)


def _pinned(pins: list[str]) -> Iterator[tuple[str, str]]:
    for line in pins:
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate(dict(IMAGE)):
            yield project_name(pin.name), str(pin.specifier).removeprefix("==")


def _package(
    name: str,
    extras: str,
    folder: Path | None,
    version: str | None,
    known: dict[str, Package],
    decided: dict[str, Any],
) -> Package:
    at_hand = _distribution(name, folder)
    if name in known and (at_hand is None or at_hand.version != version):
        return known[name]
    if at_hand is None:
        raise LookupError(
            f"{name} is in the image, not installed here and not in {RECORDS.name}: "
            f"pip install --no-deps --target FOLDER {name}, then licences.py --metadata FOLDER"
        )
    return Package(name, licence_of(at_hand, decided), tuple(sorted(set(_needs(at_hand, extras)))))


def _distribution(name: str, folder: Path | None) -> metadata.Distribution | None:
    if folder is not None:
        for found in metadata.distributions(path=[str(folder)]):
            if project_name(found.metadata["Name"]) == name:
                return found
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def _needs(found: metadata.Distribution, extras: str) -> Iterator[str]:
    wanted = [""] + [extra for extra in extras.split(",") if extra]
    for line in found.requires or []:
        need = Requirement(line)
        if need.marker and not any(need.marker.evaluate(IMAGE | {"extra": e}) for e in wanted):
            continue
        name = project_name(need.name)
        if not _LEFT_TO_TORCH.match(name):
            yield f"{name}[{','.join(sorted(need.extras))}]" if need.extras else name


# They differ from toolkit to toolkit, and stand in licences.json as one part.
_LEFT_TO_TORCH = re.compile(r"nvidia-|cuda-toolkit$")


def unaccepted(expression: str, accepted: list[str]) -> list[str]:
    """Return the licences of an SPDX expression that are in the way, [] where it may be used.

    Each part of an AND has to be accepted, and one of an OR. An AND binds closer; brackets hold.
    """
    tokens = re.findall(r"\(|\)|[^\s()]+(?:\s+WITH\s+[^\s()]+)?", expression)
    if not tokens:
        return ["no licence"]
    wrong, rest = _either(tokens, accepted)
    return [*wrong, *rest]


def _either(tokens: list[str], accepted: list[str]) -> tuple[list[str], list[str]]:
    best, tokens = _all(tokens, accepted)
    while tokens and tokens[0] == "OR":
        other, tokens = _all(tokens[1:], accepted)
        best = best and other and best + other
    return best, tokens


def _all(tokens: list[str], accepted: list[str]) -> tuple[list[str], list[str]]:
    wrong, tokens = _one(tokens, accepted)
    while tokens and tokens[0] == "AND":
        more, tokens = _one(tokens[1:], accepted)
        wrong = wrong + more
    return wrong, tokens


def _one(tokens: list[str], accepted: list[str]) -> tuple[list[str], list[str]]:
    if tokens and tokens[0] == "(":
        wrong, tokens = _either(tokens[1:], accepted)
        return wrong, tokens[1:]
    if not tokens:
        return ["an unfinished expression"], []
    return ([] if tokens[0] in accepted else [tokens[0]]), tokens[1:]


def pages(found: dict[str, Package]) -> dict[Path, str]:
    """Return the texts of the files that are made from the packages."""
    kept = hand_kept()
    table = {
        name: {"licence": package.licence, "requires": list(package.requires)}
        for name, package in found.items()
    }
    parts = "\n".join(
        f"| {name} | {licence} | {kind}; {where} |"
        for name, licence, kind, where in kept["not_packages"]
    )
    decided = {name: why for name, (_, why) in kept["decided"].items()}
    rows = "\n".join(
        f"| {p.name} | {p.licence} | {decided.get(p.name, '')} |" for p in found.values()
    )
    weak = "\n".join(
        f"- {p.name}: {p.licence}" for p in found.values() if re.search(r"LGPL|MPL", p.licence)
    )
    text = (ROOT / "builder/licences.head.md").read_text()
    text = text.format(parts=parts, packages=rows, weak=weak, count=len(found))
    listed = "\n".join(f"{p.name}: {p.licence}" for p in found.values())
    others = "\n".join(
        f"{name}: {licence} ({kind})" for name, licence, kind, _ in kept["not_packages"]
    )
    return {
        RECORDS: json.dumps(table, indent=1) + "\n",
        PAGE: text,
        NOTICE: _NOTICE.format(others=others, packages=listed),
    }


_NOTICE = """\
trellis-runtime is under the MIT licence (LICENSE). Its container image holds, or fetches, the parts
below, each under its own. This file is written by builder/licences.py; docs/licences.md says more.
In the image, licence texts are in /usr/share/licenses and beside each package.

Built with DINOv3, where its weights are in the image or the model folder.

Not Python packages
-------------------
{others}

Python packages
---------------
{packages}
"""


def main() -> None:
    """Write all files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--metadata", type=Path, help="a folder of packages, read first")
    for path, text in pages(packages(parser.parse_args().metadata)).items():
        path.write_text(text)


if __name__ == "__main__":
    main()
