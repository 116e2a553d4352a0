"""The models that a checkpoint's configurations name."""

from .flows import SLatFlowModel, SparseStructureFlowModel
from .sc_vaes.fdg_vae import FlexiDualGridVaeDecoder
from .sc_vaes.sparse_unet_vae import SparseUnetVaeDecoder
from .structure import SparseStructureDecoder

__all__ = [
    "FlexiDualGridVaeDecoder",
    "SLatFlowModel",
    "SparseStructureDecoder",
    "SparseStructureFlowModel",
    "SparseUnetVaeDecoder",
]
