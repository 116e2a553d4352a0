"""The bake's geometry on a thread of its own, while the stage that began it does something else.

It can do without colours, so that it runs while the texture is sampled. It has ended when that
stage ends, whatever happens; where it failed for want of memory, or dropped as hidden what alpha
shows, the bake makes it again, in its turn.

On a card the geometry has a stream of its own, and waits for that alone: on the sampler's, each
question that the host asks would stand behind whole passes of the model. What each computes is the
same as alone, in whatever order the pieces come.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import warp

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
    ahead, aside, stream = GeometryAhead(options), scope.aside(), _stream_beside(device)
    with ThreadPoolExecutor(1, thread_name_prefix="geometry") as pool:
        running = pool.submit(_bake, surface, options, device, aside, stream)
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
    surface: DecodedSurface,
    options: BakeOptions,
    device: torch.device,
    scope: JobScope,
    stream: torch.cuda.Stream | None,
) -> tuple[Geometry, float]:
    """Return the geometry and the seconds that it took; on its own thread."""
    started = time.perf_counter()
    with vram.translated(), torch.no_grad(), _on(stream):
        geometry = bake_geometry(surface, options, device, scope)
    return geometry, time.perf_counter() - started


def _stream_beside(device: torch.device) -> torch.cuda.Stream | None:
    """Return a stream that begins where this thread's is now; None on a CPU.

    It goes first where both have work: its kernels are small, and the host waits for each.
    """
    if not vram.is_cuda(device):
        return None
    stream: torch.cuda.Stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream


@contextmanager
def _on(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Have torch and Warp give this thread's work to `stream`; it is done when the context ends.

    Also when it ends with an error: what lies on the device may be given away then.
    """
    if stream is None:
        yield
        return
    warp.init()
    own = warp.stream_from_torch(stream)
    with torch.cuda.stream(stream), warp.ScopedStream(own, sync_enter=False):
        try:
            yield
        finally:
            stream.synchronize()
