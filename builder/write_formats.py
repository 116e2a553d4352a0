"""Write the table in docs/formats.md: each finish, made on this machine by the embedded engine.

    python builder/write_formats.py

The picture is test_input.json's, the preset balanced. Bytes are the files'; seconds are what each
finish added to the job, its bake included where no other finish had made it.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

from trellis_runtime.contract.files import COMPRESSION_PACKAGES, FORMATS
from trellis_runtime.settings import Settings
from trellis_runtime.worker.worker import Worker

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/formats.md"
BEGIN, END = "<!-- table: builder/write_formats.py -->\n", "<!-- end of table -->\n"

READERS = {
    "glb": "Khronos' validator, trimesh",
    "glb, draco": "Khronos' validator, glTF Transform with Draco's decoder",
    "glb, meshopt": "Khronos' validator, glTF Transform with meshoptimizer's decoder",
    "usdz": "tinyusdz, OpenUSD's validators",
    "obj": "trimesh",
    "ply": "trimesh",
    "stl": "trimesh",
    "3mf": "lib3mf",
    "hulls": "Khronos' validator, trimesh",
    "maps": "Pillow",
}
"""Who reads each kind of file in tests/test_formats.py, test_glb.py and test_hulls.py."""

FINISHES: list[dict[str, Any]] = [
    {"name": "as-asked"},
    {"name": "draco", "compression": "draco"},
    {"name": "draco-webp", "compression": "draco", "texture_format": "webp"},
    {"name": "phone", "compression": "draco", "texture_format": "webp", "texture_size": 1024,
     "decimation_target": 10_000},
    {"name": "meshopt", "compression": "meshopt"},
    {"name": "meshopt-webp", "compression": "meshopt", "texture_format": "webp"},
    {"name": "look", "format": "usdz", "texture_format": "jpeg", "decimation_target": 100_000},
    {"name": "blender", "format": "obj"},
    {"name": "points", "format": "ply"},
    {"name": "solid", "format": "hulls", "hulls": 16},
    {"name": "textures", "format": "maps"},
]  # fmt: skip
PRINTED: list[dict[str, Any]] = [
    {"name": "print", "format": "stl", "decimation_target": 200_000},
    {"name": "print-3mf", "format": "3mf", "decimation_target": 200_000},
]


def kind_of(finish: dict[str, Any]) -> str:
    """Return the key of `READERS` for a finish as a request has it."""
    form = finish.get("format", "glb")
    compression = finish.get("compression")
    return f"{form}, {compression}" if compression else form


def library_of(finish: dict[str, Any]) -> str:
    """Return what writes a finish."""
    if finish.get("compression") == "meshopt":
        return "gltfpack"
    packages = FORMATS[finish.get("format", "glb")].packages
    packages += COMPRESSION_PACKAGES[finish.get("compression", "none")]
    return ", ".join(distribution for _, distribution in packages) or "our own writer"


def row_of(finish: dict[str, Any], told: dict[str, Any]) -> str:
    """Return one line of the table, from the request and the answer."""
    said = {"name", "format"} if finish.get("format") != "maps" else {"name"}  # obj is a zip too
    asked = ", ".join(f"`{k}: {v}`" for k, v in finish.items() if k not in said)
    size = told["texture"]["size"] or "-"
    return (
        f"| `{told['file_name'].split('.', 1)[1]}` | {asked or 'as the request'} "
        f"| {library_of(finish)} | {READERS[kind_of(finish)]} | {told['faces']:,} | {size} "
        f"| {told['artifact']['bytes'] / 1e6:.2f} | {told['seconds']:.1f} |"
    )


def answer_for(finishes: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Return the answer of a job with these finishes, delivered into `folder`."""
    image = json.loads((ROOT / "test_input.json").read_bytes())["input"]["image"]
    variables = {"TRELLIS2_ENGINE": "embedded", "TRELLIS2_OUTPUT_DIR": str(folder),
                 "TRELLIS2_LOG_LEVEL": "error", "TRELLIS2_MIN_FREE_DISK_GB": "0.1"}  # fmt: skip
    worker = Worker.start(Settings.from_env(variables))
    try:
        output = {"finishes": finishes, "preview": False}
        asked = {"image": image, "seed": 1, "preset": "balanced", "output": output}
        return asyncio.run(worker.handle({"id": "formats", "input": asked}))
    finally:
        worker.close()


def table() -> str:
    """Return the table, of files that are made now."""
    rows = [
        "| file | asked | written by | read back by | faces | texture | MB | s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for finishes in (FINISHES, PRINTED):
            answer = answer_for(finishes, Path(folder))
            rows += [row_of(*pair) for pair in zip(finishes, answer["files"], strict=True)]
    return "\n".join(rows) + "\n"


def main() -> None:
    """Write the table into the page."""
    page = PAGE.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(before + BEGIN + "\n" + table() + "\n" + END + after)


if __name__ == "__main__":
    main()
