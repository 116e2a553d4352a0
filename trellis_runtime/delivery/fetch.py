"""Visit an address that a caller named, without being led anywhere private.

Every connection passes through `guard.py`, which checks addresses and holds the deadline; every
body through `unpack.py`, which bounds memory. Redirects are followed here, one new connection and
one new check each, and what their answers carry is not read.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from urllib3 import BaseHTTPResponse, PoolManager
from urllib3.exceptions import HTTPError, LocationValueError

from trellis_runtime.contract.scope import Deadline, JobScope
from trellis_runtime.delivery.guard import AddressRefused, Guard, guarded_pools, is_public
from trellis_runtime.delivery.tries import ATTEMPTS, is_transient, retried
from trellis_runtime.delivery.unpack import EncodingRefused, read_at_most
from trellis_runtime.errors import FetchFailed, StorageFailed, UrlRefused, WorkerError
from trellis_runtime.settings import FetchLimits

__all__ = [
    "Answer", "exchange", "fetch", "host_of", "is_public", "require_visitable", "store_code",
    "upload",
]  # fmt: skip

_USER_AGENT = "trellis-runtime"
_ANSWER_BYTES = 16 * 1024
"""How much of an answer to a PUT is read: enough for a store's error code."""

_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,60})</Code>")


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
        return is_transient(self.status)


def store_code(body: bytes) -> str:
    """Return the code of an error as S3, Google Cloud Storage and Azure write it, in brackets.

    Empty where the body has none: other words of a server's could be anything.
    """
    found = _CODE.search(body)
    return f" ({found.group(1).decode()})" if found else ""


def fetch(url: str, max_bytes: int, limits: FetchLimits, scope: JobScope) -> bytes:
    """Return the body at `url`; a failure that may pass is tried again, twice, in the same time.

    Raises `UrlRefused` for an address that is not public, too many redirects or a body over
    `max_bytes`; `FetchFailed` when the server errs or time is up.
    """
    deadline = _deadline(limits, scope)
    return retried(lambda: _fetch_once(url, max_bytes, limits, deadline, scope), ATTEMPTS, scope,
                   deadline)  # fmt: skip


def _fetch_once(
    url: str, max_bytes: int, limits: FetchLimits, deadline: Deadline, scope: JobScope
) -> bytes:
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
        start, _ = read_at_most(response, _ANSWER_BYTES)
        raise FetchFailed(
            f"the server at {host} answered {response.status}{store_code(start)}",
            field="image_url",
            retryable=is_transient(response.status),
        )
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
    headers: Mapping[str, str],
    limits: FetchLimits,
    scope: JobScope,
    field: str = "output.upload_url",
) -> None:
    """PUT `body` to the caller's presigned `url`, under the same rules; redirects are refused.

    `headers` are the caller's own; a signature may cover them, so no others are sent. A failure of
    the network, 408, 425, 429 or a 5xx answer is tried again, twice. Raises `UrlRefused` or
    `StorageFailed`.
    """

    def put() -> Answer:
        return _required("PUT", url, limits, scope, field=field, headers=headers, body=body)

    retried(put, ATTEMPTS, scope)


def require_visitable(url: str, limits: FetchLimits, scope: JobScope, field: str) -> None:
    """Look the host of `url` up without visiting it.

    Raises `UrlRefused` where it is not public, and `StorageFailed` where it has no address.
    """
    deadline = _deadline(limits, scope)

    def look_up() -> None:
        with _network_errors(deadline, scope, StorageFailed, field):
            guard = Guard(limits, deadline, lambda: scope.cancelled)
            guard.look_up(host_of(url), urlsplit(url).port or 443)

    retried(look_up, ATTEMPTS, scope, deadline)


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

    Redirects are not followed. Raises `UrlRefused`, or `StorageFailed` where the network fails.
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
        err = StorageFailed(
            f"{host_of(url)} answered {answer.status}{store_code(answer.body)} to {method}",
            field=field,
            retryable=answer.transient,
        )
        err.answered = answer.status
        raise err
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
        may_pass = not isinstance(root, ssl.SSLCertVerificationError | EncodingRefused)
        raise leaf(f"the transfer of {field} {why}", field=field, retryable=may_pass) from None


def _root(err: BaseException) -> BaseException:
    """Return the error below the wrappings of urllib3."""
    while True:
        nested = [a for a in (*err.args, getattr(err, "reason", None)) if a is not err]
        below = next((n for n in nested if isinstance(n, BaseException)), err.__cause__)
        if below is None:
            return err
        err = below
