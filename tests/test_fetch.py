"""No address that a caller names leads anywhere private."""

from __future__ import annotations

import gzip
import http.server
import ipaddress
import os
import random
import shutil
import socket
import threading
import time
import zlib
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.loopback import Authority, Server, body, http_server, read_sent, redirect, silent_server
from tests.memory import grown_mib
from trellis_runtime.contract.scope import Deadline, JobScope
from trellis_runtime.delivery import guard
from trellis_runtime.delivery.fetch import fetch, is_public, upload
from trellis_runtime.errors import (
    DeadlineExceeded,
    FetchFailed,
    JobCancelled,
    StorageFailed,
    UrlRefused,
)
from trellis_runtime.settings import FetchLimits

STRICT = FetchLimits(timeout_s=3)
LOOPBACK = FetchLimits(timeout_s=3, allow_networks=(IPv4Network("127.0.0.1/32"),))

PRIVATE_V4 = [
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
    "192.0.0.0/24", "192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24",
    "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
]  # fmt: skip
PRIVATE_V6 = [
    "::/128",
    "::1/128",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
    "2001:db8::/32",
    "100::/64",
]


def within(networks: list[str]) -> st.SearchStrategy[int]:
    ranges = [ipaddress.ip_network(n) for n in networks]
    return st.sampled_from(ranges).flatmap(
        lambda n: st.integers(int(n.network_address), int(n.broadcast_address))
    )


@given(within(PRIVATE_V4))
def test_every_non_global_ipv4_is_refused_in_all_its_disguises(number: int) -> None:
    address = IPv4Address(number)
    assert not is_public(address, STRICT)
    assert not is_public(IPv6Address(f"::ffff:{address}"), STRICT)
    assert not is_public(IPv6Address(f"64:ff9b::{address}"), STRICT)
    assert not is_public(IPv6Address((0x2002 << 112) | (number << 80)), STRICT)


@given(within(PRIVATE_V6))
def test_every_non_global_ipv6_is_refused(number: int) -> None:
    assert not is_public(IPv6Address(number), STRICT)


@given(st.ip_addresses())
def test_what_python_calls_not_global_is_refused(address: IPv4Address | IPv6Address) -> None:
    if not address.is_global:
        assert not is_public(address, STRICT)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "64:ff9b::8.8.8.8"])
