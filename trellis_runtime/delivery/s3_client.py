"""S3's calls as boto3 makes them, over this project's own connections.

boto3 builds and signs each request and reads its answer; `fetch.exchange` carries it, so that
one deadline, one bound on memory and, for a caller's own store, one check of addresses hold for
all. The store's region is learnt from what it answers: a link signed for another one is refused.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Network, IPv6Network
from typing import Any
from urllib.parse import quote, urlsplit

import boto3
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import SecretStr

from trellis_runtime.contract.scope import JobScope
from trellis_runtime.delivery.fetch import Answer, exchange
from trellis_runtime.delivery.tries import is_transient, retried
from trellis_runtime.errors import StorageFailed
from trellis_runtime.settings import Bucket, FetchLimits

_DEFAULT_REGION = "us-east-1"
MOST_READ = 12_000_000
"""Bytes of a result's object that is read back: an answer.json is the largest."""

_REGION_IN_ERROR = re.compile(rb"<Region>([a-z0-9-]{2,40})</Region>")
_NO_WORDS = re.compile(r"\d{3}")
_TRANSIENT_CODES = (
    "SlowDown",
    "RequestTimeout",
    "InternalError",
    "ServiceUnavailable",
    "Throttling",
    "BadDigest",  # damaged on its way: what was sent is right
    "IncompleteBody",
    "XAmzContentSHA256Mismatch",
    "ConditionalRequestConflict",  # another upload of the same key has not ended
)

# Hosts that take a bucket's name in front. Any other host is left alone: "minio.example.com" may
# well serve a bucket named "minio".
_TAKES_BUCKET_IN_HOST = re.compile(
    r"(s3[.-].*|.*\.(amazonaws\.com(\.cn)?|digitaloceanspaces\.com|r2\.cloudflarestorage\.com|"
    r"backblazeb2\.com|wasabisys\.com|linodeobjects\.com|your-objectstorage\.com|"
    r"scw\.cloud|vultrobjects\.com|upcloudobjects\.com|exo\.io|cubbit\.eu|idrivee2.*\.com)|"
    r"storage\.googleapis\.com|fly\.storage\.tigris\.dev)"
)


_CONNECTING = threading.Lock()


@cache
def _session() -> boto3.session.Session:
    """Return what has read S3's description, which takes a core 0.1 s; it holds no connection."""
    return boto3.session.Session()


def _client(*args: Any, **kwargs: Any) -> Any:
    with _CONNECTING:  # a session is not for several threads at once; its clients are
        return _session().client(*args, **kwargs)


def refusal(call: str, status: int, code: str, field: str | None) -> StorageFailed:
    """Return the error for a call that the store answered with one."""
    said = f"{status} ({code})" if code and not _NO_WORDS.fullmatch(code) else str(status)
    transient = is_transient(status) or code in _TRANSIENT_CODES
    err = StorageFailed(f"the bucket answered {said} to {call}", field=field, retryable=transient)
    err.answered = status
    return err


@dataclass(slots=True)
class Access:
    """How a bucket is reached: the limits of its connections, and the field that named it."""

    limits: FetchLimits
    field: str | None
    attempts: int

    @classmethod
    def of_operator(cls, bucket: Bucket) -> Access:
        """The operator's bucket may be anywhere."""
        anywhere = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))
        limits = FetchLimits(timeout_s=min(600.0, bucket.timeout_s), allow_networks=anywhere)
        return cls(limits, None, bucket.max_attempts)

    @classmethod
    def of_caller(cls, bucket: Bucket, limits: FetchLimits) -> Access:
        """A caller's bucket is an address that a caller named."""
        return cls(limits, "s3Config", bucket.max_attempts)


