"""Which packages the GPU engine needs, as import names; known without importing any of them."""

from __future__ import annotations

UPSTREAM_PACKAGES = ("trellis2", "o_voxel", "cumesh", "flex_gemm", "nvdiffrast")
"""Upstream's own code and its extensions."""

GPU_PACKAGES = ("torch", *UPSTREAM_PACKAGES)
"""All that belongs to the GPU engine and its upstream; benchmarks run upstream's own bake."""

NEEDED_PACKAGES = ("torch", "trellis2", "o_voxel", "flex_gemm")
"""What a machine must have for the GPU engine: the bake is ours, without CuMesh and nvdiffrast."""
