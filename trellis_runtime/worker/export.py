"""From a textured mesh to checked files: the GLB, and the pictures drawn from it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from trellis_runtime.assets import glb_draco, glb_meshopt, preview
from trellis_runtime.assets.cutout import cutout_png
from trellis_runtime.assets.glb_reader import CheckedGlb, GlbContent, check_glb
from trellis_runtime.assets.glb_writer import encode_glb
from trellis_runtime.assets.mesh import inspect_mesh, require_mesh
from trellis_runtime.assets.placement import Placement, place
from trellis_runtime.contract.answer import MeshReport
from trellis_runtime.contract.engine import Asset, CutOut
from trellis_runtime.contract.files import CUTOUT, PREVIEW, THUMBNAIL, TURNTABLE, ResultFile
from trellis_runtime.contract.request import Compression, Output, TextureFormat
from trellis_runtime.contract.scope import JobScope

_COMPRESSED: dict[Compression, Callable[[bytes, int], bytes]] = {
    "none": lambda data, _: data,
    "draco": glb_draco.compress_glb,
    "meshopt": glb_meshopt.compress_glb,
}
"""Each returns a GLB with its geometry in another form, from its bytes and its texture's size."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of the model, and the file that it is."""

    file: ResultFile
    data: bytes


@dataclass(frozen=True, slots=True)
class Exported:
    """A checked GLB, the format that its base colour really has, and the report on its mesh.

    `data` is what is delivered: the checked file, or the same with its geometry compressed.
    """

    glb: CheckedGlb
    texture_format: str
    mesh: MeshReport
    data: bytes

    @property
    def geometry_bytes(self) -> int:
        """Bytes of the mesh in the file before compression: no form of the textures helps these.

        A position, a normal, and texture coordinates or a colour take 12, 12 and 8; indices 2 or 4.
        """
        index = 2 if self.mesh.vertices < 65_535 else 4
        return 32 * self.mesh.vertices + 3 * index * self.mesh.faces


def draw_pictures(
    content: GlbContent, cutout: CutOut | None, output: Output, scope: JobScope
) -> list[Picture]:
    """Return the pictures that `output` asks for: of a finished file's content, and the cut-out."""
    made = []
    if output.preview:
        png = preview.render(content)
        made.append(Picture(PREVIEW, png))
        made.append(Picture(THUMBNAIL, preview.thumbnail(png)))
    if output.turntable:
        made.append(Picture(TURNTABLE, preview.turntable(content, scope.step)))
    if output.cutout and cutout is not None:
        made.append(Picture(CUTOUT, cutout_png(cutout)))
    return made


@dataclass(frozen=True, slots=True)
class Encoded:
    """A GLB as it is delivered, and its base colour's real format.

    Where the geometry is compressed, `checked` is the same file before that.
    """

    data: bytes
    texture_format: str
    checked: CheckedGlb


def encode_checked(
    asset: Asset, texture_format: TextureFormat, extras: dict[str, Any], compression: Compression
) -> Encoded:
    """Return a GLB that passed inspection; raises `GlbRejected` or `FileRejected`."""
    encoded = encode_glb(asset, texture_format, extras)
    checked = check_glb(encoded.data)
    data = _COMPRESSED[compression](encoded.data, asset.texture_size)
    return Encoded(data, encoded.texture_format, checked)


def export(
    asset: Asset,
    texture_format: TextureFormat,
    extras: dict[str, Any],
    compression: Compression = "none",
    placement: Placement | None = None,
) -> Exported:
    """Return a checked GLB and the report on its mesh; raises `MeshRejected` or `GlbRejected`.

    The report is on the asset before it is placed, but for its bounds.
    """
    require_mesh(asset)
    placed = place(asset, placement or Placement())
    with ThreadPoolExecutor(1) as beside:  # textures are encoded while the mesh is inspected
        report = beside.submit(inspect_mesh, asset)
        encoded = encode_checked(placed, texture_format, extras, compression)
        mesh = report.result()
    if placed is not asset:
        corners = placed.vertices.min(axis=0), placed.vertices.max(axis=0)
        bounds = [[round(float(v), 6) for v in corner] for corner in corners]
        mesh = mesh.model_copy(update={"bounds": bounds})
    return Exported(encoded.checked, encoded.texture_format, mesh, encoded.data)
