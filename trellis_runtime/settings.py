"""The operator's configuration: the one reader of the environment.

`Settings.from_env(mapping)` reads every variable once, reports all problems together, and gives
frozen slices (`settings.image`, `settings.bucket`, ...): a module receives its slice, never the
whole. `VARIABLES` is the list of names; `docs/settings.md` is written from it.

Long because every variable of the environment stands here with its bounds and its text.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from math import isqrt
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from trellis_runtime.errors import SetupFailed

GIB = 1024**3
DecoderRetry = Literal["off", "bfloat16", "float32"]
RehearsalShape = Literal["smooth", "nested", "plant"]
EngineChoice = Literal["auto", "trellis2", "embedded"]


class _Slice(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageLimits(_Slice):
    """Bounds on the picture that a job brings."""

    max_bytes: int = Field(20_000_000, ge=1024, description="Largest encoded image, in bytes.")
    max_pixels: int = Field(
        50_000_000, ge=64, description="Largest image, in pixels, read from its header."
    )
    min_side_px: int = Field(32, ge=1, description="Shortest side that is worth a model, in px.")
    decode_timeout_s: float = Field(
        30.0, gt=0, le=600, description="Seconds for decoding one picture."
    )

    @property
    def max_side_px(self) -> int:
        """The longer side that a picture is scaled to, so that its square is within the pixels."""
        return isqrt(self.max_pixels)


class FetchLimits(_Slice):
    """Bounds on visiting an address that a caller names."""

    timeout_s: float = Field(
        30.0, gt=0, le=600, description="Seconds for a whole download, redirects included."
    )
    max_redirects: int = Field(5, ge=0, le=20, description="Redirects that are followed.")
    allow_networks: tuple[IPv4Network | IPv6Network, ...] = Field(
        (),
        description="Non-public networks (CIDR, comma-separated) that URLs may lead to all the "
        "same: for a store inside your own network. Empty: none.",
    )

    @field_validator("allow_networks", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return (
            [n.strip() for n in value.split(",") if n.strip()] if isinstance(value, str) else value
        )


class JobLimits(_Slice):
    """How many jobs, how long, with how much room."""

    max_concurrent: int = Field(
        1,
        ge=1,
        le=64,
        description="Generations that run side by side. The GPU engine "
        "runs 2 at most, where the card has room for both, and one sampling at a time.",
    )
    max_queued: int = Field(
        2, ge=0, le=10_000, description="Jobs that may wait in this process; more get worker_busy."
    )
    timeout_s: float = Field(
        900.0, gt=0, description="Seconds for a job, where the platform passes no deadline."
    )
    stuck_grace_s: float = Field(
        60.0,
        gt=0,
        description="Seconds that a stage gets to return after the job's time is over, or it was "
        "stopped; then the job is answered and the process leaves.",
    )
    min_free_disk_gb: float = Field(
        5.0, ge=0, description="GiB of disk that must be free before a job starts."
    )
    jobs_per_process: int = Field(
        0, ge=0, description="Recycle the worker after so many jobs; 0: never."
    )
    grace_s: float = Field(
        60.0, ge=0, description="Seconds that a job in hand gets to finish after SIGTERM."
    )

    @property
    def min_free_disk_bytes(self) -> int:
        return int(self.min_free_disk_gb * GIB)

    @property
    def room(self) -> int:
        """Jobs that may be in hand: running and waiting."""
        return self.max_concurrent + self.max_queued


class DeliverySettings(_Slice):
    """Where results go when the bucket is not asked for."""

    output_dir: Path = Field(
        Path("output"),
        description="Folder for results of local runs; files in the making are in its .partial/.",
    )
    max_answer_bytes: int = Field(
        10_000_000,
        ge=10_000,
        description="Largest answer, in bytes of JSON, that the platform takes; an inline GLB "
        "has about three quarters of it.",
    )
    keep_hours: float = Field(
        24.0,
        ge=0,
        le=8760,
        description="Hours for which latents are kept where a job asks for it (keep); 0: such "
        "jobs are refused.",
    )
    keep_disk_gb: float = Field(
        2.0,
        ge=0,
        description="GiB of OUTPUT_DIR/latents where there is no bucket; the oldest go first.",
    )

    @property
    def keep_disk_bytes(self) -> int:
        return int(self.keep_disk_gb * GIB)


class Bucket(_Slice):
    """An S3 bucket for results."""

    endpoint_url: str | None = Field(None, description="S3 endpoint; unset: no bucket.")
    access_key_id: SecretStr | None = Field(None, description="Key id for the bucket.")
    secret_access_key: SecretStr | None = Field(None, description="Secret key for the bucket.")
    name: str | None = Field(None, description="Bucket name.")
    region: str | None = Field(
        None, description="Region; unset: learnt from the store, us-east-1 where it names none."
    )
    prefix: str = Field("trellis2", description="Key prefix; results are at PREFIX/JOB_ID/.")
    addressing_style: Literal["auto", "path", "virtual"] = Field(
        "auto", description="How the bucket's name is put into URLs."
    )
    url_expiry_s: int = Field(
        604_800, ge=60, le=604_800, description="Life of presigned URLs, in seconds."
    )
    public_base_url: str | None = Field(
        None, description="Answer with this base URL and the key, unsigned (a CDN, say)."
    )
    timeout_s: float = Field(60.0, gt=0, description="Seconds for one S3 call.")
    max_attempts: int = Field(4, ge=1, le=20, description="Tries for one S3 call.")

    check_link: bool = Field(
        True,
        description="1: at start, read an object by the link that a caller would get; 0: only "
        "write it (for links that lead to this bucket from elsewhere alone).",
    )

    @field_validator("endpoint_url", "public_base_url")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        parts = urlsplit(value) if value is not None else None
        if parts is not None and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ValueError("must be an http or https address with a host")
        return value

    @property
    def is_configured(self) -> bool:
        return self.endpoint_url is not None


class Start(_Slice):
    """What happens before the first job."""

    preload: bool = Field(
        True, description="1: load the engine before taking jobs; 0: with the first job."
    )
    warm_up: Literal["off", "512", "1024"] = Field(
        "off",
        description="Run one generation at this resolution before taking jobs, its result thrown "
        "away; it must end within the platform's time for starting.",
    )


class Embedded(_Slice):
    """The engine that needs no GPU and brings its own small weights."""

    memory_budget_mb: float | None = Field(
        None,
        gt=0,
        description="MiB that the embedded engine may hold, so that the ladder can be seen "
        "working on a CPU; unset: no bound.",
    )

    @property
    def memory_budget_bytes(self) -> int | None:
        return None if self.memory_budget_mb is None else int(self.memory_budget_mb * 1024**2)


class Trellis2(_Slice):
    """The GPU engine."""

    model_dir: Path | None = Field(
        None,
        description="Folder with pipeline.json and its checkpoints, or of a hub's cache "
        "(models--ORG--NAME), whose snapshot is taken; nothing is downloaded.",
    )
    dinov3_dir: Path | None = Field(
        None, description="Folder of DINOv3 ViT-L; by default that which pipeline.json names."
    )
    rembg_dir: Path | None = Field(
        None, description="Folder of the background remover; by default that of pipeline.json."
    )
    placement: Literal["auto", "offload"] = Field(
        "auto",
        description="auto: all models stay on the card when it has room for them and a job; "
        "offload: each is there for its stage alone.",
    )
    flow: Literal["fast", "upstream"] = Field(
        "fast",
        description="fast: the flow models' formula on plain tensors; upstream: its own modules.",
    )
    decoder_retry: DecoderRetry = Field(
        "off",
        description="Where a float16 decoder's values are not finite, run its stage again in this "
        "type, and say so in the answer's effective.decoder_dtype; off: the job fails with "
        "not_finite. float32 holds the same weights in twice the memory; bfloat16 rounds them.",
    )
    kernel_cache_dir: Path = Field(
        Path("~/.cache/trellis2-kernels"),
        description="Folder where compiled kernels and tuning results are kept for the next "
        "process; a network volume serves all workers.",
    )
    kernel_seed_dir: Path | None = Field(
        None, description="Folder of such results that came with the image; only read."
    )
    graphs: bool = Field(
        False,
        description="1: capture passes of the flow models as CUDA graphs where the host cannot "
        "issue their kernels fast enough. Experimental: it failed on a card with the second job, "
        "and the mend has not run on one.",
    )
    overlap: bool = Field(
        False,
        description="1: bake the geometry on a second thread while the texture is sampled, where "
        "memory has room for both. Experimental: it failed on a card, after a first mend too, and "
        "the second has not run on one.",
    )
    fetch_ahead: bool = Field(
        False,
        description="1: of an offloaded job, copy the next model to the card while the one before "
        "it computes, where memory has room for both. The result is the same. Not measured on a "
        "card yet.",
    )
    rehearsal: bool = Field(
        False,
        description="With a synthetic checkpoint: the structure follows a real shape, so that "
        "sizes, memory and times are real. Answers say synthetic.",
    )
    rehearsal_shape: RehearsalShape = Field(
        "smooth",
        description="Which shape: smooth (a sphere in a torus), nested (three spheres, four thin "
        "plates) or plant (2,600 open leaves).",
    )


class Logging(_Slice):
    """What is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level.")
    format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto: JSON lines, unless standard error is a terminal."
    )


