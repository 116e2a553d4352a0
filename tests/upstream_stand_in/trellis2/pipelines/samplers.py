"""Euler's method for flow models, guided where t lies in an interval."""

import itertools
from types import SimpleNamespace

import numpy as np
import torch

from tests.upstream_record import note


class FlowEulerGuidanceIntervalSampler:
    def __init__(self, sigma_min):
        self.sigma_min = sigma_min

    def sample_once(self, model, x_t, t, t_prev, cond=None, **facts):
        low, high = facts["guidance_interval"]
        strength = facts["guidance_strength"] if low <= t <= high else 1
        extra = {"concat_cond": facts["concat_cond"]} if "concat_cond" in facts else {}
        at = torch.tensor([1000 * t], dtype=torch.float32)
        velocity = model(x_t, at, cond, **extra)
        if strength != 1:
            free = model(x_t, at, facts["neg_cond"], **extra)
            velocity = velocity * strength + free * (1 - strength)
        return SimpleNamespace(pred_x_prev=x_t - velocity * (t - t_prev))

    def sample(
        self,
        model,
        noise,
        cond,
        neg_cond,
        steps=50,
        rescale_t=1.0,
        guidance_strength=3.0,
        guidance_interval=(0.0, 1.0),
        verbose=True,
        **kwargs,
    ):
        note(
            "sample",
            model=model,
            noise=getattr(noise, "feats", noise).clone(),
            coords=getattr(noise, "coords", None),
            cond=cond,
            neg_cond=neg_cond,
            concat_cond=kwargs.get("concat_cond"),
            steps=steps,
            rescale_t=rescale_t,
            guidance_strength=guidance_strength,
            guidance_interval=guidance_interval,
            guidance_rescale=kwargs.get("guidance_rescale"),
        )
        times = np.linspace(1, 0, steps + 1)
        times = (rescale_t * times / (1 + (rescale_t - 1) * times)).tolist()
        sample = noise
        facts = {
            "neg_cond": neg_cond,
            "guidance_strength": guidance_strength,
            "guidance_interval": guidance_interval,
        }
        if "concat_cond" in kwargs:
            facts["concat_cond"] = kwargs["concat_cond"]
        for t, t_prev in itertools.pairwise(times):
            sample = self.sample_once(model, sample, t, t_prev, cond, **facts).pred_x_prev
        return SimpleNamespace(samples=sample)
