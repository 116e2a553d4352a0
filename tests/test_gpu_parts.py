"""The GPU engine's parts that a CPU can test: errors, attention, loading, placement, row blocks."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trellis_runtime.contract.ladder import Plan
from trellis_runtime.contract.request import parse_request
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import Stage
from trellis_runtime.engines.trellis2.device import vram
from trellis_runtime.engines.trellis2.device.residency import Residency
from trellis_runtime.engines.trellis2.engine import Trellis2Engine, Trellis2Generation
from trellis_runtime.engines.trellis2.models.rows import RowLayers, chunked_rows
from trellis_runtime.engines.trellis2.upstream import adapter as upstream
from trellis_runtime.engines.trellis2.upstream import attention
from trellis_runtime.engines.trellis2.upstream.checkpoints import (
    ModelFiles,
    build_models,
    fill_models,
    find_pipeline,
)
from trellis_runtime.errors import EngineFault, JobCancelled, OutOfVram, SetupFailed
from trellis_runtime.settings import Trellis2

torch.manual_seed(0)


def load_models(
    files: list[ModelFiles], classes: Callable[[str], Any], device: str
) -> dict[str, nn.Module]:
    return fill_models(files, build_models(files, classes), device)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "[CuMesh] CUDA error in src/remesh.cu:12 Error code: 2 (out of memory)",
        "Cuda error: 2[cudaMalloc(&m_gpuPtr, bytes);]",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "Triton Error [CUDA]: out of memory",
    ],
)
def test_out_of_memory_is_told_in_all_its_forms(text: str) -> None:
    with pytest.raises(OutOfVram), vram.translated():
        raise RuntimeError(text)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: an illegal memory access was encountered",
        "[CuMesh] CUDA error ... Error code: 700 (an illegal memory access was encountered)",
        "Cuda error: 719[cudaStreamSynchronize(stream);]",
        "CUDA error: unspecified launch failure",
        "CUDA error: uncorrectable ECC error encountered",
        "CUDA error: device-side assert triggered",
    ],
)
def test_a_poisoned_context_is_no_lack_of_memory(text: str) -> None:
    with pytest.raises(EngineFault), vram.translated():
        raise RuntimeError(text)


def test_torchs_own_error_is_translated_and_lets_go_of_its_frames() -> None:
    held: list[weakref.ref[Tensor]] = []

    def stage() -> None:
        large = torch.zeros(1000)
        held.append(weakref.ref(large))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(OutOfVram) as caught, vram.translated():
        stage()
    assert held[0]() is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("err", [RuntimeError("shape mismatch"), ValueError("out of memory")])
def test_other_errors_are_left_alone(err: Exception) -> None:
    with pytest.raises(type(err)), vram.translated():
        raise err


def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(C)) v in double precision, per head."""
    q, k, v = (x.double() for x in (q, k, v))
    scores = torch.einsum("qhc,khc->hqk", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("hqk,khc->qhc", scores.softmax(-1), v)


@pytest.mark.parametrize(("lengths_q", "lengths_k"), [([7], [5]), ([3, 1, 9], [2, 6, 4])])
def test_our_attention_is_attention_within_each_sequence(
    lengths_q: list[int], lengths_k: list[int]
) -> None:
    q = torch.randn(sum(lengths_q), 2, 8)
    k, v = torch.randn(2, sum(lengths_k), 2, 8)
    cu_q = torch.tensor([0, *torch.tensor(lengths_q).cumsum(0).tolist()])
    cu_k = torch.tensor([0, *torch.tensor(lengths_k).cumsum(0).tolist()])
    expected = torch.cat(
        [
            reference(a, b, c)
            for a, b, c in zip(
                q.split(lengths_q), k.split(lengths_k), v.split(lengths_k), strict=True
            )
        ]
    )
    limits = max(lengths_q), max(lengths_k)
    ours = attention.varlen(q, k, v, cu_q, cu_k, *limits)
    packed = attention.varlen_kvpacked(q, torch.stack([k, v], 1), cu_q, cu_k, *limits)
    assert torch.allclose(ours.double(), expected, atol=1e-5)
    assert torch.equal(ours, packed)


def test_qkv_packed_is_self_attention() -> None:
    qkv = torch.randn(6, 3, 2, 8)
    ours = attention.varlen_qkvpacked(qkv, torch.tensor([0, 6]), 6)
    assert torch.allclose(ours.double(), reference(*qkv.unbind(1)), atol=1e-5)


def test_without_a_kernel_package_torchs_own_is_chosen_and_never_spconv() -> None:
    name = attention.choose()
    assert name in ("sdpa", "flash_attn", "flash_attn_3", "xformers")
    assert attention.environment(name)["SPARSE_CONV_BACKEND"] == "flex_gemm"


class Tiny(nn.Module):
    """Shaped like upstream's models: blocks, a computed buffer, a tensor outside the state dict."""

    def __init__(self, width: int, num_blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(width, width) for _ in range(num_blocks)]).to(
            torch.bfloat16
        )
        self.head = nn.Linear(width, 2)
        nn.init.normal_(self.head.weight)
        self.register_buffer("phases", torch.polar(torch.ones(4), torch.arange(4.0)))
        self.frequencies = torch.arange(width) / width


