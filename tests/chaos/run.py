"""Send a plan's jobs to the real worker while the weather is foul, and keep what callers saw."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import requests
from botocore.config import Config

from tests.chaos.plan import Ask, Incident, Round, Way
from tests.chaos.weather import SlowTls, Store, Weather, pictures
from tests.loopback import Authority, http_server
from tests.memory import footprint
from tests.plane import Plane, Record, WorkerProcess
from tests.s3_proxy import Proxy
from tests.seaweed import BUCKET, KEY_ID, SECRET, SeaweedFs, bucket_variables
from tests.test_mixed import PICTURES, request
from trellis_runtime.assets.glb_reader import read_document
from trellis_runtime.errors import GlbRejected

PATIENCE_S = 240.0
"""Seconds that the jobs of one round have in all: what is not answered by then is lost."""

MOST_TRIES = 8
"""How often a caller sends a job again whose error says that it may."""

_FULL_S = 2.0
_BALLAST = 128 * 2**20


def content_hash(glb: bytes) -> str:
    """Return the SHA-256 of a GLB's geometry and textures; "" for what is no whole GLB.

    Its JSON tells of the request, which differs from one way of delivery to the next.
    """
    try:
        return hashlib.sha256(read_document(glb)[1]).hexdigest()
    except GlbRejected:
        return ""


@dataclass(slots=True)
class History:
    """One job as its caller saw it: every id under which it was sent, the last one last."""

    ask: Ask
    ids: list[str]
    taken_at: float | None = None
    cancelled: bool = False
    handed_out_again: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """What a worker's process held between two rounds."""

    life: int
    jobs: int
    """Rounds' jobs that this process has seen."""
    mib: float
    threads: int
    files: int


@dataclass(slots=True)
class Scene:
    """Everything that takes part."""

    plane: Plane
    worker: WorkerProcess
    store: Store
    s3: SeaweedFs
    weather: Weather
    pictures_url: str
    store_url: str
    bundle: Path
    folder: Path
    client: Any
    """A client of the store itself, past the proxy."""
    alone: dict[int, str] = field(default_factory=dict)
    """Each picture's asset, made before the weather turned: its `content_hash`."""
    histories: list[History] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    lives: int = 1
    jobs_of_life: int = 0
    _full_until: float = 0.0
    _leaves_until: float | None = None

    # --- what is asked ---

    def learn(self) -> None:
        """Have each picture's asset made while nothing is wrong."""
        asked = [self.plane.submit(request(number)) for number in range(PICTURES)]
        for number, job_id in enumerate(asked):
            output = self.plane.result(job_id).output
            self.alone[number] = content_hash(self.received(output))
        if len(set(self.alone.values())) != PICTURES:
            raise AssertionError("the pictures' assets do not differ")

    def received(self, answer: dict[str, Any]) -> bytes:
        """Return the GLB of an answer: what is in it, or what its link leads to."""
        if answer["artifact"].get("base64"):
            return base64.b64decode(answer["artifact"]["base64"])
        got = requests.get(answer["glb_url"], timeout=30, verify=str(self.bundle))
        got.raise_for_status()
        return got.content

    def play(self, part: Round) -> None:
        """Send one round's jobs and live through its incidents."""
        self.weather.is_foul = True
        open_ = [History(ask, [self._send(ask, ask.job_id)]) for ask in part.asks]
        self.histories += open_
        incidents = list(part.incidents)
        end = time.monotonic() + PATIENCE_S
        while open_ and time.monotonic() < end:
            open_ = [history for history in open_ if not self._is_settled(history)]
            taken = sum(h.taken_at is not None for h in self.histories[-len(part.asks) :])
            while incidents and taken >= incidents[0][0]:
                self._happens(incidents.pop(0)[1])
            self._look_after_worker()
            time.sleep(0.03)
        for _, incident in incidents:
            self._happens(incident)
        self.jobs_of_life += len(part.asks)
        self._rest(end)

    def _send(self, ask: Ask, job_id: str) -> str:
        upload = self._signed_put(f"uploads/{job_id}.glb") if ask.way is Way.UPLOAD else ""
        top = {"s3Config": _own(self.store_url)} if ask.way is Way.OWN else {}
        payload = ask.payload(self.pictures_url, upload)
        return self.plane.submit(payload, job_id=job_id, **top)

    def _signed_put(self, key: str) -> str:
        client = boto3.session.Session().client(
            "s3", endpoint_url=self.store_url, aws_access_key_id=KEY_ID,
            aws_secret_access_key=SECRET, region_name="us-east-1",
            config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
        )  # fmt: skip
        where = {"Bucket": BUCKET, "Key": key}
        return str(client.generate_presigned_url("put_object", where, ExpiresIn=36_000))

    def _is_settled(self, history: History) -> bool:
        """Do what a caller does by now; whether nothing more is to come."""
        ask, record = history.ask, self.plane.jobs[history.ids[-1]]
        if history.taken_at is None and record.takes:
            history.taken_at = time.monotonic()
        if _is_due(ask.cancel_after_s, history) and not history.cancelled and not record.results:
            history.cancelled = True
            self.plane.cancel(history.ids[-1])
        if _is_due(ask.again_after_s, history) and not history.handed_out_again:
            history.handed_out_again = True
            self.plane.hand_out_again(history.ids[-1])
        if history.cancelled:
            return True
        if not record.results:
            return False
        if ask.again_when_done and not history.handed_out_again:
            history.handed_out_again = True
            self.plane.hand_out_again(history.ids[-1])
            return False
        if record.holders or self.plane.is_queued(history.ids[-1]):
            return False
        if may_try_again(record) and len(history.ids) < MOST_TRIES:
            again = f"{ask.job_id}-r{len(history.ids)}"
            history.ids.append(self._send(ask, again))
            return False
        return True

    # --- what happens ---

    def _happens(self, incident: Incident) -> None:
        self.weather.note(incident.value)
        if incident in (Incident.SIGTERM, Incident.SIGKILL):
            if self.worker.process.poll() is None:
                self.worker.send(signal.Signals[incident.value])
        elif incident is Incident.STORE_STOPS:
            self.store.asked_to_stop = True
        elif incident is Incident.STORE_RESTARTS:
            self.s3.stop()
            self.s3.start()
        else:
            with self._ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, ballast_bytes(self.folder))
            self._full_until = time.monotonic() + _FULL_S

    @property
    def _ballast(self) -> Path:
        return self.folder / "ballast"

    def _look_after_worker(self) -> None:
        """As the platform does: start another when one has left, and hand out again what it had."""
        if self._full_until and time.monotonic() > self._full_until:
            self._ballast.unlink()
            self._full_until = 0.0
        if self.worker.process.poll() is None:
            return
        self.plane.bury(_name(self.lives))
        self.lives, self.jobs_of_life = self.lives + 1, 0
        self.worker.restart(RUNPOD_POD_ID=_name(self.lives))

    def _rest(self, end: float) -> None:
        """Let the weather clear, wait until nothing is in hand, and measure."""
        self.weather.is_foul = False
        while time.monotonic() < end:
            self._look_after_worker()
            life, asked = self.lives, self.plane.submit({"type": "health"})
            while self.lives == life and not self.plane.jobs[asked].results:
                self._look_after_worker()
                time.sleep(0.03)
                if time.monotonic() > end:
                    raise TimeoutError(f"the worker is deaf:\n{self.worker.log[-3000:]}")
            results = self.plane.jobs.pop(asked).results if self.lives == life else []
            if results and results[0]["output"]["queue"]["in_hand"] == 0:
                self.samples.append(
                    Sample(life, self.jobs_of_life, *footprint(self.worker.process.pid))
                )
                return
            time.sleep(0.2)


