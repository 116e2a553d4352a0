"""The bake's geometry on a thread of its own, while the stage that began it does something else.

It can do without colours, so that it runs while the texture is sampled. It has ended when that
stage ends, whatever happens; where it failed for want of memory, or dropped as hidden what alpha
shows, the bake makes it again, in its turn.

On a card both threads give their work to the device's default stream: what each computes is the
same as alone, in whatever order the pieces come.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from trellis_runtime.contract.scope import JobScope
from trellis_runtime.engines.trellis2.baking.bake import BakeOptions, Geometry, bake_geometry
from trellis_runtime.engines.trellis2.baking.decoded import Decoded, DecodedSurface
from trellis_runtime.engines.trellis2.device import vram
from trellis_runtime.errors import MeshRejected, OutOfVram
from trellis_runtime.logs import logger


@dataclass(slots=True)
class GeometryAhead:
    """Geometry for a bake with `options`, once it has ended; None where it failed."""

    options: BakeOptions
    geometry: Geometry | None = None

    def fit_for(self, options: BakeOptions, decoded: Decoded) -> Geometry | None:
        """Return the geometry if it is what a bake of `decoded` with `options` would make."""
        if self.geometry is None or options != self.options:
            return None
        return self.geometry if self.geometry.suits(decoded, options) else None


@contextmanager
def geometry_beside(
    surface: DecodedSurface, options: BakeOptions, device: torch.device, scope: JobScope
) -> Iterator[GeometryAhead]:
    """Bake the geometry of `surface` while the context lasts; at its end, wait for it.

    An error inside the context stops the geometry at its next step. One of the geometry's own is
    kept for the bake to meet again if it is of memory or of the mesh, and raised otherwise.
    """
    ahead, aside = GeometryAhead(options), scope.aside()
    with ThreadPoolExecutor(1, thread_name_prefix="geometry") as pool:
        running = pool.submit(_bake, surface, options, device, aside)
        try:
            yield ahead
        except BaseException:
            aside.cancel()
            raise
    scope.parts.update(aside.parts)
    ahead.geometry = _ended(running, scope)


def _ended(running: Future[tuple[Geometry, float]], scope: JobScope) -> Geometry | None:
    try:
        geometry, seconds = running.result()
    except (OutOfVram, MeshRejected) as err:
        err.__traceback__ = None  # it holds the frames, and through them arrays
        logger().info("geometry_left_to_the_bake", job_id=scope.job_id, reason=err.message)
        return None
    scope.beside["geometry"] = scope.beside.get("geometry", 0.0) + seconds
    return geometry


def _bake(
    surface: DecodedSurface, options: BakeOptions, device: torch.device, scope: JobScope
) -> tuple[Geometry, float]:
    """Return the geometry and the seconds that it took; on its own thread."""
    started = time.perf_counter()
    with vram.translated(), torch.no_grad():
        geometry = bake_geometry(surface, options, device, scope)
        vram.synchronize(device)
    return geometry, time.perf_counter() - started
