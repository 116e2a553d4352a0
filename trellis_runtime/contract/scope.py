"""One job's scope, travelling down the pipeline: stages, progress, cancellation, deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from trellis_runtime.contract.stages import Stage
from trellis_runtime.errors import DeadlineExceeded, JobCancelled
from trellis_runtime.logs import logger

Progress = Callable[[str, float], None]
"""Called with a stage's name and the job's fraction done, 0 to 1, from the job's own thread."""


@dataclass(slots=True)
class Deadline:
    """A moment on the monotonic clock; None never comes."""

    at: float | None = None

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        return cls(None if seconds is None else time.monotonic() + seconds)

    def remaining(self) -> float:
        """Seconds left, infinite without a deadline, never below zero."""
        return float("inf") if self.at is None else max(0.0, self.at - time.monotonic())

    @property
    def passed(self) -> bool:
        return self.remaining() == 0.0


_LEAST_WAIT_S = 1e-3  # less is what asking takes

# Rough shares of a job, so that progress moves evenly; only the order of magnitude matters.
_WEIGHTS: dict[Stage, float] = {
    Stage.IMAGE: 2,
    Stage.CONDITION: 3,
    Stage.STRUCTURE: 10,
    Stage.SHAPE: 30,
    Stage.TEXTURE: 15,
    Stage.DECODE: 10,
    Stage.BAKE: 20,
    Stage.FINISH: 20,  # for each finish; see `JobScope.weights`
    Stage.LATENTS: 2,
    Stage.EXPORT: 5,
    Stage.PREVIEW: 3,
    Stage.STORE: 2,
}


@dataclass(slots=True)
class JobScope:
    """What one job carries down: its id, deadline, cancellation flag and progress callback.

    `check` is called between stages and between sampler steps; it raises `JobCancelled` or
    `DeadlineExceeded` there and nowhere else, so a stage is never left half done on purpose.
    """

    job_id: str
    deadline: Deadline = field(default_factory=Deadline)
    progress: Progress | None = None
    timings: dict[str, float] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)
    """Seconds of named parts of stages; on a GPU they need `settle` to be more than launches."""
    waits: dict[str, float] = field(default_factory=dict)
    """Seconds of each stage's timing that went by waiting for another job."""
    beside: dict[str, float] = field(default_factory=dict)
    """Seconds of work on other threads beside the stages, by its name."""
    settle: Callable[[], None] | None = None
    """Waits for the device before a part's clock is read; a benchmark's, unset in a worker."""
    parent: JobScope | None = None
    """The job's own scope, of one that is `aside`."""
    weights: dict[Stage, float] = field(default_factory=lambda: dict(_WEIGHTS))
    """Each stage's share of the job's progress; finishes are of the job's own number, and a
    stage that it does not run has none."""
    variants: int = 1
    """How many times the stages behind the picture's are run."""
    _part_of_stage: tuple[float, float] = (0.0, 1.0)
    _variant: int | None = None
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _stage: Stage | None = None
    _done: set[Stage] = field(default_factory=set)

    def cancel(self) -> None:
        """Ask the job to stop at its next check; safe from any thread."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set() or (self.parent is not None and self.parent.cancelled)

    def aside(self) -> JobScope:
        """Return a scope for work on another thread beside a stage.

        It ends with this one, or earlier by its own `cancel`; its progress is not told.
        """
        return JobScope(self.job_id, self.deadline, settle=self.settle, parent=self)

    @property
    def current(self) -> Stage | None:
        """The stage that runs now, or ran last."""
        return self._stage

    def check(self) -> None:
        """Raise if the job has been stopped or its time is over."""
        where = f" during {self._stage}" if self._stage else ""
        if self.cancelled:
            raise JobCancelled(f"the job was stopped{where}")
        if self.deadline.passed:
            raise DeadlineExceeded(f"the job's time was over{where}")

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Time a stage (repeats add up), check before it, and report progress."""
        self._stage = stage
        self._part_of_stage = (0.0, 1.0)
        self.check()
        self._report(0.0)
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            self.timings[stage] = self.timings.get(stage, 0.0) + seconds
            logger().info(
                "stage_finished", job_id=self.job_id, stage=stage, seconds=round(seconds, 4)
            )
        self._done.add(stage)

    @contextmanager
    def variant(self, number: int) -> Iterator[None]:
        """Time what follows apart, and tell it as variant `number` (from 0) of `variants`.

        The picture is ready by then; `timings` are the variant's own while the context lasts, and
        have their sum behind it.
        """
        whole, self.timings = self.timings, {}
        self._variant, self._done = number, {Stage.IMAGE, Stage.CONDITION}
        try:
            yield
        finally:
            for stage, seconds in self.timings.items():
                whole[stage] = whole.get(stage, 0.0) + seconds
            self.timings, self._variant = whole, None

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a part of the current stage into `parts` (repeats add up)."""
        started = self._settled_clock()
        try:
            yield
        finally:
            seconds = self._settled_clock() - started
            self.parts[name] = self.parts.get(name, 0.0) + seconds

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time that the context lasts as waiting for another job."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.note_wait(time.perf_counter() - started)

    def note_wait(self, seconds: float) -> None:
        """Count `seconds` of the current stage as waiting for another job."""
        if self._stage is not None and seconds >= _LEAST_WAIT_S:
            self.waits[self._stage] = self.waits.get(self._stage, 0.0) + seconds

    @contextmanager
    def portion(self, number: int, total: int) -> Iterator[None]:
        """Have `step` count within part `number` (from 0) of `total` parts of the stage."""
        self._part_of_stage = (number / total, 1 / total)
        self.check()
        self._report(0.0)
        try:
            yield
        finally:
            self._part_of_stage = (0.0, 1.0)

    def _settled_clock(self) -> float:
        if self.settle is not None:
            self.settle()
        return time.perf_counter()

    def step(self, done: int, total: int) -> None:
        """Report step `done` of `total` inside the current stage, and check."""
        self.check()
        self._report(done / max(total, 1))

    def _report(self, within: float) -> None:
        if self.progress is None or self._stage is None:
            return
        start, share = self._part_of_stage
        weight = sum(self.weights[stage] for stage in self._done if stage != self._stage)
        weight += self.weights[self._stage] * (start + share * within)
        done = min(1.0, weight / sum(self.weights.values()))
        if self._variant is None:
            self.progress(self._stage, done / self.variants)
        else:
            label = f"{self._stage} {self._variant + 1}/{self.variants}"
            self.progress(label, (self._variant + done) / self.variants)
