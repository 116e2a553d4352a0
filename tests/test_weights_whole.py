"""Nothing that a checkpoint lacks is filled in silently: the start is refused, with the file's name."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers.dynamic_module_utils
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForImageSegmentation,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedModel,
)

from builder.make_checkpoint import write_dinov3
from tests.conftest import AMPLE
from trellis_runtime.engines.trellis2 import Trellis2Engine
from trellis_runtime.engines.trellis2.upstream.checkpoints import (
    NORMALIZATIONS,
    build_models,
    find_pipeline,
    float32_bytes,
)
from trellis_runtime.engines.trellis2.upstream.helpers import build_whole
from trellis_runtime.engines.trellis2.upstream.loading import MODELS
from trellis_runtime.errors import SetupFailed
from trellis_runtime.settings import Trellis2

WHOLE = "embeddings.cls_token"


def linked(folder: Path, out: Path, *left_out: str) -> Path:
    """Return a copy of a model folder, whose JSON files may be rewritten."""

    def copy(source: str, target: str) -> None:
        (shutil.copy if source.endswith(".json") else os.link)(source, target)

    shutil.copytree(folder, out, copy_function=copy, ignore=shutil.ignore_patterns(*left_out))
    return out


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# --- descriptions ---------------------------------------------------------------------------------


def strict(name: str) -> Callable[..., nn.Module]:
    """A class that takes the arguments of today's checkpoints and no others."""
    if name == "Unheard":
        raise AttributeError(f"module 'trellis2.models' has no attribute {name!r}")

    def build(*, resolution: int = 0, out_channels: int, **known: Any) -> nn.Module:
        if "colour" in known:
            raise TypeError("__init__() got an unexpected keyword argument 'colour'")
        return nn.Module()

    return build if name != "FlexiDualGridVaeDecoder" else lambda **_: nn.Module()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["args"].update(colour=1), "unexpected keyword argument 'colour'"),
        (lambda c: c["args"].pop("out_channels"), "out_channels"),
        (lambda c: c.update(name="Unheard"), "no attribute 'Unheard'"),
        (lambda c: c.pop("args"), "does not say 'args'"),
    ],
)
def test_a_description_that_no_class_takes_stops_the_start_with_its_files_name(
    small_checkpoint: Path, tmp_path: Path, change: Any, words: str
) -> None:
    folder = linked(small_checkpoint, tmp_path / "m")
    rewrite(folder / "ckpts/tex_slat_decoder.json", change)
    with pytest.raises(SetupFailed, match=rf"tex_slat_decoder\.json .*{words}"):
        build_models(find_pipeline(folder, MODELS).models, strict)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a["tex_slat_sampler"].update(name="Unheard"), "Unheard"),
        (lambda a: a["tex_slat_sampler"]["args"].update(colour=1), "colour"),
        (lambda a: a["shape_slat_sampler"].pop("params"), "params"),
        (lambda a: a.pop("rembg_model"), "rembg_model"),
        (lambda a: a["image_cond_model"].update(name="Unheard"), "Unheard"),
    ],
)
def test_a_pipeline_that_upstream_does_not_take_is_named(
    stand_in: None, small_checkpoint: Path, tmp_path: Path, change: Any, words: str
) -> None:
    folder = linked(small_checkpoint, tmp_path / "m")
    rewrite(folder / "pipeline.json", lambda content: change(content["args"]))
    with pytest.raises(SetupFailed, match=rf"pipeline\.json .*{words}"):
        load(folder)


def load(folder: Path) -> Trellis2Engine:
    engine = Trellis2Engine(Trellis2(model_dir=folder), device="cpu", room=AMPLE)
    engine.load(lambda *_: None)
    return engine


# --- normalisation --------------------------------------------------------------------------------


