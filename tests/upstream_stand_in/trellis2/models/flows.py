"""Flow transformers with adaptive layer norms and rotary positions, for a batch of one."""

import math

import torch
from torch import nn
from torch.nn.functional import layer_norm, normalize

from tests.upstream_record import note

FREQUENCIES = 256


class Gain(nn.Module):
    def __init__(self, heads, head):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(heads, head))

    def forward(self, x):
        return (normalize(x.float(), dim=-1) * self.gamma * x.shape[-1] ** 0.5).to(x.dtype)


class Rope(nn.Module):
    def __init__(self, head):
        super().__init__()
        count = head // 2 // 3
        self.head_dim, self.freqs = head, 10000 ** -(torch.arange(count) / count)

    def phases(self, cells):
        angles = (cells[:, :, None] * self.freqs.to(cells.device)).flatten(1)
        angles = nn.functional.pad(angles, (0, self.head_dim // 2 - angles.shape[1]))
        return torch.polar(torch.ones_like(angles), angles)


def turned(x, phases):
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * phases[:, None]).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, wide, heads, context, dtype):
        super().__init__()
        self.num_heads = heads
        if context is None:
            self.to_qkv = nn.Linear(wide, 3 * wide, dtype=dtype)
            self.rope = Rope(wide // heads)
        else:
            self.to_q = nn.Linear(wide, wide, dtype=dtype)
            self.to_kv = nn.Linear(context, 2 * wide, dtype=dtype)
        self.q_rms_norm, self.k_rms_norm = (Gain(heads, wide // heads) for _ in range(2))
        self.to_out = nn.Linear(wide, wide, dtype=dtype)

    def forward(self, x, context=None, phases=None):
        import flash_attn  # at each call: what stands there is decided at run time

        split = (-1, self.num_heads, self.q_rms_norm.gamma.shape[1])
        ends = torch.tensor([0, len(x)])
        if context is None:
            q, k, v = (part.reshape(split) for part in self.to_qkv(x).chunk(3, dim=1))
            q, k = turned(self.q_rms_norm(q), phases), turned(self.k_rms_norm(k), phases)
            qkv = torch.stack([q, k, v], dim=1)
            out = flash_attn.flash_attn_varlen_qkvpacked_func(qkv, ends, len(x))
        else:
            q = self.q_rms_norm(self.to_q(x).reshape(split))
            k, v = (part.reshape(split) for part in self.to_kv(context).chunk(2, dim=1))
            kv, others = torch.stack([self.k_rms_norm(k), v], dim=1), torch.tensor([0, len(k)])
            out = flash_attn.flash_attn_varlen_kvpacked_func(q, kv, ends, others, len(x), len(k))
        return self.to_out(out.flatten(1))


class Mlp(nn.Module):
    def __init__(self, wide, hidden, dtype):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(wide, hidden, dtype=dtype),
            nn.GELU(approximate="tanh"),
            nn.Linear(hidden, wide, dtype=dtype),
        )


class Block(nn.Module):
    def __init__(self, wide, heads, context, hidden, dtype):
        super().__init__()
        self.modulation = nn.Parameter(torch.zeros(6 * wide))
        self.norm2 = nn.LayerNorm(wide, eps=1e-6)
        self.self_attn = Attention(wide, heads, None, dtype)
        self.cross_attn = Attention(wide, heads, context, dtype)
        self.mlp = Mlp(wide, hidden, dtype)

    def forward(self, x, shared, context, phases):
        parts = (self.modulation + shared).to(x.dtype).chunk(6, dim=-1)
        wide = (x.shape[1],)
        h = layer_norm(x.float(), wide, eps=1e-6).to(x.dtype) * (1 + parts[1]) + parts[0]
        x = x + self.self_attn(h, phases=phases) * parts[2]
        x = x + self.cross_attn(self.norm2(x.float()).to(x.dtype), context)
        h = layer_norm(x.float(), wide, eps=1e-6).to(x.dtype) * (1 + parts[4]) + parts[3]
        return x + self.mlp.mlp(h) * parts[5]


class Embedder(nn.Module):
    def __init__(self, wide):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, wide), nn.SiLU(), nn.Linear(wide, wide))

    def forward(self, t):
        half = FREQUENCIES // 2
        angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1))


class _Flow(nn.Module):
    def __init__(
        self,
        resolution,
        in_channels,
        model_channels,
        cond_channels,
        out_channels,
        num_blocks,
        num_heads=None,
        mlp_ratio=4,
        dtype="float32",
        **_,
    ):
        super().__init__()
        self.resolution, self.in_channels = resolution, in_channels
        self.dtype = getattr(torch, dtype)
        self.t_embedder = Embedder(model_channels)
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(), nn.Linear(model_channels, 6 * model_channels)
        )
        self.input_layer = nn.Linear(in_channels, model_channels)
        hidden = int(model_channels * mlp_ratio)
        self.blocks = nn.ModuleList(
            Block(model_channels, num_heads, cond_channels, hidden, self.dtype)
            for _ in range(num_blocks)
        )
        self.out_layer = nn.Linear(model_channels, out_channels)

    def _backbone(self, rows, t, cond, phases):
        note("own_forward", rows=len(rows))
        x = self.input_layer(rows).to(self.dtype)
        shared = self.adaLN_modulation(self.t_embedder(t))[0].to(self.dtype)
        for block in self.blocks:
            x = block(x, shared, cond[0].to(self.dtype), phases)
        return self.out_layer(layer_norm(x.to(rows.dtype), (x.shape[1],)))

    def to(self, device):
        return super().to(device)


class SLatFlowModel(_Flow):
    def forward(self, x, t, cond, concat_cond=None, **_):
        rows = x.feats if concat_cond is None else torch.cat([x.feats, concat_cond.feats], dim=1)
        phases = self.blocks[0].self_attn.rope.phases(x.coords[:, 1:])
        return x.replace(self._backbone(rows, t, cond, phases))


class SparseStructureFlowModel(_Flow):
    def __init__(self, **args):
        super().__init__(**args)
        axis = torch.arange(self.resolution, device=self.out_layer.weight.device)
        cells = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
        rope = Rope(args["model_channels"] // args["num_heads"])
        self.register_buffer("rope_phases", rope.phases(cells))

    def forward(self, x, t, cond):
        rows = x[0].flatten(1).T
        out = self._backbone(rows, t, cond, self.rope_phases)
        return out.T.reshape(1, -1, *x.shape[2:])
