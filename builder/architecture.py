"""TRELLIS.2's architecture as numbers: each model's arguments, and its state dict's shapes.

From microsoft/TRELLIS.2 at 5565d24: `configs/gen/*_1_3B_*_bf16.json`, `configs/scvae/*_ft_512.json`
and the classes that they name; the structure decoder is TRELLIS-image-large's
`ckpts/ss_dec_conv3d_16l8_fp16`. Torsos are bfloat16 (flow models) and float16 (decoders); norms,
gains, modulation and what lies outside the blocks are float32.
"""

from __future__ import annotations

from typing import Any

Shapes = dict[str, tuple[tuple[int, ...], str]]
"""A state dict's keys, each with its shape and dtype."""

HEAD = 128
_FREQUENCIES = 256
_CONTEXT = 1024
_MLP_RATIO = 5.3334
_FULL, _HALF, _BRAIN = "float32", "float16", "bfloat16"

# name: class, input channels, output channels, resolution
_FLOWS = {
    "sparse_structure_flow_model": ("SparseStructureFlowModel", 8, 8, 16),
    "shape_slat_flow_model_512": ("SLatFlowModel", 32, 32, 32),
    "shape_slat_flow_model_1024": ("SLatFlowModel", 32, 32, 64),
    "tex_slat_flow_model_512": ("SLatFlowModel", 64, 32, 32),
    "tex_slat_flow_model_1024": ("SLatFlowModel", 64, 32, 64),
}
_DECODER_CHANNELS = (1024, 512, 256, 128, 64)
_DECODER_BLOCKS = (4, 16, 8, 4, 0)
_STRUCTURE_CHANNELS = (512, 128, 32)
_LATENT = 32


