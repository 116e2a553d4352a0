"""Delivery to S3: the operator's bucket, or one that a job brings.

Each object says in its metadata which run put it there (`run`), what it holds (`sha256`) and which
request it answers (`request`). So a run takes back its own objects and nobody else's, a PUT whose
answer was lost is looked for, and a job that is run again finds what an earlier run delivered.

Long because looking, putting and taking back rest on one client and one idea of what is whose.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from trellis_runtime.contract.answer import Artifact
from trellis_runtime.contract.files import ANSWER
from trellis_runtime.contract.latents import FACTS
from trellis_runtime.contract.scope import Deadline, JobScope
from trellis_runtime.delivery.fetch import Answer, store_code
from trellis_runtime.delivery.s3_client import MOST_READ, Access, S3Client, settled
from trellis_runtime.delivery.storage import SETTLE_S, folder_of
from trellis_runtime.errors import (
    InvalidInput,
    SetupFailed,
    StorageFailed,
    UrlRefused,
    WorkerError,
)
from trellis_runtime.logs import logger
from trellis_runtime.settings import Bucket, FetchLimits

_BUCKET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")  # as lenient as boto3

_UNKNOWABLE = (401, 403, 405, 501)
"""What a store answers to HEAD where the key may only write, or the call is not known."""


_PRECONDITION_FAILED = 412
_NO_CONDITIONS = (400, 501)
"""What a store answers that does not know a PUT with a condition."""


@dataclass(slots=True)
class _Tried:
    """An object that this run has sent, or tried to."""

    name: str
    key: str
    sha256: str
    was_there: bool | None
    """Before: yes, no, or None where the key may not look."""


class S3Store:
    """A bucket: `PREFIX/JOB_ID/NAME`."""

    def __init__(self, client: S3Client, job_id: str, request: str = "") -> None:
        self._client = client
        self._request = request
        self._run = secrets.token_hex(8)
        self._tried: list[_Tried] = []
        self.folder = folder_of(job_id)
        self.expires: datetime | None = None
        """What objects that are put say of their end, for who reads them; None: nothing."""

    def key_of(self, name: str) -> str:
        prefix = self._client.bucket.prefix.strip("/")
        return "/".join(part for part in (prefix, self.folder, name) if part)

    def put(self, name: str, data: bytes, content_type: str, scope: JobScope) -> Artifact:
        key, sha256 = self.key_of(name), hashlib.sha256(data).hexdigest()
        tried = _Tried(name, key, sha256, self._is_there(key, scope))
        self._tried.append(tried)
        try:
            etag = self._put_first(tried, data, scope, self._facts(tried, data, content_type))
        except StorageFailed as err:
            scope.check()
            if not self._arrived(tried):
                self._require_no_other(tried, err)
        else:
            require_etag(name, data, etag)
            self._require_same(tried, len(data), scope)
        return self.artifact(key, len(data), sha256, content_type)

    def apart(self, folder: str | None = None) -> S3Store:
        """Return the same folder, or `folder`, for files that are taken back on their own."""
        other = copy.copy(self)
        other._tried = []
        other.folder = folder or self.folder
        return other

    def discard(self, scope: JobScope) -> None:
        """Remove what this run put where nothing was, and where nobody else's is by now."""
        for tried in self._tried:
            if tried.was_there is None:
                logger().warning("left_in_bucket", key=tried.key, reason="the key may not look")
            if tried.was_there is not False:
                continue
            try:
                if self._is_ours(tried, self._client.head(tried.key, scope)):
                    self._client.delete(tried.key, scope)
            except WorkerError as err:  # a slow bucket's is that the time for this is over
                if not (isinstance(err, StorageFailed) and err.answered == 404):
                    logger().warning("discard_failed", key=tried.key, reason=err.message)
        self._tried.clear()

    def artifact(self, key: str, size: int, sha256: str, content_type: str) -> Artifact:
        """Describe an object, with a link that is signed now."""
        bucket, url = self._client.bucket, self._client.link(key)
        expires = None
        if url is not None and not bucket.public_base_url:
            until = datetime.now(UTC) + timedelta(seconds=bucket.url_expiry_s)
            expires = until.isoformat(timespec="seconds")
        return Artifact(
            bytes=size, sha256=sha256, content_type=content_type, bucket=bucket.name, key=key,
            url=url, expires_at=expires,
        )  # fmt: skip

    def read(self, name: str, scope: JobScope) -> tuple[bytes, str] | None:
        """Return an object of this folder and the request it answers, None where there is none.

        A key that may not read finds nothing. Raises `StorageFailed` where the store fails.
        """
        found = self.fetch(name, MOST_READ, scope)
        return found and (found[0], found[1].get("Metadata", {}).get("request", ""))

    def fetch(self, name: str, most: int, scope: JobScope) -> tuple[bytes, dict[str, Any]] | None:
        """Return at most `most` bytes of an object of this folder, and what S3 says of it.

        None where there is none, as `read` has it.
        """
        try:
            return self._client.get(self.key_of(name), scope, most)
        except StorageFailed as err:
            if err.answered == 404 or err.answered in _UNKNOWABLE:
                return None
            raise

    def holds(self, artifact: Artifact, name: str, scope: JobScope) -> bool:
        """Whether an object is as an answer describes it: its key, its size, its checksum."""
        if artifact.key != self.key_of(name):
            return False
        try:
            found = self._client.head(artifact.key, scope)
        except StorageFailed as err:
            if err.answered == 404 or err.answered in _UNKNOWABLE:
                return False
            raise
        sha256 = found.get("Metadata", {}).get("sha256")
        return bool(found["ContentLength"] == artifact.bytes and sha256 == artifact.sha256)

    def check_link(self, scope: JobScope, *, read_back: bool = True) -> None:
        """Write a small object, read it by the link that a caller would get, and remove it.

        Raises `StorageFailed` that names the call which was refused. Removing needs a right that
        the work does not need; without it the object stays.
        """
        token = secrets.token_hex(16).encode()
        prefix = self._client.bucket.prefix.strip("/")
        key = "/".join(part for part in (prefix, ".check", secrets.token_hex(8)) if part)
        self._client.put(key, token, scope, ContentType="text/plain", ContentMD5=_md5(token))
        try:
            if read_back and (link := self._client.link(key)):
                _require_read_back(self._client.visit(link, scope), token, link)
        finally:
            try:
                self._client.delete(key, scope)
            except StorageFailed as err:
                logger().info("check_object_stays", key=key, reason=err.message)

    def check_alive(self, scope: JobScope) -> None:
        """Write one small object, always the same one; raises `StorageFailed` if refused."""
        self._client.put(self.key_of("alive"), b"ok", scope, ContentType="text/plain")

    def _put_first(self, tried: _Tried, data: bytes, scope: JobScope, facts: dict[str, Any]) -> str:
        """PUT, on the condition that nobody was quicker where nothing was a moment ago.

        Two runs of one job would else leave one's model beside the other's pictures. `answer.json`
        is the last of a run whose files all stood, as `latents.json` is of its arrays, and either
        run's tells the truth of them; both name a time, so that no two are the same.
        """
        if tried.was_there is not False or tried.name in (ANSWER.name, FACTS.name):
            return self._client.put(tried.key, data, scope, **facts)
        try:
            return self._client.put(tried.key, data, scope, IfNoneMatch="*", **facts)
        except StorageFailed as err:
            if err.answered not in _NO_CONDITIONS:
                raise
            return self._client.put(tried.key, data, scope, **facts)

    def _require_no_other(self, tried: _Tried, err: StorageFailed) -> None:
        """Return where another run has put the same bytes meanwhile; else raise `StorageFailed`."""
        if err.answered != _PRECONDITION_FAILED:
            raise _about(tried.name, err) from None
        tried.was_there = True  # another's: not ours to take back
        scope = JobScope("settle", Deadline.after(SETTLE_S))
        try:
            found = self._client.head(tried.key, scope)
        except WorkerError:
            raise _about(tried.name, err) from None
        if found.get("Metadata", {}).get("sha256") != tried.sha256:
            raise StorageFailed(
                f"{tried.name} was not delivered: another run of this job has delivered another "
                "one meanwhile; send the job again to be answered with that"
            ) from None

    def _facts(self, tried: _Tried, data: bytes, content_type: str) -> dict[str, Any]:
        metadata = {"sha256": tried.sha256, "run": self._run}
        if self._request:
            metadata["request"] = self._request
        shown = self.folder.replace("/", "-")
        ends = {"Expires": self.expires} if self.expires else {}
        return ends | {
            "ContentType": content_type,
            "ContentMD5": _md5(data),
            "ContentDisposition": f'attachment; filename="{shown}-{tried.name}"',
            "Metadata": metadata,
        }

    def _is_there(self, key: str, scope: JobScope) -> bool | None:
        try:
            self._client.head(key, scope)
        except StorageFailed as err:
            scope.check()
            return False if err.answered == 404 else None
        return True

    def _arrived(self, tried: _Tried) -> bool:
        """Whether an object is there although its PUT failed: only the answer was lost then."""
        scope = JobScope("settle", Deadline.after(SETTLE_S))
        try:
            return self._is_ours(tried, self._client.head(tried.key, scope))
        except WorkerError:  # a slow bucket's is that the time for this is over, not the job's
            return False

    def _is_ours(self, tried: _Tried, found: dict[str, Any]) -> bool:
        metadata = found.get("Metadata", {})
        return bool(metadata.get("run") == self._run and metadata.get("sha256") == tried.sha256)

    def _require_same(self, tried: _Tried, size: int, scope: JobScope) -> None:
        try:
            found = self._client.head(tried.key, scope)
        except StorageFailed as err:
            if err.answered in _UNKNOWABLE:
                return  # Content-MD5 and the ETag have told the same
            raise _about(tried.name, err) from None
        sha256 = found.get("Metadata", {}).get("sha256")
        require_same(tried.name, found["ContentLength"], size, sha256, tried.sha256)


