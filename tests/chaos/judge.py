"""The verdict: what callers got, what lies in the bucket, what is left of the worker."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from typing import Any

import requests

from tests.chaos.plan import Way
from tests.chaos.run import History, Sample, Scene, content_hash, may_try_again, told
from tests.seaweed import BUCKET


@dataclass(slots=True)
class Verdict:
    """Counts of one run; all from `lost` to `scratch` must be 0."""

    seed: int
    side_by_side: int
    jobs: int = 0
    delivered: int = 0
    refused: int = 0
    """Broken jobs, told so."""
    cancelled: int = 0
    tried_again: int = 0
    """Jobs that were sent again after an error that said that they may be."""
    repeats_failed: int = 0
    """Inline results, handed out once more, whose second computation failed."""
    lost: int = 0
    mixed: int = 0
    half: int = 0
    twice_different: int = 0
    scratch: int = 0
    processes: int = 0
    """Lives of the worker: 1 and one for each time that it left or was killed."""
    growth_mib: float = 0.0
    growth_threads: int = 0
    growth_files: int = 0
    """The most that a process held at its last rest, less the most that one held at its first."""
    errors: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What is wrong, one line a case."""

    @property
    def is_clean(self) -> bool:
        bad = (self.lost, self.mixed, self.half, self.twice_different, self.scratch)
        return bad == (0,) * len(bad) and self.is_level

    @property
    def is_level(self) -> bool:
        """Whether processes end as they begin, but for an allocator's slack and pools of threads
        that fill slowly.
        """
        return self.growth_mib < 64 and self.growth_threads <= 16 and self.growth_files <= 8

    def table(self) -> str:
        """Return the verdict for people."""
        rows = {k: v for k, v in asdict(self).items() if not isinstance(v, dict | list)}
        lines = [f"{name.replace('_', ' '):18} {value:>8}" for name, value in rows.items()]
        lines += ["", "errors that callers saw"]
        lines += [f"  {code:40} {count:>6}" for code, count in sorted(self.errors.items())]
        lines += ["", "faults"]
        lines += [f"  {what:52} {count:>6}" for what, count in sorted(self.faults.items())]
        return "\n".join([*lines, *(f"WRONG  {note}" for note in self.notes)])

    def line(self) -> str:
        """Return the verdict as one line of JSON."""
        return json.dumps(asdict(self) | {"clean": self.is_clean})


def judge(scene: Scene, seed: int, side_by_side: int) -> Verdict:
    """Look at what every caller was told, and at all that is left; the worker is still there."""
    verdict = Verdict(seed, side_by_side, jobs=len(scene.histories), processes=scene.lives)
    verdict.faults = dict(scene.weather.counts)
    errors: Counter[str] = Counter()
    for history in scene.histories:
        _judge_history(scene, history, verdict)
        for job_id in history.ids:
            results = scene.plane.jobs[job_id].results
            errors.update(str(r["output"]["code"]) for r in results if "error" in r)
            kept = history.ask.way in (Way.BUCKET, Way.OWN)
            judge_repeats(job_id, results, verdict, kept=kept)
        verdict.tried_again += len(history.ids) > 1
    verdict.errors = dict(errors)
    _judge_bucket(scene, verdict)
    _judge_growth(scene.samples, verdict)
    return verdict


def _judge_history(scene: Scene, history: History, verdict: Verdict) -> None:
    record = scene.plane.jobs[history.ids[-1]]
    if history.cancelled:
        verdict.cancelled += 1
    elif not record.results:
        _wrong(verdict, "lost", f"{history.ids[-1]} was never answered: {record.state}")
    elif "error" in record.results[-1]:
        if history.ask.broken and not may_try_again(record):
            verdict.refused += 1
        else:
            _wrong(verdict, "lost", f"{history.ids}: {record.results[-1]['error']}")
    else:
        _judge_result(scene, history, told(record)[-1], verdict)


