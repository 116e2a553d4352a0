"""What overflows in a decoder is counted before geometry sees it, and may be decoded again, wider."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import marked_shape
from tests.conftest import AMPLE, environment
from tests.test_joints_engine import TO_DECODE, plan_for, run
from tests.upstream_record import CALLS, calls
from trellis_runtime.contract.ladder import Plan
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import ENGINE_STAGES, Stage
from trellis_runtime.engines.trellis2 import Trellis2Engine
from trellis_runtime.engines.trellis2.engine import Trellis2Generation
from trellis_runtime.engines.trellis2.models.finite import (
    largest_values,
    require_finite,
    watched,
    wider,
)
from trellis_runtime.errors import NotFinite
from trellis_runtime.settings import Settings, Trellis2
from trellis_runtime.worker.admission import Admission

DECODERS = ("shape_slat_decoder", "tex_slat_decoder")


@pytest.fixture(scope="module")
def load(small_checkpoint: Path, stand_in: None) -> Callable[..., Trellis2Engine]:
    def load(**settings: Any) -> Trellis2Engine:
        made = Trellis2Engine(
            Trellis2(model_dir=small_checkpoint, **settings), device="cpu", room=AMPLE
        )
        made.load(lambda *_: None)
        return made

    return load


@pytest.fixture(scope="module")
def engine(load: Callable[..., Trellis2Engine]) -> Trellis2Engine:
    return load()


@pytest.fixture(scope="module")
def patient(load: Callable[..., Trellis2Engine]) -> Trellis2Engine:
    return load(decoder_retry="float32")


def model_of(engine: Trellis2Engine, name: str) -> Any:
    return engine.parts()[0].modules[name]


@contextmanager
def overflowing(engine: Trellis2Engine, name: str) -> Iterator[None]:
    """Have a decoder's residual sums reach 120,000: too much for float16, little for others."""
    biases = [model_of(engine, name).blocks[0][block].mlp[2].bias for block in (0, 1)]
    kept = [bias.data.clone() for bias in biases]
    for bias in biases:
        bias.data.fill_(60_000)
    try:
        yield
    finally:
        for bias, own in zip(biases, kept, strict=True):
            bias.data.copy_(own)


def is_the_marked_shape(vertices: Tensor, resolution: int) -> bool:
    low, high = vertices.amin(dim=0), vertices.amax(dim=0)
    cell = 1 / resolution
    return torch.allclose(low, torch.tensor(marked_shape.LOW), atol=0.1 * cell) and torch.allclose(
        high, torch.tensor(marked_shape.HIGH), atol=0.1 * cell
    )


# --- the guard ------------------------------------------------------------------------------------


def test_values_are_counted() -> None:
    values = torch.tensor([1.0, float("nan"), float("inf"), -float("inf")], dtype=torch.float16)
    with pytest.raises(NotFinite, match=r"^3 of 4 values of it \(float16\) are not finite"):
        require_finite("it", values)
    require_finite("it", values[:1])


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("shape_slat_decoder", "shape_slat_decoder's subdivision 0"),
        ("tex_slat_decoder", "tex_slat_decoder's output"),
    ],
)
def test_what_overflows_in_a_decoder_is_named_before_geometry_sees_it(
    engine: Trellis2Engine, name: str, where: str, lean: bool
) -> None:
    CALLS.clear()
    with overflowing(engine, name), pytest.raises(NotFinite, match=f"values of {where} "):
        run(engine, plan_for(512, chunk_decoder=lean))
    assert len(calls("mesh")) == (0 if name == "shape_slat_decoder" else 1)


def test_tokens_are_never_lost_to_a_cascade_that_overflows(engine: Trellis2Engine) -> None:
    """There the decoder answers which cells exist, and nothing else."""
    with overflowing(engine, "shape_slat_decoder"), pytest.raises(NotFinite, match="subdivision"):
        run(engine, plan_for(1024), TO_DECODE[:3])


@pytest.mark.parametrize(
    ("model", "parameter", "words"),
    [
        ("sparse_structure_decoder", "input_layer.bias", "of sparse_structure_decoder's output"),
        ("image_cond_model", "embeddings.patch_embeddings.bias", "of DINOv3's features"),
        ("tex_slat_flow_model_512", "out_layer.bias", "of the texture latent"),
    ],
)
def test_every_network_is_watched(
    engine: Trellis2Engine, model: str, parameter: str, words: str
) -> None:
    weights = model_of(engine, model).get_parameter(parameter)
    kept = weights.data.clone()
    weights.data[0] = float("nan")
    try:
        with pytest.raises(NotFinite, match=words):
            run(engine, plan_for(512))
    finally:
        weights.data.copy_(kept)


def test_the_removers_answer_is_watched(engine: Trellis2Engine) -> None:
    """A cut-out of NaN is no cut-out, and would be told as a picture without an object."""
    pipeline = engine.parts()[0]
    remover = pipeline.modules["rembg_model"]
    with pipeline.finite("rembg_model"), pytest.raises(NotFinite, match="rembg_model's output"):
        remover(torch.tensor([1.0, float("inf"), 0.0]))


