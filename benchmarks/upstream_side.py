"""Upstream as it is, on the models that our engine has loaded: the other column of every table."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image

from trellis_runtime.engines.trellis2.device.vram import reclaim
from trellis_runtime.engines.trellis2.engine import Trellis2Engine

PIPELINES = {512: "512", 1024: "1024_cascade", 1536: "1536_cascade"}
_STAGES = {
    "get_cond": "condition",
    "sample_sparse_structure": "structure",
    "sample_shape_slat": "shape",
    "sample_shape_slat_cascade": "shape",
    "sample_tex_slat": "texture",
    "decode_latent": "decode",
}


@contextmanager
def upstream_as_it_is(engine: Trellis2Engine, *, low_vram: bool) -> Iterator[Any]:
    """Yield upstream's pipeline with its own flow modules and its own placement of models."""
    pipeline, residency, _ = engine.parts()
    inner = pipeline.trellis
    kept = {
        name: (m.__dict__.pop("to"), m.__dict__.pop("cpu")) for name, m in pipeline.modules.items()
    }
    ours = {name: inner.models[name] for name in pipeline.flows}
    inner.models.update({name: pipeline.modules[name] for name in pipeline.flows})
    if low_vram:
        residency.evict()
    else:
        for name in pipeline.modules:
            residency.place(name)
    reclaim()
    before, inner.low_vram = inner.low_vram, low_vram
    try:
        with upstreams_own_meshes():
            yield inner
    finally:
        inner.low_vram = before
        inner.models.update(ours)
        for name, module in pipeline.modules.items():
            module.to, module.cpu = kept[name]  # type: ignore[method-assign]
        reclaim()


@contextmanager
def upstreams_own_meshes() -> Iterator[None]:
    """Have upstream make its own mesh classes, which fill holes, while the context lasts.

    Our loading sets plain ones in their place (`upstream/imports.py`); these need CuMesh.
    """
    from trellis2.models.sc_vaes import fdg_vae
    from trellis2.pipelines import trellis2_image_to_3d
    from trellis2.representations.mesh import base

    places = ((fdg_vae, "Mesh"), (trellis2_image_to_3d, "MeshWithVoxel"))
    ours = [getattr(module, name) for module, name in places]
    for module, name in places:
        setattr(module, name, getattr(base, name))
    try:
        yield
    finally:
        for (module, name), mesh_class in zip(places, ours, strict=True):
            setattr(module, name, mesh_class)


@contextmanager
def stage_seconds(owner: Any, names: dict[str, str]) -> Iterator[dict[str, float]]:
    """Time methods of `owner` to the device's end, summed by the label given for each."""
    seconds: dict[str, float] = {}

    def timed(name: str, label: str) -> Any:
        method = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            torch.cuda.synchronize()
            started = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                torch.cuda.synchronize()
                seconds[label] = seconds.get(label, 0.0) + time.perf_counter() - started

        return method, call

    methods = {name: timed(name, label) for name, label in names.items()}
    for name, (_, call) in methods.items():
        setattr(owner, name, call)
    try:
        yield seconds
    finally:
        for name, (method, _) in methods.items():
            setattr(owner, name, method)


def image_to_mesh(
    inner: Any, picture: Image.Image, resolution: int
) -> tuple[Any, dict[str, float]]:
    """Run upstream's pipeline; returns its mesh with voxels, and seconds by stage."""
    with stage_seconds(inner, _STAGES) as seconds:
        torch.cuda.synchronize()
        started = time.perf_counter()
        mesh = inner.run(picture, seed=1, pipeline_type=PIPELINES[resolution])[0]
        torch.cuda.synchronize()
        seconds["image to mesh"] = time.perf_counter() - started
    return mesh, seconds


def bake_with_upstream(mesh: Any, target: int, texture: int) -> Any:
    """Return what upstream's to_glb makes of `mesh` with the arguments of its example."""
    import o_voxel.postprocess  # which our loading leaves out: it needs CuMesh and nvdiffrast

    return o_voxel.postprocess.to_glb(
        vertices=mesh.vertices,
        faces=mesh.faces,
        attr_volume=mesh.attrs.float(),
        coords=mesh.coords,
        attr_layout=mesh.layout,
        voxel_size=mesh.voxel_size,
        aabb=[[-0.5] * 3, [0.5] * 3],
        decimation_target=target,
        texture_size=texture,
        remesh=True,
        remesh_band=1,
        remesh_project=0,
    )


def mesh_to_glb(mesh: Any, target: int, texture: int) -> tuple[Any, bytes, dict[str, float]]:
    """Run upstream's to_glb and export; returns what it made, the file and the seconds of both."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    made = bake_with_upstream(mesh, target, texture)
    torch.cuda.synchronize()
    baked = time.perf_counter()
    data = made.export(file_type="glb", extension_webp=True)
    seconds = {"bake": baked - started, "export": time.perf_counter() - baked}
    return made, data, seconds
