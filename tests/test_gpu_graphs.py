"""The bookkeeping of captured passes, on a stand-in for capture and replay that runs on the CPU.

Like a CUDA graph, a captured pass here reads the places that it was captured with, and writes one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.test_gpu_flow import CONTEXT, IN, Model, Sparse
from trellis_runtime.engines.trellis2.models import graphs
from trellis_runtime.engines.trellis2.models.graphs import Compute, Inputs, PassGraphs, PassKey
from trellis_runtime.engines.trellis2.upstream.flows import FastFlow

BYTES = 1000


class Recorded:
    """A pass that is computed again at each replay, from the inputs' places alone."""

    def __init__(self, recorder: Recorder, compute: Compute, inputs: Inputs) -> None:
        self._recorder, self._compute, self._inputs = recorder, compute, inputs
        self.output = compute(inputs)

    def replay(self) -> None:
        self._recorder.replays += 1
        self.output.copy_(self._compute(self._inputs))


class Recorder:
    """Captures nothing; counts."""

    def __init__(self, share: float = 1.0, *, fails: bool = False) -> None:
        self.share, self.fails = share, fails
        self.captures = self.replays = self.held = 0

    def capture(self, compute: Compute, inputs: Inputs) -> Recorded:
        self.captures += 1
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.held += BYTES
        return Recorded(self, compute, inputs)

    def issuing_share(self, call: Callable[[], Tensor]) -> tuple[Tensor, float]:
        return call(), self.share

    def held_bytes(self) -> int:
        return self.held


class Job:
    """Passes of one model over a job's own tensors."""

    def __init__(self, fast: FastFlow, tokens: int, seed: int) -> None:
        made = torch.Generator().manual_seed(seed)
        self.fast = fast
        self.coords = torch.randint(0, 32, (tokens, 4), generator=made)
        self.cond = torch.randn(1, 9, CONTEXT, generator=made).double()
        self.neg = torch.zeros_like(self.cond)
        self.rows = [torch.randn(tokens, IN, generator=made).double() for _ in range(6)]

    def run(self) -> list[Tensor]:
        out = []
        for number, rows in enumerate(self.rows):
            for cond in (self.cond, self.neg):
                t = torch.tensor([900.0 - 100 * number]).double()
                out.append(self.fast(Sparse(rows, self.coords), t, cond).feats)
        self.fast.clear_cache()
        return out


@pytest.fixture
def model() -> Any:
    torch.manual_seed(3)
    return Model().double().requires_grad_(False)


def with_graphs(model: Any, recorder: Recorder) -> tuple[FastFlow, PassGraphs]:
    fast, captured = FastFlow(model), PassGraphs(recorder)
    fast.use_graphs(captured)
    return fast, captured


def require_same(made: list[Tensor], wanted: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(made, wanted, strict=True))


def test_replayed_passes_give_the_same_bits_and_are_captured_once_a_job(model: Any) -> None:
    recorder = Recorder()
    fast, captured = with_graphs(model, recorder)
    for job, (tokens, seed) in enumerate([(40, 1), (40, 2), (25, 3)], 1):
        require_same(Job(fast, tokens, seed).run(), Job(FastFlow(model), tokens, seed).run())
        assert recorder.captures == 2 * job  # guided and not
        assert recorder.replays == job * 2 * (6 - 2)
        assert captured.captured == captured.bytes == 0  # this job's shapes went with it


def test_a_device_that_is_kept_busy_needs_no_graphs(model: Any) -> None:
    recorder = Recorder(share=0.5)
    fast, _ = with_graphs(model, recorder)
    require_same(Job(fast, 40, 1).run(), Job(FastFlow(model), 40, 1).run())
    assert recorder.captures == 0


def test_a_capture_that_fails_is_not_tried_again(model: Any) -> None:
    recorder = Recorder(fails=True)
    fast, captured = with_graphs(model, recorder)
    require_same(Job(fast, 40, 1).run(), Job(FastFlow(model), 40, 1).run())
    assert recorder.captures == 2
    assert captured.bytes == 0


def test_the_dense_models_passes_last_and_follow_the_picture() -> None:
    torch.manual_seed(3)
    side, recorder = 3, Recorder()
    dense: Any = Model(side).double().requires_grad_(False)
    fast, captured = with_graphs(dense, recorder)
    plain = FastFlow(dense)
    for _job in range(3):
        cond = torch.randn(1, 7, CONTEXT).double()
        for step in range(4):
            x, t = torch.randn(1, IN, side, side, side).double(), torch.tensor([10.0 * step])
            assert torch.equal(fast(x, t.double(), cond), plain(x, t.double(), cond))
        fast.clear_cache()
        plain.clear_cache()
    assert recorder.captures == 1
    assert captured.captured == 1
    assert captured.bytes == BYTES
    captured.drop()
    assert captured.bytes == 0


