"""Which packages the GPU engine needs, as import names; known without importing any of them."""

from __future__ import annotations

UPSTREAM_PACKAGES = ("trellis2", "o_voxel", "cumesh", "flex_gemm", "nvdiffrast")
"""Upstream's own code and its extensions."""

GPU_PACKAGES = ("torch", *UPSTREAM_PACKAGES)
"""What a machine must have for the GPU engine."""
