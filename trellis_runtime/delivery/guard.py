"""Connections to addresses that somebody else named: checked, and shut when their time is over.

The check sits where it cannot be evaded: in the connection itself. Each connection resolves the
host, refuses unless every address is public, and then connects to the very address that it
checked, so a name that answers differently the second time (DNS rebinding) gains nothing.

    resolve (a thread that may be left behind) -> check all -> connect (a share of the time each)
    -> the watcher's duplicate of the socket -> TLS -> headers -> body

One deadline covers all of it. The watcher holds a duplicate of each socket: whoever wraps the
socket later (TLS detaches it) still reads from the same connection, and shutting the duplicate ends
whatever waits on it. A stopped job is noticed in the same place.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import certifi
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection

from trellis_runtime.contract.scope import Deadline
from trellis_runtime.settings import FetchLimits

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_WATCH_S = 0.1
_LOOKUPS = threading.BoundedSemaphore(16)  # a resolver that hangs holds a thread; never more
_MOST_ADDRESSES = 16

# is_global of older Pythons calls some of these public; each leads into a network of somebody's.
_NEVER = tuple(
    ipaddress.ip_network(n)
    for n in ("0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15",
              "224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32", "::/96", "64:ff9b:1::/48",
              "100::/64", "2001::/23", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
              "5f00::/16", "3fff::/20")
)  # fmt: skip
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)  # RFC 5214: the upper half of the interface identifier


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
    """Return the IPv4 address that a mapped, 6to4, NAT64 or ISATAP address stands for."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    lowest = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address in ipaddress.ip_network("64:ff9b::/96"):
        return lowest
    return lowest if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP else None


class AddressRefused(OSError):
    """The address is not public; an OSError, so that it passes through HTTP libraries."""


class Guard:
    """What a guarded connection needs to know; one per transfer."""

    def __init__(
        self, limits: FetchLimits, deadline: Deadline, stopped: Callable[[], bool]
    ) -> None:
        self.limits = limits
        self.deadline = deadline
        self._stopped = stopped
        self._sockets: list[socket.socket] = []
        self._closed = threading.Event()
        self._watcher: threading.Thread | None = None

    def connect(self, host: str, port: int) -> socket.socket:
        """Resolve, check every address, and connect to one that was checked.

        Raises `AddressRefused`, or `OSError` when none answers in its share of the time.
        """
        infos = self.look_up(host, port)
        failure: OSError = OSError("no address")
        tried = infos[:_MOST_ADDRESSES]
        for number, (family, kind, proto, _, where) in enumerate(tried):
            share = self._seconds() / (len(tried) - number)
            sock = socket.socket(family, kind, proto)
            try:
                sock.settimeout(share)
                sock.connect(where)
                sock.settimeout(self._seconds())
            except OSError as err:
                sock.close()
                failure = err
                continue
            self._watch(sock)
            return sock
        raise failure

    def look_up(self, host: str, port: int) -> list[Any]:
        """Resolve `host`; raises `AddressRefused` unless every address of it may be visited."""
        infos = self._resolve(host, port)
        for info in infos:
            address = ipaddress.ip_address(str(info[4][0]).split("%")[0])
            if not is_public(address, self.limits):
                raise AddressRefused(f"{host} leads to {address}, which is not a public address")
        return infos

    def close(self) -> None:
        """Let go of the connections."""
        self._closed.set()
        if self._watcher is not None:
            self._watcher.join()
        for duplicate in self._sockets:
            duplicate.close()

    def _seconds(self) -> float:
        """Return what is left of the time; raises `TimeoutError` when nothing is."""
        if self.deadline.passed:
            raise TimeoutError
        return self.deadline.remaining()

    def _resolve(self, host: str, port: int) -> list[Any]:
        """Look `host` up in a thread: `getaddrinfo` knows no time limit and cannot be ended."""
        answer: Future[list[Any]] = Future()
        if not _LOOKUPS.acquire(timeout=self._seconds()):
            raise TimeoutError

        def ask() -> None:
            try:
                answer.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
            except Exception as err:  # noqa: BLE001 - it belongs to whoever waits for the answer
                answer.set_exception(err)
            finally:
                _LOOKUPS.release()

        threading.Thread(target=ask, name="resolve", daemon=True).start()
        return answer.result(timeout=self._seconds())

    def _watch(self, sock: socket.socket) -> None:
        self._sockets.append(sock.dup())
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._shut_in_time, name="guard", daemon=True)
            self._watcher.start()

    def _shut_in_time(self) -> None:
        while not self._closed.wait(min(_WATCH_S, self.deadline.remaining() + 0.001)):
            if self.deadline.passed or self._stopped():
                for duplicate in list(self._sockets):
                    try:
                        duplicate.shutdown(socket.SHUT_RDWR)
                    except OSError:
                        pass  # already closed by the other side
                if self._closed.wait(_WATCH_S):
                    return


class _GuardedHTTP(HTTPConnection):
    guard: Guard

    def _new_conn(self) -> socket.socket:
        return self.guard.connect(self._dns_host, self.port)


class _GuardedHTTPS(HTTPSConnection):
    guard: Guard

    def _new_conn(self) -> socket.socket:
        return self.guard.connect(self._dns_host, self.port)


def _pool_classes(guard: Guard) -> dict[str, type[HTTPConnectionPool]]:
    http = type("Http", (_GuardedHTTP,), {"guard": guard})
    https = type("Https", (_GuardedHTTPS,), {"guard": guard})
    return {
        "http": type("HttpPool", (HTTPConnectionPool,), {"ConnectionCls": http}),
        "https": type("HttpsPool", (HTTPSConnectionPool,), {"ConnectionCls": https}),
    }


def _tls() -> ssl.SSLContext:
    """Trust certifi's roots and the machine's, those of SSL_CERT_FILE among them.

    Reading them takes a core 0.1 s, and a job makes a dozen requests: they are read again only
    where they lie elsewhere, or have changed.
    """
    known = ssl.get_default_verify_paths()  # by the environment of now
    places = [place for place in (known.cafile, known.capath, certifi.where()) if place]
    return _trusting(tuple((place, Path(place).stat().st_mtime_ns) for place in places))


@lru_cache(maxsize=1)
def _trusting(_roots: tuple[tuple[str, int], ...]) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


@contextmanager
def guarded_pools(
    limits: FetchLimits, deadline: Deadline, stopped: Callable[[], bool]
) -> Iterator[PoolManager]:
    """Give connection pools that all pass through one guard; the environment's proxies are not
    used, as they would resolve in our stead.
    """
    guard = Guard(limits, deadline, stopped)
    with PoolManager(ssl_context=_tls()) as pools:
        pools.pool_classes_by_scheme = _pool_classes(guard)
        try:
            yield pools
        finally:
            pools.clear()
            guard.close()
