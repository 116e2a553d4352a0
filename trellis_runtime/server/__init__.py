"""The local page and the HTTP form of the worker: `python -m trellis_runtime serve`."""

from trellis_runtime.server.app import create_app

__all__ = ["create_app"]
