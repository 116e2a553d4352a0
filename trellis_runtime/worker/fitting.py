"""Delivery in the answer itself: what is too large for it is compressed before it is refused.

Each step keeps every face; the mildest that fits is taken, and the answer says which:

    textures as WebP                          EXT_texture_webp
    and the geometry compressed with Draco    EXT_texture_webp, KHR_draco_mesh_compression

A step that the caller has asked for already, or that cannot be enough, is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from trellis_runtime.assets.formats import are_installed
from trellis_runtime.contract.answer import AnswerWarning
from trellis_runtime.contract.files import COMPRESSION_PACKAGES
from trellis_runtime.contract.request import Compression, Output, TextureFormat
from trellis_runtime.logs import logger
from trellis_runtime.worker.export import Exported

Again = Callable[[TextureFormat, Compression], Exported]
"""Exports the same asset in another form."""

_WORDS = {
    "webp": "its textures became WebP",
    "draco": "its geometry was compressed with Draco",
}


def fit(
    exported: Exported, room: int | None, output: Output, again: Again
) -> tuple[Exported, list[AnswerWarning]]:
    """Return a GLB of at most `room` bytes where a step gives one, else what it was given.

    A warning comes with a GLB that is not in the form that was asked for. `room` is None where
    nothing bounds it. What does not fit in any form is refused by delivery.
    """
    if room is None or len(exported.data) <= room:
        return exported, []
    asked = len(exported.data)
    for texture_format, compression in _steps(output):
        if compression == "none" and exported.geometry_bytes > room:
            continue  # its textures could be nothing, and it would not fit
        smaller = again(texture_format, compression)
        if len(smaller.data) <= room:
            changes = [
                words
                for name, words in _WORDS.items()
                if name in (texture_format, compression)
                and name not in (output.texture_format, output.compression)
            ]
            return smaller, [_warning(asked, len(smaller.data), changes)]
    return exported, []


def may_compress(output: Output) -> bool:
    """Whether the geometry is compressed where the answer has no room for it otherwise."""
    if output.compression != "none":
        return True
    return output.delivery == "auto" and are_installed(COMPRESSION_PACKAGES["draco"])


def _steps(output: Output) -> Iterator[tuple[TextureFormat, Compression]]:
    textures: TextureFormat = "webp" if output.texture_format == "png" else output.texture_format
    if textures != output.texture_format:
        yield textures, output.compression
    if output.compression == "none" and may_compress(output):
        yield textures, "draco"


def _warning(asked: int, made: int, changes: list[str]) -> AnswerWarning:
    logger().info("compressed_for_delivery", bytes_asked=asked, bytes_made=made)
    return AnswerWarning(
        code="compressed_for_delivery",
        text=f"the GLB had {asked / 1e6:.1f} MB and the answer has room for less: "
        f"{' and '.join(changes)}, which makes it {made / 1e6:.1f} MB. A viewer must know that. "
        "To get it as asked, give the worker a bucket, or send s3Config or output.upload_url",
    )
