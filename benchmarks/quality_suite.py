"""Our bake beside upstream's `to_glb` on nine shapes: `python -m benchmarks.quality_suite`.

Both are measured by `trellis_runtime`'s own quality report, against the surface and voxels that go
in. Upstream runs where o_voxel, CuMesh and nvdiffrast are installed and there is a card; with
`--device cpu`, or without them, its column is null. A row is printed as it comes; the last line is
all of it as one JSON object, which `--out` keeps in a file too.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.aims import missed
from benchmarks.kept import KeptName, keep_mesh
from benchmarks.quality import best_device, from_asset, from_upstream, full_report, voxel_sampler
from benchmarks.shapes import SHAPES, Shape, cached_shape
from trellis_runtime.engines.trellis2.baking.decoded import Decoded
from trellis_runtime.engines.trellis2.baking.quality import Baked

_UPSTREAM = ("o_voxel", "cumesh", "nvdiffrast", "flex_gemm")
_LAYOUT = {
    "base_color": slice(0, 3),
    "metallic": slice(3, 4),
    "roughness": slice(4, 5),
    "alpha": slice(5, 6),
}
_WARM_UP = 96


@dataclass(frozen=True, slots=True)
class Wish:
    """What both sides are asked for."""

    faces: int
    texture: int
    device: str


Baker = Callable[[Decoded, Wish], tuple[Baked, str]]
"""Returns the asset and a digest of its bytes, to tell whether two bakes are the same."""


def ours(decoded: Decoded, wish: Wish) -> tuple[Baked, str]:
    """Bake with the worker's own code."""
    bake = importlib.import_module("trellis_runtime.engines.trellis2.baking.bake")
    options = bake.BakeOptions(decimation_target=wish.faces, texture_size=wish.texture)
    asset = bake.bake_surface(decoded, options, wish.device)
    arrays = (asset.vertices, asset.faces, asset.normals, asset.uvs, asset.base_color)
    return from_asset(asset, wish.device), _digest(*arrays, asset.metallic_roughness)


def upstream(decoded: Decoded, wish: Wish) -> tuple[Baked, str]:
    """Bake with upstream's `to_glb`, as its example calls it."""
    from benchmarks.upstream_side import bake_with_upstream

    mesh = SimpleNamespace(
        vertices=decoded.vertices.cuda(),
        faces=decoded.faces.cuda(),
        attrs=decoded.attributes.cuda(),
        coords=decoded.coords.cuda(),
        layout=_LAYOUT,
        voxel_size=1 / decoded.resolution,
    )
    made = bake_with_upstream(mesh, wish.faces, wish.texture)
    return from_upstream(made, wish.device), _digest(made.vertices, made.faces)


def _digest(*arrays: Any) -> str:
    whole = hashlib.sha256()
    for array in arrays:
        if array is not None:
            whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()[:16]


def bakers(device: str, *, with_upstream: bool = True) -> dict[str, Baker | None]:
    """Return both sides; upstream's is None where it cannot run."""
    there = all(importlib.util.find_spec(name) for name in _UPSTREAM)
    return {
        "ours": ours,
        "upstream": upstream if with_upstream and there and device == "cuda" else None,
    }


def decoded_of(shape: Shape) -> Decoded:
    """Return a shape as what our bake takes."""
    return Decoded(
        torch.from_numpy(shape.vertices),
        torch.from_numpy(shape.faces),
        torch.from_numpy(shape.coords),
        torch.from_numpy(shape.attributes),
        shape.resolution,
    )


