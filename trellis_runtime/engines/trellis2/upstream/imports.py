"""Upstream's packages, imported without what nothing here calls.

Two of upstream's modules import CuMesh and nvdiffrast at their top, for functions that this worker
has of its own: `o_voxel/__init__` brings in its export code, and `trellis2.representations.mesh`
brings in hole filling and simplification. Both extensions are built for minutes, and nvdiffrast is
not for commercial use, so the image does not hold them. Neither is replaced by a stand-in that
could answer wrongly: the modules that import them are simply never run.

- `o_voxel` is entered in `sys.modules` without running its `__init__`; its parts (`o_voxel.convert`
  for one) are then imported as ever.
- `trellis2.representations` looks `Mesh` and `MeshWithVoxel` up when they are first asked for. Ours
  is set there before: it has a decoded mesh's two arrays, and nothing to call.

Two more import transformers and torchvision, which takes seconds: `image_feature_extractor`, whose
DINOv3 is ours (`models/dinov3`), and `rembg`. Upstream's pipeline imports both at its top and reads
them in its own `from_pretrained` alone, so they are entered without being run as well; `rembg` is
run when there is a background remover to load.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import Tensor


@dataclass(slots=True)
class DecodedMesh:
    """What upstream's shape decoder returns: vertices (V, 3) float32 and faces (F, 3) int32."""

    vertices: Tensor
    faces: Tensor

    def __post_init__(self) -> None:
        self.vertices, self.faces = self.vertices.float(), self.faces.int()


class _NotUsedHere:
    """Takes the place of a class that only upstream's own `run` makes."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("MeshWithVoxel is upstream's; this worker keeps voxels beside the mesh")


_REMOVERS = "trellis2.pipelines.rembg"
_ENCODERS = "trellis2.modules.image_feature_extractor"


def import_dual_grid() -> ModuleType:
    """Return `o_voxel.convert`, which turns dual grids into meshes; raises ImportError."""
    _enter("o_voxel")
    return importlib.import_module("o_voxel.convert")


def leave_helpers_out() -> None:
    """Have upstream's pipeline import without its image encoder and its remover."""
    _enter(_ENCODERS)
    _enter(_REMOVERS)


def import_removers() -> ModuleType:
    """Return `trellis2.pipelines.rembg`, which imports transformers; raises ImportError."""
    if not hasattr(sys.modules.get(_REMOVERS), "BiRefNet"):
        sys.modules.pop(_REMOVERS, None)  # entered, and never run
    return importlib.import_module(_REMOVERS)


def _enter(name: str) -> None:
    """Enter a module in `sys.modules` without running it, where it is not there yet."""
    if name in sys.modules:
        return
    spec = importlib.util.find_spec(name)  # imports the package that it is in
    if spec is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    sys.modules.setdefault(name, importlib.util.module_from_spec(spec))


def use_decoded_mesh() -> None:
    """Have upstream's decoder make `DecodedMesh`; called before upstream's models are imported."""
    representations: Any = importlib.import_module("trellis2.representations")
    representations.Mesh = DecodedMesh
    representations.MeshWithVoxel = _NotUsedHere
