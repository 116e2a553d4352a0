"""One door to all writers, and the check that what they need is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable

from trellis_runtime.assets import gltfpack
from trellis_runtime.assets.formats import maps, obj, ply, print_files, usdz
from trellis_runtime.contract.engine import Asset
from trellis_runtime.contract.files import COMPRESSION_PACKAGES, FileFormat
from trellis_runtime.contract.request import Compression, TextureFormat
from trellis_runtime.errors import FileRejected, InvalidInput

_Writer = Callable[[Asset, TextureFormat], bytes]

_WRITERS: dict[FileFormat, _Writer] = {
    "usdz": usdz.encode_usdz,
    "obj": obj.encode_obj_zip,
    "ply": lambda asset, _: ply.encode_ply(asset),
    "stl": lambda asset, _: print_files.encode_stl(asset),
    "3mf": lambda asset, _: print_files.encode_3mf(asset),
    "maps": maps.encode_maps_zip,
}

_LIBRARY_FAILURES = (ValueError, RuntimeError, OSError, ArithmeticError, LookupError)


def write_file(asset: Asset, form: FileFormat, texture_format: TextureFormat) -> bytes:
    """Return a placed `asset` as the bytes of one file of any format but glb.

    Raises `FileRejected` where a library or the result's own inspection fails.
    """
    try:
        return _WRITERS[form](asset, texture_format)
    except _LIBRARY_FAILURES as err:
        raise FileRejected(f"the {form} file could not be written ({type(err).__name__})") from err


def are_installed(packages: Iterable[tuple[str, str]]) -> bool:
    """Whether all of `packages` (import name, distribution) can be imported."""
    return all(importlib.util.find_spec(module) is not None for module, _ in packages)


def require_packages(packages: Iterable[tuple[str, str]], what: str, field: str) -> None:
    """Raise `InvalidInput` where one of `packages` (import name, distribution) is not installed."""
    for module, distribution in packages:
        if not are_installed([(module, distribution)]):
            raise InvalidInput(
                f"{what} needs {distribution}, which this worker lacks: "
                "pip install 'trellis-runtime[formats]'",
                field=field,
            )


def require_compression(compression: Compression, field: str) -> None:
    """Raise `InvalidInput` where this worker lacks what compresses a GLB's geometry so."""
    what = f"compression {compression!r}"
    require_packages(COMPRESSION_PACKAGES[compression], what, field)
    if compression == "meshopt" and not gltfpack.WASM.is_file():
        raise InvalidInput(
            f"{what} needs gltfpack's file {gltfpack.WASM.name}, which this worker lacks: run "
            "`make serve` once in its checkout, or use the image; 'draco' needs no such file",
            field=field,
        )
