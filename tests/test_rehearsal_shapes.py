"""What a rehearsal decodes: two smooth surfaces, many layers, or thousands of open sheets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh

from tests.conftest import AMPLE
from tests.upstream_record import CALLS, calls
from trellis_runtime.engines.trellis2.upstream.rehearsal_shapes import SHAPES, mesh_of


def loops(mesh: trimesh.Trimesh) -> int:
    """Count the boundary loops of a mesh."""
    edges = np.sort(mesh.edges, axis=1)
    found, counts = np.unique(edges, axis=0, return_counts=True)
    border = found[counts == 1]
    return len(trimesh.graph.connected_components(border)) if len(border) else 0


@pytest.mark.parametrize(
    ("name", "parts", "holes"), [("smooth", 2, 0), ("nested", 7, 0), ("plant", 2624, 2600)]
)
def test_each_shape_has_the_layers_and_the_holes_that_it_is_for(
    name: str, parts: int, holes: int
) -> None:
    vertices, faces = mesh_of(name)
    assert np.abs(vertices).max() < 0.5
    assert (faces.min(), faces.max()) == (0, len(vertices) - 1)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert mesh.body_count == parts
    assert loops(mesh) == holes
    again = mesh_of(name)
    assert np.array_equal(vertices, again[0])
    assert np.array_equal(faces, again[1])


def test_dense_shapes_touch_more_cells_than_the_smooth_one() -> None:
    """Counted as tokens are, on a grid of 64; the models were trained on at most 32,768."""

    def tokens(name: str) -> int:
        mesh = trimesh.Trimesh(*mesh_of(name), process=False)
        points, _ = trimesh.sample.sample_surface_even(mesh, 300_000, seed=1)
        return len(np.unique(((points + 0.5) * 64).astype(int), axis=0))

    smooth, nested, plant = (tokens(name) for name in SHAPES)
    assert 2 * smooth < nested < 32_768
    assert 2 * smooth < plant < 32_768


def test_a_rehearsal_voxelises_the_shape_that_is_asked_for_and_may_change_it(
    stand_in: None, small_checkpoint: Path
) -> None:
    from trellis_runtime.engines.trellis2 import Trellis2Engine
    from trellis_runtime.engines.trellis2.upstream.rehearsal import shape_of
    from trellis_runtime.errors import SetupFailed
    from trellis_runtime.settings import Trellis2

    CALLS.clear()
    settings = Trellis2(model_dir=small_checkpoint, rehearsal=True, rehearsal_shape="plant")
    engine = Trellis2Engine(settings, device="cpu", room=AMPLE)
    engine.load(lambda *_: None)
    assert {call["faces"] for call in calls("voxelize")} == {len(mesh_of("plant")[1])}
    shape = shape_of(engine.parts()[0])
    CALLS.clear()
    shape.become("nested")
    assert {call["faces"] for call in calls("voxelize")} == {len(mesh_of("nested")[1])}
    shape.use(1408)  # what a cascade lowers 1536 to, where a dense shape has too many tokens
    assert calls("voxelize")[-1]["grid_size"] == shape.resolution == 1408
    plain = Trellis2Engine(Trellis2(model_dir=small_checkpoint), device="cpu", room=AMPLE)
    plain.load(lambda *_: None)
    with pytest.raises(SetupFailed, match="TRELLIS2_REHEARSAL"):
        shape_of(plain.parts()[0])


def test_speed_jobs_and_memory_run_on_every_shape_and_the_others_on_one() -> None:
    from benchmarks.gpu import SUITES, runs

    planned = runs(SUITES, list(SHAPES))
    for suite in ("speed", "jobs", "memory"):
        assert [shape for name, shape in planned if name == suite] == ["smooth", "nested", "plant"]
    assert ("lossless", "smooth") in planned
    assert len(planned) == 11
