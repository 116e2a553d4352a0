"""The engine that runs on any CPU: a photo's silhouette, inflated and textured.

A real method, not a stand-in: a small network finds the object, its outline is inflated to a closed
surface by a Poisson equation, given relief from the photo's own shading, and textured with the
photo in front and a plausible back. It walks the same stages as the GPU engine, under a memory
budget if one is set, so that everything above an engine can be seen working anywhere.
"""

from trellis_runtime.engines.embedded.engine import EmbeddedEngine

__all__ = ["EmbeddedEngine"]
