"""Listen: the server's own port, the platform's port for health, and bounds on connections.

A load-balancing worker of RunPod listens on PORT and answers GET /ping on PORT_HEALTH: 204 while
it starts, 200 when it is ready, anything else when no job may be sent to it.
"""

from __future__ import annotations

import math
import threading
from asyncio import Transport
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from trellis_runtime.server.app import create_app
from trellis_runtime.server.served import STOP_S, Served
from trellis_runtime.settings import Settings

MAX_CONNECTIONS = 512  # below the 1,024 files that a process may have open
HEADER_S = 10.0


class BoundedProtocol(H11Protocol):
    """uvicorn's own, which waits for the end of a request's headers for ever."""

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Refuse a connection beyond the bound, and watch the others."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.close()
        else:
            self.loop.call_later(HEADER_S, self._close_if_idle, object())

    def _close_if_idle(self, last: Any) -> None:
        if self.transport.is_closing():
            return
        waits = self.cycle is None or self.cycle.response_complete
        if waits and (self.cycle is None or self.cycle is last):
            self.transport.close()
        else:
            self.loop.call_later(HEADER_S, self._close_if_idle, self.cycle if waits else None)


class _Server(uvicorn.Server):
    """uvicorn's own; the grace of the jobs in hand begins with the signal."""

    def __init__(self, config: uvicorn.Config, served: Served) -> None:
        super().__init__(config)
        self._served = served

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take no further job, then let uvicorn end its connections."""
        self._served.drain()
        super().handle_exit(sig, frame)


def listen(
    settings: Settings, token: str | None, host: str, port: int, hosts: frozenset[str]
) -> None:
    """Serve until SIGTERM or SIGINT; jobs in hand get the grace that the settings name."""
    app = create_app(settings, token, hosts=hosts)
    grace = max(1, math.ceil(settings.jobs.grace_s))
    config: dict[str, Any] = {"http": BoundedProtocol, "log_level": "warning"}
    health = settings.platform.port_health
    if health is not None and health != port:
        # The same routes, without a life of their own; a thread, so that one loop has the signals.
        server = uvicorn.Server(
            uvicorn.Config(app, host=host, port=health, lifespan="off", **config)
        )
        threading.Thread(target=server.run, name="health", daemon=True).start()
    own = uvicorn.Config(
        app, host=host, port=port, timeout_graceful_shutdown=grace + int(STOP_S), **config
    )
    _Server(own, app.state.served).run()
