"""The pipeline: which model gets what, in which order, and when weights are moved."""

from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image

from tests.upstream_record import note
from trellis2.modules import image_feature_extractor
from trellis2.modules.sparse import SparseTensor
from trellis2.representations import MeshWithVoxel

from . import rembg

__all__ = ["MeshWithVoxel", "Trellis2ImageTo3DPipeline", "image_feature_extractor", "rembg"]


class Trellis2ImageTo3DPipeline:
    def __init__(
        self,
        models=None,
        sparse_structure_sampler=None,
        shape_slat_sampler=None,
        tex_slat_sampler=None,
        sparse_structure_sampler_params=None,
        shape_slat_sampler_params=None,
        tex_slat_sampler_params=None,
        shape_slat_normalization=None,
        tex_slat_normalization=None,
        image_cond_model=None,
        rembg_model=None,
        low_vram=True,
        default_pipeline_type="1024_cascade",
    ):
        self.models = models
        self.sparse_structure_sampler = sparse_structure_sampler
        self.shape_slat_sampler = shape_slat_sampler
        self.tex_slat_sampler = tex_slat_sampler
        self.parameters = {
            "sparse_structure": sparse_structure_sampler_params,
            "shape_slat": shape_slat_sampler_params,
            "tex_slat": tex_slat_sampler_params,
        }
        self.normalization = {"shape": shape_slat_normalization, "tex": tex_slat_normalization}
        self.image_cond_model, self.rembg_model = image_cond_model, rembg_model
        self.low_vram, self._device = low_vram, "cpu"

    @contextmanager
    def _used(self, model):
        """Have a model on the device while it is used, when weights are short of room."""
        name = next((n for n, m in self.models.items() if m is model), type(model).__name__)
        note("use", model=name, low_vram=self.low_vram)
        if self.low_vram:
            model.to(self._device)
        yield model
        if self.low_vram:
            model.cpu()

    def preprocess_image(self, input):
        note("crop", mode=input.mode, size=input.size)
        pixels = np.asarray(input).astype(np.float32) / 255
        rows, columns = np.nonzero(pixels[..., 3] > 0.8)
        x, y = (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2
        half = max(np.ptp(columns), np.ptp(rows)) // 2
        cut = np.asarray(input.crop((x - half, y - half, x + half, y + half)))
        cut = cut.astype(np.float32) / 255
        return Image.fromarray((cut[..., :3] * cut[..., 3:] * 255).astype(np.uint8))

    def get_cond(self, image, resolution, include_neg_cond=True):
        self.image_cond_model.image_size = resolution
        side, sent = (resolution, resolution), image[0]
        pixels = np.asarray(sent.resize(side, Image.Resampling.LANCZOS).convert("RGB"))
        note("encode", size=resolution, mode=sent.mode, given=sent.size, pixels=pixels)
        with self._used(self.image_cond_model) as model:
            cond = model(image)
        return {"cond": cond, **({"neg_cond": cond * 0} if include_neg_cond else {})}

    def _sample(self, kind, flow_model, noise, cond, sampler_params, **more):
        sampler = getattr(self, f"{kind}_sampler")
        settings = {**self.parameters[kind], **sampler_params}
        with self._used(flow_model) as model:
            return sampler.sample(model, noise, **cond, **settings, **more).samples

    def _denormalized(self, slat, kind):
        scale = self.normalization[kind]
        return slat * torch.tensor(scale["std"])[None] + torch.tensor(scale["mean"])[None]

    def sample_sparse_structure(self, cond, resolution, num_samples=1, sampler_params={}):
        model = self.models["sparse_structure_flow_model"]
        noise = torch.randn(num_samples, model.in_channels, *(model.resolution,) * 3)
        latent = self._sample("sparse_structure", model, noise, cond, sampler_params)
        with self._used(self.models["sparse_structure_decoder"]) as decoder:
            there = decoder(latent) > 0
        ratio = there.shape[2] // resolution
        there = torch.nn.functional.max_pool3d(there.float(), ratio) > 0.5
        note("structure", resolution=resolution)
        return torch.argwhere(there)[:, [0, 2, 3, 4]].int()

    def _shape(self, cond, flow_model, coords, sampler_params):
        feats = torch.randn(len(coords), flow_model.in_channels)
        noise = SparseTensor(feats, coords)
        slat = self._sample("shape_slat", flow_model, noise, cond, sampler_params)
        return self._denormalized(slat, "shape")

    def sample_shape_slat(self, cond, flow_model, coords, sampler_params={}):
        return self._shape(cond, flow_model, coords, sampler_params)

    def sample_shape_slat_cascade(
        self,
        lr_cond,
        cond,
        flow_model_lr,
        flow_model,
        lr_resolution,
        resolution,
        coords,
        sampler_params={},
        max_num_tokens=49152,
    ):
        note("cascade", low=lr_resolution, high=resolution, most=max_num_tokens)
        low = self._shape(lr_cond, flow_model_lr, coords, sampler_params)
        with self._used(self.models["shape_slat_decoder"]) as decoder:
            fine = decoder.upsample(low, upsample_times=4)
        while True:
            tokens = (fine[:, 1:] + 0.5) / lr_resolution * (resolution // 16)
            coords = torch.cat([fine[:, :1], tokens.int()], dim=1).unique(dim=0)
            if len(coords) < max_num_tokens or resolution == 1024:
                return self._shape(cond, flow_model, coords, sampler_params), resolution
            resolution -= 128

    def sample_tex_slat(self, cond, flow_model, shape_slat, sampler_params={}):
        scale = self.normalization["shape"]
        shape = (shape_slat - torch.tensor(scale["mean"])[None]) / torch.tensor(scale["std"])[None]
        wide = flow_model.in_channels - shape.feats.shape[1]
        noise = shape.replace(torch.randn(len(shape.feats), wide))
        more = {"concat_cond": shape}
        slat = self._sample("tex_slat", flow_model, noise, cond, sampler_params, **more)
        return self._denormalized(slat, "tex")

    def decode_shape_slat(self, slat, resolution):
        decoder = self.models["shape_slat_decoder"]
        decoder.set_resolution(resolution)
        with self._used(decoder):
            return decoder(slat, return_subs=True)

    def decode_tex_slat(self, slat, subs):
        note("guided", guides=subs)
        with self._used(self.models["tex_slat_decoder"]) as decoder:
            return decoder(slat, guide_subs=subs) * 0.5 + 0.5
