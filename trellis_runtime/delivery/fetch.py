"""Visit an address that a caller named, without being led anywhere private.

The check sits where it cannot be evaded: in the connection itself. Each connection resolves the
host, refuses unless every address is public, and then connects to the very address that it
checked, so a name that answers differently the second time (DNS rebinding) gains nothing, and a
redirect is a new connection with a new check. Environment proxies are ignored: they would resolve
in our stead. One deadline covers everything; when it passes, the socket is shut from outside, so
a server that drips bytes cannot hold a job.

Long because the guard is read as a whole: the check, the connection and every way to reach it.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from trellis_runtime.contract.scope import Deadline, JobScope
from trellis_runtime.errors import FetchFailed, StorageFailed, UrlRefused, WorkerError
from trellis_runtime.settings import FetchLimits

_USER_AGENT = "trellis-runtime"
_CHUNK_BYTES = 64 * 1024
_UPLOAD_ATTEMPTS = 3
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# is_global of older Pythons calls some of these public; each leads into a network of somebody's.
_NEVER = tuple(
    ipaddress.ip_network(n)
    for n in ("0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15",
              "224.0.0.0/4", "240.0.0.0/4", "::/127", "64:ff9b:1::/48", "100::/64", "2001::/23",
              "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8", "5f00::/16", "3fff::/20")
)  # fmt: skip


def is_public(address: Address, limits: FetchLimits) -> bool:
    """Whether a caller's URL may lead to `address`; IPv4 inside IPv6 is judged as IPv4."""
    if any(address in network for network in limits.allow_networks):
        return True
    if isinstance(address, ipaddress.IPv6Address):
        inner = _embedded_ipv4(address)
        if inner is not None:
            return is_public(inner, limits)
    return address.is_global and not any(
        address.version == net.version and address in net for net in _NEVER
    )


