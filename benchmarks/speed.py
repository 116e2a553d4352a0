"""Suite `speed`: upstream and ours, one after the other in one process on the same models.

Long because each kind of row says beside its timing what the outputs are compared with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import busy, quality
from benchmarks.common import Bench, decoded_from, plan_for
from benchmarks.upstream_side import image_to_mesh, mesh_to_glb, stage_seconds, upstream_as_it_is
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import ENGINE_STAGES, Stage
from trellis_runtime.engines.trellis2.baking.bake import bake
from trellis_runtime.engines.trellis2.models.graphs import CudaCapturer, PassGraphs
from trellis_runtime.engines.trellis2.upstream.adapter import Rows, sampler_parameters
from trellis_runtime.engines.trellis2.upstream.flows import FastFlow
from trellis_runtime.worker.export import export

# Floating-point operations of a forward pass per token: 2 x the weights that it meets, and 4 x C
# for each token of its own sequence and of the picture's (FlashAttention paper's count).
_BLOCKS, _CHANNELS, _CONTEXT = 30, 1536, 1024
_WEIGHTS_PER_BLOCK = 39.3e6


def ceilings() -> dict[str, float]:
    """Measure what this card reaches: a bf16 product in TFLOP/s, a copy in TB/s."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = 2 * 8192**3 / _seconds(lambda: a @ b) / 1e12
    source = torch.empty(2**32, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = 2 * 2**32 / _seconds(lambda: target.copy_(source)) / 1e12
    return {"bf16_tflops": round(product, 1), "copy_tb_s": round(copy, 3)}


def flow_rows(bench: Bench, tflops: float) -> Iterator[dict[str, Any]]:
    """Compare one forward pass of a flow model, with and without a condition."""
    pipeline, residency, _ = bench.engine.parts()
    name = "shape_slat_flow_model_1024"
    residency.place(name)
    model: Any = pipeline.modules[name]
    fast = FastFlow(model)
    for tokens, length, side in ((2632, 1029, 32), (10622, 4101, 64), (23904, 4101, 96)):
        x = _random_tokens(pipeline, tokens, side)
        time_at = torch.tensor([700.0], device="cuda")
        cond = torch.randn(1, length, _CONTEXT, device="cuda")
        for kind, context in (("guided", cond), ("unconditional", torch.zeros_like(cond))):
            with torch.no_grad():
                theirs = model(x, time_at, context).feats
                with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
                    again = model(x, time_at, context).feats
                ours = fast(x, time_at, context).feats
                upstream_s = _seconds(partial(model, x, time_at, context))
                ours_s = _seconds(partial(fast, x, time_at, context))
                replayed = _replayed(fast, partial(fast, x, time_at, context), ours)
            work = _work(tokens, length if kind == "guided" else 0)
            yield {
                "case": f"flow pass, {tokens} tokens, {kind}",
                "upstream_s": round(upstream_s, 5),
                "ours_s": round(ours_s, 5),
                "ratio": round(upstream_s / ours_s, 2),
                "share_of_ceiling": round(work / ours_s / 1e12 / tflops, 3),
                "difference": _differences(theirs, again, ours),
                **replayed,
            }
        fast.clear_cache()


def _replayed(fast: FastFlow, call: Callable[[], Any], ours: Tensor) -> dict[str, Any]:
    """Time a pass as the worker replays it with TRELLIS2_GRAPHS; None where it captures none."""
    fast.use_graphs(graphs := PassGraphs(CudaCapturer()))
    try:
        outputs = [call().feats for _ in range(4)]
        seconds = _seconds(call) if graphs.captured else None
    finally:
        fast.use_graphs(None)
    return {
        "replayed_s": None if seconds is None else round(seconds, 5),
        "replayed_same_bits": all(torch.equal(made, ours) for made in outputs),
        "graph_mib": graphs.bytes >> 20,
    }


def sampling_rows(bench: Bench, resolutions: list[int]) -> Iterator[dict[str, Any]]:
    """Compare whole samplings from one seed: ours with upstream's, and upstream's with itself.

    Upstream runs twice, on two of torch's attention kernels: what bf16 alone makes of a sampling,
    with the same weights and the same code.
    """
    pipeline, residency, _ = bench.engine.parts()
    for resolution in resolutions:
        _, generation = run_stages(bench, resolution)
        for name, sample in _samplings(generation, pipeline, resolution):
            residency.place(name)
            case = f"{resolution} whole sampling, {name}"
            yield _compared_samplings(case, sample, pipeline.modules[name], pipeline.flows[name])
        generation.close()


def _samplings(
    generation: Any, pipeline: Any, resolution: int
) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """Yield a flow model's name and its sampling, which takes the model."""
    inner = pipeline.trellis
    samplers, made = plan_for(resolution).samplers, generation.products
    size = min(resolution, 1024)
    features = made.features[size].cuda()
    cond = {"cond": features, "neg_cond": torch.zeros_like(features)}
    if resolution == 512:
        parameters, coords = sampler_parameters(samplers.shape), made.structure.cuda()
        name = "shape_slat_flow_model_512"
        yield name, lambda model: inner.sample_shape_slat(cond, model, coords, parameters)
    shape = pipeline.sparse(made.shape.rows)
    parameters = sampler_parameters(samplers.texture)
    name = f"tex_slat_flow_model_{size}"
    yield name, lambda model: inner.sample_tex_slat(cond, model, shape, parameters)


def _compared_samplings(
    case: str, sample: Callable[[Any], Any], module: Any, fast: Any
) -> dict[str, Any]:
    def run(model: Any) -> tuple[Tensor, float]:
        torch.manual_seed(1)
        torch.cuda.synchronize()
        started = time.perf_counter()
        with torch.no_grad():
            feats: Tensor = sample(model).feats
        torch.cuda.synchronize()
        return feats.float(), time.perf_counter() - started

    theirs, upstream_s = run(module)
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        again, _ = run(module)
    ours, ours_s = run(fast)
    return _row(case, upstream_s, ours_s, _differences(theirs, again, ours))


def _differences(theirs: Tensor, again: Tensor, ours: Tensor) -> str:
    """Tell how far ours, and upstream's `again` on other attention kernels, are from upstream's."""
    return (
        f"relative error {_relative(ours, theirs):.1e}; upstream on other attention kernels "
        f"{_relative(again, theirs):.1e}"
    )


def mesh_rows(bench: Bench, resolution: int, keep: dict[int, Any]) -> Iterator[dict[str, Any]]:
    """Compare image to mesh, stage by stage; leaves upstream's mesh in `keep`."""
    with upstream_as_it_is(bench.engine, low_vram=False) as inner:
        if bench.warm:
            image_to_mesh(inner, bench.picture, resolution)
        mesh, theirs = image_to_mesh(inner, bench.picture, resolution)
    keep[resolution] = mesh
    if bench.warm:
        run_stages(bench, resolution)[1].close()
    (_, profiled), busy_s, _ = busy.measure(lambda: run_stages(bench, resolution))
    profiled.close()
    ours, generation = run_stages(bench, resolution)
    decoded = generation.products.decoded  # the benchmark reads what the next stage would
    counts = (
        f"faces {len(mesh.faces)} and {len(decoded.faces)}, "
        f"voxels {len(mesh.coords)} and {len(decoded.coords)}"
    )
    generation.close()
    for stage in ("condition", "structure", "shape", "texture", "decode"):
        yield _row(
            f"{resolution} {stage}", theirs.get(stage), ours[stage], "", busy_s=busy_s.get(stage)
        )
    yield _row(
        f"{resolution} image to mesh",
        theirs["image to mesh"],
        sum(ours.values()),
        counts,
        busy_s=sum(busy_s.values()),
    )


def run_stages(bench: Bench, resolution: int) -> tuple[dict[str, float], Any]:
    """Run our stages up to decode; returns seconds and the generation, still open."""
    scope = JobScope("bench")
    generation = bench.engine.begin(bench.image, plan := plan_for(resolution))
    for stage in ENGINE_STAGES[: ENGINE_STAGES.index(Stage.BAKE)]:
        with scope.stage(stage), busy.mark(stage):
            generation.run(stage, plan, scope)
    return dict(scope.timings), generation


def glb_rows(mesh: Any, resolution: int, target: int, texture: int) -> Iterator[dict[str, Any]]:
    """Compare mesh to GLB on upstream's mesh, with the quality of both."""
    import cumesh

    names = {"uv_unwrap": "of it unwrap", "simplify": "of it simplify"}
    case = f"{resolution} mesh to GLB, {target // 1000}k faces, texture {texture}"
    with stage_seconds(cumesh.CuMesh, names) as parts:
        made, data, theirs = mesh_to_glb(mesh, target, texture)
    decoded = decoded_from(mesh, resolution)
    plan = plan_for(resolution, decimation_target=target, texture_size=texture)
    _, busy_s, _ = busy.measure(lambda: our_glb(decoded, plan))
    asset, encoded, ours, inner = our_glb(decoded, plan)
    sampler = quality.voxel_sampler(decoded)
    first, second = quality.from_upstream(made), quality.from_asset(asset)
    yield _row(
        f"{case}: bake", theirs["bake"], ours["bake"], f"{parts} / {inner}", busy_s=busy_s["bake"]
    )
    yield _row(
        f"{case}: export",
        theirs["export"],
        ours["export"],
        f"{len(data) / 1e6:.1f} MB and {len(encoded) / 1e6:.1f} MB",
    )
    yield _row(
        case,
        sum(theirs.values()),
        sum(ours.values()),
        f"upstream {quality.report(first, sampler)}; ours "
        f"{quality.report(second, sampler)}; faces {len(first.faces)} and "
        f"{len(second.faces)}; Chamfer {quality.chamfer(first, second):.1e}",
    )


def our_glb(decoded: Any, plan: Any) -> tuple[Any, bytes, dict[str, float], dict[str, float]]:
    """Bake and export as the worker does; returns seconds, and those of the bake's parts."""
    scope = JobScope("bench", settle=torch.cuda.synchronize)
    with scope.stage(Stage.BAKE), busy.mark(Stage.BAKE), torch.no_grad():
        asset = bake(decoded, plan, scope, "cuda")
        torch.cuda.synchronize()
    with scope.stage(Stage.EXPORT):
        exported = export(asset, "webp", {})
    inner = {name: round(seconds, 2) for name, seconds in scope.parts.items()}
    return asset, exported.glb.data, dict(scope.timings), inner


def _row(
    case: str,
    upstream_s: float | None,
    ours_s: float,
    difference: str,
    busy_s: float | None = None,
) -> dict[str, Any]:
    measured = {} if busy_s is None else {"busy_s": round(busy_s, 3)}
    return {
        "case": case,
        "upstream_s": None if upstream_s is None else round(upstream_s, 3),
        "ours_s": round(ours_s, 3),
        "ratio": None if upstream_s is None else round(upstream_s / ours_s, 2),
        "share_of_ceiling": None,
        "difference": difference,
        **measured,
        **({"wall_over_busy": busy.ratio(ours_s, busy_s)} if measured else {}),
    }


def _work(tokens: int, context: int) -> float:
    attention = 4 * tokens * (tokens + context) * _CHANNELS
    return _BLOCKS * (2 * _WEIGHTS_PER_BLOCK * tokens + attention)


def _random_tokens(pipeline: Any, tokens: int, side: int) -> Any:
    cells = torch.randperm(side**3, device="cuda")[:tokens].sort().values
    parts = [cells * 0, cells // side // side, cells // side % side, cells % side]
    feats = torch.randn(tokens, 32, device="cuda")
    return pipeline.sparse(Rows(feats, torch.stack(parts, 1).int()))


def _seconds(call: Any, runs: int = 5) -> float:
    """Return the median of `runs`, after two to warm up, by the device's own clock."""
    measured = []
    for number in range(runs + 2):
        start, end = (_event() for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        if number >= 2:
            measured.append(start.elapsed_time(end) / 1000)
    return sorted(measured)[runs // 2]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def run(bench: Bench, resolutions: list[int], glbs: list[tuple[int, int, int]]) -> None:
    """Run the suite; each row is shown and kept as soon as it is there."""
    measured = ceilings()
    bench.note("ceilings", measured)
    bench.add(flow_rows(bench, measured["bf16_tflops"]))
    meshes: dict[int, Any] = {}
    for resolution in resolutions:
        bench.add(mesh_rows(bench, resolution, meshes))
    bench.add(sampling_rows(bench, [r for r in resolutions if r <= 1024]))
    for resolution, target, texture in glbs:
        started = time.perf_counter()
        bench.add(glb_rows(meshes[resolution], resolution, target, texture))
        bench.note("took", {"seconds": round(time.perf_counter() - started, 1)})
