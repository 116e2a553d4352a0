"""What is used of upstream is known, and a difference stops the start with its name."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import AMPLE, ROOT
from tests.test_joints_engine import MUG, TO_DECODE, plan_for
from tests.upstream_record import CALLS, calls
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.engines.trellis2 import Trellis2Engine
from trellis_runtime.engines.trellis2.upstream import interface
from trellis_runtime.engines.trellis2.upstream.interface import Used, check_code, check_models
from trellis_runtime.errors import SetupFailed
from trellis_runtime.settings import Trellis2

SAMPLER = "FlowEulerGuidanceIntervalSampler"


def loaded(folder: Path, **settings: Any) -> Trellis2Engine:
    engine = Trellis2Engine(Trellis2(model_dir=folder, **settings), device="cpu", room=AMPLE)
    engine.load(lambda *_: None)
    return engine


@pytest.fixture(scope="module")
def engine(small_checkpoint: Path, stand_in: None) -> Trellis2Engine:
    return loaded(small_checkpoint)


def test_the_stand_in_has_all_that_is_used(engine: Trellis2Engine) -> None:
    check_code(interface.CALLS)
    check_code(interface.REHEARSAL_CALLS)
    pipeline = engine.parts()[0]
    check_models(pipeline.trellis, pipeline.modules)


@pytest.mark.parametrize(
    ("used", "words"),
    [
        (Used("trellis2.gone", "X"), "trellis2.gone"),
        (Used("trellis2.models", "SLatFlow"), "trellis2.models has no SLatFlow"),
        (Used("trellis2.pipelines.samplers", f"{SAMPLER}.draw"), f"has no {SAMPLER}.draw"),
        (
            Used("trellis2.pipelines.samplers", f"{SAMPLER}.sample", ("model", "cond")),
            r"takes noise where cond is passed \(place 1\)",
        ),
        (
            Used("trellis2.pipelines.rembg", "BiRefNet", ("model_name", "size")),
            r"takes nothing where size is passed",
        ),
        (
            Used("o_voxel.convert", "flexible_dual_grid_to_mesh", (), ("resolution",)),
            "takes no resolution",
        ),
    ],
)
def test_the_first_difference_in_code_is_named(
    engine: Trellis2Engine, used: Used, words: str
) -> None:
    with pytest.raises(SetupFailed, match=words):
        check_code((used,))


def test_a_backend_that_upstream_did_not_take_stops_the_start(engine: Trellis2Engine) -> None:
    from trellis_runtime.engines.trellis2.upstream import attention

    config: Any = importlib.import_module("trellis2.modules.sparse.config")
    own, config.CONV = config.CONV, "spconv"
    try:
        with pytest.raises(SetupFailed, match="upstream runs spconv where SPARSE_CONV_BACKEND"):
            attention.check_chosen("sdpa")
    finally:
        config.CONV = own


@pytest.mark.parametrize("name", sorted(interface.ATTRIBUTES))
def test_the_first_difference_in_a_model_is_named(engine: Trellis2Engine, name: str) -> None:
    pipeline = engine.parts()[0]
    other = {**pipeline.modules, name: torch.nn.Linear(2, 2)}
    with pytest.raises(SetupFailed, match=f"{name} has no "):
        check_models(pipeline.trellis, other)


def test_a_start_on_another_upstream_is_refused(
    small_checkpoint: Path, engine: Trellis2Engine
) -> None:
    pipelines: Any = importlib.import_module("trellis2.pipelines")
    kind = pipelines.Trellis2ImageTo3DPipeline
    own = kind.decode_tex_slat
    kind.decode_tex_slat = lambda self, slat, guides: None
    try:
        with pytest.raises(SetupFailed, match="takes guides where subs is passed"):
            loaded(small_checkpoint)
    finally:
        kind.decode_tex_slat = own


@pytest.mark.parametrize(
    ("module", "name", "words"),
    [
        ("trellis2.modules.norm", "LayerNorm32", "0 norms and 32 MLPs"),
        ("trellis2.models.sc_vaes.sparse_unet_vae", "SparseConvNeXtBlock3d", "72 norms|MLPs"),
    ],
)
def test_a_decoder_of_other_layers_stops_the_start(
    engine: Trellis2Engine, module: str, name: str, words: str
) -> None:
    """Were a class's name another, the rung that runs rows in blocks would free nothing."""
    from trellis_runtime.engines.trellis2.upstream.decoders import row_layers

    owner: Any = importlib.import_module(module)
    own = getattr(owner, name)
    setattr(owner, name, type("Renamed", (torch.nn.Module,), {}))
    try:
        with pytest.raises(SetupFailed, match=words):
            row_layers(engine.parts()[0].modules["shape_slat_decoder"])
    finally:
        setattr(owner, name, own)


def decoded(engine: Trellis2Engine, resolution: int = 512) -> Any:
    plan = plan_for(resolution)
    generation = engine.begin(MUG, plan)
    for stage in TO_DECODE:
        generation.run(stage, plan, JobScope("x"))
    made = generation.products
    generation.close()
    return made


