"""Where flat charts cover a texel with two faces: they are drawn, each on a grid of its own.

    chart c: grid of w_c x h_c texels from its lowest corner, all grids in one row of counters
    face   : adds 1 to the counter of each texel whose centre lies inside it
    a counter that was not 0 before: that chart covers a texel twice

A centre is inside where it lies left of the three edges by more than a thousandth of the face's
area in each of the three barycentric coordinates: faces that share an edge do not count.
"""

# No `from __future__ import annotations` here: Warp reads the kernel's annotations as types.

from typing import Any

import torch
import warp
from torch import Tensor

from trellis_runtime.engines.trellis2.baking.chart_set import ChartSet, extents

warp.config.log_level = warp.LOG_WARNING  # it prints to stdout, where our log is

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
        _draw,
        len(charts.faces),
        [corners.reshape(-1), charts.chart.int(), begins.int(), width.int(), counters, twice],
    )
    return twice > 0


def launch(kernel: Any, count: int, arguments: list[Any]) -> None:
    """Run a Warp kernel over `count` items on its tensors' device, in torch's order there."""
    warp.init()  # does its work once
    device = next(x.device for x in arguments if isinstance(x, Tensor))
    inputs = [
        warp.from_torch(x.contiguous()) if isinstance(x, Tensor) else x for x in arguments
    ]
    stream = warp.stream_from_torch(device) if device.type == "cuda" else None
    with warp.ScopedStream(stream):
        warp.launch(kernel, dim=count, inputs=inputs, device=warp.device_from_torch(device))


@warp.kernel(enable_backward=False)
def _draw(
    corners: warp.array(dtype=warp.float32),  # type: ignore[valid-type]
    chart: warp.array(dtype=warp.int32),  # type: ignore[valid-type]
    begins: warp.array(dtype=warp.int32),  # type: ignore[valid-type]
    width: warp.array(dtype=warp.int32),  # type: ignore[valid-type]
    counters: warp.array(dtype=warp.int32),  # type: ignore[valid-type]
    twice: warp.array(dtype=warp.int32),  # type: ignore[valid-type]
) -> None:
    f = warp.tid()
    c = chart[f]
    a = warp.vec2(corners[6 * f], corners[6 * f + 1])
    b = warp.vec2(corners[6 * f + 2], corners[6 * f + 3])
    d = warp.vec2(corners[6 * f + 4], corners[6 * f + 5])
    whole = (b[0] - a[0]) * (d[1] - a[1]) - (b[1] - a[1]) * (d[0] - a[0])
    if whole == 0.0:
        return
    x0 = int(warp.ceil(warp.min(a[0], warp.min(b[0], d[0])) - 0.5))
    x1 = int(warp.floor(warp.max(a[0], warp.max(b[0], d[0])) - 0.5))
    y0 = int(warp.ceil(warp.min(a[1], warp.min(b[1], d[1])) - 0.5))
    y1 = int(warp.floor(warp.max(a[1], warp.max(b[1], d[1])) - 0.5))
    for y in range(y0, y1 + 1):
        for x in range(x0, x1 + 1):
            p = warp.vec2(float(x) + 0.5, float(y) + 0.5)
            u = ((b[0] - p[0]) * (d[1] - p[1]) - (b[1] - p[1]) * (d[0] - p[0])) / whole
            v = ((d[0] - p[0]) * (a[1] - p[1]) - (d[1] - p[1]) * (a[0] - p[0])) / whole
            if u > 1e-3 and v > 1e-3 and u + v < 1.0 - 1e-3:
                at = begins[c] + y * width[c] + x
                if warp.atomic_add(counters, at, 1) > 0:
                    twice[c] = 1