def _about(name: str, err: StorageFailed) -> StorageFailed:
    return StorageFailed(
        f"{name} was not delivered: {err.message}", field=err.field, retryable=err.retryable
    )


def _require_read_back(answer: Answer, token: bytes, link: str) -> None:
    host = urlsplit(link).hostname
    if answer.status != 200:
        raise StorageFailed(
            f"the link that a caller would get (at {host}) answered {answer.status} to GET"
            f"{store_code(answer.body)}; the key must be allowed to read, or "
            "BUCKET_PUBLIC_BASE_URL must lead to the bucket",
            retryable=answer.transient,
        )
    if answer.body != token:
        raise StorageFailed(
            f"the link that a caller would get (at {host}) gives something else than was written",
            retryable=False,
        )


def job_bucket(config: Any, defaults: Bucket) -> Bucket:
    """Return the bucket of a job's `s3Config`.

    Raises `InvalidInput` that names the field at fault.
    """
    names = {
        "endpointUrl": "endpoint_url",
        "accessId": "access_key_id",
        "accessSecret": "secret_access_key",
        "bucketName": "name",
    }
    if not isinstance(config, dict):
        raise InvalidInput("s3Config must be an object", field="s3Config")
    absent = [n for n in names if not isinstance(config.get(n), str) or not config[n].strip()]
    if absent:
        raise InvalidInput(f"s3Config lacks {', '.join(absent)}", field=f"s3Config.{absent[0]}")
    if not _BUCKET_NAME.fullmatch(config["bucketName"].strip()):
        raise InvalidInput(
            "s3Config.bucketName is no name of a bucket", field="s3Config.bucketName"
        )
    region = config.get("region")
    if region is not None and not isinstance(region, str):
        raise InvalidInput("s3Config.region is not a text", field="s3Config.region")
    values = {ours: config[theirs].strip() for theirs, ours in names.items()}
    if not region and values["endpoint_url"].rstrip("/") == (defaults.endpoint_url or "").rstrip(
        "/"
    ):
        region = defaults.region
    kept = {"timeout_s": defaults.timeout_s, "max_attempts": defaults.max_attempts}
    try:
        return settled(Bucket.model_validate(values | kept | {"region": region or None}))
    except ValidationError:
        raise InvalidInput("s3Config is not usable", field="s3Config") from None
    except ValueError as err:
        raise InvalidInput(f"s3Config.endpointUrl: {err}", field="s3Config.endpointUrl") from None


