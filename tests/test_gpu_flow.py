"""The fast flow model against upstream's formula, written out plainly in float64."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, normalize, scaled_dot_product_attention

from trellis_runtime.engines.trellis2.upstream.flows import FastFlow

WIDTH, HEADS, CONTEXT, IN, OUT = 48, 4, 20, 6, 5
HEAD = WIDTH // HEADS


class Gain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(HEADS, HEAD) + 0.5)


class Attention(nn.Module):
    """Upstream's names: `SparseMultiHeadAttention` and `MultiHeadAttention` at 5565d24."""

    def __init__(self, *, cross: bool) -> None:
        super().__init__()
        self.num_heads = HEADS
        if cross:
            self.to_q, self.to_kv = nn.Linear(WIDTH, WIDTH), nn.Linear(CONTEXT, 2 * WIDTH)
        else:
            self.to_qkv = nn.Linear(WIDTH, 3 * WIDTH)
            pairs = HEAD // 2 // 3
            frequencies = 1 / 10000 ** (torch.arange(pairs) / pairs)
            self.rope = SimpleNamespace(freqs=frequencies, head_dim=HEAD)
        self.q_rms_norm, self.k_rms_norm = Gain(), Gain()
        self.to_out = nn.Linear(WIDTH, WIDTH)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 100), nn.GELU(approximate="tanh"), nn.Linear(100, WIDTH)
        )


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(6 * WIDTH) / 3)
        self.norm2 = nn.LayerNorm(WIDTH)
        nn.init.normal_(self.norm2.weight)
        nn.init.normal_(self.norm2.bias)
        self.self_attn, self.cross_attn = Attention(cross=False), Attention(cross=True)
        self.mlp = Mlp()


class Embedder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, WIDTH)

    def forward(self, t: Tensor) -> Tensor:
        return self.line(t[:, None] / 1000)


class Model(nn.Module):
    def __init__(self, side: int = 0) -> None:
        super().__init__()
        self.dtype, self.in_channels, self.resolution = torch.float64, IN, side
        self.t_embedder = Embedder()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH))
        self.input_layer, self.out_layer = nn.Linear(IN, WIDTH), nn.Linear(WIDTH, OUT)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        if side:
            axis = torch.arange(side)
            cells = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
            self.rope_phases = phases_of(self.blocks[0], cells.reshape(-1, 3))


def phases_of(block: Any, cells: Tensor) -> Tensor:
    rope = block.self_attn.rope
    angles = (cells[:, :, None] * rope.freqs).reshape(len(cells), -1)
    angles = nn.functional.pad(angles, (0, HEAD // 2 - angles.shape[1]))
    return torch.polar(torch.ones_like(angles), angles)


def plainly(model: Any, x: Tensor, t: Tensor, context: Tensor, phases: Tensor) -> Tensor:
    """Upstream's forward pass, step by step as its modules have it."""

    def rms(v: Tensor, gain: Any) -> Tensor:
        return normalize(v, dim=-1) * gain.gamma * math.sqrt(HEAD)

    def turn(v: Tensor) -> Tensor:
        pairs = torch.view_as_complex(v.reshape(*v.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * phases[:, None]).flatten(-2)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (part.transpose(0, 1) for part in (q, k, v))
        return scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(q.shape[1], -1)

    h = model.input_layer(x)
    shared = model.adaLN_modulation(model.t_embedder(t))[0]
    for block in model.blocks:
        parts = (block.modulation + shared).chunk(6)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = parts
        a = layer_norm(h, (WIDTH,), eps=1e-6) * (1 + scale) + shift
        qkv = block.self_attn.to_qkv(a).reshape(len(a), 3, HEADS, HEAD)
        q, k, v = qkv.unbind(1)
        q = turn(rms(q, block.self_attn.q_rms_norm))
        k = turn(rms(k, block.self_attn.k_rms_norm))
        h = h + block.self_attn.to_out(attend(q, k, v)) * gate
        a = layer_norm(h, (WIDTH,), block.norm2.weight, block.norm2.bias, eps=1e-6)
        cross = block.cross_attn
        q = rms(cross.to_q(a).reshape(len(a), HEADS, HEAD), cross.q_rms_norm)
        k, v = cross.to_kv(context).reshape(len(context), 2, HEADS, HEAD).unbind(1)
        h = h + cross.to_out(attend(q, rms(k, cross.k_rms_norm), v))
        a = layer_norm(h, (WIDTH,), eps=1e-6) * (1 + scale_mlp) + shift_mlp
        first, _, last = block.mlp.mlp
        h = h + last(gelu(first(a), approximate="tanh")) * gate_mlp
    return model.out_layer(layer_norm(h, (WIDTH,)))


class Sparse:
    def __init__(self, feats: Tensor, coords: Tensor) -> None:
        self.feats, self.coords = feats, coords

    def replace(self, feats: Tensor) -> Sparse:
        return Sparse(feats, self.coords)


def relative(ours: Tensor, reference: Tensor) -> float:
    return float((ours - reference).norm() / reference.norm())


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(3)


@pytest.mark.parametrize("guided", [True, False], ids=["guided", "unconditional"])
@torch.no_grad()
def test_a_sparse_pass_is_upstreams_formula(guided: bool) -> None:
    model = Model().double()
    cells = torch.randint(0, 32, (70, 3))
    x = Sparse(torch.randn(70, IN - 2).double(), torch.cat([torch.zeros(70, 1).long(), cells], 1))
    extra = Sparse(torch.randn(70, 2).double(), x.coords)
    cond = torch.randn(1, 9, CONTEXT).double() * guided
    t = torch.tensor([640.0]).double()
    fast = FastFlow(model)
    reference = plainly(
        model, torch.cat([x.feats, extra.feats], 1), t, cond[0], phases_of(model.blocks[0], cells)
    )
    for _ in range(2):  # the second pass uses what the first has kept
        assert relative(fast(x, t, cond, concat_cond=extra).feats, reference) < 1e-5


@torch.no_grad()
def test_a_dense_pass_is_upstreams_formula() -> None:
    side = 3
    model = Model(side).double()
    x = torch.randn(1, IN, side, side, side).double()
    cond, t = torch.randn(1, 7, CONTEXT).double(), torch.tensor([100.0]).double()
    rows = x.reshape(IN, -1).T
    reference = plainly(model, rows, t, cond[0], model.rope_phases)
    ours = FastFlow(model)(x, t, cond)
    assert ours.shape == (1, OUT, side, side, side)
    assert relative(ours.reshape(OUT, -1).T, reference) < 1e-5


@torch.no_grad()
def test_what_was_kept_for_one_picture_is_not_used_for_another() -> None:
    model = Model().double()
    fast = FastFlow(model)
    x = Sparse(torch.randn(20, IN).double(), torch.randint(0, 9, (20, 4)))
    t = torch.tensor([5.0]).double()
    first, second = (torch.randn(1, 4, CONTEXT).double() for _ in range(2))
    one, two = fast(x, t, first).feats, fast(x, t, second).feats
    assert relative(one, two) > 1e-3
    again = fast(x, t, first.clone()).feats
    assert torch.equal(again, one)
    assert sum(p.numel() for p in fast.parameters()) == 0  # the weights are the module's own