def write(
    folder: Path, name: str = "tiny", change: Callable[[dict[str, Tensor]], Any] = lambda _: None
) -> tuple[ModelFiles, Tiny]:
    model = Tiny(8, 3)
    state = {n: t for n, t in model.state_dict().items() if not t.is_complex()}
    change(state)
    files = ModelFiles(name, folder / f"{name}.json", folder / f"{name}.safetensors")
    files.config.parent.mkdir(parents=True, exist_ok=True)
    files.config.write_text(json.dumps({"name": "Tiny", "args": {"width": 8, "num_blocks": 3}}))
    save_file(state, files.weights)
    return files, model


def classes(name: str) -> type[Tiny]:
    return {"Tiny": Tiny}[name]


def test_a_checkpoint_is_loaded_to_the_bit_with_nothing_left_unset(tmp_path: Path) -> None:
    files, original = write(tmp_path)
    loaded = load_models([files], classes, "cpu")[files.name]
    for name, tensor in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
        assert loaded.state_dict()[name].dtype == tensor.dtype
    assert torch.equal(loaded.frequencies, original.frequencies)  # type: ignore[arg-type]
    assert not any(p.requires_grad for p in loaded.parameters())


def test_building_costs_no_memory_and_draws_no_random_numbers(tmp_path: Path) -> None:
    files, _ = write(tmp_path)
    state = torch.get_rng_state()
    load_models([files], classes, "cpu")
    assert nn.Module.register_parameter.__name__ == "register_parameter"
    assert torch.equal(torch.get_rng_state(), state)


def test_other_dtypes_in_the_file_become_the_models(tmp_path: Path) -> None:
    files, _ = write(tmp_path, change=lambda s: s.update({n: t.float() for n, t in s.items()}))
    assert (
        load_models([files], classes, "cpu")[files.name].get_parameter("blocks.0.weight").dtype
        == torch.bfloat16
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("head.weight"), "lacks head.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), "has unexpected extra"),
        (lambda s: s.update({"head.bias": torch.zeros(3)}), "misshapes head.bias"),
    ],
)
def test_any_difference_stops_the_start_with_the_files_name(
    change: Callable[[dict[str, Tensor]], Any], words: str, tmp_path: Path
) -> None:
    files, _ = write(tmp_path, change=change)
    with pytest.raises(SetupFailed, match=words) as caught:
        load_models([files], classes, "cpu")
    assert "tiny.safetensors" in caught.value.message


def test_a_damaged_file_stops_the_start(tmp_path: Path) -> None:
    files, _ = write(tmp_path)
    files.weights.write_bytes(files.weights.read_bytes()[:-40])
    with pytest.raises(SetupFailed, match="tiny.safetensors is damaged"):
        load_models([files], classes, "cpu")


def test_a_pipeline_folder_is_found_or_its_first_gap_named(tmp_path: Path) -> None:
    with pytest.raises(SetupFailed, match="pipeline.json cannot be read"):
        find_pipeline(tmp_path, ("a",))
    config = tmp_path / "pipeline.json"
    config.write_text("nonsense")
    with pytest.raises(SetupFailed, match="is not JSON"):
        find_pipeline(tmp_path, ("a",))
    config.write_text(json.dumps({"args": {"models": {"a": "ckpts/a"}}}))
    with pytest.raises(SetupFailed, match="names no b"):
        find_pipeline(tmp_path, ("a", "b"))
    with pytest.raises(SetupFailed, match=r"ckpts/a.json is missing"):
        find_pipeline(tmp_path, ("a",))
    write(tmp_path / "ckpts", "a")
    with pytest.raises(SetupFailed, match=r"no numbers for shape_slat_normalization"):
        find_pipeline(tmp_path, ("a",))
    scales = {
        f"{part}_slat_normalization": {"mean": [0.5], "std": [2.0]} for part in ("shape", "tex")
    }
    config.write_text(json.dumps({"args": {"models": {"a": "ckpts/a"}, **scales}}))
    assert not find_pipeline(tmp_path, ("a",)).is_synthetic
    (tmp_path / "SYNTHETIC").touch()
    assert find_pipeline(tmp_path, ("a",)).is_synthetic


