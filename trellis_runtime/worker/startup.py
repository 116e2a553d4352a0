"""What a process does once, before its first job: choose the engine, read weights ahead."""

from __future__ import annotations

import os
import time
from pathlib import Path

from trellis_runtime.contract.engine import Engine
from trellis_runtime.errors import SetupFailed
from trellis_runtime.logs import logger
from trellis_runtime.settings import JobLimits, Settings
from trellis_runtime.worker.readahead import ReadAhead


def read_ahead(settings: Settings) -> ReadAhead | None:
    """Begin to read the models, before the imports that take as long."""
    if settings.engine == "embedded" or not settings.start.preload:
        return None
    wanted = (
        settings.trellis2.model_dir,
        settings.trellis2.dinov3_dir,
        settings.trellis2.rembg_dir,
    )
    folders = [folder for folder in wanted if folder is not None and folder.is_dir()]
    return ReadAhead(folders) if folders else None


def build_engine(settings: Settings) -> Engine:
    """Return the engine that the settings ask for; it is not loaded yet."""
    choice = settings.engine
    if choice == "auto":
        has_gpu_engine = settings.platform.is_worker or settings.trellis2.model_dir is not None
        choice = "trellis2" if has_gpu_engine else "embedded"
        logger().info("engine_chosen", engine=choice, reason="TRELLIS2_ENGINE is auto")
    # The lazy imports of the package: the rest runs on a machine without torch.
    if choice == "embedded":
        from trellis_runtime.engines.embedded import EmbeddedEngine

        return EmbeddedEngine(settings.embedded.memory_budget_bytes)
    try:
        from trellis_runtime.engines.trellis2 import Trellis2Engine
    except ImportError as err:
        raise SetupFailed(
            f"the trellis2 engine needs {err.name}, which is not installed; on a machine without "
            "a GPU set TRELLIS2_ENGINE=embedded"
        ) from None
    return Trellis2Engine(settings.trellis2)


def require_side_by_side(engine: Engine, limits: JobLimits) -> None:
    """Raise `SetupFailed` when more generations are asked for at once than the engine can keep
    apart.
    """
    most = engine.most_side_by_side
    if most is not None and limits.max_concurrent > most:
        raise SetupFailed(
            f"MAX_CONCURRENT_GENERATIONS is {limits.max_concurrent}; the {engine.info().name} "
            f"engine runs at most {most} at a time, as generations would share its state"
        )


def process_age() -> float:
    """Return seconds since this process started, by the kernel's account."""
    try:
        ticks = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]
        uptime = Path("/proc/uptime").read_text().split()[0]
        return round(float(uptime) - int(ticks) / os.sysconf("SC_CLK_TCK"), 3)
    except (OSError, ValueError, IndexError):  # not Linux
        return round(time.process_time(), 3)