def operators_store(bucket: Bucket, job_id: str, request: str = "") -> S3Store:
    """Return the operator's bucket as one job's store; raises `StorageFailed` if unusable."""
    try:
        return S3Store(S3Client(bucket, Access.of_operator(bucket)), job_id, request)
    except ValueError as err:
        raise StorageFailed(f"BUCKET_ENDPOINT_URL: {err}", retryable=False) from None


def callers_store(bucket: Bucket, job_id: str, request: str, limits: FetchLimits) -> S3Store:
    """Return the bucket of a job's `s3Config` (see `job_bucket`) as its store."""
    return S3Store(S3Client(bucket, Access.of_caller(bucket, limits)), job_id, request)


def require_bucket(bucket: Bucket) -> None:
    """Raise `SetupFailed` unless the operator's bucket can be written, and its links work, now."""
    scope = JobScope("start-up", Deadline.after(2 * bucket.timeout_s))
    try:
        operators_store(bucket, "start-up").check_link(scope, read_back=bucket.check_link)
    except (StorageFailed, UrlRefused) as err:
        raise SetupFailed(f"the bucket {bucket.name!r} cannot be used: {err.message}") from None


def require_bucket_alive(bucket: Bucket) -> None:
    """Raise `SetupFailed` unless the operator's bucket takes an object now; for looks in passing,
    which must not leave objects behind.
    """
    scope = JobScope("alive", Deadline.after(2 * bucket.timeout_s))
    try:
        operators_store(bucket, "check").check_alive(scope)
    except (StorageFailed, UrlRefused) as err:
        raise SetupFailed(f"the bucket {bucket.name!r} cannot be used: {err.message}") from None


def require_same(name: str, size: int, sent: int, sha256: str | None, sent_sha256: str) -> None:
    """Raise `StorageFailed` unless the bucket holds what was sent."""
    if size != sent:
        raise StorageFailed(f"the bucket holds {size} bytes of {name}; {sent} were sent")
    if sha256 is not None and sha256 != sent_sha256:
        raise StorageFailed(f"the bucket holds another {name} than was sent")


def require_etag(name: str, data: bytes, etag: str) -> None:
    """A single PUT's ETag is the MD5 of its bytes, unless the store encrypts; then it is none."""
    plain = etag.strip('"')
    if len(plain) == 32 and plain != hashlib.md5(data, usedforsecurity=False).hexdigest():
        raise StorageFailed(f"the bucket holds another {name} than was sent")


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
