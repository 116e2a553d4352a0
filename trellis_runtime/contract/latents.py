"""What is kept of a job for a later one: what the arrays are of, as JSON beside them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from trellis_runtime.contract.files import ResultFile
from trellis_runtime.contract.request import MAX_SEED
from trellis_runtime.contract.wire import WireModel

LAYOUT = 1
"""Raised when what is kept changes its form."""

FACTS = ResultFile("", "latents.json", "application/json")
ARRAYS = ResultFile("", "latents.npz", "application/octet-stream")


class KeptFacts(WireModel):
    """The content of latents.json; neither a picture nor an address is in it.

    seed, request, rungs   what was asked, and the rungs of the ladder that changed what was sampled
    effective              the plan that was carried out
    facts                  the engine's own numbers beside its arrays
    bytes, sha256          of latents.npz
    """

    layout: Literal[1] = 1
    engine: str
    synthetic: bool
    versions: dict[str, str]
    worker_version: str
    seed: int = Field(ge=0, le=MAX_SEED)
    request: dict[str, Any]
    rungs: list[str]
    effective: dict[str, Any]
    input_sha256: str
    facts: dict[str, int]
    bytes: int = Field(ge=0)
    sha256: str
    created_at: str
    expires_at: str
