"""Background removal: what differs from the picture's corner is the object."""

import numpy as np
from PIL import Image
from torch import nn

from tests.upstream_record import note

note("removers imported")


class BiRefNet:
    def __init__(self, model_name="ZhengPeng7/BiRefNet"):
        self.model = nn.Linear(3, 1)

    def to(self, device):
        self.model.to(device)

    def cpu(self):
        self.model.cpu()

    def __call__(self, image):
        note("matting", mode=image.mode, size=image.size)
        pixels = np.asarray(image.convert("RGB")).astype(int)
        there = np.abs(pixels - pixels[0, 0]).max(axis=-1) > 24
        image.putalpha(Image.fromarray(there.astype(np.uint8) * 255))
        return image