class S3Client:
    """One bucket, for as long as a job: connections do not outlive a freeze of the process."""

    def __init__(self, bucket: Bucket, access: Access) -> None:
        self.bucket = settled(bucket)
        self._access = access
        self._region = self.bucket.region or _DEFAULT_REGION
        self._scope = JobScope("")
        self._most = MOST_READ
        self._client = self._connect()

    def put(self, key: str, body: bytes, scope: JobScope, **facts: Any) -> str:
        """PUT an object; returns its ETag, empty where it is none of the object's own bytes."""
        answer = self._call("put_object", scope, Key=key, Body=body, **facts)
        encrypted = answer.get("ServerSideEncryption") not in (None, "AES256")
        if encrypted or answer.get("SSECustomerAlgorithm"):
            return ""
        return str(answer.get("ETag", ""))

    def head(self, key: str, scope: JobScope) -> dict[str, Any]:
        """HEAD an object: `ContentLength`, `ETag` and `Metadata`."""
        return dict(self._call("head_object", scope, Key=key))

    def get(self, key: str, scope: JobScope, most: int) -> tuple[bytes, dict[str, Any]]:
        """GET an object: at most `most` of its bytes, and the answer's other facts."""
        self._most = most
        found = dict(self._call("get_object", scope, Key=key))
        return found.pop("Body").read(most), found  # of a longer one that is all, and no error

    def delete(self, key: str, scope: JobScope) -> None:
        """DELETE an object."""
        self._call("delete_object", scope, Key=key)

    def link(self, key: str) -> str | None:
        """Return the address that a caller gets for an object, None where none can be signed."""
        if self.bucket.public_base_url:
            return f"{self.bucket.public_base_url.rstrip('/')}/{quote(key)}"
        if not has_presigned_urls(self.bucket):
            return None
        where = {"Bucket": self.bucket.name, "Key": key}
        url = self._client.generate_presigned_url(
            "get_object", where, ExpiresIn=self.bucket.url_expiry_s
        )
        return str(url)

    def visit(self, link: str, scope: JobScope) -> Answer:
        """GET a link as whoever receives it would; a failure that may pass is tried again."""
        limits, field = self._access.limits, self._access.field or "the bucket"

        def once() -> Answer:
            answer = exchange("GET", link, limits, scope, field=field)
            if answer.transient:
                raise refusal("GET (by the link that a caller would get)", answer.status, "", field)
            return answer

        return retried(once, self._access.attempts, scope)

    def _call(self, name: str, scope: JobScope, **params: Any) -> Any:
        self._scope = scope
        return retried(lambda: self._once(name, params), self._access.attempts, scope)

    def _once(self, name: str, params: dict[str, Any]) -> Any:
        for last in (False, True):
            before = self._region
            try:
                answer = getattr(self._client, name)(Bucket=self.bucket.name, **params)
            except ClientError as err:
                if last or not self._moved(before):
                    raise self._refusal(name, err) from None
            except BotoCoreError as err:  # a name that no bucket has, for one
                raise StorageFailed(
                    f"the bucket's {_verb(name)} could not be sent ({type(err).__name__})",
                    field=self._access.field,
                    retryable=False,
                ) from None
            else:
                self._moved(before)
                return answer
        raise AssertionError  # the second turn returns or raises

    def _moved(self, before: str) -> bool:
        """Sign for the region that the store named, from now on; whether it named another."""
        if self._region == before:
            return False
        self._client = self._connect()
        return True

    def _refusal(self, name: str, err: ClientError) -> StorageFailed:
        status = int(err.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        code = str(err.response.get("Error", {}).get("Code", ""))
        return refusal(_verb(name), status, code, self._access.field)

    def _connect(self) -> Any:
        bucket = self.bucket
        secret = bucket.secret_access_key or SecretStr("")
        identity = bucket.access_key_id or SecretStr("")
        try:
            client = _client(
                "s3",
                endpoint_url=bucket.endpoint_url,
                aws_access_key_id=identity.get_secret_value(),
                aws_secret_access_key=secret.get_secret_value(),
                region_name=self._region,
                config=Config(
                    signature_version="s3v4",
                    proxies={},
                    retries={"total_max_attempts": 1, "mode": "standard"},
                    s3={"addressing_style": bucket.addressing_style},
                    # newer defaults add checksums that many S3-compatible stores do not know
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )
        except (ValueError, BotoCoreError):
            raise StorageFailed(
                "the bucket's endpoint is not usable", field=self._access.field, retryable=False
            ) from None
        client.meta.events.register("before-send.s3", self._send)
        return client

    def _send(self, request: Any, **_: Any) -> AWSResponse:
        """botocore's hook: carry a signed request, and note the region that the answer names."""
        headers = {k: _text(v) for k, v in request.headers.items() if k.lower() != "expect"}
        body = request.body
        answer = exchange(
            request.method,
            request.url,
            self._access.limits,
            self._scope,
            field=self._access.field or "the bucket",
            headers=headers,
            body=body.read() if hasattr(body, "read") else body,
            read=self._most if request.method == "GET" else 16 * 1024,
        )
        if named := _region_of(answer):
            self._region = named
        return AWSResponse(request.url, answer.status, answer.headers, _Body(answer.body))


class _Body(io.BytesIO):
    """What botocore reads an answer's body from."""

    def stream(self, **_: Any) -> Iterator[bytes]:
        yield self.read()


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _region_of(answer: Answer) -> str | None:
    if named := answer.headers.get("x-amz-bucket-region"):
        return named
    found = None if answer.ok else _REGION_IN_ERROR.search(answer.body)
    return found.group(1).decode() if found else None


def _verb(name: str) -> str:
    return name.split("_", 1)[0].upper()


def has_presigned_urls(bucket: Bucket) -> bool:
    """RunPod's network volumes speak S3 without presigned URLs (s3api-REGION.runpod.io)."""
    host = urlsplit(bucket.endpoint_url or "").hostname or ""
    return not (host.startswith("s3api-") and host.endswith(".runpod.io"))


def settled(bucket: Bucket) -> Bucket:
    """Return `bucket` with an endpoint that has the bucket's name neither in its path nor host.

    Consoles show both forms, and a client that is given them puts the name there again. Raises
    `ValueError` for an endpoint that leads elsewhere.
    """
    parts = urlsplit(bucket.endpoint_url or "")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("the endpoint must be an http or https address with a host")
    if parts.query or parts.fragment or parts.username:
        raise ValueError("the endpoint must be an address without user, query or fragment")
    path, name = parts.path.strip("/"), bucket.name or ""
    if path not in ("", name):
        raise ValueError(
            f"the endpoint has the path '/{path}': give the host alone, the bucket as its name, "
            "and a folder as the prefix"
        )
    changes: dict[str, Any] = {}
    host, rest = parts.netloc, parts.netloc.removeprefix(f"{name}.")
    bare = rest.rsplit(":", 1)[0]
    if (
        name
        and rest != host
        and (_TAKES_BUCKET_IN_HOST.fullmatch(bare) or bucket.addressing_style == "virtual")
    ):
        host, changes["addressing_style"] = rest, "virtual"
    changes["endpoint_url"] = f"{parts.scheme}://{host}"
    return bucket.model_copy(update=changes)
