"""What this worker uses of upstream's code: one commit, one table, checked before the first job.

    installed packages ──check_code──► modules, classes, arguments
    loaded models      ──check_models─► attributes of objects

Upstream has no releases and promises no interface. A name that moved, an argument that was renamed
or put elsewhere must stop the start with its name, rather than surface in a customer's job. The
tests' stand-in for upstream is written from this table and checked against it too.

This is the one home of what is used; `docs/architecture.md` lists what is patched.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trellis_runtime.errors import SetupFailed

COMMIT = "5565d240c4a494caaf9ece7a554542b76ffa36d3"
"""The commit of microsoft/TRELLIS.2 that everything here is written for."""


@dataclass(frozen=True, slots=True)
class Used:
    """A function, class or method by its dotted name, and how it is called.

    `positions` are the first parameters by name, in order, as far as they are passed by position;
    `keywords` those passed by name. Both are without `self`.
    """

    module: str
    name: str
    positions: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()


_PIPELINE = "Trellis2ImageTo3DPipeline"
_DECODERS = "trellis2.models.sc_vaes.sparse_unet_vae"
_CONDITIONED = ("cond", "flow_model", "coords", "sampler_params")
_SAMPLED = ("model", "noise", "cond", "neg_cond")
_PARAMETERS = ("steps", "rescale_t", "guidance_strength", "guidance_interval")

CALLS: tuple[Used, ...] = (
    Used(
        "trellis2.pipelines",
        _PIPELINE,
        (
            "models",
            "sparse_structure_sampler",
            "shape_slat_sampler",
            "tex_slat_sampler",
            "sparse_structure_sampler_params",
            "shape_slat_sampler_params",
            "tex_slat_sampler_params",
            "shape_slat_normalization",
            "tex_slat_normalization",
            "image_cond_model",
            "rembg_model",
        ),
        ("low_vram",),
    ),
    Used("trellis2.pipelines", f"{_PIPELINE}.preprocess_image", ("input",)),
    Used(
        "trellis2.pipelines",
        f"{_PIPELINE}.get_cond",
        ("image", "resolution"),
        ("include_neg_cond",),
    ),
    Used(
        "trellis2.pipelines",
        f"{_PIPELINE}.sample_sparse_structure",
        ("cond", "resolution", "num_samples", "sampler_params"),
    ),
    Used("trellis2.pipelines", f"{_PIPELINE}.sample_shape_slat", _CONDITIONED),
    Used(
        "trellis2.pipelines",
        f"{_PIPELINE}.sample_shape_slat_cascade",
        (
            "lr_cond",
            "cond",
            "flow_model_lr",
            "flow_model",
            "lr_resolution",
            "resolution",
            "coords",
            "sampler_params",
            "max_num_tokens",
        ),
    ),
    Used(
        "trellis2.pipelines",
        f"{_PIPELINE}.sample_tex_slat",
        ("cond", "flow_model", "shape_slat", "sampler_params"),
    ),
    Used("trellis2.pipelines", f"{_PIPELINE}.decode_shape_slat", ("slat", "resolution")),
    Used("trellis2.pipelines", f"{_PIPELINE}.decode_tex_slat", ("slat", "subs")),
    Used(
        "trellis2.pipelines.samplers",
        "FlowEulerGuidanceIntervalSampler",
        keywords=("sigma_min",),
    ),
    Used(
        "trellis2.pipelines.samplers",
        "FlowEulerGuidanceIntervalSampler.sample",
        _SAMPLED,
        _PARAMETERS,
    ),
    Used(
        "trellis2.pipelines.samplers",
        "FlowEulerGuidanceIntervalSampler.sample_once",
        ("model", "x_t", "t", "t_prev", "cond"),
    ),
    Used("trellis2.modules.sparse", "SparseTensor.replace", ("feats",)),
    Used("trellis2.modules.norm", "LayerNorm32"),
    Used("trellis2.models", "SLatFlowModel.forward", ("x", "t", "cond", "concat_cond")),
    Used("trellis2.models", "SparseStructureFlowModel.forward", ("x", "t", "cond")),
    Used("trellis2.models", "SparseStructureDecoder.forward", ("x",)),
    Used("trellis2.models", "FlexiDualGridVaeDecoder.set_resolution", ("resolution",)),
    Used(
        _DECODERS,
        "SparseUnetVaeDecoder.forward",
        ("x",),
        ("guide_subs", "return_subs"),
    ),
    Used(_DECODERS, "SparseUnetVaeDecoder.upsample", ("x", "upsample_times")),
    Used(_DECODERS, "SparseConvNeXtBlock3d"),
    Used(_DECODERS, "SparseResBlockC2S3d"),
    Used(
        "o_voxel.convert",
        "flexible_dual_grid_to_mesh",
        ("coords", "dual_vertices", "intersected_flag", "split_weight"),
        ("aabb", "grid_size", "train"),
    ),
)
"""What is called, and how."""

REMOVER_CALLS: tuple[Used, ...] = (
    Used("trellis2.pipelines.rembg", "BiRefNet", ("model_name",)),
    Used("trellis2.pipelines.rembg", "BiRefNet.__call__", ("image",)),
)
"""What a background remover is besides: importing it takes seconds, so a start without one does
not."""

REHEARSAL_CALLS: tuple[Used, ...] = (
    Used(
        "o_voxel.convert",
        "mesh_to_flexible_dual_grid",
        ("vertices", "faces"),
        ("grid_size", "aabb", "face_weight", "boundary_weight", "regularization_weight"),
    ),
)
"""What a rehearsal calls besides."""

_ATTENTION = ("num_heads", "q_rms_norm.gamma", "k_rms_norm.gamma", "to_out.weight", "to_out.bias")
_FLOW = (
    "dtype",
    "in_channels",
    "t_embedder",
    "adaLN_modulation",
    "input_layer.weight",
    "out_layer.weight",
    "blocks.0.modulation",
    "blocks.0.norm2.weight",
    "blocks.0.self_attn.to_qkv.weight",
    "blocks.0.cross_attn.to_q.weight",
    "blocks.0.cross_attn.to_kv.weight",
    "blocks.0.mlp.mlp.0.weight",
    "blocks.0.mlp.mlp.2.weight",
    *(f"blocks.0.{part}.{name}" for part in ("self_attn", "cross_attn") for name in _ATTENTION),
)
_SPARSE_FLOW = (*_FLOW, "blocks.0.self_attn.rope.freqs")
_DECODER = (
    "dtype",
    "pred_subdiv",
    "from_latent.weight",
    "output_layer",
    "blocks.0.0.norm.eps",
    "blocks.0.0.conv.weight",
    "blocks.0.0.mlp",
    *(f"blocks.0.-1.{n}" for n in ("norm1", "norm2", "conv1.weight", "conv2.bias", "out_channels")),
)

ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "sparse_structure_flow_model": (*_FLOW, "resolution", "rope_phases"),
    "shape_slat_flow_model_512": _SPARSE_FLOW,
    "shape_slat_flow_model_1024": _SPARSE_FLOW,
    "tex_slat_flow_model_512": _SPARSE_FLOW,
    "tex_slat_flow_model_1024": _SPARSE_FLOW,
    "sparse_structure_decoder": ("dtype", "input_layer", "middle_block", "blocks"),
    "shape_slat_decoder": (*_DECODER, "blocks.0.-1.to_subdiv"),
    "tex_slat_decoder": _DECODER,
}
"""What is read of each model, as dotted paths; a number is a place in a list."""

PIPELINE_ATTRIBUTES = (
    "models",
    "low_vram",
    "_device",
    "image_cond_model",
    "rembg_model",
    "sparse_structure_sampler",
    "shape_slat_sampler",
    "tex_slat_sampler",
)
"""What is read or set of the pipeline itself."""


def check_code(calls: Iterable[Used] = CALLS) -> None:
    """Compare the installed code with the table; raises `SetupFailed` with the first difference."""
    for used in calls:
        try:
            target: Any = importlib.import_module(used.module)
        except ImportError as err:
            raise SetupFailed(f"upstream's {err.name or used.module} is missing ({err})") from None
        for part in used.name.split("."):
            if not hasattr(target, part):
                raise _differs(f"{used.module} has no {used.name}")
            target = getattr(target, part)
        _check_parameters(used, target)


def check_models(pipeline: Any, modules: Mapping[str, Any]) -> None:
    """Compare loaded objects with the table; raises `SetupFailed` with the first difference."""
    for path in PIPELINE_ATTRIBUTES:
        _look_up(pipeline, path, _PIPELINE)
    for name, paths in ATTRIBUTES.items():
        for path in paths:
            _look_up(modules[name], path, name)


def _check_parameters(used: Used, target: Any) -> None:
    if not used.positions and not used.keywords:
        return
    stated = inspect.signature(target).parameters
    names = [name for name in stated if name != "self"]
    for place, wanted in enumerate(used.positions):
        found = names[place] if place < len(names) else "nothing"
        if found != wanted:
            raise _differs(
                f"{used.module}.{used.name} takes {found} where {wanted} is passed (place {place})"
            )
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in stated.values())
    for wanted in used.keywords:
        if wanted not in names and not open_ended:
            raise _differs(f"{used.module}.{used.name} takes no {wanted}")


def _look_up(owner: Any, path: str, label: str) -> Any:
    at = owner
    for part in path.split("."):
        try:
            at = at[int(part)] if part.lstrip("-").isdigit() else getattr(at, part)
        except (AttributeError, IndexError, TypeError):
            raise _differs(f"{label} has no {path}") from None
    return at


def _differs(what: str) -> SetupFailed:
    return SetupFailed(f"upstream is not microsoft/TRELLIS.2 at {COMMIT[:7]}: {what}")
