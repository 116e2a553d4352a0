"""The product: microsoft/TRELLIS.2 on a GPU, adapted and never forked.

Upstream's own models, samplers and extensions do the work; this package loads them strictly,
decides what lives in GPU memory when, repeats a stage alone, and tells running out of memory from
a device that can no longer be trusted.
"""

from trellis_runtime.engine_trellis2.engine import Trellis2Engine

__all__ = ["Trellis2Engine"]
