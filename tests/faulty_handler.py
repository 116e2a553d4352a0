"""A worker whose engine fails as a GPU can: the real handler, the real SDK, an engine with faults.

The faults are in the environment, as `FAULT=kind` or `FAULT=kind:stage`:
  slow    the stage takes 60 steps of 0.05 s, with a check after each, as sampling does
  stuck   the stage takes 2 s without a check
  never   the stage does not return
  poison  the stage raises EngineFault
  crash   the stage raises an exception that nobody foresaw
  broken  the asset has coordinates that are not finite
  hang    asking for the engine's memory never ends
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np

from handler import leave, serve
from tests.generations import WithinGeneration
from trellis_runtime.contract.engine import Asset, MemorySnapshot, Rgba
from trellis_runtime.contract.ladder import Plan
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import Stage
from trellis_runtime.engines.embedded import EmbeddedEngine
from trellis_runtime.errors import EngineFault
from trellis_runtime.worker.worker import Worker

KIND, _, STAGE = os.environ.get("FAULT", "none").partition(":")


class FaultyGeneration(WithinGeneration):
    def run(self, stage: Stage, plan: Plan, scope: JobScope) -> None:
        if stage == STAGE:
            self._fail(scope)
        super().run(stage, plan, scope)

    def _fail(self, scope: JobScope) -> None:
        if KIND == "slow":
            for step in range(60):
                time.sleep(0.05)
                scope.step(step, 60)
        elif KIND == "stuck":
            time.sleep(2)
        elif KIND == "never":
            threading.Event().wait()
        elif KIND == "poison":
            raise EngineFault("CUDA error: an illegal memory access was encountered")
        elif KIND == "crash":
            raise KeyError("/secret/path of this machine")

    def asset(self) -> Asset:
        asset = super().asset()
        if KIND == "broken":
            return replace(asset, vertices=np.full_like(asset.vertices, np.nan))
        return asset


class FaultyEngine(EmbeddedEngine):
    def begin(self, image: Rgba, plan: Plan) -> Any:
        return FaultyGeneration(super().begin(image, plan))

    def memory(self) -> MemorySnapshot | None:
        if KIND == "hang":
            time.sleep(3600)
        return super().memory()


if __name__ == "__main__":
    ready = Worker.start(engine=FaultyEngine())
    leave(ready, serve(ready))
