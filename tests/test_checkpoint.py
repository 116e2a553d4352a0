"""The synthetic checkpoint: made small on a CPU, and read by the loading code of the product."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from builder.architecture import model_configs, state_shapes
from trellis_runtime.engines.trellis2.upstream.checkpoints import (
    build_models,
    fill_models,
    find_pipeline,
)
from trellis_runtime.engines.trellis2.upstream.loading import MODELS
from trellis_runtime.errors import SetupFailed

ROOT = Path(__file__).parent.parent


def from_shapes(name: str) -> Any:
    """Return a class that builds modules of the shapes that upstream's class `name` has."""

    def build(**args: Any) -> nn.Module:
        module = nn.Module()
        for key, (shape, dtype) in state_shapes({"name": name, "args": args}).items():
            *parents, leaf = key.split(".")
            at = module
            for part in parents:
                if not hasattr(at, part):
                    at.add_module(part, nn.Module())
                at = getattr(at, part)
            at.register_parameter(
                leaf, nn.Parameter(torch.empty(shape, dtype=getattr(torch, dtype)))
            )
        return module

    return build


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checkpoint")
    subprocess.run(
        [sys.executable, str(ROOT / "builder/make_checkpoint.py"), str(out), "--blocks", "1",
         "--channels", "128", "--divisor", "32", "--no-dinov3"],
        check=True, timeout=120, capture_output=True,
    )  # fmt: skip
    return out


def test_a_small_checkpoint_is_found_marked_and_loaded_to_the_bit(folder: Path) -> None:
    files = find_pipeline(folder, MODELS)
    assert files.is_synthetic
    assert files.weight_bytes < 60_000_000
    models = fill_models(files.models, build_models(files.models, from_shapes), "cpu")
    for model in files.models:
        loaded = models[model.name].state_dict()
        with safe_open(model.weights, framework="pt") as kept:
            assert set(kept.keys()) == set(loaded)
            for key in kept.keys():
                assert torch.equal(kept.get_tensor(key), loaded[key])
                assert torch.isfinite(loaded[key]).all()


def test_a_file_of_another_model_stops_the_start_with_its_name(
    folder: Path, tmp_path: Path
) -> None:
    import shutil

    mixed = tmp_path / "mixed"
    shutil.copytree(folder, mixed)
    shutil.copy(
        folder / "ckpts/tex_slat_decoder.safetensors",
        mixed / "ckpts/shape_slat_decoder.safetensors",
    )
    files = find_pipeline(mixed, MODELS)
    with pytest.raises(SetupFailed, match=r"shape_slat_decoder\.safetensors lacks"):
        fill_models(files.models, build_models(files.models, from_shapes), "cpu")


def test_the_full_set_has_the_sizes_that_are_known() -> None:
    """GiB of each file, as they were measured on the real architecture."""
    widths = {"float32": 4, "float16": 2, "bfloat16": 2}

    def gib(name: str) -> float:
        shapes = state_shapes(model_configs()[name]).values()
        total = sum(torch.Size(shape).numel() * widths[dtype] for shape, dtype in shapes)
        return round(total / 2**30, 2)

    assert gib("shape_slat_flow_model_1024") == pytest.approx(2.44, abs=0.02)
    assert gib("sparse_structure_decoder") == pytest.approx(0.14, abs=0.01)
    assert gib("tex_slat_decoder") == pytest.approx(0.88, abs=0.01)


def test_its_pipeline_names_what_the_samplers_need(folder: Path) -> None:
    args = json.loads((folder / "pipeline.json").read_text())["args"]
    for sampler in ("sparse_structure_sampler", "shape_slat_sampler", "tex_slat_sampler"):
        assert args[sampler]["params"]["steps"] == 12
    assert set(args["models"]) == set(MODELS)


def cached(folder: Path, commit: str, said: str) -> Path:
    """A repository as a hub's cache keeps it: `commit` is there, `refs/main` names `said`."""
    snapshot = folder / "snapshots" / commit
    numbers = {"mean": [0.5], "std": [2.0]}
    arguments = {"models": {"a": "ckpts/a"}} | {
        f"{latent}_slat_normalization": numbers for latent in ("shape", "tex")
    }
    for name in ("pipeline.json", "ckpts/a.json", "ckpts/a.safetensors"):
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_text(json.dumps({"args": arguments}))
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text(said)
    return snapshot


def test_models_are_found_in_the_snapshot_of_a_hubs_cache(tmp_path: Path) -> None:
    """RunPod's model cache: the folder's name is known beforehand, the snapshot's is not."""
    snapshot = cached(tmp_path, "c0ffee", "c0ffee\n")
    found = find_pipeline(tmp_path, ("a",))
    assert found.folder == snapshot
    assert found.models[0].weights == snapshot / "ckpts/a.safetensors"


def test_a_cache_without_its_snapshot_says_which_one_is_missing(tmp_path: Path) -> None:
    cached(tmp_path, "c0ffee", "decaf")
    with pytest.raises(SetupFailed, match="decaf"):
        find_pipeline(tmp_path, ("a",))
