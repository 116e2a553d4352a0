"""Several seeds of one picture: each sampled, finished and delivered on its own.

    picture ─► condition ─┬► v0: structure ► ... ► bake ► finishes ► export ► preview ► store
                          ├► v1: the same, of the next seed
                          └► ...

What a variant holds goes before the next one begins. One that fails leaves its error in its place;
a stopped job, its deadline, or an engine that cannot be trusted ends them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from trellis_runtime.contract.answer import FailedVariant, FinishError, Variant
from trellis_runtime.contract.files import variant_name
from trellis_runtime.errors import InternalError, MeshRejected, NotFinite, WorkerError
from trellis_runtime.logs import logger
from trellis_runtime.worker.finishes import ends_the_job
from trellis_runtime.worker.making import Begun, Given, Made, Maker

Deliver = Callable[[str, Made, Given], Variant]
"""Exports and stores what was made of a variant's own request, and tells of it."""


def make_variants(
    maker: Maker, seeds: tuple[int, ...], deliver: Deliver
) -> list[Variant | FailedVariant]:
    """Return an entry for each seed, in order; raises the first one's error where none was made."""
    told: list[Variant | FailedVariant] = []
    errors: list[WorkerError] = []
    with maker.conditioned(seeds[0]) as begun:
        for number, seed in enumerate(seeds):
            with maker.scope.variant(number):
                try:
                    told.append(_made(maker, begun, number, seed, deliver))
                except WorkerError as err:
                    if ends_the_job(err):
                        raise
                    errors.append(err)
                except Exception:  # noqa: BLE001 - whatever one seed led to, the others are made
                    logger().exception("variant_crashed", job_id=maker.scope.job_id, seed=seed)
                    errors.append(InternalError("this variant failed; see the worker's log"))
                else:
                    continue
            told.append(_failed(maker, number, seed, errors[-1]))
    if len(errors) == len(seeds):
        entries = [entry.model_dump(mode="json") for entry in told]
        errors[0].details = errors[0].details | {"variants": entries}
        raise errors[0]
    return told


def _made(maker: Maker, begun: Begun, number: int, seed: int, deliver: Deliver) -> Variant:
    own = replace(maker.given, request=maker.given.request.of_one(seed))
    made = replace(maker, given=own).variant(begun, seed)
    return deliver(variant_name(number), made, own)


def _failed(maker: Maker, number: int, seed: int, err: WorkerError) -> FailedVariant:
    err.__traceback__ = None  # its frames hold the stage's arrays
    again = err.retryable
    if isinstance(err, MeshRejected | NotFinite) and maker.given.request.names_its_seeds:
        again = False  # the same seed makes the same values
    name = variant_name(number)
    logger().warning(
        "variant_failed", job_id=maker.scope.job_id, variant=name, seed=seed, code=err.code,
        reason=err.message,
    )  # fmt: skip
    error = FinishError(code=err.code, text=err.message, retryable=again)
    return FailedVariant(name=name, seed=seed, error=error)