def test_the_fast_flow_is_upstreams_own_within_its_precision(
    engine: Trellis2Engine, small_checkpoint: Path
) -> None:
    """Fast, and upstream's own modules on our attention: the same noise, nearly the same latent."""
    CALLS.clear()
    fast = decoded(engine)
    assert calls("own_forward") == []
    slow = loaded(small_checkpoint, flow="upstream")
    assert slow.info().attention == "sdpa"
    theirs = decoded(slow)
    assert len(calls("own_forward")) > 9
    for ours, own in ((fast.shape, theirs.shape), (fast.texture, theirs.texture)):
        difference = (ours.rows.feats - own.rows.feats).norm() / own.rows.feats.norm()
        assert difference < 0.05
        assert torch.equal(ours.rows.coords, own.rows.coords)


def test_a_rehearsal_follows_its_shape_and_says_synthetic(
    engine: Trellis2Engine, small_checkpoint: Path
) -> None:
    CALLS.clear()
    rehearsing = loaded(small_checkpoint, rehearsal=True)
    assert rehearsing.info().synthetic
    assert [call["grid_size"] for call in calls("voxelize")] == [512, 1024, 1536]
    plain, rehearsed = decoded(engine), decoded(rehearsing)
    assert torch.equal(plain.decoded.coords.unique(dim=0), rehearsed.decoded.coords.unique(dim=0))
    assert torch.allclose(
        plain.decoded.vertices.amax(dim=0), rehearsed.decoded.vertices.amax(dim=0), atol=1e-4
    )


def test_a_rehearsal_of_another_decoder_is_refused(
    engine: Trellis2Engine, small_checkpoint: Path, tmp_path: Path
) -> None:
    from trellis_runtime.engines.trellis2.upstream import rehearsal

    pipeline = engine.parts()[0]
    decoder: Any = pipeline.modules["shape_slat_decoder"]
    levels = decoder.blocks
    decoder.blocks = levels[:3]
    try:
        with pytest.raises(SetupFailed, match="the decoder has 2"):
            rehearsal.install_synthetic_structure(pipeline, "smooth")
    finally:
        decoder.blocks = levels


@pytest.mark.parametrize(
    ("absent", "words"),
    [("dinov3", "TRELLIS2_DINOV3_DIR"), ("pipeline.json", "pipeline.json")],
)
def test_a_folder_that_lacks_something_is_refused(
    engine: Trellis2Engine, small_checkpoint: Path, tmp_path: Path, absent: str, words: str
) -> None:
    import shutil

    shutil.copytree(small_checkpoint, tmp_path / "m", ignore=shutil.ignore_patterns(absent))
    with pytest.raises(SetupFailed, match=words):
        loaded(tmp_path / "m")


def test_without_a_background_remover_a_photograph_is_refused_with_the_variables_name(
    engine: Trellis2Engine, small_checkpoint: Path, tmp_path: Path
) -> None:
    import shutil

    from PIL import Image

    shutil.copytree(small_checkpoint, tmp_path / "m", ignore=shutil.ignore_patterns("rembg"))
    pipeline = loaded(tmp_path / "m").parts()[0]
    with pytest.raises(SetupFailed, match="TRELLIS2_REMBG_DIR"):
        pipeline.remove_background(Image.new("RGB", (8, 8)))


def test_a_model_folder_must_be_named() -> None:
    with pytest.raises(SetupFailed, match="TRELLIS2_MODEL_DIR"):
        Trellis2Engine(Trellis2(), device="cpu").load(lambda *_: None)


def test_upstream_that_is_not_installed_is_named(small_checkpoint: Path) -> None:
    """In a process of its own, without the stand-in."""
    code = (
        "import sys; from pathlib import Path; "
        "from trellis_runtime.engines.trellis2 import Trellis2Engine; "
        "from trellis_runtime.settings import Trellis2; "
        f"Trellis2Engine(Trellis2(model_dir=Path({str(small_checkpoint)!r})), device='cpu')"
        ".load(lambda *_: None)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    if importlib.util.find_spec("trellis2") is None:
        assert b"SetupFailed: upstream's trellis2 is not installed" in done.stderr


def _written(text: str) -> list[str]:
    """Return commits of TRELLIS.2 that a text names: whole, or their first seven digits."""
    return re.findall(r"\b5565d24[0-9a-f]*\b", text)


@pytest.mark.parametrize(
    "path", ["builder/build_extensions.sh", "builder/architecture.py", "docs/benchmarks.json"]
)
def test_the_commit_that_others_name_is_the_one_constant(path: str) -> None:
    file = ROOT / path
    if not file.exists():
        return  # a file that is gone names nothing
    text = file.read_text()
    named = set(re.findall(r"TRELLIS2_COMMIT:-([0-9a-f]+)", text)) or set(_written(text))
    assert named
    assert all(interface.COMMIT.startswith(commit) for commit in named)


def test_the_packages_source_names_the_commit_in_one_place() -> None:
    """Docstrings may name its first digits; the constant alone is whole."""
    package = ROOT / "trellis_runtime"
    naming = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if interface.COMMIT in path.read_text()
    ]
    assert naming == ["engines/trellis2/upstream/interface.py"]
