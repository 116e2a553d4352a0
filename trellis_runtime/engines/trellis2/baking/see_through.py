"""Which decoded faces one sees through, told before what is hidden is dropped.

voxels' alpha at the faces' middles ─► the mode, as `alpha` decides it by area
    OPAQUE ─► none     MASK ─► faces that are cut away     BLEND ─► faces less than opaque
"""

from __future__ import annotations

import torch
from torch import Tensor

from trellis_runtime.contract.request import AlphaChoice
from trellis_runtime.engines.trellis2.baking.alpha import all_opaque, clear_alpha
from trellis_runtime.engines.trellis2.baking.connectivity import face_normals
from trellis_runtime.engines.trellis2.baking.decoded import Decoded
from trellis_runtime.engines.trellis2.baking.voxels import VoxelGrid

_ALPHA = 5  # attributes: base colour, metallic, roughness, alpha
_BLOCK = 1 << 20


def clear_faces(
    vertices: Tensor, faces: Tensor, decoded: Decoded, choice: AlphaChoice = "auto"
) -> Tensor | None:
    """Return (F,) bool: which of faces (F, 3) one sees through, or None where that is none.

    vertices (V, 3) in the decoded surface's axes. choice: the caller's, of the alpha mode. Where
    all voxels are opaque nothing is computed.
    """
    opacity = decoded.attributes[:, _ALPHA]
    if choice == "opaque" or len(opacity) == 0 or all_opaque(opacity):
        return None
    device = vertices.device
    coords, opacity = decoded.coords.to(device), opacity.to(device)
    grid = VoxelGrid(coords, opacity[:, None], decoded.resolution)
    parts = []
    for part in torch.split(faces, _BLOCK):
        middles = vertices[part.long()].mean(1)
        area = face_normals(vertices, part).norm(dim=1)
        values = grid.sample((middles + 0.5) * decoded.resolution)
        parts.append(torch.cat([values, area[:, None]], 1))
    alpha, area = torch.cat(parts).unbind(1)
    clear = clear_alpha(alpha, area, choice)
    return clear if bool(clear.any()) else None
