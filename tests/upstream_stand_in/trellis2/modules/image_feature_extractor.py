"""Picture to features (1, tokens, 1024): one token a patch of 16 px, and five more."""

import numpy as np
import torch
from PIL import Image
from torch import nn

from tests.upstream_record import note


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.project = nn.Conv2d(3, 1024, 16, 16)
        self.project.weight.data = torch.randn(1024, 3, 16, 16, generator=generator) / 28
        self.project.bias.data = torch.randn(1024, generator=generator) / 10
        self.layer = nn.ModuleList()


class DinoV3FeatureExtractor:
    def __init__(self, model_name, image_size=512):
        self.model_name, self.image_size, self.model = model_name, image_size, Encoder()

    def to(self, device):
        note("to", model="image_cond_model", device=str(device))
        self.model.to(device)

    def cpu(self):
        note("cpu", model="image_cond_model")
        self.model.cpu()

    def __call__(self, image):
        size = self.image_size
        pixels = np.asarray(image[0].resize((size, size), Image.Resampling.LANCZOS).convert("RGB"))
        note("encode", size=size, mode=image[0].mode, given=image[0].size, pixels=pixels)
        x = torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)[None]
        tokens = self.model.project(x).flatten(2).transpose(1, 2)
        extra = tokens.mean(dim=1, keepdim=True).expand(-1, 5, -1)
        tokens = torch.cat([extra, tokens], dim=1)
        return nn.functional.layer_norm(tokens, tokens.shape[-1:])
