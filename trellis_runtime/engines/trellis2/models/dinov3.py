"""DINOv3's vision transformer on plain torch: pictures in, the features that TRELLIS.2 reads out.

The published model (arXiv:2508.10104) with the names of its published files, and upstream's way
to ask it: the picture at a square size, ImageNet's normalisation, all layers, and then a layer norm
without weights where DINOv3 has one with. transformers computes the same with the same values, and
takes as long to import as the rest of a start together.

    pictures ─► (B, 3, S, S) ─► patches + class and register tokens ─► layers ─► norm ─► (B, N, C)
                                                                        ▲
                                 centres of patches ─► cos, sin ────────┘ (patches alone are turned)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from trellis_runtime.errors import SetupFailed

MODEL_TYPE = "dinov3_vit"
"""What a `config.json` says of this architecture."""

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_FIXED: Mapping[str, Any] = {
    "model_type": MODEL_TYPE,
    "hidden_act": "gelu",
    "use_gated_mlp": False,
    "query_bias": True,
    "key_bias": False,
    "value_bias": True,
    "proj_bias": True,
    "mlp_bias": True,
    "num_channels": 3,
}
"""What every published ViT-S to ViT-L says, and what is built here; another is refused."""


@dataclass(frozen=True, slots=True)
class VitShape:
    """The numbers of a DINOv3 ViT, by the names of its `config.json`."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_register_tokens: int = 4
    patch_size: int = 16
    layer_norm_eps: float = 1e-5
    rope_theta: float = 100.0

    @classmethod
    def of_config(cls, config: Mapping[str, Any], source: str) -> VitShape:
        """Read a `config.json`, which `source` names; raises `SetupFailed` for what is not built.

        The sizes must be stated; a word that is absent has the value that all such models have.
        """
        for name, built in _FIXED.items():
            stated = config.get(name) if name == "model_type" else config.get(name, built)
            if stated != built:
                raise SetupFailed(f"{source}: {name} is {stated!r}; DINOv3 is read with {built!r}")
        shape = cls(**{name: _number(config, name, source) for name in cls.__dataclass_fields__})
        if shape.hidden_size % (4 * shape.num_attention_heads):
            raise SetupFailed(
                f"{source}: hidden_size is {shape.hidden_size}; it must be a multiple of four "
                f"times num_attention_heads ({shape.num_attention_heads})"
            )
        return shape

    def to_config(self) -> dict[str, Any]:
        """Return the words of a `config.json`."""
        return {**_FIXED, **{name: getattr(self, name) for name in self.__dataclass_fields__}}


_MAY_BE_ABSENT = ("layer_norm_eps", "rope_theta")
_MAY_BE_NONE = ("num_register_tokens", "num_hidden_layers")  # none of them, that is


def _number(config: Mapping[str, Any], name: str, source: str) -> Any:
    default = getattr(VitShape(), name)
    stated = config.get(name, default if name in _MAY_BE_ABSENT else None)
    least = 0 if name in _MAY_BE_NONE else 1 if isinstance(default, int) else math.ulp(0.0)
    whole = not isinstance(default, int) or isinstance(stated, int)
    if isinstance(stated, bool) or not isinstance(stated, int | float) or not whole:
        raise SetupFailed(f"{source}: {name} is {stated!r}; it must be a number")
    if not stated >= least:
        raise SetupFailed(f"{source}: {name} is {stated!r}; it must be {least:g} or more")
    return stated


