"""Make a checkpoint of TRELLIS.2's true architecture with random values, for rehearsals.

    python builder/make_checkpoint.py OUT --upstream TRELLIS2 [--blocks 30] [--channels 1536]

The folder has the layout, shapes and dtypes of the real one, and a file named SYNTHETIC: an engine
that loads it says so in every answer. Needs torch, safetensors, transformers and upstream's
packages (a GPU speeds it up); no download. The background remover is left out: send pictures with
a transparent background.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

_GUIDED = {"steps": 12, "guidance_strength": 7.5, "guidance_interval": [0.6, 1.0]}
SAMPLERS = {
    "sparse_structure_sampler": _GUIDED | {"guidance_rescale": 0.7, "rescale_t": 5.0},
    "shape_slat_sampler": _GUIDED | {"guidance_rescale": 0.5, "rescale_t": 3.0},
    "tex_slat_sampler": {
        "steps": 12,
        "guidance_strength": 1.0,
        "guidance_interval": [0.6, 0.9],
        "guidance_rescale": 0.0,
        "rescale_t": 3.0,
    },
}
FLOWS = {
    "sparse_structure_flow_model": ("gen/ss_flow_img_dit_1_3B_64_bf16.json", None),
    "shape_slat_flow_model_512": ("gen/slat_flow_img2shape_dit_1_3B_512_bf16.json", 32),
    "shape_slat_flow_model_1024": ("gen/slat_flow_img2shape_dit_1_3B_512_bf16.json", 64),
    "tex_slat_flow_model_512": ("gen/slat_flow_imgshape2tex_dit_1_3B_512_bf16.json", 32),
    "tex_slat_flow_model_1024": ("gen/slat_flow_imgshape2tex_dit_1_3B_512_bf16.json", 64),
}
DECODERS = {
    "shape_slat_decoder": "scvae/shape_vae_next_dc_f16c32_fp16_ft_512.json",
    "tex_slat_decoder": "scvae/tex_vae_next_dc_f16c32_fp16_ft_512.json",
}


def model_configs(configs: Path, blocks: int, channels: int) -> dict[str, dict[str, Any]]:
    """Return each model's class and arguments, by its name in the pipeline."""
    made: dict[str, dict[str, Any]] = {}
    for name, (file, resolution) in FLOWS.items():
        stated = json.loads((configs / file).read_text())["models"]["denoiser"]
        size = {"num_blocks": blocks, "model_channels": channels, "dtype": "bfloat16"}
        args = stated["args"] | size | {"num_heads": channels // 128}
        if resolution is not None:
            args["resolution"] = resolution
        made[name] = {"name": stated["name"].removeprefix("Elastic"), "args": args}
    for name, file in DECODERS.items():
        stated = json.loads((configs / file).read_text())["models"]["decoder"]
        args = stated["args"] | {"block_args": [{} for _ in stated["args"]["num_blocks"]]}
        made[name] = {"name": stated["name"], "args": args}
    # microsoft/TRELLIS-image-large, ckpts/ss_dec_conv3d_16l8_fp16
    made["sparse_structure_decoder"] = {
        "name": "SparseStructureDecoder",
        "args": {
            "out_channels": 1,
            "latent_channels": 8,
            "num_res_blocks": 2,
            "num_res_blocks_middle": 2,
            "channels": [512, 128, 32],
            "use_fp16": True,
        },
    }
    return made


def pipeline_config(names: list[str]) -> dict[str, Any]:
    """Return pipeline.json, as upstream reads it."""
    samplers = {
        name: {
            "name": "FlowEulerGuidanceIntervalSampler",
            "args": {"sigma_min": 1e-5},
            "params": params,
        }
        for name, params in SAMPLERS.items()
    }
    plain = {"mean": [0.0] * 32, "std": [1.0] * 32}
    return {
        "name": "Trellis2ImageTo3DPipeline",
        "args": samplers
        | {
            "models": {name: f"ckpts/{name}" for name in names},
            "shape_slat_normalization": plain,
            "tex_slat_normalization": plain,
            "image_cond_model": {
                "name": "DinoV3FeatureExtractor",
                "args": {"model_name": "dinov3"},
            },
            "rembg_model": {"name": "BiRefNet", "args": {"model_name": "rembg"}},
        },
    }


def write_model(folder: Path, name: str, config: dict[str, Any], device: str) -> int:
    """Write one model's two files; returns the bytes of its weights."""
    import torch
    from safetensors.torch import save_file
    from trellis2 import models

    with torch.device(device), torch.no_grad():
        model = getattr(models, config["name"])(**config["args"])
    generator = torch.Generator(device).manual_seed(len(name))
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            wide = parameter.shape[-1] > 64
            scale = 1 / math.sqrt(parameter.shape[-1]) if wide else 0.02
            parameter.data.normal_(0, scale, generator=generator)
    if hasattr(model, "adaLN_modulation"):
        model.adaLN_modulation[-1].weight.data.mul_(0.1)
    state = {n: t.contiguous().cpu() for n, t in model.state_dict().items() if not t.is_complex()}
    save_file(state, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(config, indent=1))
    return sum(t.numel() * t.element_size() for t in state.values())


def write_dinov3(folder: Path, device: str) -> None:
    """Write a DINOv3 ViT-L of random values, as transformers saves it."""
    import torch
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    config = DINOv3ViTConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_register_tokens=4,
        patch_size=16,
    )
    with torch.device(device):
        model = DINOv3ViTModel(config)
    model.save_pretrained(folder)


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--upstream", type=Path, required=True, help="a checkout of TRELLIS.2")
    parser.add_argument("--blocks", type=int, default=30, help="blocks of each flow model")
    parser.add_argument("--channels", type=int, default=1536, help="width, a multiple of 128")
    parser.add_argument("--device", default="cuda", help="where values are drawn")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be made")
    args = parser.parse_args()
    if args.channels % 128:
        parser.error(f"--channels is {args.channels}; it must be a multiple of 128")
    configs = model_configs(args.upstream / "configs", args.blocks, args.channels)
    if args.dry_run:
        print("\n".join(f"{args.out}/ckpts/{n}: {c['name']}" for n, c in configs.items()))
        return
    sys.path.insert(0, str(args.upstream))
    (args.out / "ckpts").mkdir(parents=True, exist_ok=True)
    (args.out / "SYNTHETIC").write_text("Random values; made by builder/make_checkpoint.py.\n")
    for number, (name, config) in enumerate(configs.items(), 1):
        size = write_model(args.out / "ckpts", name, config, args.device)
        print(f"[{number}/{len(configs)}] {name}: {size / 2**30:.2f} GiB", flush=True)
    write_dinov3(args.out / "dinov3", args.device)
    (args.out / "pipeline.json").write_text(json.dumps(pipeline_config(list(configs)), indent=1))


if __name__ == "__main__":
    main()