def with_normalization(folder: Path, name: str, mean: Any, std: Any) -> Path:
    plain = {"mean": [0.5] * 32, "std": [2.0] * 32}
    stated = {n: plain for n in NORMALIZATIONS} | {name: {"mean": mean, "std": std}}
    rewrite(folder / "pipeline.json", lambda content: content["args"].update(stated))
    return folder


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_a_placeholder_for_normalisation_is_refused_with_real_weights(
    small_checkpoint: Path, tmp_path: Path, name: str
) -> None:
    real = linked(small_checkpoint, tmp_path / "real", "SYNTHETIC")
    with_normalization(real, name, [0.0] * 32, [1.0] * 32)
    with pytest.raises(SetupFailed, match=rf"pipeline\.json: {name} .*placeholder"):
        find_pipeline(real, MODELS)
    with_normalization(real, name, [0.0] * 32, [1.0] * 31 + [1.5])
    assert not find_pipeline(real, MODELS).is_synthetic
    assert find_pipeline(small_checkpoint, MODELS).is_synthetic  # which declares itself


@pytest.mark.parametrize(
    ("mean", "std"),
    [([0.5] * 32, [2.0] * 31), ([0.5], [0.0]), ([float("nan")], [1.0]), ([], []), (None, [1.0])],
)
def test_a_normalisation_that_scales_nothing_back_is_refused(
    small_checkpoint: Path, tmp_path: Path, mean: Any, std: Any
) -> None:
    folder = linked(small_checkpoint, tmp_path / "m")
    with_normalization(folder, NORMALIZATIONS[1], mean, std)
    with pytest.raises(SetupFailed, match=NORMALIZATIONS[1]):
        find_pipeline(folder, MODELS)


# --- DINOv3 and the background remover ------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DINOv3 as transformers saves it, of 32 channels."""
    folder = tmp_path_factory.mktemp("dinov3")
    config = DINOv3ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    DINOv3ViTModel(config).save_pretrained(folder)
    return folder


def wrapper(folder: str) -> Any:
    """Load by a class of transformers' own, as upstream's wrapper of DINOv3 would."""
    return SimpleNamespace(model=DINOv3ViTModel.from_pretrained(folder))


def by_its_config(folder: str) -> Any:
    """Load as upstream's wrapper of the remover does: by the class that the folder names."""
    return SimpleNamespace(model=AutoModel.from_pretrained(folder))


CODE_OF_ITS_OWN = """
import torch
from transformers import PretrainedConfig, PreTrainedModel

class MattingConfig(PretrainedConfig):
    model_type = "matting"

class Matting(PreTrainedModel):
    config_class = MattingConfig

    def __init__(self, config):
        super().__init__(config)
        self.decoder = torch.nn.Linear(3, 1)
        self.post_init()

    def forward(self, x):
        return [self.decoder(x)]
"""


@pytest.fixture
def matting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A remover whose code lies beside its weights, as BiRefNet's does."""
    modules = tmp_path / "modules"
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(modules))
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = tmp_path / "matting"
    folder.mkdir()
    (folder / "matting.py").write_text(CODE_OF_ITS_OWN)
    places = {
        "AutoConfig": "matting.MattingConfig",
        "AutoModelForImageSegmentation": "matting.Matting",
    }
    config = {"model_type": "matting", "architectures": ["Matting"], "auto_map": places}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def by_its_code(folder: str) -> Any:
    """Load as upstream's wrapper of the remover does: by code that comes with the weights."""
    made = AutoModelForImageSegmentation.from_pretrained(folder, trust_remote_code=True)
    return SimpleNamespace(model=made)


def test_a_remover_with_code_of_its_own_is_held_to_the_same(matting: Path) -> None:
    state = {"decoder.weight": torch.ones(1, 3), "decoder.bias": torch.ones(1)}
    save_file(state, matting / "model.safetensors", {"format": "pt"})
    model = build_whole(by_its_code, "the remover", matting, is_synthetic=False).model
    assert torch.equal(model.decoder.weight, state["decoder.weight"])
    del state["decoder.bias"]
    save_file(state, matting / "model.safetensors", {"format": "pt"})
    with pytest.raises(SetupFailed, match="the remover in .* lacks decoder.bias"):
        build_whole(by_its_code, "the remover", matting, is_synthetic=False)