def test_public_addresses_are_allowed(address: str) -> None:
    assert is_public(ipaddress.ip_address(address), STRICT)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f000001", "0177.0.0.1", "127.1",
     "169.254.169.254", "10.0.0.5", "[::ffff:127.0.0.1]", "0.0.0.0", "[fe80::1]", "100.64.0.1"],
)  # fmt: skip
def test_ssrf_tries_are_refused(host: str, scope: JobScope) -> None:
    with pytest.raises((UrlRefused, FetchFailed)) as caught:
        fetch(f"http://{host}:9/latest?token=SECRET", 100, STRICT, scope)
    assert (
        isinstance(caught.value, UrlRefused)
        or "gaierror" in caught.value.message
        or "NameResolution" in caught.value.message
    )
    assert "SECRET" not in caught.value.message


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(params=["http", "https"])
def server(
    request: pytest.FixtureRequest, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> Server:
    """Every promise holds over TLS as well."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.bundle))
    tls = authority.context if request.param == "https" else None
    return lambda reply: http_server(reply, tls)


def test_roots_are_read_once_and_again_where_their_file_has_changed(
    authority: Authority, scope: JobScope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading them costs more than a small request does."""
    trusted, another = tmp_path / "roots.pem", Authority(tmp_path)
    shutil.copy(authority.bundle, trusted)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    with http_server(body(b"picture"), authority.context) as url:
        first = guard._tls()
        assert fetch(url, 100, LOOPBACK, scope) == b"picture"
        assert fetch(url, 100, LOOPBACK, scope) == b"picture"
        assert guard._tls() is first
    with http_server(body(b"picture"), another.context) as url:
        with pytest.raises(FetchFailed):
            fetch(url, 100, LOOPBACK, scope)
        shutil.copy(another.bundle, trusted)
        os.utime(trusted, ns=(0, 1))
        assert fetch(url, 100, LOOPBACK, scope) == b"picture"


def test_a_body_is_fetched(server: Server, scope: JobScope) -> None:
    with server(body(b"picture")) as url:
        assert fetch(f"{url}/a.png?sig=1", 100, LOOPBACK, scope) == b"picture"


def test_the_address_is_checked_at_the_connection_itself(server: Server, scope: JobScope) -> None:
    with server(body(b"secret")) as url, pytest.raises(UrlRefused, match="127.0.0.1"):
        fetch(url, 100, STRICT, scope)


def test_a_redirect_to_a_private_address_is_refused(server: Server, scope: JobScope) -> None:
    with (
        server(redirect("http://127.0.0.2:1/x")) as url,
        pytest.raises(UrlRefused, match="127.0.0.2"),
    ):
        fetch(url, 100, LOOPBACK, scope)


@pytest.mark.parametrize("to", ["file:///etc/passwd", "gopher://127.0.0.1/", "ftp://127.0.0.1/"])
def test_a_redirect_to_another_scheme_is_refused(server: Server, to: str, scope: JobScope) -> None:
    with server(redirect(to)) as url, pytest.raises(UrlRefused):
        fetch(url, 100, LOOPBACK, scope)


def test_too_many_redirects_are_refused(server: Server, scope: JobScope) -> None:
    with server(redirect("//SELF/")) as url, pytest.raises(UrlRefused, match="too often"):
        fetch(url, 100, LOOPBACK, scope)


def test_a_name_that_changes_between_check_and_use_gains_nothing(
    scope: JobScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: what was resolved and checked is what is connected to; the next try looks, and
    checks, anew."""
    answers = iter(["93.184.215.14", "127.0.0.1", "127.0.0.1"])
    asked = []

    def rebinding(host: str, port: int, *_: object, **__: object) -> list[tuple[object, ...]]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    connected = []

    class Spy(socket.socket):
        def connect(self, address: object) -> None:
            connected.append(address)
            raise OSError("no network here")

    monkeypatch.setattr(guard.socket, "getaddrinfo", rebinding)
    monkeypatch.setattr(guard.socket, "socket", Spy)
    with pytest.raises(UrlRefused, match="127.0.0.1"):
        fetch("http://rebind.example:80/x", 100, STRICT, scope)
    assert asked == ["rebind.example"] * 2
    assert connected == [("93.184.215.14", 80)]


def test_one_private_address_among_several_is_enough_to_refuse(
    scope: JobScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mixed(host: str, port: int, *_: object, **__: object) -> list[tuple[object, ...]]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port))
            for ip in ("8.8.8.8", "10.0.0.1")
        ]

    monkeypatch.setattr(guard.socket, "getaddrinfo", mixed)
    with pytest.raises(UrlRefused, match="10.0.0.1"):
        fetch("http://mixed.example/x", 100, STRICT, scope)


@pytest.mark.parametrize("length", [None, 5, 10_000])
def test_the_body_is_capped_whatever_its_length_claims(
    server: Server, length: int | None, scope: JobScope
) -> None:
    def endless(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        if length is not None:
            handler.send_header("Content-Length", str(length))
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b"x" * 1000)

    with server(endless) as url:
        if length == 5:
            assert fetch(url, 1000, LOOPBACK, scope) == b"xxxxx"
        else:
            with pytest.raises(UrlRefused, match="limit of 1000 bytes"):
                fetch(url, 1000, LOOPBACK, scope)


def test_a_compressed_body_is_capped_by_its_real_size(server: Server, scope: JobScope) -> None:
    import gzip

    bomb = gzip.compress(bytes(10_000_000))

    def reply(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Content-Length", str(len(bomb)))
        handler.end_headers()
        handler.wfile.write(bomb)

    with server(reply) as url, pytest.raises(UrlRefused, match="limit of 100000 bytes"):
        fetch(url, 100_000, LOOPBACK, scope)


def test_a_server_that_drips_is_cut_at_the_deadline(server: Server, scope: JobScope) -> None:
    stop = threading.Event()

    def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not stop.wait(0.05):
            handler.wfile.write(b"a")

    limits = LOOPBACK.model_copy(update={"timeout_s": 0.6})
    started = time.monotonic()
    with server(drip) as url:
        with pytest.raises(FetchFailed, match="took too long"):
            fetch(url, 1000, limits, scope)
        stop.set()
    assert time.monotonic() - started < 30  # it ended at all; how fast is not a test's business


def test_an_error_answer_is_told_with_its_status(server: Server, scope: JobScope) -> None:
    with server(body(b"", 404)) as url, pytest.raises(FetchFailed, match="answered 404"):
        fetch(f"{url}/x?token=SECRET", 100, LOOPBACK, scope)


def test_a_stopped_job_stops_its_download(
    server: Server,
) -> None:
    scope = JobScope("x")
    scope.cancel()
    with server(body(b"data")) as url, pytest.raises(JobCancelled):
        fetch(url, 100, LOOPBACK, scope)


def test_the_jobs_deadline_bounds_the_download(
    server: Server,
) -> None:
    scope = JobScope("x", Deadline.after(0.0))
    with server(body(b"data")) as url, pytest.raises((FetchFailed, DeadlineExceeded)):
        fetch(url, 100, LOOPBACK, scope)


def test_proxies_of_the_environment_are_not_used(
    server: Server, scope: JobScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server(body(b"proxied")) as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        with pytest.raises(UrlRefused):
            fetch("http://127.0.0.3:9/x", 100, LOOPBACK, scope)


def test_an_upload_obeys_the_same_rules(server: Server, scope: JobScope) -> None:
    with pytest.raises(UrlRefused) as caught:
        upload("http://127.0.0.1:9/put?sig=SECRET", b"x", {}, STRICT, scope)
    assert caught.value.field == "output.upload_url"
    with server(redirect("//SELF/")) as url, pytest.raises(StorageFailed, match="302"):
        upload(url, b"x", {}, LOOPBACK, scope)


def test_an_upload_is_tried_again_after_a_server_error(server: Server, scope: JobScope) -> None:
    seen: list[bytes] = []

    def flaky(handler: http.server.BaseHTTPRequestHandler) -> None:
        seen.append(read_sent(handler))
        body(b"", 503 if len(seen) == 1 else 200)(handler)

    with server(flaky) as url:
        upload(url, b"model", {}, LOOPBACK, scope)
    assert seen == [b"model", b"model"]


def test_allowed_networks_are_exact() -> None:
    limits = FetchLimits(allow_networks=(IPv4Network("10.1.0.0/16"), IPv6Network("fd00::/8")))
    assert is_public(IPv4Address("10.1.2.3"), limits)
    assert not is_public(IPv4Address("10.2.2.3"), limits)
    assert is_public(IPv6Address("fd00::1"), limits)


class Drips:
    """Sends a head, then a byte at a time for ever; `stop` ends it for the test's own sake."""

    def __init__(self, head: bytes) -> None:
        self.stop = threading.Event()
        self._head = head

    def __call__(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.wfile.write(self._head)
        while not self.stop.wait(0.05):
            handler.wfile.write(b"a")


SHORT = LOOPBACK.model_copy(update={"timeout_s": 0.6})
HEADER_DRIPS = b"HTTP/1.1 200 OK\r\nX-Slow: "
BODY_DRIPS = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
ERROR_DRIPS = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 1000000\r\n\r\n"
CHUNKS_DRIP = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;"


def ends(call: Callable[[], object], leaf: type[Exception]) -> str:
    """Run `call` on a thread, and return its error's words; a call that hangs fails the test."""
    seen: list[BaseException | None] = []

    def run() -> None:
        try:
            call()
            seen.append(None)
        except Exception as err:
            seen.append(err)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)  # the limits here are a second at most
    assert seen, "it has no end"
    assert isinstance(seen[0], leaf), repr(seen[0])
    return str(seen[0])


@pytest.mark.parametrize(
    "head", [HEADER_DRIPS, BODY_DRIPS, CHUNKS_DRIP], ids=["header", "body", "chunk"]
)
def test_headers_and_bodies_that_drip_end_at_the_deadline(
    server: Server, head: bytes, scope: JobScope
) -> None:
    drips = Drips(head)
    with server(drips) as url:
        assert "took too long" in ends(lambda: fetch(url, 10**9, SHORT, scope), FetchFailed)
        drips.stop.set()


@pytest.mark.parametrize("head", [HEADER_DRIPS, ERROR_DRIPS], ids=["header", "error"])
def test_an_answer_to_an_upload_that_drips_ends_at_the_jobs_deadline(
    server: Server, head: bytes
) -> None:
    drips = Drips(head)
    scope = JobScope("x", Deadline.after(0.8))
    with server(drips) as url:
        ends(lambda: upload(url, b"m", {}, SHORT, scope), DeadlineExceeded)
        drips.stop.set()


def test_a_redirect_that_drips_shares_the_one_deadline(server: Server, scope: JobScope) -> None:
    drips = Drips(HEADER_DRIPS)
    with server(drips) as slow, server(redirect(f"{slow}/")) as url:
        ends(lambda: fetch(url, 1000, SHORT, scope), FetchFailed)
        drips.stop.set()


def test_a_handshake_that_never_comes_ends_at_the_deadline(scope: JobScope) -> None:
    gone = threading.Event()
    with silent_server(lambda _: bool(gone.wait(30)) and None) as (host, port):
        told = ends(lambda: fetch(f"https://{host}:{port}/", 10, SHORT, scope), FetchFailed)
        gone.set()
    assert "took too long" in told


def test_an_upload_that_nobody_reads_ends_at_the_deadline(server: Server) -> None:
    held = threading.Event()
    scope = JobScope("x", Deadline.after(0.8))
    with server(lambda _: bool(held.wait(30)) and None) as url:
        ends(lambda: upload(url, bytes(20_000_000), {}, SHORT, scope), DeadlineExceeded)
        held.set()


def test_a_job_that_is_stopped_lets_go_of_a_server_that_drips(server: Server) -> None:
    scope, drips = JobScope("x"), Drips(BODY_DRIPS)
    threading.Timer(0.3, scope.cancel).start()
    with server(drips) as url:
        limits = LOOPBACK.model_copy(update={"timeout_s": 600})
        ends(lambda: fetch(url, 10**9, limits, scope), JobCancelled)
        drips.stop.set()


def test_a_resolver_that_hangs_is_left_behind(
    scope: JobScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    back = threading.Event()
    monkeypatch.setattr(guard.socket, "getaddrinfo", lambda *_, **__: back.wait(60))
    told = ends(lambda: fetch("http://slow.example/", 10, SHORT, scope), FetchFailed)
    back.set()
    assert "took too long" in told


def test_an_address_that_swallows_everything_leaves_time_for_the_next(
    server: Server, scope: JobScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listener whose queue is full answers no SYN; the second address of the host is fine."""
    with server(body(b"picture")) as url, socket.socket() as full:
        full.bind(("127.0.0.2", int(url.rsplit(":", 1)[1])))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        port = full.getsockname()[1]
        both = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port))
            for ip in ("127.0.0.2", "127.0.0.1")
        ]
        monkeypatch.setattr(guard.socket, "getaddrinfo", lambda *_, **__: both)
        limits = FetchLimits(timeout_s=4, allow_networks=(IPv4Network("127.0.0.0/8"),))
        host = url.replace("127.0.0.1", "localhost")
        assert fetch(host, 100, limits, scope) == b"picture"
        for filler in fillers:
            filler.close()


PACKED = gzip.compress(gzip.compress(bytes(1_000_000_000), 9), 9)  # 1 GB of zeros in 1.6 kB
IMPORTS = """
from ipaddress import IPv4Network
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.delivery.fetch import fetch, upload
from trellis_runtime.errors import WorkerError
from trellis_runtime.settings import FetchLimits
limits = FetchLimits(timeout_s=60, allow_networks=(IPv4Network("127.0.0.1/32"),))
scope = JobScope("x")
import contextlib
with contextlib.suppress(WorkerError):  # connect once: TLS's own memory is no part of the bound
    fetch(arguments[0] + "/none", 10, limits, scope)
"""


@pytest.mark.parametrize("door", ["body", "redirect", "plain", "answer", "refusal"])
def test_no_body_takes_more_memory_than_its_bound(server: Server, door: str) -> None:
    """300 MB on the wire's other end: bodies that are read are bounded, others are not read."""
    bomb = gzip.compress(bytes(300_000_000), 9)
    replies = {
        "body": body(bomb, encoding="gzip"),
        "redirect": redirect("//SELF/end", bomb, encoding="gzip"),
        "plain": redirect("//SELF/end", bytes(200_000_000)),
        "answer": body(bomb, encoding="gzip"),
        "refusal": body(bomb, 403, encoding="gzip"),
    }

    def reply(handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.path == "/none":
            body(b"", 404)(handler)
        elif handler.path == "/end":
            body(b"picture")(handler)
        else:
            replies[door](handler)

    put = "upload(arguments[0] + '/x', b'm', {}, limits, scope)"
    get = "fetch(arguments[0] + '/x', 5_000_000, limits, scope)"
    call = put if door in ("answer", "refusal") else get
    with server(reply) as url:
        grown = grown_mib(IMPORTS, f"with contextlib.suppress(WorkerError):\n    {call}", url)
    assert grown < 30


def test_a_body_packed_twice_is_refused(server: Server, scope: JobScope) -> None:
    with (
        server(body(PACKED, encoding="gzip, gzip")) as url,
        pytest.raises(FetchFailed, match="EncodingRefused"),
    ):
        fetch(url, 10**9, LOOPBACK, scope)


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", "raw", "members", "identity"])
def test_a_packed_body_is_unpacked_whole(server: Server, encoding: str, scope: JobScope) -> None:
    plain = random.Random(1).randbytes(500_000) + bytes(500_000)
    packed = {
        "gzip": gzip.compress(plain),
        "x-gzip": gzip.compress(plain),
        "deflate": zlib.compress(plain),
        "raw": zlib.compress(plain)[2:-4],
        "members": gzip.compress(plain[:1000]) + gzip.compress(plain[1000:]),
        "identity": plain,
    }[encoding]
    named = {"raw": "deflate", "members": "gzip"}.get(encoding, encoding)
    with server(body(packed, encoding=named)) as url:
        assert fetch(url, len(plain), LOOPBACK, scope) == plain


@pytest.mark.parametrize("status", [408, 425, 429, 500, 503])
def test_an_upload_is_tried_again_where_that_may_help(
    server: Server, status: int, scope: JobScope
) -> None:
    seen: list[int] = []

    def flaky(handler: http.server.BaseHTTPRequestHandler) -> None:
        seen.append(status if not seen else 200)
        body(b"", seen[-1])(handler)

    with server(flaky) as url:
        upload(url, b"model", {}, LOOPBACK, scope)
    assert seen == [status, 200]