def model_configs(blocks: int = 30, channels: int = 1536, divisor: int = 1) -> dict[str, Any]:
    """Return each model's class and arguments by its name in the pipeline.

    `blocks` and `channels` (a multiple of 128) are the flow models'; the decoders' channels are
    divided by `divisor`. The defaults are the true ones.
    """
    made: dict[str, Any] = {
        name: {"name": kind, "args": _flow_args(blocks, channels, *sizes)}
        for name, (kind, *sizes) in _FLOWS.items()
    }
    wide = [c // divisor for c in _DECODER_CHANNELS]
    made["shape_slat_decoder"] = {
        "name": "FlexiDualGridVaeDecoder",
        "args": {"resolution": 512} | _decoder_args(wide),
    }
    made["tex_slat_decoder"] = {
        "name": "SparseUnetVaeDecoder",
        "args": {"out_channels": 6} | _decoder_args(wide) | {"pred_subdiv": False},
    }
    made["sparse_structure_decoder"] = {
        "name": "SparseStructureDecoder",
        "args": {
            "out_channels": 1,
            "latent_channels": 8,
            "num_res_blocks": 2,
            "num_res_blocks_middle": 2,
            "channels": [c // divisor for c in _STRUCTURE_CHANNELS],
            "use_fp16": True,
        },
    }
    return made


def state_shapes(config: dict[str, Any]) -> Shapes:
    """Return what a model's file holds, for one value of `model_configs`."""
    args = config["args"]
    if config["name"].endswith("FlowModel"):
        return _flow_shapes(args)
    if config["name"] == "SparseStructureDecoder":
        return _structure_shapes(args)
    return _decoder_shapes(args)


def _flow_args(blocks: int, channels: int, wide: int, out: int, side: int) -> dict[str, Any]:
    return {
        "resolution": side,
        "in_channels": wide,
        "out_channels": out,
        "model_channels": channels,
        "cond_channels": _CONTEXT,
        "num_blocks": blocks,
        "num_heads": channels // HEAD,
        "mlp_ratio": _MLP_RATIO,
        "pe_mode": "rope",
        "share_mod": True,
        "initialization": "scaled",
        "qk_rms_norm": True,
        "qk_rms_norm_cross": True,
        "dtype": _BRAIN,
    }


def _decoder_args(wide: list[int]) -> dict[str, Any]:
    levels = len(wide)
    return {
        "model_channels": wide,
        "latent_channels": _LATENT,
        "num_blocks": list(_DECODER_BLOCKS),
        "block_type": ["SparseConvNeXtBlock3d"] * levels,
        "up_block_type": ["SparseResBlockC2S3d"] * (levels - 1),
        "block_args": [{} for _ in range(levels)],
        "use_fp16": True,
    }


def _linear(name: str, out: int, wide: int, dtype: str) -> Shapes:
    return {f"{name}.weight": ((out, wide), dtype), f"{name}.bias": ((out,), dtype)}


def _norm(name: str, wide: int) -> Shapes:
    return {f"{name}.weight": ((wide,), _FULL), f"{name}.bias": ((wide,), _FULL)}


def _flow_shapes(args: dict[str, Any]) -> Shapes:
    wide, heads = args["model_channels"], args["num_heads"]
    shapes = _linear("t_embedder.mlp.0", wide, _FREQUENCIES, _FULL)
    shapes |= _linear("t_embedder.mlp.2", wide, wide, _FULL)
    shapes |= _linear("adaLN_modulation.1", 6 * wide, wide, _FULL)
    shapes |= _linear("input_layer", wide, args["in_channels"], _FULL)
    hidden = int(wide * args["mlp_ratio"])
    for number in range(args["num_blocks"]):
        block = f"blocks.{number}"
        shapes[f"{block}.modulation"] = ((6 * wide,), _FULL)
        shapes |= _norm(f"{block}.norm2", wide)
        shapes |= _linear(f"{block}.self_attn.to_qkv", 3 * wide, wide, _BRAIN)
        shapes |= _linear(f"{block}.cross_attn.to_q", wide, wide, _BRAIN)
        shapes |= _linear(f"{block}.cross_attn.to_kv", 2 * wide, args["cond_channels"], _BRAIN)
        for attention in ("self_attn", "cross_attn"):
            shapes |= _linear(f"{block}.{attention}.to_out", wide, wide, _BRAIN)
            for gain in ("q_rms_norm", "k_rms_norm"):
                shapes[f"{block}.{attention}.{gain}.gamma"] = ((heads, wide // heads), _FULL)
        shapes |= _linear(f"{block}.mlp.mlp.0", hidden, wide, _BRAIN)
        shapes |= _linear(f"{block}.mlp.mlp.2", wide, hidden, _BRAIN)
    return shapes | _linear("out_layer", args["out_channels"], wide, _FULL)


def _sparse_conv(name: str, out: int, wide: int) -> Shapes:
    """FlexGEMM's layout: input channels last."""
    return {f"{name}.weight": ((out, 3, 3, 3, wide), _HALF), f"{name}.bias": ((out,), _HALF)}


def _decoder_shapes(args: dict[str, Any]) -> Shapes:
    wide = args["model_channels"]
    out = args.get("out_channels", 7)  # dual vertex, crossed edges, split weight
    shapes = _linear("output_layer", out, wide[-1], _FULL)
    shapes |= _linear("from_latent", wide[0], args["latent_channels"], _FULL)
    for level, (width, blocks) in enumerate(zip(wide, args["num_blocks"], strict=True)):
        for number in range(blocks):
            block = f"blocks.{level}.{number}"
            shapes |= _norm(f"{block}.norm", width)
            shapes |= _sparse_conv(f"{block}.conv", width, width)
            shapes |= _linear(f"{block}.mlp.0", 4 * width, width, _HALF)
            shapes |= _linear(f"{block}.mlp.2", width, 4 * width, _HALF)
        if level + 1 < len(wide):
            block, narrow = f"blocks.{level}.{blocks}", wide[level + 1]
            shapes |= _norm(f"{block}.norm1", width)
            shapes |= _sparse_conv(f"{block}.conv1", 8 * narrow, width)
            shapes |= _sparse_conv(f"{block}.conv2", narrow, narrow)
            if args.get("pred_subdiv", True):
                shapes |= _linear(f"{block}.to_subdiv", 8, width, _HALF)
    return shapes


def _conv(name: str, out: int, wide: int, dtype: str) -> Shapes:
    return {f"{name}.weight": ((out, wide, 3, 3, 3), dtype), f"{name}.bias": ((out,), dtype)}


def _residual(block: str, wide: int) -> Shapes:
    shapes: Shapes = {}
    for part in ("1", "2"):
        shapes |= _norm(f"{block}.norm{part}", wide)
        shapes |= _conv(f"{block}.conv{part}", wide, wide, _HALF)
    return shapes


def _structure_shapes(args: dict[str, Any]) -> Shapes:
    wide = args["channels"]
    shapes = _conv("input_layer", wide[0], args["latent_channels"], _FULL)
    for number in range(args["num_res_blocks_middle"]):
        shapes |= _residual(f"middle_block.{number}", wide[0])
    place = 0
    for level, width in enumerate(wide):
        for _ in range(args["num_res_blocks"]):
            shapes |= _residual(f"blocks.{place}", width)
            place += 1
        if level + 1 < len(wide):
            shapes |= _conv(f"blocks.{place}.conv", 8 * wide[level + 1], width, _HALF)
            place += 1
    shapes |= _norm("out_layer.0", wide[-1])
    return shapes | _conv("out_layer.2", args["out_channels"], wide[-1], _FULL)
