"""The posts to the platform's job-done address: the result until it is taken, progress once.

The SDK posts a result and drops it on a reset, on 408 and on 429, with a line in its log. Results
and progress go to one address, and the platform keeps what came last. So here

    result    tried again, with growing pauses, for `RESULT_TRIES_S` seconds in all
    progress  tried once, for `PROGRESS_S` seconds in all; the result waits until that has ended

`Poster.transmit` has the signature of the SDK's own `_transmit`; `handler.py` puts it in its place.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from trellis_runtime.contract.files import files_told
from trellis_runtime.contract.scope import Deadline
from trellis_runtime.logs import logger

RESULT_TRIES_S = 120.0
"""Seconds over which a result is posted again and again before it is given up."""

TRY_S = 30.0
PROGRESS_S = 5.0
_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 15.0)
_TRANSIENT = (408, 409, 425, 429)
_HEADERS = {"charset": "utf-8", "Content-Type": "application/x-www-form-urlencoded"}


class NotTaken(aiohttp.ClientError):
    """The platform did not take what was posted; the SDK logs it as its own failures."""


class Poster:
    """Posts what the SDK has to say about jobs."""

    def __init__(self, result_tries_s: float = RESULT_TRIES_S) -> None:
        self._result_tries_s = result_tries_s

    async def transmit(self, session: aiohttp.ClientSession, url: str, job_data: str) -> None:
        """POST `job_data`, a result or an update; raises `NotTaken` when that is given up."""
        told = json.loads(job_data)
        if told.get("status") == "IN_PROGRESS":
            if failure := await _post(session, url, job_data, PROGRESS_S):
                raise NotTaken(failure[0])
            return
        await self._until_taken(session, url, job_data, told)

    async def _until_taken(
        self, session: aiohttp.ClientSession, url: str, body: str, told: dict[str, Any]
    ) -> None:
        deadline, tries = Deadline.after(self._result_tries_s), 0
        while True:
            tries += 1
            failure = await _post(session, url, body, min(TRY_S, deadline.remaining()))
            if failure is None:
                if tries > 1:
                    logger().info("result_taken", job_id=_job_of(url), tries=tries)
                return
            reason, pause = failure
            if pause is None or deadline.remaining() <= (pause := _grown(pause, tries)):
                break
            logger().warning(
                "result_not_taken_yet", job_id=_job_of(url), tries=tries, reason=reason
            )
            await asyncio.sleep(pause)
        logger().error(
            "result_given_up", job_id=_job_of(url), tries=tries, reason=reason, lies=_where(told)
        )
        raise NotTaken(reason)


async def _post(
    session: aiohttp.ClientSession, url: str, body: str, seconds: float
) -> tuple[str, float | None] | None:
    """POST once; returns None when it was taken, else the reason and the least pause before the
    next try, None where another try is of no use.
    """
    limit = aiohttp.ClientTimeout(total=max(0.001, seconds))
    try:
        async with session.post(
            url, data=body.encode(), headers=_HEADERS, timeout=limit, allow_redirects=False
        ) as answer:
            if answer.status < 300:
                return None
            transient = answer.status >= 500 or answer.status in _TRANSIENT
            asked = _asked_pause(answer.headers)
            return f"the platform answered {answer.status}", asked if transient else None
    except TimeoutError:
        return f"no answer within {seconds:.0f} s", 0.0
    except (aiohttp.ClientError, OSError) as err:
        return type(err).__name__, 0.0


def _asked_pause(headers: Mapping[str, str]) -> float:
    asked = headers.get("Retry-After", "")
    return min(30.0, float(asked)) if asked.isdigit() else 0.0


def _grown(asked: float, tries: int) -> float:
    """Return the pause after a number of tries, a little random: workers fail together."""
    return max(asked, _PAUSES_S[min(tries, len(_PAUSES_S)) - 1] * random.uniform(0.75, 1.0))  # noqa: S311


def _job_of(url: str) -> str:
    return urlsplit(url).path.rsplit("/", 1)[-1]


def _where(told: dict[str, Any]) -> str:
    """Say where a result lies that nobody was told of."""
    if "error" in told:
        return "the job failed; there is no result"
    files = [artifact for _, artifact in files_told(told.get("output") or {})]
    artifact = files[-1] if files else {}
    if artifact.get("key"):
        return f"{artifact['key']} in the bucket {artifact['bucket']}, answer.json beside it"
    if artifact.get("url"):
        return "at the upload_url that the caller gave"
    return "nowhere: it was inline, and is lost"