def rows(
    shapes: list[Shape],
    sides: dict[str, Baker | None],
    wish: Wish,
    bakes: int,
    keep: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield one row a shape.

    bakes: how often ours is baked, to see whether bytes differ. keep: folder for what was baked.
    """
    for shape in shapes:
        decoded = decoded_of(shape)
        row: dict[str, Any] = {
            "case": f"{shape.name} {shape.resolution}",
            "closed": shape.closed,
            "faces_decoded": len(shape.faces),
        }
        for name, baker in sides.items():
            times = bakes if name == "ours" else 1
            kept = KeptName(shape.name, shape.resolution, name)
            path = None if keep is None else kept.path(keep)
            row[name] = None if baker is None else _side(decoded, baker, wish, times, path)
        yield row


def _side(
    decoded: Decoded, baker: Baker, wish: Wish, times: int, keep: Path | None
) -> dict[str, Any]:
    """Bake `times` times; the report is the last one's, the seconds are the fastest's."""
    seconds, digests = [], set()
    peak, baked = 0, None
    try:
        for _ in range(times):
            baked = None
            before = _reset_peak(wish.device)
            started = time.perf_counter()
            baked, digest = baker(decoded, wish)
            _wait(wish.device)
            seconds.append(time.perf_counter() - started)
            digests.add(digest)
            peak = _peak(wish.device) - before
        assert baked is not None
        lookup = voxel_sampler(decoded, wish.device)
        report = full_report(baked, lookup, wish.faces)
        if keep is not None:
            keep_mesh(baked, keep)
    except Exception as err:  # noqa: BLE001 - a side that fails is a result, not the suite's end
        return {"error": f"{type(err).__name__}: {str(err)[:200]}"}
    return report | {
        "seconds": round(min(seconds), 3),
        "peak_mib": peak >> 20,
        "bakes": times,
        "different": len(digests),
        "manifold3d": _manifold(baked),
    }


def _manifold(baked: Baked) -> str | None:
    """Return what manifold3d says of the welded mesh; None where it is not installed."""
    if importlib.util.find_spec("manifold3d") is None:
        return None
    manifold3d = importlib.import_module("manifold3d")
    low = baked.vertices.amin(0)
    cell = float((baked.vertices.amax(0) - low).amax()) * 1e-6
    keys = ((baked.vertices - low).double() / cell).round().long()
    found, welded = keys.unique(dim=0, return_inverse=True)  # type: ignore[no-untyped-call]
    faces = welded[baked.faces.long()]
    faces = faces[(faces != faces.roll(1, 1)).all(1)]
    places = (found.double() * cell + low).float().cpu().numpy()
    mesh = manifold3d.Mesh(places, faces.cpu().numpy().astype(np.uint32))
    return str(manifold3d.Manifold(mesh).status()).rpartition(".")[2]


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _reset_peak(device: str) -> int:
    if device != "cuda":
        return 0
    _wait(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _peak(device: str) -> int:
    """Return torch's peak; what Warp and CuMesh allocate beside it is not in it."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else 0


def summary(found: list[dict[str, Any]], wish: Wish) -> dict[str, Any]:
    """Return the suite as `docs/benchmarks.json` has it."""
    card = torch.cuda.get_device_name() if wish.device == "cuda" else "cpu"
    gains = [
        row["ours"]["psnr_db"] - row["upstream"]["psnr_db"]
        for row in found
        if all(row[side] and row[side].get("psnr_db") is not None for side in ("ours", "upstream"))
    ]
    return {
        "suite": "quality",
        "date": time.strftime("%Y-%m-%d"),
        "card": card,
        "asked": {"faces": wish.faces, "texture": wish.texture},
        "psnr_gain_db": round(float(np.mean(gains)), 2) if gains else None,
        "rows": found,
    }


def _shapes(names: list[str], resolutions: list[int], cache: Path) -> Iterator[Shape]:
    for resolution in resolutions:
        for name in names:
            yield cached_shape(cache, name, resolution, pricks=12, jitter=0.02)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--resolutions", nargs="*", type=int, default=[512, 1024])
    parser.add_argument("--faces", type=int, default=200_000)
    parser.add_argument("--texture", type=int, default=2048)
    parser.add_argument("--device", default=best_device(), choices=["cpu", "cuda"])
    parser.add_argument("--bakes", type=int, default=2, help="of ours, to see if bytes differ")
    parser.add_argument("--no-upstream", action="store_true")
    parser.add_argument("--cache", type=Path, default=Path("shapes"), help="folder for shapes")
    parser.add_argument("--out", type=Path, help="file for the JSON object")
    parser.add_argument("--keep", type=Path, help="folder for the meshes, to draw pictures of them")
    parser.add_argument(
        "--require",
        action="store_true",
        help="fail where ours misses what quality.md promises",
    )
    return parser.parse_args()


def _held(found: list[dict[str, Any]]) -> None:
    """Raise `SystemExit` with a sentence for each aim that is missed."""
    if told := [line for row in found for line in missed(row)]:
        raise SystemExit("\n".join(told))


def main() -> None:
    """Run the suite."""
    asked = _arguments()
    wish = Wish(asked.faces, asked.texture, asked.device)
    sides = bakers(asked.device, with_upstream=not asked.no_upstream)
    warm = [cached_shape(asked.cache, "closed_smooth", _WARM_UP)]
    for _ in rows(warm, sides, Wish(5000, 512, asked.device), 1):
        pass  # kernels are compiled, libraries loaded
    found: list[dict[str, Any]] = []
    for shape in _shapes(asked.shapes, asked.resolutions, asked.cache):
        for row in rows([shape], sides, wish, asked.bakes, asked.keep):
            found.append(row)
            print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
            if asked.out:
                asked.out.write_text(json.dumps(summary(found, wish), indent=1))
    print(json.dumps(summary(found, wish)))
    if asked.require:
        _held(found)


if __name__ == "__main__":
    main()
