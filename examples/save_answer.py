"""Write the files of an answer: inline ones are decoded, others fetched, checksums compared.

    python -m examples.save_answer answer.json FOLDER

Takes a worker's answer, or RunPod's status with the answer in `output`. Standard library only.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import urllib.request
from pathlib import Path
from typing import Any

NAMES = {"artifact": "model.glb", "preview": "preview.png", "thumbnail": "thumbnail.webp",
         "turntable": "turntable.webp", "cutout": "cutout.png"}  # fmt: skip


def contents(artifact: dict[str, Any]) -> bytes:
    """Return a delivered file's bytes; raises `ValueError` unless they are those that were sent."""
    if artifact["base64"] is not None:
        data = base64.b64decode(artifact["base64"])
    else:
        with urllib.request.urlopen(artifact["url"], timeout=60) as response:  # noqa: S310 - ours
            data = response.read()
    if hashlib.sha256(data).hexdigest() != artifact["sha256"]:
        raise ValueError(f"{len(data)} bytes arrived that are not those that were sent")
    return data


def save(answer: dict[str, Any], folder: Path) -> list[Path]:
    """Write every file that `answer` tells of to `folder` and return their paths."""
    if answer.get("error"):
        raise ValueError(answer["error"])
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for field, name in NAMES.items():
        if answer.get(field):
            path = folder / name
            path.write_bytes(contents(answer[field]))
            written.append(path)
    for told in answer.get("files", []):
        if told["artifact"]:
            path = folder / Path(told["file_name"]).name
            path.write_bytes(contents(told["artifact"]))
            written.append(path)
    for variant in answer.get("variants", []):
        if not variant["error"]:  # each into a folder of its own
            written += save(variant, folder / Path(variant["name"]).name)
    return written


def main() -> None:
    """Save one answer and say where."""
    parser = argparse.ArgumentParser(description="Write the files of an answer.")
    parser.add_argument("answer", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    told = json.loads(args.answer.read_bytes())
    for path in save(told.get("output", told), args.folder):
        print(path)


if __name__ == "__main__":
    main()
