"""A fault for each call on the wire, drawn from the seed, the call and how often it was made."""

from __future__ import annotations

import http.server
import random
import socket
import ssl
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TypeVar

from tests.conftest import encoded
from tests.loopback import Reply, Wraps, body, has_left, reset
from tests.plane import HANG, LOST, RESET
from tests.s3_proxy import Exchange, Handler
from tests.test_mixed import PICTURES, blob

_T = TypeVar("_T")
_PLANE: dict[str, dict[int, float]] = {
    # what: of a hundred calls
    "job-take": {500: 2, 502: 1, 429: 0.5, RESET: 1.5},
    "job-stop": {500: 2, 429: 0.5, RESET: 1.5},
    "job-done": {500: 2, 502: 1, 408: 2, 429: 2, RESET: 3, LOST: 2, HANG: 0.3},
    "progress": {500: 2, 429: 1, RESET: 2, HANG: 0.2},
}
_STORE = {"503": 2, "429": 1, "reset": 1, "stops": 2, "lost": 2, "hangs": 0.3, "cut": 0.7}
_PICTURES = {"503": 3, "429": 2, "reset": 2, "cut": 2, "hangs": 0.5}
_TLS_SLOW, _TLS_NEVER = 3.0, 0.2  # of a hundred handshakes


@dataclass(slots=True)
class Weather:
    """Draws faults while `is_foul`, and counts them."""

    seed: int
    is_foul: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    _calls: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def chance(self, *call: str) -> random.Random:
        """Return the chance of a call, another each time that it is made."""
        key = ":".join(call)
        with self._lock:
            self._calls[key] += 1
            return random.Random(f"{self.seed}:{key}:{self._calls[key]}")

    def drawn(self, faults: dict[_T, float], *call: str) -> _T | None:
        """Return the fault that a call meets, None for most."""
        point = self.chance(*call).uniform(0, 100)
        if not self.is_foul:
            return None
        for fault, share in faults.items():
            if (point := point - share) < 0:
                self.note(f"{call[0]} {fault}")
                return fault
        return None

    def note(self, fault: str) -> None:
        with self._lock:
            self.counts[_NAMES.get(fault, fault)] += 1

    def of_plane(self, verb: str, job_id: str) -> int:
        """The control plane's; see `tests.plane.Weather`."""
        fault = self.drawn(_PLANE[verb], verb, job_id)
        return 200 if fault is None else fault


_NAMES = {
    f"{verb} {status}": f"{verb} {name}"
    for verb in _PLANE
    for status, name in ((RESET, "reset"), (HANG, "hangs"), (LOST, "answer lost"))
}


class Store:
    """A store that stops in mid-upload, loses answers, is overloaded, cuts what it passes on."""

    def __init__(self, weather: Weather) -> None:
        self._weather = weather
        self._stopped_until = 0.0
        self.asked_to_stop = False

    def stops(self, handler: Handler) -> bool:
        """Whether it stops in the middle of this request, or lies still."""
        if time.monotonic() < self._stopped_until:
            return True
        if handler.command != "PUT":
            return False
        if self.asked_to_stop:
            self.asked_to_stop, self._stopped_until = False, time.monotonic() + 2.0
            self._weather.note("store stopped")
            return True
        path = handler.path.split("?", 1)[0]
        return (
            self._weather.drawn({"stops in mid-upload": _STORE["stops"]}, "PUT", path) is not None
        )

    def rule(self, exchange: Exchange) -> bool:
        """See `tests.s3_proxy.Rule`."""
        path = exchange.handler.path.split("?", 1)[0]
        faults = {kind: share for kind, share in _STORE.items() if kind != "stops"}
        fault = self._weather.drawn(faults, "store", exchange.handler.command, path)
        if fault == "503":
            exchange.refuse(503, "SlowDown")
        elif fault == "429":
            exchange.refuse(429, "TooManyRequests")
        elif fault == "reset":
            reset(exchange.handler)
        elif fault == "lost":
            exchange.lose()
        elif fault == "hangs":
            _hang(exchange.handler)
        elif fault == "cut" and exchange.sent:
            exchange.sent = exchange.sent[: len(exchange.sent) // 2]
            exchange.handler.headers.replace_header("Content-Length", str(len(exchange.sent)))
            exchange.reply(*exchange.forward())
        else:
            return False
        return True


def pictures(weather: Weather) -> Reply:
    """Serve each known picture at /NUMBER/JOB, with faults."""
    known = [encoded(blob(number)) for number in range(PICTURES)]

    def reply(handler: Handler) -> None:
        data = known[int(handler.path.split("/")[1])]
        fault = weather.drawn(_PICTURES, "picture", handler.path)
        if fault == "reset":
            reset(handler)
        elif fault == "hangs":
            _hang(handler)
        elif fault == "cut":
            body(data[: len(data) // 2], length=len(data))(handler)
            handler.close_connection = True
        elif fault is not None:
            body(b"", status=int(fault))(handler)
        else:
            body(data)(handler)

    return reply


def _hang(handler: http.server.BaseHTTPRequestHandler) -> None:
    end = time.monotonic() + 60
    while not has_left(handler) and time.monotonic() < end:
        time.sleep(0.05)
    reset(handler)


class SlowTls(Wraps):
    """TLS whose handshakes sometimes take a second, and sometimes never come."""

    def __init__(self, context: ssl.SSLContext, weather: Weather) -> None:
        self._context, self._weather = context, weather

    def wrap_socket(self, sock: socket.socket, *, server_side: bool) -> ssl.SSLSocket:
        faults = {"slow": _TLS_SLOW, "never": _TLS_NEVER}
        fault = self._weather.drawn(faults, "handshake")
        if fault == "slow":
            time.sleep(1.0)
        elif fault == "never":
            while sock.recv(4096):  # the client's hello, and then its leaving
                pass
            raise ConnectionResetError
        return self._context.wrap_socket(sock, server_side=server_side)
