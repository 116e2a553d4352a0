"""A generation within another: what tests that watch or break an engine's stages begin with."""

from __future__ import annotations

from trellis_runtime.contract.engine import Asset, CutOut, Generation, Latents
from trellis_runtime.contract.ladder import Plan
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import Stage


class WithinGeneration:
    """Hands everything on to `inner`; a test overrides what it watches or breaks."""

    def __init__(self, inner: Generation) -> None:
        self._inner = inner

    def run(self, stage: Stage, plan: Plan, scope: JobScope) -> None:
        self._inner.run(stage, plan, scope)

    def need(self, stage: Stage, plan: Plan) -> int | None:
        return self._inner.need(stage, plan)

    def reseed(self, seed: int) -> None:
        self._inner.reseed(seed)

    def latents(self) -> Latents:
        return self._inner.latents()

    def cutout(self) -> CutOut:
        return self._inner.cutout()

    def reclaim(self) -> None:
        self._inner.reclaim()

    def asset(self) -> Asset:
        return self._inner.asset()

    def close(self) -> None:
        self._inner.close()
