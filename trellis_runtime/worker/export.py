"""From a textured mesh to checked files: the GLB, and the pictures drawn from it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from trellis_runtime.assets import preview
from trellis_runtime.assets.cutout import cutout_png
from trellis_runtime.assets.glb_reader import CheckedGlb, GlbContent, check_glb
from trellis_runtime.assets.glb_writer import encode_glb
from trellis_runtime.assets.mesh import inspect_mesh, require_mesh
from trellis_runtime.contract.answer import MeshReport
from trellis_runtime.contract.engine import Asset, CutOut
from trellis_runtime.contract.files import CUTOUT, PREVIEW, THUMBNAIL, TURNTABLE, ResultFile
from trellis_runtime.contract.request import Output, TextureFormat
from trellis_runtime.contract.scope import JobScope


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of the model, and the file that it is."""

    file: ResultFile
    data: bytes


@dataclass(frozen=True, slots=True)
class Exported:
    """A checked GLB, the format that its base colour really has, and the report on its mesh."""

    glb: CheckedGlb
    texture_format: str
    mesh: MeshReport


def draw_pictures(
    content: GlbContent, cutout: CutOut, output: Output, scope: JobScope
) -> list[Picture]:
    """Return the pictures that `output` asks for: of a finished file's content, and the cut-out."""
    made = []
    if output.preview:
        png = preview.render(content)
        made.append(Picture(PREVIEW, png))
        made.append(Picture(THUMBNAIL, preview.thumbnail(png)))
    if output.turntable:
        made.append(Picture(TURNTABLE, preview.turntable(content, scope.step)))
    if output.cutout:
        made.append(Picture(CUTOUT, cutout_png(cutout)))
    return made


def export(asset: Asset, texture_format: TextureFormat, extras: dict[str, Any]) -> Exported:
    """Return a checked GLB and the report on its mesh; raises `MeshRejected` or `GlbRejected`."""
    require_mesh(asset)
    with ThreadPoolExecutor(1) as beside:  # textures are encoded while the mesh is inspected
        report = beside.submit(inspect_mesh, asset)
        encoded = encode_glb(asset, texture_format, extras)
        glb = check_glb(encoded.data)
        return Exported(glb, encoded.texture_format, report.result())