def changed(encoder: Path, out: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    shutil.copytree(encoder, out)
    state = load_file(out / "model.safetensors")
    change(state)
    save_file(state, out / "model.safetensors", {"format": "pt"})
    return out


@pytest.mark.parametrize("build", [wrapper, by_its_config])
def test_a_model_that_is_whole_is_loaded_and_nothing_stays_patched(
    encoder: Path, build: Any
) -> None:
    own = PreTrainedModel.__dict__["from_pretrained"]
    model = build_whole(build, "DINOv3", encoder, is_synthetic=False).model
    kept = load_file(encoder / "model.safetensors")
    assert torch.equal(model.embeddings.cls_token, kept[WHOLE])
    assert PreTrainedModel.__dict__["from_pretrained"] is own


@pytest.mark.parametrize("build", [wrapper, by_its_config])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop(WHOLE), f"lacks {WHOLE}"),
        (lambda state: state.update(gate=torch.ones(2)), "has unexpected gate"),
    ],
)
def test_a_model_that_lacks_a_tensor_or_has_one_more_is_refused(
    encoder: Path, tmp_path: Path, build: Any, change: Any, words: str
) -> None:
    folder = changed(encoder, tmp_path / "dinov3", change)
    with pytest.raises(SetupFailed, match=rf"DINOv3 in .*model\.safetensors.* {words}"):
        build_whole(build, "DINOv3", folder, is_synthetic=True)


def test_a_tensor_of_another_shape_is_refused(encoder: Path, tmp_path: Path) -> None:
    def widen(state: dict[str, Any]) -> None:
        state[WHOLE] = torch.ones(1, 1, 48)

    folder = changed(encoder, tmp_path / "dinov3", widen)
    with pytest.raises(SetupFailed, match=r"the background remover.*"):
        build_whole(wrapper, "the background remover", folder, is_synthetic=False)


def test_a_folder_without_weights_is_refused_in_words(encoder: Path, tmp_path: Path) -> None:
    shutil.copy(encoder / "config.json", tmp_path)
    with pytest.raises(SetupFailed, match="DINOv3 cannot be loaded from"):
        build_whole(wrapper, "DINOv3", tmp_path, is_synthetic=False)


def test_real_weights_are_never_taken_from_what_tells_nothing(
    stand_in: None, small_checkpoint: Path, tmp_path: Path
) -> None:
    """The stand-in's own remover goes by no file at all."""
    real = linked(small_checkpoint, tmp_path / "m", "SYNTHETIC")
    with_normalization(real, NORMALIZATIONS[0], [0.5] * 32, [2.0] * 32)
    with pytest.raises(SetupFailed, match="the background remover was loaded from .* nothing told"):
        load(real)


def test_an_encoder_of_another_size_is_refused_before_the_first_job(
    stand_in: None, small_checkpoint: Path, tmp_path: Path
) -> None:
    """Its features would not fit into the flow models' cross attention."""
    folder = linked(small_checkpoint, tmp_path / "m", "dinov3")
    write_dinov3(folder / "dinov3", "cpu", hidden_size=384, num_hidden_layers=0)
    with pytest.raises(SetupFailed, match="has 384 channels; .* trained on 1024"):
        load(folder)


def test_a_helpers_memory_is_that_of_float32(tmp_path: Path) -> None:
    half = {"a": torch.zeros(3, 5, dtype=torch.float16), "b": torch.zeros(7)}
    save_file(half, tmp_path / "model.safetensors")
    assert float32_bytes(tmp_path) == 4 * (15 + 7)
    (tmp_path / "other.safetensors").write_bytes(b"no header")
    with pytest.raises(SetupFailed, match="other.safetensors is damaged"):
        float32_bytes(tmp_path)
