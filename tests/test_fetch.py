"""No address that a caller names leads anywhere private."""

from __future__ import annotations

import http.server
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trellis_runtime.contract.scope import Deadline, JobScope
from trellis_runtime.delivery import fetch as fetch_module
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


Reply = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextmanager
def server(reply: Reply) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            reply(self)

        do_PUT = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Quiet(http.server.ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # clients leave early on purpose here

    with Quiet(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}"
        finally:
            running.shutdown()
            thread.join()


def body(data: bytes, status: int = 200, length: int | None = None) -> Reply:
    def reply(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data) if length is None else length))
        handler.end_headers()
        handler.wfile.write(data)

    return reply


def redirect(to: str) -> Reply:
    def reply(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", to.replace("SELF", handler.headers["Host"]))
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return reply


def test_a_body_is_fetched(scope: JobScope) -> None:
    with server(body(b"picture")) as url:
        assert fetch(f"{url}/a.png?sig=1", 100, LOOPBACK, scope) == b"picture"


def test_the_address_is_checked_at_the_connection_itself(scope: JobScope) -> None:
    with server(body(b"secret")) as url, pytest.raises(UrlRefused, match="127.0.0.1"):
        fetch(url, 100, STRICT, scope)


def test_a_redirect_to_a_private_address_is_refused(scope: JobScope) -> None:
    with (
        server(redirect("http://127.0.0.2:1/x")) as url,
        pytest.raises(UrlRefused, match="127.0.0.2"),
    ):
        fetch(url, 100, LOOPBACK, scope)


@pytest.mark.parametrize("to", ["file:///etc/passwd", "gopher://127.0.0.1/", "ftp://127.0.0.1/"])
def test_a_redirect_to_another_scheme_is_refused(to: str, scope: JobScope) -> None:
    with server(redirect(to)) as url, pytest.raises(UrlRefused):
        fetch(url, 100, LOOPBACK, scope)


def test_too_many_redirects_are_refused(scope: JobScope) -> None:
    with server(redirect("http://SELF/")) as url, pytest.raises(UrlRefused, match="too often"):
        fetch(url, 100, LOOPBACK, scope)


def test_a_name_that_changes_between_check_and_use_gains_nothing(
    scope: JobScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: what was resolved and checked is what is connected to, never a second look."""
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

    monkeypatch.setattr(fetch_module.socket, "getaddrinfo", rebinding)
    monkeypatch.setattr(fetch_module.socket, "socket", Spy)
    with pytest.raises(FetchFailed):
        fetch("http://rebind.example:80/x", 100, STRICT, scope)
    assert asked == ["rebind.example"]
    assert connected == [("93.184.215.14", 80)]


def test_one_private_address_among_several_is_enough_to_refuse(
    scope: JobScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mixed(host: str, port: int, *_: object, **__: object) -> list[tuple[object, ...]]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port))
            for ip in ("8.8.8.8", "10.0.0.1")
        ]

    monkeypatch.setattr(fetch_module.socket, "getaddrinfo", mixed)
    with pytest.raises(UrlRefused, match="10.0.0.1"):
        fetch("http://mixed.example/x", 100, STRICT, scope)


@pytest.mark.parametrize("length", [None, 5, 10_000])
def test_the_body_is_capped_whatever_its_length_claims(length: int | None, scope: JobScope) -> None:
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


def test_a_compressed_body_is_capped_by_its_real_size(scope: JobScope) -> None:
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


def test_a_server_that_drips_is_cut_at_the_deadline(scope: JobScope) -> None:
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


def test_an_error_answer_is_told_with_its_status(scope: JobScope) -> None:
    with server(body(b"", 404)) as url, pytest.raises(FetchFailed, match="answered 404"):
        fetch(f"{url}/x?token=SECRET", 100, LOOPBACK, scope)


def test_a_stopped_job_stops_its_download() -> None:
    scope = JobScope("x")
    scope.cancel()
    with server(body(b"data")) as url, pytest.raises(JobCancelled):
        fetch(url, 100, LOOPBACK, scope)


def test_the_jobs_deadline_bounds_the_download() -> None:
    scope = JobScope("x", Deadline.after(0.0))
    with server(body(b"data")) as url, pytest.raises((FetchFailed, DeadlineExceeded)):
        fetch(url, 100, LOOPBACK, scope)


def test_proxies_of_the_environment_are_not_used(
    scope: JobScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server(body(b"proxied")) as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        with pytest.raises(UrlRefused):
            fetch("http://127.0.0.3:9/x", 100, STRICT, scope)


def test_an_upload_obeys_the_same_rules(scope: JobScope) -> None:
    with pytest.raises(UrlRefused) as caught:
        upload("http://127.0.0.1:9/put?sig=SECRET", b"x", "model/gltf-binary", STRICT, scope)
    assert caught.value.field == "output.upload_url"
    with server(redirect("http://SELF/")) as url, pytest.raises(StorageFailed, match="302"):
        upload(url, b"x", "model/gltf-binary", LOOPBACK, scope)


def test_an_upload_is_tried_again_after_a_server_error(scope: JobScope) -> None:
    seen: list[bytes] = []

    def flaky(handler: http.server.BaseHTTPRequestHandler) -> None:
        seen.append(handler.rfile.read(int(handler.headers["Content-Length"])))
        body(b"", 503 if len(seen) == 1 else 200)(handler)

    with server(flaky) as url:
        upload(url, b"model", "model/gltf-binary", LOOPBACK, scope)
    assert seen == [b"model", b"model"]


def test_allowed_networks_are_exact() -> None:
    limits = FetchLimits(allow_networks=(IPv4Network("10.1.0.0/16"), IPv6Network("fd00::/8")))
    assert is_public(IPv4Address("10.1.2.3"), limits)
    assert not is_public(IPv4Address("10.2.2.3"), limits)
    assert is_public(IPv6Address("fd00::1"), limits)
