"""HTTP servers on the loopback that do what a test says, plain or over TLS with a CA of our own."""

from __future__ import annotations

import datetime
import http.server
import ipaddress
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Reply = Callable[[http.server.BaseHTTPRequestHandler], None]
Server = Callable[[Reply], AbstractContextManager[str]]
"""`with server(reply) as url:`"""


class Authority:
    """A CA and a certificate of 127.0.0.1; `bundle` is what SSL_CERT_FILE must name."""

    def __init__(self, folder: Path) -> None:
        self.bundle = folder / "ca.pem"
        chain = folder / "server.pem"
        key, name = ec.generate_private_key(ec.SECP256R1()), _name("tests")
        root = _builder(name, name, key).add_extension(x509.BasicConstraints(True, 0), True)
        own = ec.generate_private_key(ec.SECP256R1())
        hosts = x509.SubjectAlternativeName(
            [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
        )
        leaf = _builder(_name("127.0.0.1"), name, own).add_extension(hosts, False)
        self.bundle.write_bytes(_pem(root.sign(key, hashes.SHA256())))
        chain.write_bytes(
            own.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + _pem(leaf.sign(key, hashes.SHA256()))
        )
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(chain)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


class Wraps(Protocol):
    """What makes TLS of a connection: an `ssl.SSLContext`, or one that is slow about it."""

    def wrap_socket(self, sock: socket.socket, *, server_side: bool) -> ssl.SSLSocket: ...


class QuietServer(http.server.ThreadingHTTPServer):
    """A thread for each connection, plain or over TLS; nothing is said of clients that leave."""

    tls: Wraps | None = None
    daemon_threads = True

    def finish_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        if self.tls is not None:
            request = self.tls.wrap_socket(request, server_side=True)
        try:
            super().finish_request(request, client_address)
        finally:
            request.close()

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients leave early on purpose here


@contextmanager
def silent_server(handle: Callable[[socket.socket], None]) -> Iterator[tuple[str, int]]:
    """Hand every connection to `handle`, on a thread, before anything is read from it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            while True:
                try:
                    client, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(client,), daemon=True).start()

        def serve(client: socket.socket) -> None:
            with client:
                try:
                    handle(client)
                except OSError:
                    pass  # the client left, as the test wants

        thread = threading.Thread(target=accept)
        thread.start()
        yield listening.getsockname()
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


@contextmanager
def http_server(reply: Reply, tls: Wraps | None = None) -> Iterator[str]:
    """Answer every request with `reply`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            reply(self)

        do_PUT = do_HEAD = do_DELETE = do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with QuietServer(("127.0.0.1", 0), Handler) as running:
        running.tls = tls
        thread = threading.Thread(target=running.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http{'s' if tls else ''}://127.0.0.1:{running.server_port}"
        finally:
            running.shutdown()
            thread.join()


def read_sent(handler: http.server.BaseHTTPRequestHandler, size: int | None = None) -> bytes:
    """Return what the client sent with its request."""
    sent = handler.rfile.read(size or int(handler.headers.get("Content-Length") or 0))
    handler.sent = sent
    return sent


def reset(handler: http.server.BaseHTTPRequestHandler) -> None:
    """Break the connection as a crash does: the client gets a reset, and no answer."""
    handler.close_connection = True
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def has_left(handler: http.server.BaseHTTPRequestHandler) -> bool:
    """Whether the client is gone, which has nothing more to send."""
    try:
        readable = select.select([handler.connection], [], [], 0)[0]
        if not readable:
            return False
        if isinstance(handler.connection, ssl.SSLSocket):
            return not handler.connection.recv(1)  # TLS cannot peek
        return not handler.connection.recv(1, socket.MSG_PEEK)
    except (OSError, ValueError):
        return True


def body(
    data: bytes, status: int = 200, length: int | None = None, encoding: str | None = None
) -> Reply:
    def reply(handler: http.server.BaseHTTPRequestHandler) -> None:
        if (sent := int(handler.headers.get("Content-Length") or 0)) and not hasattr(
            handler, "sent"
        ):
            read_sent(handler, sent)
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data) if length is None else length))
        if encoding is not None:
            handler.send_header("Content-Encoding", encoding)
        handler.end_headers()
        handler.wfile.write(data)

    return reply


def redirect(to: str, data: bytes = b"", encoding: str | None = None) -> Reply:
    """Lead to `to`, where SELF is this server, with a body that nobody needs."""

    def reply(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", to.replace("SELF", handler.headers["Host"]))
        handler.send_header("Content-Length", str(len(data)))
        if encoding is not None:
            handler.send_header("Content-Encoding", encoding)
        handler.end_headers()
        handler.wfile.write(data)

    return reply
