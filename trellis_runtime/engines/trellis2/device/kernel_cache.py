"""One folder for compiled kernels and tuning results, kept from one process to the next.

Triton compiles, FlexGEMM tunes and Warp compiles in a fresh process's first job: about a minute on
an H200. Their results are kept under a key of everything that they depend on, so that a stale one
is never used; an image carries a seed for each card that it was tuned on.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

import torch

from trellis_runtime.logs import logger

_PACKAGES = ("torch", "triton", "flex_gemm", "o_voxel", "warp-lang")
_VARIABLES = {
    "TRITON_CACHE_DIR": "triton",
    "FLEX_GEMM_AUTOTUNE_CACHE_PATH": "flex_gemm.json",
    "WARP_CACHE_PATH": "warp",
}


def installed(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cache_key(card: str, capability: tuple[int, int]) -> str:
    """Return the folder's name for a card: readable, and different whenever a result would be."""
    found = installed(_PACKAGES)
    stated = " ".join(f"{name}-{found.get(name, 'none')}" for name in _PACKAGES)
    digest = hashlib.sha256(stated.encode()).hexdigest()[:12]
    plain = re.sub(r"[^A-Za-z0-9]+", "-", card).strip("-").lower()
    return f"{plain}-sm{capability[0]}{capability[1]}-{digest}"


def use_for_card(folder: Path, seed: Path | None) -> bool:
    """`activate` for the card at hand; returns whether there were results."""
    key = cache_key(torch.cuda.get_device_name(), torch.cuda.get_device_capability())
    return activate(folder, seed, key)


def activate(folder: Path, seed: Path | None, key: str) -> bool:
    """Point the libraries at `folder/key`, filled from `seed/key` where it is new.

    Must come before Triton, FlexGEMM and Warp are imported. Where this process may not write there
    (another user's worker filled the volume), it takes a copy of its own, which ends with the
    machine. Returns whether there were results.
    """
    place = folder / key
    if not _is_ours(place):
        own = Path(tempfile.mkdtemp(prefix="trellis2-kernels-")) / key
        logger().warning("kernel_cache_not_writable", folder=str(place), instead=str(own))
        if place.is_dir():
            _copy(place, own)
        place = own
    if seed is not None and not place.exists() and (seed / key).is_dir():
        _copy(seed / key, place)
    found = any(place.glob("*")) if place.is_dir() else False
    place.mkdir(parents=True, exist_ok=True)
    for variable, name in _VARIABLES.items():
        os.environ[variable] = str(place / name)  # noqa: TID251 - the libraries read it
    logger().info("kernel_cache", folder=str(place), found=found)
    return found


def _is_ours(place: Path) -> bool:
    """Whether results can be written into `place` and what is in it, which is made if need be."""
    nearest = next((p for p in (place, *place.parents) if p.exists()), place)
    inside = place.iterdir() if place.is_dir() else ()
    return nearest.is_dir() and all(os.access(p, os.W_OK) for p in (nearest, *inside))


def _copy(source: Path, target: Path) -> None:
    """Copy in one step: two workers may start on one network volume at once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    making = target.with_name(f"{target.name}.{uuid.uuid4().hex}")
    shutil.copytree(source, making)
    try:
        making.rename(target)
    except OSError:  # another worker was faster
        shutil.rmtree(making, ignore_errors=True)
