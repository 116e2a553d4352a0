"""Draw docs/images/normal-maps.webp: five budgets of faces, without and with a normal map.

    python builder/make_normal_maps.py [--resolution 112] [--device cpu]

The shape is made as a decoder would give it: a smooth body whose skin is waves. Each cell says how
far its picture is from the full surface's, as the mean over the body's pixels of 0..255. The last
line tells how long the maps took, beside the rest of their bake.
"""

from __future__ import annotations

import argparse
import io
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.quality_suite import decoded_of
from benchmarks.shapes import make_shape
from trellis_runtime.assets import preview
from trellis_runtime.assets.glb_reader import check_glb
from trellis_runtime.assets.glb_writer import encode_glb
from trellis_runtime.contract.engine import Asset
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import Stage
from trellis_runtime.engines.trellis2.baking.bake import BakeOptions, bake_surface
from trellis_runtime.engines.trellis2.baking.decoded import Decoded

SHEET = Path(__file__).parent.parent / "docs/images/normal-maps.webp"
BUDGETS = (20_000, 10_000, 5_000, 2_000, 1_000)
TEXTURE, VIEW_PX, CAPTION_PX = 512, 256, 36

Picture = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Cell:
    """One picture of the sheet, (VIEW_PX, VIEW_PX, 3), and the words below it."""

    picture: Picture
    words: str


def bumpy(resolution: int) -> Decoded:
    """Return a closed body with waves on it, coloured all over, decoded at `resolution`."""
    smooth = decoded_of(make_shape("closed_smooth", resolution))
    waves = torch.sin(55 * smooth.vertices).prod(1, keepdim=True) * 0.045
    clay = torch.tensor([0.78, 0.56, 0.42, 0.0, 0.6, 1.0]).expand(len(smooth.coords), 6)
    moved = smooth.vertices * (1 + waves)
    return replace(smooth, vertices=moved.contiguous(), attributes=clay.contiguous())


def shown(asset: Asset) -> Picture:
    """Return a picture of an asset's file."""
    content = check_glb(encode_glb(asset, "png", {}).data).content
    png = preview.render(content, VIEW_PX)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), np.float64)


def distance(picture: Picture, wanted: Picture) -> float:
    """Return the mean difference over the pixels of `wanted` that are not its background."""
    body = np.abs(wanted - wanted[:, :1]).sum(2) > 20
    return float(np.abs(picture - wanted)[body].mean())


def columns(decoded: Decoded, device: str) -> list[tuple[Cell, Cell]]:
    """Return the cells without and with a normal map, the full surface first."""
    options = BakeOptions(BUDGETS[0], TEXTURE)
    full = bake_surface(decoded, replace(options, decimation_target=2_000_000), device)
    wanted = shown(full)
    first = Cell(wanted, f"{len(full.faces):,} faces")
    made = [(first, first)]
    for faces in BUDGETS:
        asked = replace(options, decimation_target=faces, maps=("normal",))
        asset = bake_surface(decoded, asked, device)
        plain = shown(replace(asset, normal_map=None, tangents=None))
        mapped = shown(asset)
        words = f"{faces:,}: off by {distance(plain, wanted):.1f}"
        made.append((Cell(plain, words), Cell(mapped, f"mapped: {distance(mapped, wanted):.1f}")))
    return made


def timings(decoded: Decoded, device: str) -> dict[str, float]:
    """Return the seconds of each part of a bake of 5,000 faces with both maps."""
    options = BakeOptions(5_000, TEXTURE, maps=("normal", "occlusion"))
    scope = JobScope("maps")
    with scope.stage(Stage.BAKE):
        bake_surface(decoded, options, device, scope)
    return {name: round(seconds, 2) for name, seconds in scope.parts.items()}


def sheet(made: list[tuple[Cell, Cell]]) -> Image.Image:
    """Return all cells as one picture: without the map above, with it below."""
    row = VIEW_PX + CAPTION_PX
    page = Image.new("RGB", (VIEW_PX * len(made), 2 * row), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    for column, cells in enumerate(made):
        for line, cell in enumerate(cells):
            at = column * VIEW_PX, line * row
            page.paste(Image.fromarray(cell.picture.astype(np.uint8)), at)
            draw.text((at[0] + 8, at[1] + VIEW_PX + 8), cell.words, "black", font)
    return page


def main() -> None:
    """Write the sheet, and print what it says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int, default=112, help="cells a side of the surface")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    given = parser.parse_args()
    decoded = bumpy(given.resolution)
    made = columns(decoded, given.device)
    for plain, mapped in made:
        print(plain.words, mapped.words, sep="; ")
    sheet(made).save(SHEET, quality=88, method=6)
    print(timings(decoded, given.device))


if __name__ == "__main__":
    main()
