"""Where flat charts cover a texel with two faces: they are drawn, each on a grid of its own.

    chart c: grid of w_c x h_c texels from its lowest corner, all grids in one row of counters
    face   : adds 1 to the counter of each texel whose centre lies inside it
    a counter that was not 0 before: that chart covers a texel twice

A centre is inside where it lies left of the three edges by more than a thousandth of the face's
area in each of the three barycentric coordinates: faces that share an edge do not count.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trellis_runtime.engines.trellis2.baking.chart_set import ChartSet, extents
from trellis_runtime.engines.trellis2.baking.launch import launch
from trellis_runtime.engines.trellis2.baking.uv_kernels import count_texels

_LARGEST_GRID = 2**28  # counters: what is larger is drawn more coarsely


def find_overlaps(flat: Tensor, charts: ChartSet, texels_per_unit: float) -> Tensor:
    """Return, (charts,) bool, which charts cover a texel with two faces.

    flat (V, 2) float32 are coordinates of the charts' vertices.
    """
    texels = flat * texels_per_unit
    low, high = extents(texels, charts.owner, charts.count)
    if (spread := float((high - low + 2).prod(1).sum())) > _LARGEST_GRID:
        return find_overlaps(flat, charts, texels_per_unit * (_LARGEST_GRID / spread) ** 0.5 * 0.9)
    width, height = ((high - low).floor().long() + 2).unbind(1)
    begins = (width * height).cumsum(0) - width * height
    counters = torch.zeros(int((width * height).sum()), dtype=torch.int32, device=flat.device)
    twice = torch.zeros(charts.count, dtype=torch.int32, device=flat.device)
    corners = (texels - low[charts.owner])[charts.faces]
    launch(
        count_texels,
        len(charts.faces),
        [corners.reshape(-1), charts.chart.int(), begins.int(), width.int(), counters, twice],
    )
    return twice > 0
