"""Which store a job's result goes to, and whether the answer fits the platform."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

from trellis_runtime.contract.answer import Answer
from trellis_runtime.contract.files import MODEL
from trellis_runtime.contract.request import GenerationRequest, Output
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.sizes import faces_within, least_glb_bytes
from trellis_runtime.delivery.earlier import earlier_result
from trellis_runtime.delivery.fetch import require_visitable
from trellis_runtime.delivery.latents import BucketLatents, LatentsStore, LocalLatents
from trellis_runtime.delivery.presigned import require_signature_usable
from trellis_runtime.delivery.s3 import S3Store, callers_store, job_bucket, operators_store
from trellis_runtime.delivery.storage import (
    InlineStore,
    LocalStore,
    Store,
    UploadStore,
    VariantStore,
    folder_of,
)
from trellis_runtime.errors import AnswerTooLarge, InvalidInput
from trellis_runtime.settings import Bucket, DeliverySettings, FetchLimits, Settings

_ANSWER_ROOM = 64_000  # bytes of an answer besides base64


LOCAL_IDS = ("", "local", "local_test")
"""Ids of jobs that no platform gave: they name no job, and an earlier result is another's."""


@dataclass(slots=True)
class Delivery:
    """What the settings and the job itself offer for delivery; one per job."""

    limits: DeliverySettings
    bucket: Bucket
    fetch_limits: FetchLimits
    is_worker: bool
    job_id: str
    s3_config: Any = None
    request: str = ""
    """The request's fingerprint."""
    shares: int = 1
    """How many variants share the room of an inline answer, and of latents on this machine."""
    variant: str = ""
    """The name of the variant whose files these are, empty for those of the whole job."""
    _s3: S3Store | None = field(default=None, init=False)

    @classmethod
    def of_job(
        cls, settings: Settings, job_id: str, s3_config: Any = None, request: str = ""
    ) -> Delivery:
        """Take from the settings what delivery needs; `request` is its fingerprint."""
        return cls(
            settings.delivery,
            settings.bucket,
            settings.fetch,
            settings.platform.is_worker,
            job_id,
            s3_config,
            request,
        )

    def of_variant(self, name: str) -> Delivery:
        """Return the delivery of one variant's files, which it can take back alone."""
        own = replace(self, variant=name)
        if bucket := self._bucket():
            own._s3 = bucket.apart()
        return own

    @property
    def kept_id(self) -> str:
        """What a later job has to name to finish what this one, or this variant, keeps."""
        bucket = self._bucket()
        folder = bucket.folder if bucket else folder_of(self.job_id)
        return folder_of(f"{folder}-{self.variant}") if self.variant else folder

    def latents(self, kept_id: str) -> LatentsStore:
        """Return where latents called `kept_id` are kept: the bucket, else this machine."""
        if bucket := self._bucket():
            return BucketLatents(bucket, kept_id)
        return LocalLatents(self.limits, kept_id, self.shares)

    def require_possible(self, output: Output, scope: JobScope, *, keeps: bool = False) -> None:
        """Find out what can be known of the place before anything is computed.

        A job that `keeps` its latents needs the bucket for them, wherever its files go.

        Raises `InvalidInput` for a delivery that cannot succeed, and `StorageFailed` or
        `UrlRefused` for an address that cannot be used, and for a job's own bucket that cannot be
        written, or whose links do not work.
        """
        if output.upload_url is not None:
            require_signature_usable(output.upload_url, output.upload_headers)
            require_visitable(output.upload_url, self.fetch_limits, scope, "output.upload_url")
        if output.delivery == "url" and self._bucket_or_folder() is None:
            raise InvalidInput(
                "output.delivery is 'url', and this worker has no bucket: set BUCKET_ENDPOINT_URL, "
                "send s3Config, or ask for 'upload' or 'inline'",
                field="output.delivery",
            )
        if self.s3_config is None:
            return
        bucket = self._bucket()
        used = keeps or (output.upload_url is None and output.delivery != "inline")
        if bucket is not None and used:
            bucket.check_link(scope)

    def require_fits(self, request: GenerationRequest, *, may_compress: bool = False) -> None:
        """Raise `AnswerTooLarge` where the answer itself is the only way for a model that will, by
        what was asked, be too large for it. Of one that may be compressed no size is known.
        """
        output, what = request.output, "a model as asked (resolution, decimation_target) has about"
        least = least_glb_bytes(request)
        if may_compress:
            least, what = 1, "any model has at least"
        inline = output.delivery == "inline" or self._bucket_or_folder() is None
        if output.upload_url is None and inline and self._bucket() is None:
            self._require_room(least, what)

    def earlier_result(self, output: Output, scope: JobScope) -> Answer | None:
        """Return what an earlier run of this job put into the bucket for the same request."""
        if output.upload_url is not None or self.job_id in LOCAL_IDS:
            return None
        bucket = self._bucket()
        return earlier_result(bucket, self.request, scope) if bucket else None

    def store_for(self, output: Output, payload_bytes: int) -> Store:
        """Return where `payload_bytes` of files go.

        Raises `AnswerTooLarge` when inline is the only way and they do not fit.
        """
        store = self._store_for(output, payload_bytes)
        return VariantStore(store, self.variant) if self.variant else store

    def _store_for(self, output: Output, payload_bytes: int) -> Store:
        if output.upload_url is not None:
            return UploadStore(
                output.upload_url, MODEL.name, self.fetch_limits, output.upload_headers
            )
        if output.delivery != "inline" and (store := self._bucket_or_folder()):
            return store
        if payload_bytes > self._inline_room() and (bucket := self._bucket()):
            return bucket
        self._require_room(payload_bytes, "the result has")
        return InlineStore()

    def _require_room(self, payload_bytes: int, what: str) -> None:
        room = self._inline_room()
        if payload_bytes <= room:
            return
        elsewhere, each, fewer = "send s3Config or output.upload_url", "", "fewer finishes"
        if self.shares > 1:  # an upload_url takes one model
            elsewhere, fewer = "send s3Config", "fewer finishes or variants"
            each = f" for each of {self.shares} variants"
        if (faces := faces_within(room)) > 0:
            fewer += f", a decimation_target well below {faces}"
        raise AnswerTooLarge(
            f"{what} {payload_bytes} bytes; inline, the platform takes about {max(0, room)}{each}. "
            f"Configure a bucket (BUCKET_ENDPOINT_URL), {elsewhere}, or ask for "
            "output.texture_format 'webp', output.compression 'draco' or 'meshopt', a smaller "
            f"texture_size, {fewer}",
            field="output.delivery",
        )

    def room_for_auto(self, output: Output, others: int) -> int | None:
        """Return how many bytes an answer has for the model, beside `others` bytes of files.

        None where delivery is not auto, or leads elsewhere than into the answer.
        """
        elsewhere = output.upload_url is not None or self._bucket_or_folder() is not None
        return None if elsewhere or output.delivery != "auto" else self._inline_room() - others

    def _inline_room(self) -> int:
        """Return how many bytes of files fit an answer, as base64, beside its other fields.

        Of variants each has its share.
        """
        return int((self.limits.max_answer_bytes / self.shares - _ANSWER_ROOM) * 3 / 4)

    def _bucket_or_folder(self) -> Store | None:
        if bucket := self._bucket():
            return bucket
        if self.is_worker:
            return None  # a file on a worker's disk is lost with the worker
        return LocalStore(self.limits.output_dir, self.job_id)

    def _bucket(self) -> S3Store | None:
        if self._s3 is None and self.s3_config is not None:
            bucket = job_bucket(self.s3_config, self.bucket)
            self._s3 = callers_store(bucket, self.job_id, self.request, self.fetch_limits)
        elif self._s3 is None and self.bucket.is_configured:
            self._s3 = operators_store(self.bucket, self.job_id, self.request)
        return self._s3


def require_answer_fits(answer: dict[str, Any], max_bytes: int) -> bytes:
    """Return the answer as the JSON that the platform will get.

    The SDK sends what is not JSON nowhere, NaN as invalid JSON, and too much to a server that
    drops it: none of that may reach it. Raises `AnswerTooLarge`, or `ValueError` or `TypeError` for
    values that JSON does not have.
    """
    encoded = json.dumps(answer, allow_nan=False, ensure_ascii=False).encode()
    if len(encoded) > max_bytes:
        raise AnswerTooLarge(
            f"the answer has {len(encoded)} bytes; the platform takes {max_bytes}. Ask for a "
            "bucket delivery or a smaller texture_size",
            field="output.delivery",
        )
    return encoded