class DinoV3(nn.Module):
    """The transformer; `forward` turns normalised pictures (B, 3, H, W) into (B, N, C).

    N is one class token, the register tokens, and one token a patch, row by row. Its parameters
    have the names of the published files, also the two that are not read: `mask_token` is for
    training, and `norm` is where upstream puts a norm without weights.
    """

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self.embeddings = _Embeddings(shape)
        self.layer = nn.ModuleList(_Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.LayerNorm(shape.hidden_size, shape.layer_norm_eps)
        self.shape = shape

    def forward(self, pictures: Tensor) -> Tensor:
        pictures = pictures.to(self.embeddings.patch_embeddings.weight.dtype)
        tokens = self.embeddings(pictures)
        turns = self._turns(pictures)
        for layer in self.layer:
            tokens = layer(tokens, turns)
        return F.layer_norm(tokens, tokens.shape[-1:])

    def _turns(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines (patches, C / heads) of the angles of each patch's centre."""
        shape, on = self.shape, {"dtype": torch.float32, "device": pictures.device}
        counts = [side // shape.patch_size for side in pictures.shape[-2:]]
        axes = [torch.arange(0.5, count, **on) / count for count in counts]  # type: ignore[call-overload]
        centres = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)
        # Drawn on the host, where transformers draws them: its powers differ from a card's.
        steps = torch.arange(
            0, 1, 4 * shape.num_attention_heads / shape.hidden_size, dtype=torch.float32
        )
        frequencies = (1 / shape.rope_theta**steps).to(pictures.device)
        angles = 2 * math.pi * (2.0 * centres - 1.0)[:, :, None] * frequencies
        angles = angles.flatten(1, 2).tile(2)
        return angles.cos().to(pictures.dtype), angles.sin().to(pictures.dtype)


class _Embeddings(nn.Module):
    """Class token, register tokens, and a token for each patch."""

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        width, side = shape.hidden_size, shape.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_tokens = nn.Parameter(torch.zeros(1, shape.num_register_tokens, width))
        self.patch_embeddings = nn.Conv2d(3, width, side, side)

    def forward(self, pictures: Tensor) -> Tensor:
        patches = self.patch_embeddings(pictures).flatten(2).transpose(1, 2)
        first = [t.expand(len(patches), -1, -1) for t in (self.cls_token, self.register_tokens)]
        return torch.cat([*first, patches], dim=1)


class _Layer(nn.Module):
    """Attention and a perceptron, each on normed tokens, scaled and added."""

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        width, eps = shape.hidden_size, shape.layer_norm_eps
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attention = _Attention(shape)
        self.layer_scale1, self.layer_scale2 = _Scale(width), _Scale(width)
        self.mlp = _Perceptron(shape)

    def forward(self, tokens: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        tokens = self.layer_scale1(self.attention(self.norm1(tokens), turns)) + tokens
        return self.layer_scale2(self.mlp(self.norm2(tokens))) + tokens


class _Attention(nn.Module):
    """Every token attends to all; patches are turned by where they are."""

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        width = shape.hidden_size
        self.heads = shape.num_attention_heads
        self.q_proj, self.v_proj, self.o_proj = (nn.Linear(width, width) for _ in range(3))
        self.k_proj = nn.Linear(width, width, bias=False)

    def forward(self, tokens: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        split = (*tokens.shape[:2], self.heads, -1)
        q, k, v = (
            projected(tokens).view(split).transpose(1, 2)
            for projected in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(_turned(q, *turns), _turned(k, *turns), v)
        return self.o_proj(attended.transpose(1, 2).reshape(tokens.shape))


def _turned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn (B, heads, N, C) where it is patches: the last rows, as many as there are angles."""
    first, patches = heads[..., : -len(cos), :], heads[..., -len(cos) :, :]
    left, right = patches.chunk(2, dim=-1)
    turned = patches * cos + torch.cat((-right, left), dim=-1) * sin
    return torch.cat((first, turned), dim=-2)


class _Scale(nn.Module):
    """One factor a channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.lambda1


class _Perceptron(nn.Module):
    """Two linear layers."""

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.up_proj(tokens)))


class PictureEncoder:
    """What upstream's pipeline asks for features: `image_size`, a call, `to` and `cpu`."""

    def __init__(self, model: DinoV3) -> None:
        self.model = model
        self.image_size = 512

    def to(self, device: Any) -> None:
        """Have the model on a device."""
        self.model.to(device)

    def cpu(self) -> None:
        """Have the model on the host."""
        self.model.cpu()

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Return features (B, N, C) of pictures, each scaled to `image_size` px a side."""
        device = self.model.embeddings.cls_token.device
        pixels = torch.stack([_pixels(picture, self.image_size) for picture in pictures])
        mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (_MEAN, _STD))
        features: Tensor = self.model(pixels.to(device).sub_(mean).div_(std))
        return features


def _pixels(picture: Image.Image, side: int) -> Tensor:
    scaled = picture.resize((side, side), Image.Resampling.LANCZOS).convert("RGB")
    return torch.from_numpy(np.asarray(scaled).astype(np.float32) / 255).permute(2, 0, 1)