def test_nothing_stays_hooked(engine: Trellis2Engine) -> None:
    with overflowing(engine, "shape_slat_decoder"), pytest.raises(NotFinite):
        run(engine, plan_for(512))
    left = [m for model in engine.parts()[0].modules.values() for m in model.modules()]
    assert not [m for m in left if m._forward_hooks]


# --- the remedy -----------------------------------------------------------------------------------


def decode(engine: Trellis2Engine, plan: Plan) -> Trellis2Generation:
    CALLS.clear()
    generation = run(engine, plan)
    assert generation.products.decoded is not None
    return generation


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("name", DECODERS)
def test_a_wider_decoder_decodes_that_stage_alone(
    patient: Trellis2Engine, name: str, offload: bool
) -> None:
    before = {key: value.clone() for key, value in model_of(patient, name).state_dict().items()}
    with overflowing(patient, name):
        made = decode(patient, plan_for(512, offload=offload)).products.decoded
    assert made is not None
    assert is_the_marked_shape(made.vertices, 512)
    assert made.attributes.isfinite().all()
    assert len(calls("sample")) == 3  # nothing before the decoders ran again
    model = model_of(patient, name)
    assert model.dtype == torch.float16
    assert {key: value.dtype for key, value in model.state_dict().items()} == {
        key: value.dtype for key, value in before.items()
    }
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_cascade_samples_again_from_the_same_noise(patient: Trellis2Engine) -> None:
    CALLS.clear()
    with overflowing(patient, "shape_slat_decoder"):
        generation = run(patient, plan_for(1024), TO_DECODE[:3])
    first, again = [call["noise"] for call in calls("sample") if call["cond"].shape[1] == 1029][1:]
    assert torch.equal(first, again)
    assert generation.products.shape is not None
    CALLS.clear()
    generation.run(Stage.SHAPE, plan_for(1024), JobScope("x"))  # wide from its beginning
    assert len(calls("sample")) == 2


def test_the_answer_says_that_a_decoder_was_wider(patient: Trellis2Engine) -> None:
    plan = plan_for(512, texture_size=512, decimation_target=2000)
    with overflowing(patient, "tex_slat_decoder"):
        generation = run(patient, plan, ENGINE_STAGES)
    assert generation.asset().effective["decoder_dtype"] == "float32"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_types_hold_what_float16_does_not(engine: Trellis2Engine, dtype: torch.dtype) -> None:
    decoder = model_of(engine, "tex_slat_decoder")
    half = {name: p for name, p in decoder.named_parameters() if p.dtype == torch.float16}
    assert half
    with wider(decoder, dtype):
        assert {p.dtype for p in half.values()} == {dtype}
        assert decoder.dtype == dtype
    assert {p.dtype for p in half.values()} == {torch.float16}
    with wider(decoder, None):
        assert decoder.dtype == torch.float16


def test_bfloat16_decodes_what_float16_cannot(load: Callable[..., Trellis2Engine]) -> None:
    brief = load(decoder_retry="bfloat16")
    with overflowing(brief, "tex_slat_decoder"), overflowing(brief, "shape_slat_decoder"):
        made = decode(brief, plan_for(512, chunk_decoder=True)).products.decoded
    assert made is not None
    assert is_the_marked_shape(made.vertices, 512)
    assert made.attributes.isfinite().all()


def test_a_wider_decoder_that_is_not_finite_either_fails(patient: Trellis2Engine) -> None:
    bias = model_of(patient, "tex_slat_decoder").output_layer.bias
    kept = bias.data.clone()
    bias.data[0] = float("nan")
    try:
        with pytest.raises(NotFinite, match="tex_slat_decoder's output"):
            run(patient, plan_for(512))
    finally:
        bias.data.copy_(kept)


def test_values_that_are_not_finite_twice_in_a_row_retire_the_worker(tmp_path: Path) -> None:
    settings = Settings.from_env(environment(tmp_path))
    admission = Admission(settings.jobs, tmp_path)
    admission.note_failure(NotFinite("1 of 2 values"))
    assert admission.defunct_reason is None
    admission.note_failure(NotFinite("1 of 2 values"))
    assert admission.defunct_reason is not None


# --- how near the limit ---------------------------------------------------------------------------


def test_the_largest_value_of_each_label_is_kept_and_nan_wins() -> None:
    first, second = nn.Identity(), nn.Identity()
    with largest_values([("a", first), ("a", second)]) as found:
        first(torch.tensor([3.0, -7.0]))
        second(torch.tensor([5.0]))
        second(torch.zeros(0))
        assert found == {"a": 7.0}
        second(torch.tensor([1.0, float("nan")]))
        first(torch.tensor([9.0]))
        assert found["a"] != found["a"]
    first(torch.tensor([11.0]))
    assert found["a"] != found["a"]


def test_watching_ends_with_its_context() -> None:
    layer = nn.Identity()
    with watched([("layer", layer)]), pytest.raises(NotFinite):
        layer(torch.tensor([float("nan")]))
    layer(torch.tensor([float("nan")]))
