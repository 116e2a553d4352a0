"""Draw docs/images/quality-*.webp: each shape's bake shaded, as wires, cut open and enlarged there.

    python -m benchmarks.quality_suite --resolutions 512 --keep kept    # with or without a card
    python builder/make_quality_pictures.py kept

The suite keeps ours, and upstream's where it can run; where both are there they stand one above the
other, seen by one camera and cut by one plane. `make quality-pictures` does both.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.kept import KeptName, read_mesh
from builder.quality_views import View, Window
from trellis_runtime.assets import preview
from trellis_runtime.assets.glb_reader import GlbContent

IMAGES = Path(__file__).parent.parent / "docs/images"
CELL, CAPTION, GAP = 300, 22, 4
WIRES_ZOOM = 9.0
VOXELS = 24  # across the enlarged cut
SIDES = ("ours", "upstream")


def sheets(folder: Path) -> dict[str, Image.Image]:
    """Return a picture for each shape and resolution of which `folder` has ours, by its name."""
    names = sorted((KeptName.of(path) for path in folder.glob("*.npz")), key=str)
    return {
        f"{name.shape}-{name.resolution}": sheet(name, folder)
        for name in names
        if name.side == SIDES[0]
    }


def sheet(name: KeptName, folder: Path) -> Image.Image:
    """Return ours in one row of pictures, and upstream's in one below it where it is there."""
    paths = [(side, KeptName(name.shape, name.resolution, side).path(folder)) for side in SIDES]
    contents = [(side, read_mesh(path)) for side, path in paths if path.exists()]
    first = View(contents[0][1])
    close = closest_cut(first, name.resolution)
    strips = [row(side, content, first, close) for side, content in contents]
    whole = Image.new("RGB", (strips[0].width, sum(strip.height for strip in strips)), "white")
    for number, strip in enumerate(strips):
        whole.paste(strip, (0, number * strip.height))
    return whole


def row(side: str, content: GlbContent, first: View, close: Window) -> Image.Image:
    """Return the four pictures of one mesh, as `first` sees it, with what they are below."""
    view = View(content, first.camera)
    shaded = Image.open(io.BytesIO(preview.render(content, CELL)))
    pictures = [
        (f"{side}: {len(content.faces):,} faces", shaded),
        (f"wires, {WIRES_ZOOM:.0f} times as large", view.wires(CELL, Window(WIRES_ZOOM, MIDDLE))),
        ("cut open; orange: seen from behind", view.cut(CELL, Window(), first.middle)),
        (f"the cut, {VOXELS} voxels across", view.cut(CELL, close, first.middle)),
    ]
    strip = Image.new("RGB", (4 * CELL + 3 * GAP, CELL + CAPTION), "white")
    draw = ImageDraw.Draw(strip)
    for place, (words, picture) in enumerate(pictures):
        strip.paste(picture, (place * (CELL + GAP), 0))
        at = (place * (CELL + GAP) + 4, CELL + 3)
        draw.text(at, words, fill="black", font=ImageFont.load_default(13))
    return strip


MIDDLE = (0.5, 0.5)


def closest_cut(view: View, resolution: int) -> Window:
    """Return a window around the section's upper right end, some voxels across."""
    segments = view.section(view.middle, CELL, Window())
    if len(segments) == 0:
        return Window()
    middles = segments.mean(1)
    chosen = middles[np.argmax(middles[:, 0] - middles[:, 1])]
    pixel = 2 * view.camera.reach * view.middle / CELL  # its side in the mesh's units
    return Window(pixel * CELL * resolution / VOXELS, view.place_of(chosen, CELL))


def main() -> None:
    """Draw all that the folder has."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kept", type=Path, help="folder that the suite's --keep has filled")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder for the pictures")
    asked = parser.parse_args()
    drawn = sheets(asked.kept)
    if not drawn:
        parser.error(f"{asked.kept} has no mesh of ours: run benchmarks.quality_suite with --keep")
    asked.out.mkdir(parents=True, exist_ok=True)
    for name, picture in drawn.items():
        picture.save(asked.out / f"quality-{name}.webp", quality=82, method=6)


if __name__ == "__main__":
    main()