def test_the_engine_names_what_it_lacks() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU: gpu tests cover it")
    with pytest.raises(SetupFailed, match="no CUDA device"):
        Trellis2Engine(Trellis2()).load(lambda *_: None)


def test_offloaded_models_come_back_with_their_values() -> None:
    models: dict[str, nn.Module] = {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)}
    before = {n: m.get_parameter("weight").clone() for n, m in models.items()}
    residency = Residency(models, "cpu")
    assert residency.weight_bytes == residency.resident_bytes == 2 * (16 + 4) * 4
    for _ in range(2):
        with residency.needed("a", offload=True):
            assert models["a"].to("cpu") is models["a"]  # as upstream's low_vram calls it
            assert torch.equal(models["a"].get_parameter("weight"), before["a"])
            models["a"].cpu()
        with pytest.raises(ValueError, match="x"), residency.needed("b", offload=True):
            raise ValueError("x")
    residency.evict()
    assert all(torch.equal(m.get_parameter("weight"), before[n]) for n, m in models.items())


def test_row_blocks_change_nothing_and_are_gone_afterwards() -> None:
    norm = nn.LayerNorm(6, eps=1e-3)
    nn.init.normal_(norm.weight)
    mlp = nn.Sequential(nn.Linear(6, 24), nn.SiLU(), nn.Linear(24, 6))
    model = nn.Sequential(norm, mlp).eval()
    layers = RowLayers((norm,), (mlp,))
    x = torch.randn(103, 6)
    whole = model(x)
    sizes: list[int] = []
    mlp[1].register_forward_hook(lambda _m, args, _o: sizes.append(len(args[0])))
    with chunked_rows(layers, chunked=True, rows=10):
        assert torch.allclose(model(x), whole, atol=1e-5)
    assert max(sizes) == 10
    with chunked_rows(layers, chunked=False):
        assert "forward" in vars(norm)
        assert torch.allclose(model(x), whole, atol=1e-5)
    assert not any("forward" in vars(layer) for layer in model.modules())


def test_a_decoder_without_norms_or_mlps_is_refused() -> None:
    """A lossless rung that silently frees nothing would only repeat the failure."""
    norm, mlp = nn.LayerNorm(6), nn.Sequential(nn.Linear(6, 6))
    with pytest.raises(ValueError, match="0 norms and 1 MLPs"):
        RowLayers((), (mlp,))
    with pytest.raises(ValueError, match="1 norms and 0 MLPs"):
        RowLayers((norm,), ())


def test_sampler_steps_are_told_in_order_and_stop_a_stopped_job() -> None:
    class FlowSampler:
        def sample_once(self, value: int) -> int:
            return value + 1

    sampler = FlowSampler()
    device = torch.device("cpu")
    pipeline = upstream.UpstreamPipeline(
        SimpleNamespace(s=sampler), {}, {}, {}, "sdpa", True, None, None, device
    )
    told: list[float] = []
    scope = JobScope("x", progress=lambda _stage, fraction: told.append(fraction))
    with scope.stage("shape"), pipeline.steps("s", scope, 60 * 2):
        assert [sampler.sample_once(i) for i in range(120)] == list(range(1, 121))
    assert told == sorted(told)
    assert len(set(told)) == 120
    scope.cancel()
    with pytest.raises(JobCancelled), pipeline.steps("s", scope, 1):
        sampler.sample_once(0)
    assert "sample_once" not in vars(sampler)


def test_a_repeated_stage_begins_with_the_noise_that_it_had() -> None:
    plan = Plan.as_asked(parse_request({"image": "x"}), 9)
    generation = Trellis2Generation(None, plan, SimpleNamespace(device=None), None, None, None)
    drawn: dict[Stage, Tensor] = {}
    for stage in (Stage.STRUCTURE, Stage.SHAPE, Stage.TEXTURE):
        generation._set_noise(stage)
        drawn[stage] = torch.randn(5)
    torch.manual_seed(9)
    upstreams = [torch.randn(5) for _ in drawn]  # drawn one after another, as upstream does
    assert all(torch.equal(a, b) for a, b in zip(drawn.values(), upstreams, strict=True))
    for stage in (Stage.TEXTURE, Stage.SHAPE, Stage.STRUCTURE):
        generation._set_noise(stage)
        assert torch.equal(torch.randn(5), drawn[stage]), stage