def test_weights_that_were_moved_are_captured_anew() -> None:
    torch.manual_seed(3)
    side, recorder = 3, Recorder()
    dense: Any = Model(side).double().requires_grad_(False)
    fast, _ = with_graphs(dense, recorder)
    x, t = torch.randn(1, IN, side, side, side).double(), torch.tensor([10.0]).double()
    cond = torch.randn(1, 7, CONTEXT).double()
    for _ in range(4):
        fast(x, t, cond)
    gate = dense.blocks[1].mlp.mlp[2].weight
    gate.data = gate.data * 2  # elsewhere, and another value
    assert torch.equal(fast(x, t, cond), FastFlow(dense)(x, t, cond))
    assert recorder.captures == 2


def test_another_picture_of_the_same_size_is_not_given_the_first_ones_context(model: Any) -> None:
    fast, _ = with_graphs(model, Recorder())
    job, other = Job(fast, 40, 1), Job(fast, 40, 2)
    other.coords = job.coords  # so that nothing but the context differs
    t = torch.tensor([5.0]).double()
    for one in (job, job, job, job, other, job, other):
        made = fast(Sparse(one.rows[0], one.coords), t, one.cond).feats
        plain = FastFlow(model)(Sparse(one.rows[0], one.coords), t, one.cond).feats
        assert torch.equal(made, plain)


def test_passes_differ_by_model_shape_and_dtype() -> None:
    rows = torch.zeros(3, 2)
    first = PassKey.of(self := object(), (rows,))
    assert first == PassKey.of(self, (rows.clone(),))
    for other in (PassKey.of(object(), (rows,)), PassKey.of(self, (rows[:2],))):
        assert first != other
    assert first != PassKey.of(self, (rows.double(),))


def test_graphs_are_off_unless_wished_and_on_a_card() -> None:
    assert graphs.for_device("cpu", wished=True) is None
    assert graphs.for_device("cuda", wished=False) is None
    assert graphs.for_device("cuda", wished=True) is not None


def test_a_pool_is_shared_while_a_graph_lives_and_never_taken_up_again() -> None:
    """torch refuses the pool of graphs that are gone, by an assertion of its own."""

    class Graph:
        def __init__(self, pool: Any) -> None:
            self.output, self.pool = torch.zeros(1), pool

        def replay(self) -> None:
            pass

    pools = iter(range(9))
    capturer = graphs.CudaCapturer(lambda _c, _i, pool: Graph(pool), lambda: next(pools))
    first, second = (capturer.capture(lambda t: t[0], ()) for _ in range(2))
    assert first.pool == second.pool == 0  # type: ignore[attr-defined]
    del first
    assert capturer.capture(lambda t: t[0], ()).pool == 0  # type: ignore[attr-defined]
    del second
    assert capturer.capture(lambda t: t[0], ()).pool == 1  # type: ignore[attr-defined]


def test_a_job_with_graphs_decodes_the_same_and_memory_gets_them_back(
    small_checkpoint: Path, stand_in: None
) -> None:
    from tests.conftest import AMPLE
    from tests.test_joints_engine import MUG, TO_DECODE
    from tests.test_joints_in_flight import FIRST, AtStep, job, out_of_memory
    from trellis_runtime.contract.scope import JobScope
    from trellis_runtime.contract.stages import Stage
    from trellis_runtime.engines.trellis2 import Trellis2Engine
    from trellis_runtime.settings import Trellis2

    engine = Trellis2Engine(Trellis2(model_dir=small_checkpoint), device="cpu", room=AMPLE)
    engine.load(lambda _phase, _seconds: None)
    wanted = job(engine, FIRST)
    recorder = Recorder()
    engine.use_graphs(PassGraphs(recorder))
    # The texture runs out of memory once its passes are captured: they go, and it is repeated.
    act = AtStep(Stage.TEXTURE, 4, out_of_memory)
    scope, generation = JobScope("x", progress=act), engine.begin(MUG, FIRST)
    for stage in TO_DECODE:
        with scope.stage(stage):
            generation.run(stage, FIRST, scope)
    made: Any = generation.products.decoded
    generation.close()
    assert act.done.is_set()
    assert recorder.captures == 3  # shape, guided and not, and texture: none in the repetition
    assert torch.equal(made.vertices, wanted.vertices)
    assert torch.equal(made.attributes, wanted.attributes)