class Remote(_Slice):
    """An endpoint that the local page may send jobs to."""

    api_key: SecretStr | None = Field(
        None, description="RunPod API key; the local server keeps it to itself. Unset: no endpoint."
    )
    base_url: str = Field("https://api.runpod.ai/v2", description="Where endpoints answer.")
    timeout_s: float = Field(
        3600.0, gt=0, description="Seconds after which a job sent to an endpoint is given up."
    )
    silence_s: float = Field(
        120.0, gt=0, description="Seconds without a usable answer after which it is given up."
    )


class Platform(_Slice):
    """What RunPod tells the process about itself."""

    job_take_url: str | None = Field(
        None, description="Set by RunPod on a worker; its absence means a local run."
    )

    endpoint_id: str | None = Field(
        None, description="Set by RunPod on every worker, a load-balancing one's too."
    )
    port: int | None = Field(
        None, ge=1, le=65535, description="Where a load-balancing worker listens (serve)."
    )
    port_health: int | None = Field(
        None, ge=1, le=65535, description="Where it answers /ping; PORT where it is not set."
    )

    @property
    def is_worker(self) -> bool:
        """Whether results must leave this machine: its disk ends with the worker."""
        return self.job_take_url is not None or self.endpoint_id is not None


class Settings(_Slice):
    """The whole configuration of one process."""

    engine: EngineChoice = Field(
        "auto",
        description="trellis2, embedded, or auto: trellis2 where TRELLIS2_MODEL_DIR is set and on "
        "every RunPod worker (a worker never falls back), else embedded.",
    )
    image: ImageLimits = ImageLimits()
    fetch: FetchLimits = FetchLimits()
    jobs: JobLimits = JobLimits()
    delivery: DeliverySettings = DeliverySettings()
    bucket: Bucket = Bucket()
    start: Start = Start()
    trellis2: Trellis2 = Trellis2()
    embedded: Embedded = Embedded()
    remote: Remote = Remote()
    logging: Logging = Logging()
    platform: Platform = Platform()

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the configuration from `environ` (the process's own by default).

        Raises `SetupFailed` that lists every problem: unknown names of ours, values out of
        bounds, a half-set bucket.
        """
        environ = os.environ if environ is None else environ
        problems = _unknown_names(environ)
        settings = cls()
        try:
            settings = cls.model_validate(_nested(environ))
        except ValidationError as err:
            problems += [_explain(e) for e in err.errors(include_url=False)]
        problems += _half_set_bucket(environ)
        if problems:
            raise SetupFailed("the environment is not usable:\n  " + "\n  ".join(problems))
        return settings


VARIABLES: dict[str, tuple[str, ...]] = {
    "TRELLIS2_ENGINE": ("engine",),
    "TRELLIS2_MAX_IMAGE_BYTES": ("image", "max_bytes"),
    "TRELLIS2_MAX_IMAGE_PIXELS": ("image", "max_pixels"),
    "TRELLIS2_MIN_IMAGE_SIDE_PX": ("image", "min_side_px"),
    "TRELLIS2_DECODE_TIMEOUT_S": ("image", "decode_timeout_s"),
    "TRELLIS2_FETCH_TIMEOUT_S": ("fetch", "timeout_s"),
    "TRELLIS2_FETCH_MAX_REDIRECTS": ("fetch", "max_redirects"),
    "TRELLIS2_FETCH_ALLOW_NETWORKS": ("fetch", "allow_networks"),
    "MAX_CONCURRENT_GENERATIONS": ("jobs", "max_concurrent"),
    "TRELLIS2_MAX_QUEUED_JOBS": ("jobs", "max_queued"),
    "TRELLIS2_JOB_TIMEOUT_S": ("jobs", "timeout_s"),
    "TRELLIS2_STUCK_GRACE_S": ("jobs", "stuck_grace_s"),
    "TRELLIS2_MIN_FREE_DISK_GB": ("jobs", "min_free_disk_gb"),
    "TRELLIS2_JOBS_PER_PROCESS": ("jobs", "jobs_per_process"),
    "TRELLIS2_SHUTDOWN_GRACE_S": ("jobs", "grace_s"),
    "TRELLIS2_OUTPUT_DIR": ("delivery", "output_dir"),
    "TRELLIS2_MAX_ANSWER_BYTES": ("delivery", "max_answer_bytes"),
    "TRELLIS2_KEEP_HOURS": ("delivery", "keep_hours"),
    "TRELLIS2_KEEP_DISK_GB": ("delivery", "keep_disk_gb"),
    "BUCKET_ENDPOINT_URL": ("bucket", "endpoint_url"),
    "BUCKET_ACCESS_KEY_ID": ("bucket", "access_key_id"),
    "BUCKET_SECRET_ACCESS_KEY": ("bucket", "secret_access_key"),
    "BUCKET_NAME": ("bucket", "name"),
    "BUCKET_REGION": ("bucket", "region"),
    "BUCKET_PREFIX": ("bucket", "prefix"),
    "BUCKET_ADDRESSING_STYLE": ("bucket", "addressing_style"),
    "BUCKET_URL_EXPIRY_S": ("bucket", "url_expiry_s"),
    "BUCKET_PUBLIC_BASE_URL": ("bucket", "public_base_url"),
    "BUCKET_CHECK_LINK": ("bucket", "check_link"),
    "BUCKET_TIMEOUT_S": ("bucket", "timeout_s"),
    "BUCKET_MAX_ATTEMPTS": ("bucket", "max_attempts"),
    "TRELLIS2_PRELOAD": ("start", "preload"),
    "TRELLIS2_WARM_UP": ("start", "warm_up"),
    "TRELLIS2_MODEL_DIR": ("trellis2", "model_dir"),
    "TRELLIS2_DINOV3_DIR": ("trellis2", "dinov3_dir"),
    "TRELLIS2_REMBG_DIR": ("trellis2", "rembg_dir"),
    "TRELLIS2_PLACEMENT": ("trellis2", "placement"),
    "TRELLIS2_FLOW": ("trellis2", "flow"),
    "TRELLIS2_DECODER_RETRY": ("trellis2", "decoder_retry"),
    "TRELLIS2_KERNEL_CACHE_DIR": ("trellis2", "kernel_cache_dir"),
    "TRELLIS2_KERNEL_SEED_DIR": ("trellis2", "kernel_seed_dir"),
    "TRELLIS2_GRAPHS": ("trellis2", "graphs"),
    "TRELLIS2_OVERLAP": ("trellis2", "overlap"),
    "TRELLIS2_FETCH_AHEAD": ("trellis2", "fetch_ahead"),
    "TRELLIS2_REHEARSAL": ("trellis2", "rehearsal"),
    "TRELLIS2_REHEARSAL_SHAPE": ("trellis2", "rehearsal_shape"),
    "TRELLIS2_EMBEDDED_MEMORY_MB": ("embedded", "memory_budget_mb"),
    "RUNPOD_API_KEY": ("remote", "api_key"),
    "TRELLIS2_ENDPOINT_API": ("remote", "base_url"),
    "TRELLIS2_LOG_LEVEL": ("logging", "level"),
    "TRELLIS2_LOG_FORMAT": ("logging", "format"),
    "TRELLIS2_ENDPOINT_TIMEOUT_S": ("remote", "timeout_s"),
    "TRELLIS2_ENDPOINT_SILENCE_S": ("remote", "silence_s"),
    "RUNPOD_WEBHOOK_GET_JOB": ("platform", "job_take_url"),
    "RUNPOD_ENDPOINT_ID": ("platform", "endpoint_id"),
    "PORT": ("platform", "port"),
    "PORT_HEALTH": ("platform", "port_health"),
}
_REQUIRED_FOR_BUCKET = (
    "BUCKET_ENDPOINT_URL",
    "BUCKET_ACCESS_KEY_ID",
    "BUCKET_SECRET_ACCESS_KEY",
    "BUCKET_NAME",
)
_OUR_PREFIXES = ("TRELLIS2_", "BUCKET_")


def _unknown_names(environ: Mapping[str, str]) -> list[str]:
    """A typo must not be ignored in silence."""
    unknown = sorted(n for n in environ if n.startswith(_OUR_PREFIXES) and n not in VARIABLES)
    return [f"{name} is not a variable of this worker (see docs/settings.md)" for name in unknown]


def _nested(environ: Mapping[str, str]) -> dict[str, Any]:
    """Turn set variables into the shape of the settings tree; an empty value counts as unset."""
    tree: dict[str, Any] = {}
    for name, (*parents, leaf) in VARIABLES.items():
        if value := environ.get(name):
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = value
    return tree


def _explain(error: Any) -> str:
    path = tuple(part for part in error["loc"] if isinstance(part, str))
    name = next((n for n, p in VARIABLES.items() if path[: len(p)] == p), ".".join(path))
    return f"{name} has value {error['input']!r}: {error['msg']}"


def _half_set_bucket(environ: Mapping[str, str]) -> list[str]:
    """A bucket that is half set fails at start, not at the first job's delivery."""
    absent = [name for name in _REQUIRED_FOR_BUCKET if not environ.get(name)]
    if not absent or len(absent) == len(_REQUIRED_FOR_BUCKET):
        return []
    given = ", ".join(n for n in _REQUIRED_FOR_BUCKET if n not in absent)
    return [f"the bucket is half set: {', '.join(absent)} missing beside {given}"]
