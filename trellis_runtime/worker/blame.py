"""Whose fault an exception is that a stage did not foresee: the picture's, or ours.

The stages hand what a picture led to on to libraries, and a library that cannot work with it says
so in its own words: an empty array has no largest value, points on a line have no hull. The same
job fails so again. An error that our own code raises without having planned it is a fault of ours.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import Stage
from trellis_runtime.errors import StageFailed, WorkerError
from trellis_runtime.logs import logger

_OURS = str(Path(__file__).parent.parent)
_NOT_ABOUT_VALUES = ("builtins", "torch", "triton", "warp", "trellis_runtime")
_ABOUT_VALUES = (ValueError, ArithmeticError)


@contextmanager
def library_errors(stage: Stage, scope: JobScope) -> Iterator[None]:
    """Turn what a library raises about its arguments' values into `StageFailed`."""
    try:
        yield
    except WorkerError:
        raise
    except Exception as err:
        if not of_library(err):
            raise
        logger().exception("stage_failed", job_id=scope.job_id, stage=stage)
        raise StageFailed(
            f"a library could not work with what this picture led to in {stage} "
            f"({type(err).__name__})"
        ) from err


def of_library(err: Exception) -> bool:
    """Whether `err` is a library's about values: its own kind, or a `ValueError` or
    `ArithmeticError` that is raised in its code.

    A library's errors about types and names, and all of torch's, Triton's and Warp's, are faults of
    whoever called it.
    """
    if type(err).__module__.partition(".")[0] not in _NOT_ABOUT_VALUES:
        return True
    frames = traceback.extract_tb(err.__traceback__)
    inside = bool(frames) and not frames[-1].filename.startswith(_OURS)
    return inside and isinstance(err, _ABOUT_VALUES)
