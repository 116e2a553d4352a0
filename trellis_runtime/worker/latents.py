"""What was sampled, kept for a later job, and taken up again by it.

keep      arrays ─► latents.npz; seed, request, versions, rungs, SHA-256 ─► latents.json
open_kept latents.json ─► there? in time? of this engine and these versions? ─► the merged request
read      latents.npz ─► as it was written? ─► arrays for `Engine.resume`

Neither the picture nor an address is kept, and nothing that is read is run.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError

from trellis_runtime import __version__
from trellis_runtime.assets.arrays import pack, unpack
from trellis_runtime.contract.answer import EngineInfo, Kept
from trellis_runtime.contract.engine import Latents
from trellis_runtime.contract.ladder import RUNGS
from trellis_runtime.contract.latents import LAYOUT, KeptFacts
from trellis_runtime.contract.request import GenerationRequest, parse_request
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.delivery.choose import Delivery
from trellis_runtime.delivery.latents import LARGEST_BYTES, Found, LatentsStore
from trellis_runtime.errors import (
    InvalidInput,
    LatentsDamaged,
    LatentsExpired,
    LatentsForeign,
    LatentsGone,
    StorageFailed,
)
from trellis_runtime.worker.making import Given, Made

_NOT_KEPT = {"image", "image_url", "output", "finish_of", "seeds", "variants", "keep"}
_SAMPLING_RUNGS = {rung.name: rung.level for rung in RUNGS if rung.restarts_at is not None}


@dataclass(frozen=True, slots=True)
class Opened:
    """Latents that may be finished here: the request that says how, and where the arrays lie."""

    request: GenerationRequest
    facts: KeptFacts
    store: LatentsStore


def require_keepable(request: GenerationRequest, delivery: Delivery) -> None:
    """Raise `InvalidInput` where latents are to be kept by a worker that keeps none."""
    if request.keep is not None and delivery.limits.keep_hours == 0:
        raise InvalidInput(
            f"keep is {request.keep!r}; this worker keeps nothing (TRELLIS2_KEEP_HOURS=0)",
            field="keep",
        )


def keep(
    made: Made, latents: Latents, given: Given, info: EngineInfo, delivery: Delivery,
    store: LatentsStore, scope: JobScope,
) -> Kept:  # fmt: skip
    """Put what `made` was baked from into `store`; raises `StorageFailed`."""
    data = pack(latents.arrays)
    if len(data) > LARGEST_BYTES:
        raise StorageFailed(
            f"the latents have {len(data)} bytes; at most {LARGEST_BYTES} are kept", retryable=False
        )
    now = datetime.now(UTC).replace(microsecond=0)
    expires = now + timedelta(hours=delivery.limits.keep_hours)
    facts = KeptFacts(
        engine=info.name,
        synthetic=info.synthetic,
        versions=dict(info.versions),
        worker_version=__version__,
        seed=made.descent.requested.seed,
        request=given.request.model_dump(mode="json", exclude=_NOT_KEPT),
        rungs=made.descent.sampled_with,
        effective={**made.descent.plan.quality(), **made.asset.effective},
        input_sha256=given.sha256,
        facts=dict(latents.facts),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        created_at=now.isoformat(),
        expires_at=expires.isoformat(),
    )
    store.put(facts.model_dump_json().encode(), data, expires, scope)
    return Kept(
        id=delivery.kept_id,
        place=store.place,
        bytes=facts.bytes,
        sha256=facts.sha256,
        expires_at=facts.expires_at,
    )


def open_kept(
    request: GenerationRequest, kept_id: str, info: EngineInfo, delivery: Delivery, scope: JobScope
) -> Opened:
    """Return the latents called `kept_id`, for `request`; the arrays are not read yet.

    Raises `LatentsGone`, `LatentsExpired`, `LatentsForeign`, `LatentsDamaged`, or `InvalidInput`
    where they were sampled at a level that the request does not accept.
    """
    store = delivery.latents(kept_id)
    found = store.facts(scope)
    if found is None:
        raise LatentsGone(
            f"nothing is kept of the job {kept_id!r} in this worker's {store.place}",
            field="finish_of",
        )
    facts = _facts(found.data)
    _require_in_time(facts, found)
    _require_ours(facts, info)
    merged = request.finishing(_first_request(facts))
    level = max((_SAMPLING_RUNGS[name] for name in facts.rungs), default=0)
    if level > merged.max_degradation_level:
        raise InvalidInput(
            f"max_degradation_level is {merged.max_degradation_level}; these latents were sampled "
            f"at level {level}",
            field="max_degradation_level",
        )
    return Opened(merged, facts, store)


def read(opened: Opened, scope: JobScope) -> Latents:
    """Return the arrays; raises `LatentsGone`, `LatentsExpired` or `LatentsDamaged`."""
    found = opened.store.arrays(scope)
    if found is None:
        raise LatentsGone("latents.npz is gone, and latents.json is there", field="finish_of")
    _require_in_time(opened.facts, found)
    if hashlib.sha256(found.data).hexdigest() != opened.facts.sha256:
        raise LatentsDamaged(
            f"latents.npz is not the one that was kept, by its SHA-256 ({len(found.data)} bytes; "
            f"{opened.facts.bytes} were kept)",
            field="finish_of",
        )
    try:
        return Latents(unpack(found.data), opened.facts.facts)
    except ValueError as err:
        raise LatentsDamaged(f"latents.npz cannot be read: {err}", field="finish_of") from None


def _facts(data: bytes) -> KeptFacts:
    try:
        told: Any = json.loads(data)
        layout = told.get("layout") if isinstance(told, dict) else None
        if isinstance(layout, int) and layout != LAYOUT:
            raise LatentsForeign(
                f"the latents are kept in layout {layout}; this worker reads {LAYOUT}",
                field="finish_of",
            )
        return KeptFacts.model_validate_json(data)
    except (ValueError, RecursionError):  # pydantic's own is a ValueError
        raise LatentsDamaged("latents.json cannot be read", field="finish_of") from None


def _require_in_time(facts: KeptFacts, found: Found) -> None:
    try:
        ends = datetime.fromisoformat(facts.expires_at)
        ends = ends if found.expires is None else min(ends, found.expires)
        over = datetime.now(UTC) >= ends
    except (ValueError, TypeError):
        raise LatentsDamaged("latents.json has no usable expires_at", field="finish_of") from None
    if over:
        raise LatentsExpired(
            f"these latents were kept until {ends.isoformat(timespec='seconds')}",
            field="finish_of",
        )


def _require_ours(facts: KeptFacts, info: EngineInfo) -> None:
    def described(engine: str, synthetic: bool, worker: str, versions: Any) -> dict[str, str]:
        name = f"{engine}, synthetic" if synthetic else engine
        return {"engine": name, "worker": worker, **versions}

    theirs = described(facts.engine, facts.synthetic, facts.worker_version, facts.versions)
    ours = described(info.name, info.synthetic, __version__, info.versions)
    if theirs == ours:
        return
    differ = [
        f"{name} {theirs.get(name, 'absent')} (here {ours.get(name, 'absent')})"
        for name in dict.fromkeys([*theirs, *ours])
        if theirs.get(name) != ours.get(name)
    ]
    raise LatentsForeign(f"the latents are of {', '.join(differ)[:300]}", field="finish_of")


def _first_request(facts: KeptFacts) -> GenerationRequest:
    """Return the request that was sampled, without its picture."""
    if unknown := set(facts.rungs) - set(_SAMPLING_RUNGS):
        raise LatentsDamaged(f"no rung is called {min(unknown)[:40]!r}", field="finish_of")
    try:
        first = parse_request(facts.request | {"image": "-"})
    except (InvalidInput, ValidationError) as err:
        raise LatentsDamaged(f"what was asked cannot be read: {err}", field="finish_of") from None
    return first.model_copy(update={"image": None})