def _judge_result(scene: Scene, history: History, answer: dict[str, Any], verdict: Verdict) -> None:
    job_id, right = history.ids[-1], scene.alone[history.ask.picture]
    try:
        data = _received(scene, history, answer)
    except requests.RequestException as err:
        _wrong(verdict, "lost", f"{job_id}: the link does not work: {err}")
        return
    got = content_hash(data)
    whole = hashlib.sha256(data).hexdigest() == answer["artifact"]["sha256"]
    if whole and got == right:
        verdict.delivered += 1
    elif got in scene.alone.values():
        _wrong(verdict, "mixed", f"{job_id} has another picture's asset")
    else:
        _wrong(verdict, "half", f"{job_id}: {len(data)} bytes are not what was made")


def _received(scene: Scene, history: History, answer: dict[str, Any]) -> bytes:
    """Return the GLB as its caller gets it."""
    if history.ask.way is Way.UPLOAD:
        return _object(scene, f"uploads/{history.ids[-1]}.glb")
    return scene.received(answer)


def _object(scene: Scene, key: str) -> bytes:
    found: bytes = scene.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    return found


def judge_repeats(
    job_id: str, results: list[dict[str, Any]], verdict: Verdict, *, kept: bool
) -> None:
    """A job that was handed out, or told, more than once has one truth.

    Where its result is `kept`, no error may come after it; an inline one is with its caller alone,
    and a job that is handed out once more is computed, which may fail.
    """
    made = {r["output"]["artifact"]["sha256"] for r in results if "error" not in r}
    if len(made) > 1:
        _wrong(verdict, "twice_different", f"{job_id} has {len(made)} different results")
    if made and "error" in results[-1] and not kept:
        verdict.repeats_failed += 1
    elif made and "error" in results[-1]:
        error = results[-1]["error"]
        _wrong(verdict, "twice_different", f"{job_id} had a result; its last word is {error}")


def _judge_bucket(scene: Scene, verdict: Verdict) -> None:
    """Each folder is whole; nothing else is in the bucket or on the disk."""
    pages = scene.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
    folders: dict[str, set[str]] = defaultdict(set)
    for key in keys:
        folder, _, name = key.rpartition("/")
        folders[folder].add(name)
    for key in folders.pop("uploads", set()):
        if content_hash(_object(scene, f"uploads/{key}")) not in scene.alone.values():
            _wrong(verdict, "half", f"uploads/{key} is not whole")
    for name in folders.pop("trellis2/.check", set()):
        _wrong(verdict, "scratch", f"trellis2/.check/{name} is left in the bucket")
    for folder, names in folders.items():
        if why := _why_not_whole(scene, folder, names):
            _wrong(verdict, "half", f"{folder}: {why}")
    left = [p for p in scene.folder.rglob("*") if p.is_file()]
    for path in left:
        told_of = path.relative_to(scene.folder)
        if str(told_of) != "worker.log":
            _wrong(verdict, "scratch", f"{told_of} is left on the disk")


def _why_not_whole(scene: Scene, folder: str, names: set[str]) -> str | None:
    if names != {"answer.json", "model.glb"}:
        return f"it holds {sorted(names)}"
    answer = json.loads(_object(scene, f"{folder}/answer.json"))
    got = hashlib.sha256(_object(scene, f"{folder}/model.glb")).hexdigest()
    if got != answer["artifact"]["sha256"]:
        return "model.glb is not the one that answer.json names"
    return None


def _judge_growth(samples: list[Sample], verdict: Verdict) -> None:
    lives: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        lives[sample.life].append(sample)
    first = [of[0] for of in lives.values()]
    last = [of[-1] for of in lives.values() if len(of) > 1]
    if last:
        verdict.growth_mib = round(max(s.mib for s in last) - max(s.mib for s in first), 1)
        verdict.growth_threads = max(s.threads for s in last) - max(s.threads for s in first)
        verdict.growth_files = max(s.files for s in last) - max(s.files for s in first)


def _wrong(verdict: Verdict, kind: str, note: str) -> None:
    setattr(verdict, kind, getattr(verdict, kind) + 1)
    verdict.notes.append(f"{kind}: {note}")