def _embedded_ipv4(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that a mapped, 6to4 or NAT64 address stands for."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in ipaddress.ip_network("64:ff9b::/96"):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def fetch(url: str, max_bytes: int, limits: FetchLimits, scope: JobScope) -> bytes:
    """Return the body at `url`.

    Raises `UrlRefused` for an address that is not public, too many redirects or a body over
    `max_bytes`; `FetchFailed` when the server errs or time is up.
    """
    deadline = _deadline(limits, scope)
    with _session(limits, deadline) as session, _network_errors(deadline, FetchFailed):
        response = session.get(url, stream=True, timeout=_timeouts(deadline))
        with response:
            if response.status_code >= 400:
                raise FetchFailed(
                    f"the server at {host_of(url)} answered {response.status_code}",
                    field="image_url",
                )
            body = b"".join(_capped(response, max_bytes, scope))
        _require_in_time(deadline)
        return body


def upload(
    url: str,
    body: bytes,
    content_type: str,
    limits: FetchLimits,
    scope: JobScope,
    field: str = "output.upload_url",
) -> None:
    """PUT `body` to the caller's presigned `url`, under the same rules; redirects are refused.

    A failure of the network or a 5xx answer is tried again, twice. Raises `UrlRefused` or
    `StorageFailed`.
    """
    headers = {"Content-Type": content_type}
    _retried("PUT", url, limits, scope, field=field, data=body, headers=headers)


def head(url: str, limits: FetchLimits, scope: JobScope) -> Mapping[str, str]:
    """Return the headers of a HEAD at the caller's `url`; raises as `upload` does."""
    return _retried("HEAD", url, limits, scope, field="s3Config")


def _retried(
    method: str, url: str, limits: FetchLimits, scope: JobScope, *, field: str, **kwargs: Any
) -> Mapping[str, str]:
    attempt = 1
    while True:
        try:
            return _request(method, url, limits, scope, field=field, **kwargs)
        except StorageFailed as err:
            if attempt == _UPLOAD_ATTEMPTS or not err.details.get("transient"):
                raise StorageFailed(err.message, field=field) from None
        time.sleep(min(2.0 ** (attempt - 1), scope.deadline.remaining()))
        scope.check()
        attempt += 1


def _request(
    method: str, url: str, limits: FetchLimits, scope: JobScope, *, field: str, **kwargs: Any
) -> Mapping[str, str]:
    deadline = _deadline(limits, scope)
    with _session(limits, deadline) as session, _network_errors(deadline, StorageFailed, field):
        response = session.request(
            method, url, timeout=_timeouts(deadline), allow_redirects=False, **kwargs
        )
        if not 200 <= response.status_code < 300:
            raise StorageFailed(
                f"{host_of(url)} answered {response.status_code} to {method}",
                field=field,
                details={"transient": response.status_code >= 500},
            )
        _require_in_time(deadline)
        return response.headers


def _require_in_time(deadline: Deadline) -> None:
    """A socket shut at the deadline looks like a body that ended; it must not pass for one."""
    if deadline.passed:
        raise TimeoutError


def host_of(url: str) -> str:
    """Return what may be shown of an address: its host alone."""
    return urlsplit(url).hostname or "?"


def _deadline(limits: FetchLimits, scope: JobScope) -> Deadline:
    return Deadline.after(min(limits.timeout_s, scope.deadline.remaining()))


def _timeouts(deadline: Deadline) -> float:
    return max(0.001, deadline.remaining())


def _capped(response: requests.Response, max_bytes: int, scope: JobScope) -> Iterator[bytes]:
    """Yield the body, giving up as soon as its stated or its real size is over the limit."""
    stated = response.headers.get("Content-Length", "")
    size = 0
    too_large = stated.isdigit() and int(stated) > max_bytes
    while not too_large:
        chunk = response.raw.read(_CHUNK_BYTES, decode_content=True)
        if not chunk:
            return
        scope.check()
        size += len(chunk)
        too_large = size > max_bytes
        yield chunk
    raise UrlRefused(
        f"the body at image_url has more than the limit of {max_bytes} bytes", field="image_url"
    )


@contextmanager
def _network_errors(
    deadline: Deadline, leaf: type[WorkerError], field: str = "image_url"
) -> Iterator[None]:
    """Turn what the network does into our errors, telling neither path nor query."""
    try:
        yield
    except requests.TooManyRedirects:
        raise UrlRefused("the address redirects too often", field=field) from None
    except (requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL):
        raise UrlRefused(f"{field} led to something other than http(s)", field=field) from None
    except (requests.RequestException, HTTPError, OSError, UnicodeError) as err:
        if refused := _refusal_within(err):
            raise UrlRefused(str(refused), field=field) from None
        why = "took too long" if deadline.passed else f"failed ({type(err).__name__})"
        details = {"transient": True} if leaf is StorageFailed else {}
        raise leaf(f"the transfer of {field} {why}", field=field, details=details) from None


def _refusal_within(err: BaseException) -> _Refused | None:
    """Find our refusal below the wrappings of urllib3 and requests."""
    seen: BaseException | None = err
    while seen is not None:
        if isinstance(seen, _Refused):
            return seen
        nested = [a for a in seen.args if isinstance(a, BaseException)]
        nested += [r for a in nested if isinstance(r := getattr(a, "reason", None), BaseException)]
        seen = next((n for n in nested if n is not seen), None) or seen.__cause__
    return None


class _Refused(OSError):
    """Raised inside the connection; an OSError would be retried nowhere, as retries are off."""


class _Guard:
    """What a guarded connection needs to know; one per transfer."""

    def __init__(self, limits: FetchLimits, deadline: Deadline) -> None:
        self.limits = limits
        self.deadline = deadline
        self._timers: list[threading.Timer] = []

    def connect(self, host: str, port: int) -> socket.socket:
        """Resolve, check every address, and connect to one that was checked."""
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for info in infos:
            address = ipaddress.ip_address(str(info[4][0]).split("%")[0])
            if not is_public(address, self.limits):
                raise _Refused(f"{host} leads to {address}, which is not a public address")
        failure: OSError = OSError("no address")
        for family, kind, proto, _, where in infos:
            sock = socket.socket(family, kind, proto)
            sock.settimeout(_timeouts(self.deadline))
            try:
                sock.connect(where)
            except OSError as err:
                sock.close()
                failure = err
                continue
            self._shut_at_deadline(sock)
            return sock
        raise failure

    def _shut_at_deadline(self, sock: socket.socket) -> None:
        def shut() -> None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # already closed: nothing is left to shut

        timer = threading.Timer(self.deadline.remaining(), shut)
        timer.daemon = True
        timer.start()
        self._timers.append(timer)

    def close(self) -> None:
        for timer in self._timers:
            timer.cancel()


class _GuardedHTTP(HTTPConnection):
    guard: _Guard

    def _new_conn(self) -> socket.socket:
        return self.guard.connect(self._dns_host, self.port)


class _GuardedHTTPS(HTTPSConnection):
    guard: _Guard

    def _new_conn(self) -> socket.socket:
        return self.guard.connect(self._dns_host, self.port)


class _GuardedAdapter(HTTPAdapter):
    """An adapter whose connections all pass through one guard."""

    def __init__(self, guard: _Guard) -> None:
        self._guard = guard
        super().__init__(max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        http = type("Http", (_GuardedHTTP,), {"guard": self._guard})
        https = type("Https", (_GuardedHTTPS,), {"guard": self._guard})
        self.poolmanager.pool_classes_by_scheme = {
            "http": type("HttpPool", (HTTPConnectionPool,), {"ConnectionCls": http}),
            "https": type("HttpsPool", (HTTPSConnectionPool,), {"ConnectionCls": https}),
        }


@contextmanager
def _session(limits: FetchLimits, deadline: Deadline) -> Iterator[requests.Session]:
    guard = _Guard(limits, deadline)
    with requests.Session() as session:
        session.trust_env = False
        session.max_redirects = limits.max_redirects
        session.headers["User-Agent"] = _USER_AGENT
        session.adapters.clear()
        session.mount("http://", _GuardedAdapter(guard))
        session.mount("https://", _GuardedAdapter(guard))
        try:
            yield session
        finally:
            guard.close()
