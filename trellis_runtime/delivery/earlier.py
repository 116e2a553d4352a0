"""A job that is run again: what an earlier run of it delivered is the answer.

The platform hands a job out again when its worker died, or when the answer was lost on the way. The
bucket then tells the truth: `answer.json` is written last, so where it stands, and each object that
it names is there with its size and checksum, the job is done.

    PREFIX/JOB_ID/answer.json    same request, whole        -> answered again, links signed anew
                                 same request, not whole    -> computed, written over it
                                 another request            -> looked for, and written, beside it
"""

from __future__ import annotations

import hashlib
import json
from typing import TypeVar

from pydantic import ValidationError

from trellis_runtime.contract.answer import (
    ANSWERS,
    Answer,
    Artifact,
    FailedVariant,
    FinishedFile,
    GenerationResult,
    Variant,
)
from trellis_runtime.contract.files import ANSWER, ARTIFACTS, MODEL, in_variant
from trellis_runtime.contract.request import GenerationRequest
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.delivery.s3 import S3Store
from trellis_runtime.logs import logger

_M = TypeVar("_M", GenerationResult, Variant)


def fingerprint(request: GenerationRequest) -> str:
    """Return the SHA-256 of all that a caller asked: it tells nothing of it, and is kept."""
    # json escapes lone surrogates, which UTF-8 does not have and a caller's text may
    return hashlib.sha256(json.dumps(request.model_dump(), sort_keys=True).encode()).hexdigest()


def earlier_result(store: S3Store, request: str, scope: JobScope) -> Answer | None:
    """Return what an earlier run delivered for the same `request` (see `fingerprint`).

    Where another request's result lies under the job's id, `store` is led to a folder beside it: a
    delivered object stays. Raises `StorageFailed` where the bucket cannot be asked.
    """
    found = store.read(ANSWER.name, scope)
    if found is not None and found[1] != request:
        logger().warning(
            "earlier_result_kept", job_id=scope.job_id, reason="it answers another request"
        )
        store.folder = f"{store.folder}-{request[:12]}"
        found = store.read(ANSWER.name, scope)
    if found is None or found[1] != request:
        return None
    try:
        result = ANSWERS.validate_json(found[0])
    except ValidationError:
        _tell_why_not("answer.json cannot be read", scope)
        return None
    fresh = _signed_again(store, result, scope)
    if fresh is not None:
        logger().info("earlier_result_answered", job_id=scope.job_id)
    return fresh


def _signed_again(store: S3Store, result: Answer, scope: JobScope) -> Answer | None:
    """Return a result with fresh links, None where a file is not as it was written."""
    if isinstance(result, GenerationResult):
        return _model_signed_anew(store, result, "", scope)
    variants: list[Variant | FailedVariant] = []
    for variant in result.variants:
        fresh = variant if isinstance(variant, FailedVariant) else (
            _model_signed_anew(store, variant, variant.name, scope)
        )  # fmt: skip
        if fresh is None:
            return None
        variants.append(fresh)
    return result.model_copy(update={"variants": variants})


def _model_signed_anew(store: S3Store, model: _M, variant: str, scope: JobScope) -> _M | None:
    """Return what is told of a model, with fresh links; of a variant by the name `variant`."""
    fresh = {}
    for file in ARTIFACTS:
        artifact = getattr(model, file.field)
        if artifact is None:
            continue
        name = in_variant(variant, file.name) if variant else file.name
        if not store.holds(artifact, name, scope):
            _tell_why_not(f"{name} is not as it was written", scope)
            return None
        fresh[file.field] = _signed_anew(store, name, artifact)
    files = _files_signed_anew(store, model.files, scope)
    if files is None:
        return None
    return model.model_copy(update=fresh | {"files": files, "glb_url": fresh[MODEL.field].url})


def _files_signed_anew(
    store: S3Store, files: list[FinishedFile], scope: JobScope
) -> list[FinishedFile] | None:
    """Return the finishes with fresh links, None where one is not as it was written."""
    fresh = []
    for told in files:
        if told.artifact is not None:
            if not store.holds(told.artifact, told.file_name, scope):
                _tell_why_not(f"{told.file_name} is not as it was written", scope)
                return None
            artifact = _signed_anew(store, told.file_name, told.artifact)
            told = told.model_copy(update={"artifact": artifact})
        fresh.append(told)
    return fresh


def _signed_anew(store: S3Store, name: str, artifact: Artifact) -> Artifact:
    key = store.key_of(name)
    return store.artifact(key, artifact.bytes, artifact.sha256, artifact.content_type)


def _tell_why_not(reason: str, scope: JobScope) -> None:
    logger().warning("earlier_result_not_answered", job_id=scope.job_id, reason=reason)
