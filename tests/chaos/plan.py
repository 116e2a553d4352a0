"""What is asked and what happens to the worker, drawn from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tests.test_mixed import PICTURES, request

ROUND = 20
"""Jobs that are sent together; between rounds nothing is in hand, and the worker is measured."""


class Way(StrEnum):
    """Where a result goes."""

    BUCKET = "bucket"
    INLINE = "inline"
    UPLOAD = "upload"
    OWN = "own store"


class Incident(StrEnum):
    """What happens to the worker, its store or its disk in a round."""

    SIGTERM = "SIGTERM"
    SIGKILL = "SIGKILL"
    STORE_STOPS = "store stopped in mid-upload, for two seconds"
    STORE_RESTARTS = "S3 server killed and started again"
    DISK_FULL = "disk full for two seconds"


@dataclass(frozen=True, slots=True)
class Ask:
    """One job as its caller sends it."""

    job_id: str
    picture: int
    way: Way
    by_url: bool
    broken: bool
    cancel_after_s: float | None
    """Seconds after it was taken; None: never."""
    again_after_s: float | None
    """Seconds after it was taken at which it is handed out once more; None: never."""
    again_when_done: bool

    def payload(self, pictures: str, upload_url: str) -> dict[str, Any]:
        """Return the job's input; `pictures` is where pictures are served."""
        asked = request(self.picture)
        if self.by_url:
            del asked["image"]
            asked["image_url"] = f"{pictures}/{self.picture}/{self.job_id}"
        if self.broken:
            asked |= {"image": "broken", "image_url": None}
            del asked["image_url"]
        output = {"preview": False, "delivery": "url"}
        if self.way is Way.INLINE:
            output["delivery"] = "inline"
        elif self.way is Way.UPLOAD:
            output |= {"delivery": "upload", "upload_url": upload_url}
        return asked | {"output": output}


@dataclass(frozen=True, slots=True)
class Round:
    """Jobs that are sent together, and what happens meanwhile: (after so many are taken, what)."""

    asks: tuple[Ask, ...]
    incidents: tuple[tuple[int, Incident], ...]


def plan(seed: int, jobs: int, often: float = 1.0) -> list[Round]:
    """Return the rounds of `jobs` jobs; `often` scales how often the worker meets an incident."""
    chance = random.Random(f"plan:{seed}")
    asks = [_ask(chance, f"chaos-{seed}-{number}") for number in range(jobs)]
    rounds = []
    for first in range(0, jobs, ROUND):
        these = tuple(asks[first : first + ROUND])
        rounds.append(Round(these, _incidents(chance, len(these), often)))
    return rounds


def _ask(chance: random.Random, job_id: str) -> Ask:
    way = chance.choices(list(Way), [65, 20, 10, 5])[0]
    kind = chance.choices(["plain", "broken", "cancel", "again", "twice"], [76, 5, 8, 6, 5])[0]
    return Ask(
        job_id,
        chance.randrange(PICTURES),
        way,
        by_url=chance.random() < 0.4,
        broken=kind == "broken",
        cancel_after_s=chance.uniform(0, 1.2) if kind == "cancel" else None,
        again_after_s=chance.uniform(0, 0.5) if kind == "again" else None,
        again_when_done=kind == "twice",
    )


def _incidents(chance: random.Random, asks: int, often: float) -> tuple[tuple[int, Incident], ...]:
    rates = {
        Incident.SIGTERM: 0.25,
        Incident.SIGKILL: 0.25,
        Incident.STORE_STOPS: 0.4,
        Incident.STORE_RESTARTS: 0.08,
        Incident.DISK_FULL: 0.2,
    }
    drawn = [what for what, rate in rates.items() if chance.random() < rate * often]
    return tuple(sorted((chance.randrange(1, asks + 1), what) for what in drawn))
