"""A rehearsal: the structure of a real shape, so that random weights meet real sizes.

With random weights the sparse structure is noise, and every count behind it is meaningless. Here a
shape (`rehearsal_shapes`) is voxelised by o_voxel itself, and the places where upstream's models
decide what exists (the structure, the decoder's subdivisions, its dual vertices) answer with that
shape. Architectures, dtypes, token and voxel counts, kernels, memory and times are then real; the
looks are noise, and every answer says `synthetic`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

from trellis_runtime.contract.request import Resolution
from trellis_runtime.engines.trellis2.grid import cell_keys, find
from trellis_runtime.engines.trellis2.upstream import imports, interface
from trellis_runtime.engines.trellis2.upstream.rehearsal_shapes import Mesh, mesh_of
from trellis_runtime.errors import SetupFailed

if TYPE_CHECKING:
    from trellis_runtime.engines.trellis2.upstream.adapter import UpstreamPipeline

RESOLUTIONS: tuple[int, ...] = get_args(Resolution)
_LEVELS = 4  # the decoder doubles its grid four times


def install_synthetic_structure(pipeline: UpstreamPipeline, name: str) -> None:
    """Make the structure, the decoder and the cascade follow the shape called `name`.

    Raises `SetupFailed` where the decoder is not the one that these places are known of.
    """
    interface.check_code(interface.REHEARSAL_CALLS)
    inner, decoder = pipeline.trellis, pipeline.modules["shape_slat_decoder"]
    levels = len(decoder.blocks) - 1  # type: ignore[arg-type]
    if levels != _LEVELS:
        raise SetupFailed(f"a rehearsal knows {_LEVELS} subdivisions; the decoder has {levels}")
    shape = ReferenceShape(pipeline.device, name)
    for level, blocks in enumerate(list(decoder.blocks)[:-1]):  # type: ignore[arg-type]
        blocks[-1].to_subdiv = _Subdivision(blocks[-1].to_subdiv, shape, level)
    decoder.output_layer = _Output(decoder.get_submodule("output_layer"), shape)
    _wrap(inner, "sample_sparse_structure", shape.structure)
    _before(decoder, "upsample", lambda *_: shape.use(512))
    _before(decoder, "set_resolution", shape.use)


def shape_of(pipeline: UpstreamPipeline) -> ReferenceShape:
    """Return the shape that a rehearsing pipeline follows; it may become another one."""
    output: Any = pipeline.modules["shape_slat_decoder"].get_submodule("output_layer")
    if not isinstance(output, _Output):
        raise SetupFailed("this pipeline follows no shape: TRELLIS2_REHEARSAL is not set")
    return output.shape


class ReferenceShape:
    """Knows which cells of each grid the shape touches, and its dual vertices in the finest."""

    def __init__(self, device: torch.device, name: str) -> None:
        self._device = device
        self.become(name)

    def become(self, name: str) -> None:
        """Answer for the shape called `name` from now on, at 512 until told otherwise."""
        self.name, self.resolution = name, 512
        self._mesh = mesh_of(name)
        self._dual: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._keys: dict[tuple[int, int], Tensor] = {}
        for resolution in RESOLUTIONS:
            self._add(resolution)

    def use(self, resolution: int) -> None:
        """Answer for this resolution from now on.

        A cascade with too many tokens lowers it in steps of 128: a dense shape meets more of them
        than requests can name.
        """
        if resolution not in self._dual:
            self._add(resolution)
        self.resolution = resolution

    def _add(self, resolution: int) -> None:
        self._dual[resolution] = _voxelise(self._mesh, resolution, self._device)
        coords = self._dual[resolution][0].long()
        for level in range(_LEVELS + 1):
            cells = (coords >> level).unique(dim=0)  # type: ignore[no-untyped-call]
            side = resolution >> level
            self._keys[(resolution, side)] = cell_keys(cells, side).sort().values

    def structure(self, resolution: int) -> Tensor:
        """Return coordinates (N, 4) on a grid of `resolution`."""
        coords, _, _ = self._dual[512]
        cells = (coords.long() * resolution // 512).unique(dim=0)  # type: ignore[no-untyped-call]
        return torch.cat([torch.zeros_like(cells[:, :1]), cells], dim=1).int()

    def has(self, side: int, cells: Tensor) -> Tensor:
        """Return, (N,) bool, which cells of a grid of `side` the shape touches."""
        return find(self._keys[(self.resolution, side)], cells, side)[1]

    def dual(self, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return which finest cells are known, their dual vertices (0..1) and crossings."""
        coords, vertices, crossings = self._dual[self.resolution]
        at, known = find(cell_keys(coords, self.resolution), cells, self.resolution)
        return known, vertices[at], crossings[at]


class _Subdivision(nn.Module):
    """Answers a decoder level's question: which of a cell's eight children exist?"""

    def __init__(self, inner: nn.Module, shape: ReferenceShape, level: int) -> None:
        super().__init__()
        self.inner, self._shape_at, self._level = inner, shape, level

    def forward(self, x: Any) -> Any:
        y = self.inner(x)
        side = (self._shape_at.resolution >> _LEVELS) << (self._level + 1)
        children = x.coords[:, 1:] * 2
        exists = [
            self._shape_at.has(
                side, children + children.new_tensor([i & 1, i >> 1 & 1, i >> 2 & 1])
            )
            for i in range(8)
        ]
        return y.replace(torch.stack(exists, 1).to(y.feats.dtype) * 2 - 1)


class _Output(nn.Module):
    """Answers the last layer: dual vertices (as logits) and crossed edges of the shape."""

    def __init__(self, inner: nn.Module, shape: ReferenceShape) -> None:
        super().__init__()
        self.inner, self.shape = inner, shape

    def forward(self, x: Any) -> Any:
        y = self.inner(x)
        known, vertices, crossings = self.shape.dual(y.coords[:, 1:])
        share = ((vertices + 0.5) / 2).clamp(1e-4, 1 - 1e-4)
        feats = y.feats.clone()
        feats[:, :3] = torch.log(share / (1 - share)).to(feats.dtype)
        feats[:, 3:6] = (crossings & known[:, None]).to(feats.dtype) * 2 - 1
        return y.replace(feats)


def _voxelise(mesh: Mesh, resolution: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return sorted cells (N, 3), dual vertices (N, 3) in 0..1, and crossed edges (N, 3)."""
    vertices, faces = mesh
    cells, dual, crossings = imports.import_dual_grid().mesh_to_flexible_dual_grid(
        torch.from_numpy(vertices),
        torch.from_numpy(faces),
        grid_size=resolution,
        aabb=[[-0.5] * 3, [0.5] * 3],
        face_weight=1.0,
        boundary_weight=0.2,
        regularization_weight=1e-2,
    )
    order = cell_keys(cells, resolution).argsort()
    inside = (dual * resolution - cells).clamp(0, 1)
    found = cells[order].int(), inside[order], crossings[order].bool()
    return found[0].to(device), found[1].to(device), found[2].to(device)


def _wrap(owner: Any, name: str, answer: Any) -> None:
    original = getattr(owner, name)

    def call(condition: Any, resolution: int, *rest: Any) -> Tensor:
        original(condition, resolution, *rest)  # its time and memory are part of the rehearsal
        return answer(resolution)

    setattr(owner, name, call)


def _before(owner: Any, name: str, action: Any) -> None:
    original = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        action(*args)
        return original(*args, **kwargs)

    setattr(owner, name, call)
