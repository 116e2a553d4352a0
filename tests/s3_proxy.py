"""A store that errs: a real S3 server behind a proxy that does what a test says."""

from __future__ import annotations

import http.client
import http.server
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from tests.loopback import Wraps, http_server, read_sent, reset
from tests.seaweed import SeaweedFs

Handler = http.server.BaseHTTPRequestHandler


@dataclass(slots=True)
class Exchange:
    """One request on its way to the store."""

    handler: Handler
    store: SeaweedFs
    sent: bytes

    @property
    def call(self) -> str:
        """As `PUT model.glb`."""
        return f"{self.handler.command} {urlsplit(self.handler.path).path.rsplit('/', 1)[-1]}"

    @property
    def region(self) -> str:
        """The region that the request, or the link, is signed for."""
        told = self.handler.headers.get("Authorization", "") + unquote(self.handler.path)
        found = re.search(r"Credential=[^/]*/\d{8}/([^/]+)/s3", told)
        return found.group(1) if found else ""

    def forward(self) -> tuple[int, list[tuple[str, str]], bytes]:
        """Let the store answer."""
        link = http.client.HTTPConnection(urlsplit(self.store.endpoint).netloc)
        headers = dict(self.handler.headers.items())
        link.request(self.handler.command, self.handler.path, self.sent or None, headers)
        got = link.getresponse()
        answer = got.status, got.getheaders(), got.read()
        link.close()
        return answer

    def lose(self) -> None:
        """Let the store act; the connection breaks before it can say so."""
        self.forward()
        reset(self.handler)

    def reply(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.handler.send_response(status)
        hop = ("transfer-encoding", "content-length", "connection", "date", "server")
        for name, value in headers:
            if name.lower() not in hop or (
                name.lower() == "content-length" and self.handler.command == "HEAD"
            ):
                self.handler.send_header(name, value)
        if self.handler.command != "HEAD":
            self.handler.send_header("Content-Length", str(len(body)))
        self.handler.end_headers()
        self.handler.wfile.write(body if self.handler.command != "HEAD" else b"")

    def refuse(self, status: int, code: str, more: str = "") -> None:
        """Answer as S3 does when it refuses."""
        body = f"<Error><Code>{code}</Code><Message>no</Message>{more}</Error>"
        self.reply(status, [("Content-Type", "application/xml")], body.encode())


Rule = Callable[[Exchange], bool]
"""Acts on an exchange; returns whether it has dealt with it, else the store answers."""


@dataclass(slots=True)
class Proxy:
    """`with proxy.serve() as url:` is the store, with faults; `calls` is what came, in order."""

    store: SeaweedFs
    rule: Rule
    calls: list[str] = field(default_factory=list)
    stops: Callable[[Handler], bool] = lambda _: False
    """Whether the store stops in the middle of what is sent to it."""

    def serve(self, tls: Wraps | None = None) -> AbstractContextManager[str]:
        return http_server(self._answer, tls)

    def _answer(self, handler: Handler) -> None:
        size = int(handler.headers.get("Content-Length") or 0)
        if self.stops(handler):
            handler.rfile.read(size // 2)
            reset(handler)
            return
        exchange = Exchange(handler, self.store, read_sent(handler) if size else b"")
        self.calls.append(exchange.call)
        if not self.rule(exchange):
            exchange.reply(*exchange.forward())


def insists_on(region: str) -> Rule:
    """As AWS does: a request, or a link, that is signed for another region is refused."""

    def rule(exchange: Exchange) -> bool:
        if exchange.region == region:
            return False
        if "Authorization" in exchange.handler.headers:
            more = f"<Region>{region}</Region>"
            exchange.refuse(400, "AuthorizationHeaderMalformed", more)
        else:
            exchange.refuse(400, "AuthorizationQueryParametersError")
        return True

    return rule


def writes_only(exchange: Exchange) -> bool:
    """A key with s3:PutObject and nothing else."""
    if exchange.handler.command == "PUT":
        return False
    exchange.refuse(403, "AccessDenied")
    return True


def loses_the_answer(call: str, times: int) -> Rule:
    """The store takes it; the connection breaks before it can say so."""
    left = [times]

    def rule(exchange: Exchange) -> bool:
        if exchange.call != call or left[0] == 0:
            return False
        left[0] -= 1
        exchange.lose()
        return True

    return rule
