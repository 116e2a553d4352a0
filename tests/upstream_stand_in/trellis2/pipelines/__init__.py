"""Upstream's pipelines, each imported when it is first asked for."""

import importlib

_CLASSES = {"Trellis2ImageTo3DPipeline": "trellis2_image_to_3d"}
_MODULES = ("samplers", "rembg")


def __getattr__(name):
    if name in _CLASSES:
        return getattr(importlib.import_module(f".{_CLASSES[name]}", __name__), name)
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__} has no attribute {name}")
