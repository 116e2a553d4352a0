"""Structured logs: a constant event name, fields with units in their names, one JSON object a line.

Nothing here ever sees image bytes, URLs or secrets.
"""

from __future__ import annotations

import logging
import sys

import structlog

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure_logging(level: str = "info", form: str = "auto") -> None:
    """Send events of at least `level` to standard error, as JSON lines or for people."""
    as_json = form == "json" or (form == "auto" and not sys.stderr.isatty())
    renderer = structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="timestamp"),
            structlog.processors.format_exc_info if as_json else _keep,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        # Whatever is standard error when a line is written, not what was when this was called.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )
    # botocore and urllib3 name hosts and keys at DEBUG; nobody asked them.
    for name in ("boto3", "botocore", "s3transfer", "urllib3", "PIL"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _keep(
    _logger: object, _name: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    return event


def logger() -> structlog.typing.FilteringBoundLogger:
    """Return the project's logger."""
    log: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return log
