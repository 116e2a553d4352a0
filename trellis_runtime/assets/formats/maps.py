"""An asset's textures alone, in a zip: those of the GLB, texel for texel, and their channels.

They lie as the GLB's texture coordinates have them, its first row at the top, as glTF has it.
"""

from __future__ import annotations

from trellis_runtime.assets.formats import pictures
from trellis_runtime.assets.formats.archive import zipped
from trellis_runtime.contract.engine import Asset
from trellis_runtime.contract.request import TextureFormat
from trellis_runtime.errors import FileRejected


def encode_maps_zip(asset: Asset, texture_format: TextureFormat) -> bytes:
    """Return a zip of the textures of `asset`; raises `FileRejected` where it has none."""
    made = (
        pictures.base_color(asset, texture_format)
        | pictures.metallic_roughness(asset)
        | pictures.normal(asset)
        | pictures.channels(asset)
    )
    if not made:
        raise FileRejected(
            "there are no textures to deliver: the model has its colours at its vertices, as it "
            "was made at the ladder's last level"
        )
    return zipped(dict(made.values()))
