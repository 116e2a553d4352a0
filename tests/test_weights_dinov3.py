"""The image encoder of our own: transformers' DINOv3 and upstream's reading of it, value by value."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from tests.conftest import ROOT
from trellis_runtime.engines.trellis2.models.dinov3 import DinoV3, PictureEncoder, VitShape
from trellis_runtime.engines.trellis2.upstream.checkpoints import ModelFiles, fill_models
from trellis_runtime.engines.trellis2.upstream.helpers import build_encoder
from trellis_runtime.errors import SetupFailed

VIT_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_register_tokens": 4,
    "patch_size": 16,
}
LAYERS = 3  # of 24, which are alike


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A ViT-L with fewer layers as transformers saves it, and transformers' own reading of it.

    Every value is drawn: norms, layer scales and register tokens too, none is left at one or zero.
    """
    folder = tmp_path_factory.mktemp("vit-l")
    model = DINOv3ViTModel(DINOv3ViTConfig(num_hidden_layers=LAYERS, **VIT_L)).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for values in model.parameters():
            spread = 0.5 if values.shape[-1] == values.numel() else values[0].numel() ** -0.5
            values.copy_(torch.randn(values.shape, generator=generator) * spread)
    model.save_pretrained(folder)
    return folder, model


def files(folder: Path) -> ModelFiles:
    return ModelFiles("image_cond_model", folder / "config.json", folder / "model.safetensors")


def read(folder: Path) -> DinoV3:
    found = files(folder)
    model = fill_models([found], [build_encoder(found, 1024)], "cpu")["image_cond_model"]
    assert isinstance(model, DinoV3)
    return model


def upstreams(model: Any, pictures: Tensor) -> Tensor:
    """What upstream's `extract_features` asks of transformers' model."""
    tokens = model.embeddings(pictures, bool_masked_pos=None)
    turns = model.rope_embeddings(pictures)
    for layer in getattr(model, "layer", None) or model.model.layer:  # transformers 4, and 5
        tokens = layer(tokens, position_embeddings=turns)
    return torch.nn.functional.layer_norm(tokens, tokens.shape[-1:])


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("size", [(512, 512), (256, 320)])
def test_features_are_those_that_upstream_reads_out_of_transformers(
    published: tuple[Path, Any], size: tuple[int, int]
) -> None:
    folder, theirs = published
    pictures = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        wanted, found = upstreams(theirs, pictures), read(folder)(pictures)
    assert found.shape == (2, 5 + size[0] * size[1] // 256, 1024)
    assert relative(found, wanted) < 1e-5


@pytest.mark.parametrize(
    "part", ["register_tokens", "cls_token", "layer.1.layer_scale1.lambda1", "norm2.bias", "v_proj"]
)
def test_every_part_of_it_takes_part(published: tuple[Path, Any], part: str) -> None:
    """Else the comparison above would not see one that is left out on both sides."""
    folder, _ = published
    model = read(folder)
    pictures = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        before = model(pictures)
        for name, values in model.named_parameters():
            if part in name:
                values.mul_(1.5)
        assert relative(model(pictures), before) > 1e-4


def test_a_picture_is_scaled_and_normalised_as_upstream_does(published: tuple[Path, Any]) -> None:
    """LANCZOS to a square, 0..1, ImageNet's mean and deviation: written out in float64 here."""
    folder, theirs = published
    rng = np.random.default_rng(5)
    picture = Image.fromarray(rng.integers(0, 255, (90, 70, 3), np.uint8))
    encoder = PictureEncoder(read(folder))
    encoder.image_size = 64
    scaled = np.asarray(picture.resize((64, 64), Image.Resampling.LANCZOS)) / 255
    normal = (scaled - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    pictures = torch.from_numpy(normal.transpose(2, 0, 1)[None]).float()
    with torch.no_grad():
        wanted = upstreams(theirs, pictures)
    assert relative(encoder([picture]), wanted) < 1e-5


def test_a_file_of_half_precision_is_computed_in_float32(
    published: tuple[Path, Any], tmp_path: Path
) -> None:
    folder, _ = published
    state = {n: t.half() for n, t in load_file(folder / "model.safetensors").items()}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    assert {p.dtype for p in read(tmp_path).parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "dinov2"}, "model_type is 'dinov2'; DINOv3 is read with 'dinov3_vit'"),
        ({"model_type": None}, "model_type is None"),
        ({"use_gated_mlp": True}, "use_gated_mlp is True; DINOv3 is read with False"),
        ({"hidden_act": "silu"}, "hidden_act is 'silu'"),
        ({"key_bias": True}, "key_bias is True"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide'; it must be a number"),
        ({"hidden_size": None}, "hidden_size is None; it must be a number"),
        ({"patch_size": 0}, "patch_size is 0; it must be 1 or more"),
        ({"num_attention_heads": 48}, "multiple of four times num_attention_heads"),
        ({"rope_theta": float("nan")}, "rope_theta is nan"),
        ({"hidden_size": 384}, "has 384 channels; the flow models were trained on 1024"),
    ],
)
def test_another_architecture_is_refused_before_weights_are_read(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    config = VitShape().to_config() | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SetupFailed, match=words) as caught:
        build_encoder(files(tmp_path), 1024)
    assert str(tmp_path) in caught.value.message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("embeddings.register_tokens"), "lacks embeddings.register_tokens"),
        (lambda state: state.update(gate=torch.ones(2)), "has unexpected gate"),
        (lambda state: state.update({"norm.bias": torch.ones(3)}), "misshapes norm.bias"),
    ],
)
def test_an_encoder_that_is_not_whole_is_refused(
    published: tuple[Path, Any], tmp_path: Path, change: Any, words: str
) -> None:
    folder, _ = published
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(SetupFailed, match=rf"model\.safetensors {words}"):
        read(tmp_path)


STARTED = """
import sys; from pathlib import Path
sys.path.insert(0, "tests/upstream_stand_in")
from trellis_runtime.engines.trellis2 import Trellis2Engine
from trellis_runtime.settings import Trellis2
from tests.upstream_record import calls
Trellis2Engine(Trellis2(model_dir=Path(sys.argv[1])), device="cpu").load(lambda *_: None)
slow = ("transformers", "torchvision", "torch._dynamo", "sympy")
print(len(calls("removers imported")), *(name for name in slow if name in sys.modules))
"""


@pytest.mark.parametrize("removes", [False, True])
def test_a_start_imports_the_removers_code_where_there_is_a_remover_alone(
    stand_in: None, small_checkpoint: Path, tmp_path: Path, removes: bool
) -> None:
    """Nor torch's compiler, which positions computed without memory would bring in."""
    folder = tmp_path / "m"
    folder.mkdir()
    for part in small_checkpoint.iterdir():
        if removes or part.name != "rembg":
            (folder / part.name).symlink_to(part)
    done = subprocess.run(
        [sys.executable, "-c", STARTED, str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.split() == [str(int(removes))], done.stderr
