"""Write what is installed as a bill of materials (CycloneDX 1.6), and gather the licence texts.

    python builder/bill_of_materials.py --sources FOLDER --texts FOLDER OUT.json

FOLDER of sources is what build_extensions.sh left: a folder for each, with source.json and LICENSE.
Run where the packages are installed: in the image, by the Dockerfile.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from builder.image_requirements import project_name
from builder.licences import hand_kept, licence_of, records

_TEXT = re.compile(r"(^|/)(licen[cs]es?|copying|notice|authors)\b[^/]*$|/licenses/", re.IGNORECASE)


def components(sources: Path) -> list[dict[str, Any]]:
    """Return CycloneDX's components: each installed package, each source with its commit."""
    decided, known = hand_kept()["decided"], records()
    found = []
    for package in _installed():
        name = project_name(package.metadata["Name"])
        licence = known[name].licence if name in known else licence_of(package, decided)
        found.append({
            "type": "library",
            "name": name,
            "version": package.version,
            "purl": f"pkg:pypi/{name}@{package.version}",
            "licenses": [{"expression": licence}] if licence else [],
        })  # fmt: skip
    return found + [_source(folder) for folder in _folders(sources)]


def gather_texts(sources: Path, out: Path) -> int:
    """Copy every licence text of packages and sources to OUT/NAME/; returns how many."""
    count = 0
    for package in _installed():
        folder = out / project_name(package.metadata["Name"])
        for file in package.files or []:
            path = Path(str(file.locate()))
            if ".dist-info" in str(file) and _TEXT.search(str(file)) and path.is_file():
                count += _copy(path, folder / _plain(str(file)))
    for source in _folders(sources):
        count += _copy(source / "LICENSE", out / source.name / "LICENSE")
    return count


def _installed() -> list[metadata.Distribution]:
    return sorted(metadata.distributions(), key=lambda d: project_name(d.metadata["Name"]))


def _folders(sources: Path) -> Iterator[Path]:
    return (stated.parent for stated in sorted(sources.glob("*/source.json")))


def _source(folder: Path) -> dict[str, Any]:
    stated = json.loads((folder / "source.json").read_text())
    licences = {row[0].partition(",")[0]: row[1] for row in hand_kept()["not_packages"]}
    repository = stated["repository"].removeprefix("https://github.com/")
    return {
        "type": "library",
        "name": stated["name"],
        "version": stated["commit"],
        "purl": f"pkg:github/{repository}@{stated['commit']}",
        "licenses": [{"expression": licences[repository]}],
        "externalReferences": [{"type": "vcs", "url": stated["repository"]}],
    }


def _plain(name: str) -> str:
    return name.partition(".dist-info/")[2].removeprefix("licenses/").replace("/", "-")


def _copy(text: Path, target: Path) -> int:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(text, target)
    return 1


def main() -> None:
    """Write the bill, gather the texts, and say how many there are of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="the bill of materials, JSON")
    parser.add_argument("--sources", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True)
    args = parser.parse_args()
    found = components(args.sources)
    bill = {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "components": found}
    args.out.write_text(json.dumps(bill, indent=1) + "\n")
    count = gather_texts(args.sources, args.texts)
    print(f"{args.out}: {len(found)} components; {args.texts}: {count} texts")


if __name__ == "__main__":
    main()
