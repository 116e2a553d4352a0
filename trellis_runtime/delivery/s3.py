"""Delivery to S3: the operator's bucket, or one that a job brings.

Both verify what arrived by size and checksum before they answer. The operator's bucket is reached
by boto3. A job's own bucket is an address that a caller names, so boto3 only signs for it (which
needs no network) and the transfer goes through the same guard as any other caller's URL.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import SecretStr, ValidationError

from trellis_runtime.contract.answer import Artifact
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.delivery.fetch import head, upload
from trellis_runtime.delivery.storage import describe, folder_of
from trellis_runtime.errors import InvalidInput, SetupFailed, StorageFailed
from trellis_runtime.logs import logger
from trellis_runtime.settings import Bucket, FetchLimits


class S3Store:
    """The operator's bucket: `PREFIX/JOB_ID/NAME`.

    The client lives as long as the job: a process that was frozen and restored by its platform
    must not trust an old connection.
    """

    def __init__(self, bucket: Bucket, job_id: str) -> None:
        self._bucket = bucket
        self._folder = folder_of(job_id)
        self._client = _client(bucket)
        self._put: list[str] = []

    def put(self, name: str, data: bytes, content_type: str, scope: JobScope) -> Artifact:
        key = _key(self._bucket, self._folder, name)
        try:
            self._client.put_object(**_object(self._bucket, key, data, content_type))
            self._put.append(key)
            found = self._client.head_object(Bucket=self._bucket.name, Key=key)
        except (ClientError, BotoCoreError) as err:
            raise StorageFailed(f"the bucket did not take {name} ({_reason(err)})") from None
        _require_same(name, data, found["ContentLength"], found.get("Metadata", {}).get("sha256"))
        return _artifact(self._client, self._bucket, key, data, content_type)

    def discard(self) -> None:
        for key in self._put:
            try:
                self._client.delete_object(Bucket=self._bucket.name, Key=key)
            except (ClientError, BotoCoreError) as err:
                logger().warning("discard_failed", reason=_reason(err))
        self._put.clear()


class PresignedS3Store:
    """A bucket that one job brought along (RunPod's `s3Config`)."""

    def __init__(self, bucket: Bucket, job_id: str, limits: FetchLimits) -> None:
        self._bucket = bucket
        self._folder = folder_of(job_id)
        self._limits = limits
        self._client = _client(bucket)

    def put(self, name: str, data: bytes, content_type: str, scope: JobScope) -> Artifact:
        key = _key(self._bucket, self._folder, name)
        where = {"Bucket": self._bucket.name, "Key": key}
        put_url = self._client.generate_presigned_url(
            "put_object", where | {"ContentType": content_type}, ExpiresIn=3600
        )
        upload(put_url, data, content_type, self._limits, scope, field="s3Config")
        head_url = self._client.generate_presigned_url("head_object", where, ExpiresIn=3600)
        stored = head(head_url, self._limits, scope)
        size = stored.get("Content-Length", "")
        _require_same(name, data, int(size) if size.isdigit() else -1, None)
        _require_etag(name, data, stored.get("ETag", ""))
        return _artifact(self._client, self._bucket, key, data, content_type)

    def discard(self) -> None:
        """The caller's bucket is the caller's; a later run of the job overwrites the object."""


def job_bucket(config: Any, defaults: Bucket) -> Bucket:
    """Return the bucket of a job's `s3Config`; raises `InvalidInput` that names the
    field at fault.
    """
    names = {
        "endpointUrl": "endpoint_url",
        "accessId": "access_key_id",
        "accessSecret": "secret_access_key",
        "bucketName": "name",
    }
    if not isinstance(config, dict):
        raise InvalidInput("s3Config must be an object", field="s3Config")
    absent = [n for n in names if not isinstance(config.get(n), str) or not config[n]]
    if absent:
        raise InvalidInput(f"s3Config lacks {', '.join(absent)}", field=f"s3Config.{absent[0]}")
    if urlsplit(config["endpointUrl"]).scheme not in ("http", "https"):
        raise InvalidInput("s3Config.endpointUrl is not an http(s) URL", field="s3Config")
    values = {ours: config[theirs] for theirs, ours in names.items()}
    kept = {"timeout_s": defaults.timeout_s, "max_attempts": defaults.max_attempts}
    try:
        return Bucket.model_validate(values | kept)
    except ValidationError:
        raise InvalidInput("s3Config is not usable", field="s3Config") from None


def require_bucket(bucket: Bucket) -> None:
    """Raise `SetupFailed` unless the operator's bucket can be written, now."""
    client = _client(bucket)
    key = _key(bucket, ".check", "startup")
    try:
        client.put_object(**_object(bucket, key, b"ok", "text/plain"))
        client.delete_object(Bucket=bucket.name, Key=key)
    except (ClientError, BotoCoreError) as err:
        raise SetupFailed(
            f"the bucket {bucket.name!r} cannot be written ({_reason(err)})"
        ) from None


def has_presigned_urls(bucket: Bucket) -> bool:
    """RunPod's network volumes speak S3 without presigned URLs (s3api-REGION.runpod.io)."""
    host = urlsplit(bucket.endpoint_url or "").hostname or ""
    return not (host.startswith("s3api-") and host.endswith(".runpod.io"))


def _client(bucket: Bucket) -> Any:
    secret = bucket.secret_access_key or SecretStr("")
    identity = bucket.access_key_id or SecretStr("")
    try:
        return boto3.session.Session().client(
            "s3",
            endpoint_url=bucket.endpoint_url,
            aws_access_key_id=identity.get_secret_value(),
            aws_secret_access_key=secret.get_secret_value(),
            region_name=bucket.region or "us-east-1",
            config=Config(
                signature_version="s3v4",
                connect_timeout=min(10.0, bucket.timeout_s),
                read_timeout=bucket.timeout_s,
                retries={"total_max_attempts": bucket.max_attempts, "mode": "standard"},
                s3={"addressing_style": bucket.addressing_style},
                # newer defaults add checksums that many S3-compatible stores do not know
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
    except (ValueError, BotoCoreError):
        raise StorageFailed("the bucket's endpoint is not usable") from None


def _key(bucket: Bucket, folder: str, name: str) -> str:
    return "/".join(part for part in (bucket.prefix.strip("/"), folder, name) if part)


def _object(bucket: Bucket, key: str, data: bytes, content_type: str) -> dict[str, Any]:
    folder, name = key.split("/")[-2:]
    return {
        "Bucket": bucket.name,
        "Key": key,
        "Body": data,
        "ContentType": content_type,
        "ContentMD5": base64.b64encode(_md5(data).digest()).decode(),
        "ContentDisposition": f'attachment; filename="{folder}-{name}"',
        "Metadata": {"sha256": hashlib.sha256(data).hexdigest()},
    }


def _artifact(client: Any, bucket: Bucket, key: str, data: bytes, content_type: str) -> Artifact:
    facts = describe(data, content_type) | {"bucket": bucket.name, "key": key}
    if bucket.public_base_url:
        facts["url"] = f"{bucket.public_base_url.rstrip('/')}/{quote(key)}"
    elif has_presigned_urls(bucket):
        facts["url"] = client.generate_presigned_url(
            "get_object",
            {"Bucket": bucket.name, "Key": key},
            ExpiresIn=bucket.url_expiry_s,
        )
        expires = datetime.now(UTC) + timedelta(seconds=bucket.url_expiry_s)
        facts["expires_at"] = expires.isoformat(timespec="seconds")
    return Artifact.model_validate(facts)


def _require_same(name: str, data: bytes, size: int, sha256: str | None) -> None:
    if size != len(data):
        raise StorageFailed(f"the bucket holds {size} bytes of {name}; {len(data)} were sent")
    if sha256 is not None and sha256 != hashlib.sha256(data).hexdigest():
        raise StorageFailed(f"the bucket holds another {name} than was sent")


def _require_etag(name: str, data: bytes, etag: str) -> None:
    """A single PUT's ETag is the MD5 of its bytes, unless the store encrypts; then it is none."""
    plain = etag.strip('"')
    if len(plain) == 32 and plain != _md5(data).hexdigest():
        raise StorageFailed(f"the bucket holds another {name} than was sent")


def _md5(data: bytes) -> Any:
    return hashlib.md5(data, usedforsecurity=False)


def _reason(err: ClientError | BotoCoreError) -> str:
    """Tell what went wrong without endpoints, keys or signatures."""
    if isinstance(err, ClientError):
        return str(err.response.get("Error", {}).get("Code", "error"))
    return type(err).__name__