def may_try_again(record: Record) -> bool:
    """Whether the last word about a job is an error that invites another try."""
    last = record.results[-1]
    return "error" in last and bool((last.get("output") or {}).get("retryable"))


def _is_due(after_s: float | None, history: History) -> bool:
    started = history.taken_at
    return after_s is not None and started is not None and time.monotonic() > started + after_s


def _name(life: int) -> str:
    return f"w{life}"


def _own(endpoint: str) -> dict[str, str]:
    return {
        "accessId": KEY_ID,
        "accessSecret": SECRET,
        "bucketName": BUCKET,
        "endpointUrl": endpoint,
    }


def ballast_bytes(folder: Path) -> int:
    """Return how much is written to fill a disk, as far as the worker's limit goes."""
    return min(_BALLAST, shutil.disk_usage(folder).free // 2)


@contextmanager
def scene(seed: int, side_by_side: int) -> Iterator[Scene]:
    """Set everything up, in folders that are gone afterwards."""
    shared = Path("/dev/shm")  # memory: no other program fills it meanwhile
    with ExitStack() as stack:
        inside = shared if os.access(shared, os.W_OK) else None
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory("-chaos", dir=inside)))
        cold = Path(stack.enter_context(tempfile.TemporaryDirectory("-chaos-s3")))
        authority = Authority(cold)
        weather = Weather(seed)
        tls = SlowTls(authority.context, weather)
        store = Store(weather)
        s3 = stack.enter_context(SeaweedFs(cold / "s3"))
        store_url = stack.enter_context(Proxy(s3, store.rule, stops=store.stops).serve(tls))
        pictures_url = stack.enter_context(http_server(pictures(weather), tls))
        plane = stack.enter_context(Plane(tls, weather.of_plane))
        variables = _variables(folder, side_by_side) | {
            "SSL_CERT_FILE": str(authority.bundle),
            "REQUESTS_CA_BUNDLE": str(authority.bundle),  # the SDK pings with requests
        }
        worker = stack.enter_context(
            WorkerProcess(plane, folder, **bucket_variables(store_url), **variables)
        )
        try:
            yield Scene(plane, worker, store, s3, weather, pictures_url, store_url,
                        authority.bundle, folder, s3.client)  # fmt: skip
        except BaseException:
            print(worker.log[-20_000:], file=sys.stderr)
            raise


def _variables(folder: Path, side_by_side: int) -> dict[str, str]:
    (folder / "scratch").mkdir()
    kept_free = shutil.disk_usage(folder).free - ballast_bytes(folder) // 2
    return {
        "MAX_CONCURRENT_GENERATIONS": str(side_by_side),
        "TRELLIS2_MAX_QUEUED_JOBS": "8",
        "TRELLIS2_FETCH_TIMEOUT_S": "5",
        "TRELLIS2_SHUTDOWN_GRACE_S": "20",
        "TRELLIS2_MIN_FREE_DISK_GB": str(kept_free / 2**30),
        "BUCKET_TIMEOUT_S": "3",
        "TMPDIR": str(folder / "scratch"),
        "RUNPOD_POD_ID": _name(1),
        "RUNPOD_PING_INTERVAL": "10000",
        "RUNPOD_LOG_LEVEL": "ERROR",
    }


def told(record: Record) -> list[dict[str, Any]]:
    """Return the answers about a job that were results, in the order in which they came."""
    return [result["output"] for result in record.results if "error" not in result]
