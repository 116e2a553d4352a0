"""A caller's presigned address: what its signature says, before anything is computed for it.

A signature covers an address, and often headers: a PUT that lacks one of them, or has another value
in it, is refused with 403. So what is sent is what was signed, and what the caller states.

    scheme                      expires                              covers
    AWS, version 4              X-Amz-Date + X-Amz-Expires           X-Amz-SignedHeaders
    Google Cloud Storage, V4    X-Goog-Date + X-Goog-Expires         X-Goog-SignedHeaders
    AWS and Google, version 2   Expires (Unix time)                  Content-Type, perhaps empty
    Azure, shared access        se (ISO 8601)                        no header; wants x-ms-blob-type
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, urlsplit

from trellis_runtime.errors import InvalidInput, UrlRefused

_FIELD = "output.upload_url"
_SKEW = timedelta(seconds=60)
"""Clocks differ: an address that expired less than this ago is tried all the same."""

_SENT_ANYWAY = {"host", "content-length"}
_AZURE_HOST = ".blob.core.windows.net"


def put_headers(url: str, content_type: str, stated: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of a PUT to `url`: what the caller stated, and a type where it is free.

    Where the signature covers Content-Type and the caller states none, it is `content_type`.
    """
    headers = dict(stated)
    names = {name.lower() for name in headers}
    query = _query(url)
    if "content-type" not in names and _takes_type(query):
        headers["Content-Type"] = content_type
    if (urlsplit(url).hostname or "").endswith(_AZURE_HOST) and "x-ms-blob-type" not in names:
        headers["x-ms-blob-type"] = "BlockBlob"
    return headers


def may_have_signed_type(url: str, headers: Mapping[str, str]) -> bool:
    """Whether `url` may be signed for a Content-Type that is not in `headers`: version 2 covers
    one, or its absence, and does not say which.
    """
    return (
        not _takes_type(_query(url))
        and _signed(_query(url)) is None
        and not any(name.lower() == "content-type" for name in headers)
    )


def require_signature_usable(
    url: str, stated: Mapping[str, str], now: datetime | None = None
) -> None:
    """Raise `UrlRefused` where the signature of `url` has expired, and `InvalidInput` where it
    covers headers whose values only the caller knows, and has not stated.
    """
    query = _query(url)
    expires = _expiry(query)
    if expires is not None and expires + _SKEW < (now or datetime.now(UTC)):
        raise UrlRefused(
            f"{_FIELD} expired at {expires.isoformat(timespec='seconds')}", field=_FIELD
        )
    known = {name.lower() for name in stated} | _SENT_ANYWAY | {"content-type"}
    absent = sorted((_signed(query) or set()) - known)
    if absent:
        raise InvalidInput(
            f"{_FIELD} is signed for the headers {', '.join(absent)[:200]}: state them, with the "
            "values that were signed, in output.upload_headers",
            field="output.upload_headers",
        )


def _query(url: str) -> dict[str, str]:
    return {name.lower(): value for name, value in parse_qsl(urlsplit(url).query)}


def _signed(query: Mapping[str, str]) -> set[str] | None:
    """Return the headers that a signature names, None where it names none."""
    named = query.get("x-amz-signedheaders") or query.get("x-goog-signedheaders")
    return None if named is None else {name.lower() for name in named.split(";") if name}


def _takes_type(query: Mapping[str, str]) -> bool:
    signed = _signed(query)
    if signed is not None:
        return "content-type" in signed
    return not ("signature" in query and "expires" in query)


def _expiry(query: Mapping[str, str]) -> datetime | None:
    """Return when a signature ends; None where it says nothing that can be read."""
    with suppress(ValueError, OverflowError, OSError):
        for family in ("x-amz", "x-goog"):
            if f"{family}-expires" in query:
                stated = query.get(f"{family}-date", "")
                begun = datetime.strptime(stated, "%Y%m%dT%H%M%SZ")
                return begun.replace(tzinfo=UTC) + timedelta(
                    seconds=int(query[f"{family}-expires"])
                )
        if "signature" in query and "expires" in query:
            return datetime.fromtimestamp(int(query["expires"]), UTC)
        if "sig" in query and "se" in query:
            ends = datetime.fromisoformat(query["se"])
            return ends if ends.tzinfo else ends.replace(tzinfo=UTC)
    return None
