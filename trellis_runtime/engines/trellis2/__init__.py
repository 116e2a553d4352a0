"""The product: microsoft/TRELLIS.2 on a GPU, adapted and never forked.

Upstream's own models, samplers and extensions do the work; this package loads them strictly,
decides what lives in GPU memory when, repeats a stage alone, and tells running out of memory from
a device that can no longer be trusted.
"""

import os

# Read when torch first allocates. Without it gigabytes of a small card are lost to fragments: a
# 1536 job was seen to fail on 10 GB for that alone.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # noqa: TID251

from trellis_runtime.engines.trellis2.engine import Trellis2Engine

__all__ = ["Trellis2Engine"]
