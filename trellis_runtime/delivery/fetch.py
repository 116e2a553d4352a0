"""Visit an address that a caller named, without being led anywhere private.

Every connection passes through `guard.py`, which checks addresses and holds the deadline; every
body through `unpack.py`, which bounds memory. Redirects are followed here, one new connection and
one new check each, and what their answers carry is not read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urljoin, urlsplit

from urllib3 import BaseHTTPResponse, PoolManager
from urllib3.exceptions import HTTPError, LocationValueError

from trellis_runtime.contract.scope import Deadline, JobScope
from trellis_runtime.delivery.guard import AddressRefused, guarded_pools, is_public
from trellis_runtime.delivery.unpack import read_at_most
from trellis_runtime.errors import FetchFailed, StorageFailed, UrlRefused, WorkerError
from trellis_runtime.settings import FetchLimits

__all__ = ["Answer", "exchange", "fetch", "head", "host_of", "is_public", "retried", "upload"]

_USER_AGENT = "trellis-runtime"
_UPLOAD_ATTEMPTS = 3
_ANSWER_BYTES = 16 * 1024
"""How much of an answer to a PUT is read: enough for a store's error code."""

_TRANSIENT = (408, 425, 429)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said: `body` is its beginning, `more` whether there was more of it."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    more: bool

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def transient(self) -> bool:
        """Whether the same request may be answered otherwise in a moment."""
        return self.status >= 500 or self.status in _TRANSIENT


def fetch(url: str, max_bytes: int, limits: FetchLimits, scope: JobScope) -> bytes:
    """Return the body at `url`.

    Raises `UrlRefused` for an address that is not public, too many redirects or a body over
    `max_bytes`; `FetchFailed` when the server errs or time is up.
    """
    deadline = _deadline(limits, scope)
    with (
        _network_errors(deadline, scope, FetchFailed),
        guarded_pools(limits, deadline, lambda: scope.cancelled) as pools,
    ):
        with closing(_follow(pools, url, limits, deadline)) as response:
            body = _wanted_body(response, host_of(url), max_bytes)
        _require_in_time(deadline)
        scope.check()
        return body


def _wanted_body(response: BaseHTTPResponse, host: str, max_bytes: int) -> bytes:
    if response.status >= 400:
        raise FetchFailed(f"the server at {host} answered {response.status}", field="image_url")
    stated = response.headers.get("Content-Length", "")
    if not (stated.isdigit() and int(stated) > max_bytes):
        body, more = read_at_most(response, max_bytes)
        if not more:
            return body
    raise UrlRefused(
        f"the body at image_url has more than the limit of {max_bytes} bytes", field="image_url"
    )


def _follow(
    pools: PoolManager, url: str, limits: FetchLimits, deadline: Deadline
) -> BaseHTTPResponse:
    for _ in range(limits.max_redirects + 1):
        response = _send(pools, "GET", url, deadline, {}, None)
        target = response.get_redirect_location()
        if not target:
            return response
        response.close()
        url = urljoin(url, target)
        if urlsplit(url).scheme not in ("http", "https"):
            raise UrlRefused("image_url led to something other than http(s)", field="image_url")
    raise UrlRefused("the address redirects too often", field="image_url")


def upload(
    url: str,
    body: bytes,
    content_type: str,
    limits: FetchLimits,
    scope: JobScope,
    field: str = "output.upload_url",
) -> None:
    """PUT `body` to the caller's presigned `url`, under the same rules; redirects are refused.

    A failure of the network, 408, 425, 429 or a 5xx answer is tried again, twice. Raises
    `UrlRefused` or `StorageFailed`.
    """
    headers = {"Content-Type": content_type}

    def put() -> Answer:
        return _required("PUT", url, limits, scope, field=field, headers=headers, body=body)

    retried(put, _UPLOAD_ATTEMPTS, scope)


def head(url: str, limits: FetchLimits, scope: JobScope, field: str) -> Mapping[str, str]:
    """Return the headers of a HEAD at the caller's `url`; raises as `upload` does."""
    return retried(
        lambda: _required("HEAD", url, limits, scope, field=field), _UPLOAD_ATTEMPTS, scope
    ).headers


