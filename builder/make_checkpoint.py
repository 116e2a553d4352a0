"""Make a checkpoint of TRELLIS.2's true architecture with random values, for rehearsals.

    python builder/make_checkpoint.py OUT [--blocks 30] [--channels 1536] [--divisor 1]

The folder has the layout, shapes and dtypes of the real one, and a file named SYNTHETIC: an engine
that loads it says so in every answer. Needs torch and safetensors; no
download, no GPU, no upstream. The full set is 16 GB; `--blocks 1 --channels 128 --divisor 32` makes
about 20 MB. The background remover is left out: send pictures with a transparent background.

TRELLIS2_REHEARSAL=1 has such weights decode a real shape, TRELLIS2_REHEARSAL_SHAPE which: two
smooth surfaces, many layers or thousands of open sheets. Its normalisation of mean 0 and deviation
1 is a placeholder, which only a folder with SYNTHETIC in it may have.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from builder.architecture import HEAD, model_configs, state_shapes

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


_ONES = ("norm.weight", "norm1.weight", "norm2.weight", "gamma", "lambda1")


def draw(key: str, shape: tuple[int, ...], generator: Any) -> Any:
    """Return a float32 tensor of values that keep a network's signals finite."""
    import torch

    if key.endswith((*_ONES, "out_layer.0.weight")):
        return torch.ones(shape, device=generator.device)
    if key.endswith("bias"):
        return torch.zeros(shape, device=generator.device)
    scale = 1 / math.sqrt(shape[-1]) if shape[-1] > 64 else 0.02
    if key.startswith("adaLN_modulation"):
        scale *= 0.1  # a gate of order one, thirty times over, would grow without bound
    return torch.randn(shape, generator=generator, device=generator.device) * scale


def write_model(folder: Path, name: str, config: dict[str, Any], device: str) -> int:
    """Write one model's two files; returns the bytes of its weights."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator(device).manual_seed(len(name))
    state = {
        key: draw(key, shape, generator).to(getattr(torch, dtype)).cpu()
        for key, (shape, dtype) in state_shapes(config).items()
    }
    save_file(state, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(config, indent=1))
    return sum(t.numel() * t.element_size() for t in state.values())


def write_dinov3(folder: Path, device: str, **numbers: int) -> None:
    """Write a DINOv3 ViT-L of random values as it is published; `numbers` are another shape's."""
    import torch
    from safetensors.torch import save_file

    from trellis_runtime.engines.trellis2.models.dinov3 import DinoV3, VitShape

    shape = VitShape(**numbers)
    generator = torch.Generator(device).manual_seed(len("dinov3"))
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in DinoV3(shape).state_dict().items()}
    state = {name: draw(name, size, generator).cpu() for name, size in shapes.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(shape.to_config(), indent=1))


def main() -> None:
    """Write the folder."""
    args = _parser().parse_args()
    if args.channels % HEAD:
        sys.exit(f"--channels is {args.channels}; it must be a multiple of {HEAD}")
    configs = model_configs(args.blocks, args.channels, args.divisor)
    if args.dry_run:
        print("\n".join(f"{args.out}/ckpts/{n}: {c['name']}" for n, c in configs.items()))
        return
    (args.out / "ckpts").mkdir(parents=True, exist_ok=True)
    (args.out / "SYNTHETIC").write_text("Random values; made by builder/make_checkpoint.py.\n")
    for number, (name, config) in enumerate(configs.items(), 1):
        size = write_model(args.out / "ckpts", name, config, args.device)
        print(f"[{number}/{len(configs)}] {name}: {size / 2**30:.2f} GiB", flush=True)
    if not args.no_dinov3:
        write_dinov3(args.out / "dinov3", args.device)
    (args.out / "pipeline.json").write_text(json.dumps(pipeline_config(list(configs)), indent=1))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--blocks", type=int, default=30, help="blocks of each flow model")
    parser.add_argument("--channels", type=int, default=1536, help="width, a multiple of 128")
    parser.add_argument("--divisor", type=int, default=1, help="of the decoders' channels")
    parser.add_argument("--device", default="cpu", help="where values are drawn; cuda is faster")
    parser.add_argument("--no-dinov3", action="store_true", help="without the image encoder")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be made")
    return parser


if __name__ == "__main__":
    main()
