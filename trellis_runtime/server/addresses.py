"""Addresses in HTTP answers: a file of this machine is told by where this server sends it."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

_FILE = "file://"


def with_http_addresses(told: Any, base: str) -> Any:
    """Return an answer, or any part of one, with `file://` addresses turned to this server's.

    `base` is the address of the job's files, without a slash at its end. A caller on another
    machine can do nothing with a path of this one.
    """
    if isinstance(told, dict):
        return {key: with_http_addresses(value, base) for key, value in told.items()}
    if isinstance(told, list):
        return [with_http_addresses(value, base) for value in told]
    if isinstance(told, str) and told.startswith(_FILE):
        return f"{base}/{quote(told.rsplit('/', 1)[1])}"
    return told


def files_address(server: str, job_id: str) -> str:
    """Return where the files of a job are, `server` being the address that a caller used."""
    return f"{server.rstrip('/')}/jobs/{job_id}/files"
