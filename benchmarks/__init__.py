"""Measurements of the GPU engine beside upstream; see docs/benchmarks.md."""

import trellis_runtime.engines.trellis2  # noqa: F401 - first of all: it says how torch allocates