def retried(call: Callable[[], T], attempts: int, scope: JobScope) -> T:
    """Return what `call` returns, tried again after a `StorageFailed` that may pass.

    Waits 1, 2, 4 ... 8 seconds in between, no longer than the job has, and not when it is stopped.
    """
    for attempt in range(1, attempts + 1):
        try:
            return call()
        except StorageFailed as err:
            if attempt == attempts or not err.details.pop("transient", False):
                err.details.pop("transient", None)
                raise
        _pause(min(8.0, 2.0 ** (attempt - 1)), scope)
    raise AssertionError  # the last attempt returns or raises


def _pause(seconds: float, scope: JobScope) -> None:
    until = Deadline.after(min(seconds, scope.deadline.remaining()))
    while not until.passed:
        scope.check()
        time.sleep(min(0.1, until.remaining()))
    scope.check()


def exchange(
    method: str,
    url: str,
    limits: FetchLimits,
    scope: JobScope,
    *,
    field: str,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    read: int = _ANSWER_BYTES,
) -> Answer:
    """Send one request and return its answer, whatever its status, with `read` bytes of its body.

    Redirects are not followed. Raises `UrlRefused`, or `StorageFailed` (its details say
    `transient`) where the network fails.
    """
    deadline = _deadline(limits, scope)
    with (
        _network_errors(deadline, scope, StorageFailed, field),
        guarded_pools(limits, deadline, lambda: scope.cancelled) as pools,
    ):
        with closing(_send(pools, method, url, deadline, headers or {}, body)) as response:
            start, more = (b"", False) if method == "HEAD" else read_at_most(response, read)
        _require_in_time(deadline)
        return Answer(response.status, response.headers, start, more)


def _required(
    method: str,
    url: str,
    limits: FetchLimits,
    scope: JobScope,
    *,
    field: str,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> Answer:
    answer = exchange(method, url, limits, scope, field=field, headers=headers, body=body)
    if not answer.ok:
        raise StorageFailed(
            f"{host_of(url)} answered {answer.status} to {method}",
            field=field,
            details={"transient": answer.transient},
        )
    return answer


def _send(
    pools: PoolManager,
    method: str,
    url: str,
    deadline: Deadline,
    headers: Mapping[str, str],
    body: bytes | None,
) -> BaseHTTPResponse:
    plain = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity", "Accept": "*/*"}
    return pools.urlopen(
        method,
        url,
        body=body,
        headers=plain | dict(headers),
        redirect=False,
        retries=False,
        preload_content=False,
        decode_content=False,
        timeout=max(0.001, deadline.remaining()),
    )


def _require_in_time(deadline: Deadline) -> None:
    """A socket shut at the deadline looks like a body that ended; it must not pass for one."""
    if deadline.passed:
        raise TimeoutError


def host_of(url: str) -> str:
    """Return what may be shown of an address: its host alone."""
    return urlsplit(url).hostname or "?"


def _deadline(limits: FetchLimits, scope: JobScope) -> Deadline:
    return Deadline.after(min(limits.timeout_s, scope.deadline.remaining()))


@contextmanager
def _network_errors(
    deadline: Deadline, scope: JobScope, leaf: type[WorkerError], field: str = "image_url"
) -> Iterator[None]:
    """Turn what the network does into our errors, telling neither path nor query."""
    try:
        yield
    except LocationValueError:
        raise UrlRefused(f"{field} led to something other than http(s)", field=field) from None
    except (HTTPError, OSError, UnicodeError) as err:
        scope.check()
        root = _root(err)
        if isinstance(root, AddressRefused):
            raise UrlRefused(str(root), field=field) from None
        why = "took too long" if deadline.passed else f"failed ({type(root).__name__})"
        details = {"transient": True} if leaf is StorageFailed else {}
        raise leaf(f"the transfer of {field} {why}", field=field, details=details) from None


def _root(err: BaseException) -> BaseException:
    """Return the error below the wrappings of urllib3."""
    while True:
        nested = [a for a in (*err.args, getattr(err, "reason", None)) if a is not err]
        below = next((n for n in nested if isinstance(n, BaseException)), err.__cause__)
        if below is None:
            return err
        err = below
