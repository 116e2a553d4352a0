"""`acceptance`: one command for the first person with real weights and a card.

    record's hashes ─► load ─► beside upstream, each resolution ─► whole job ─► rungs 1 to 4
                                                                 └► peak memory
                            └► the background remover ─► activations

Every check ends as passed, failed or not run, with its reason; the table and the last line, one
JSON object, are made to be pasted into an issue: no path of this machine is in them.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rich.markup import escape
from rich.table import Table

from trellis_runtime import __version__
from trellis_runtime.assets.decoder import DECODER
from trellis_runtime.assets.images import parse_base64
from trellis_runtime.cli.console import err_console, out_console
from trellis_runtime.contract.engine import Rgba
from trellis_runtime.contract.ladder import Plan
from trellis_runtime.contract.request import Resolution, parse_request
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.engines.model_record import RECORD, read_record, record_problems
from trellis_runtime.errors import SetupFailed, WorkerError
from trellis_runtime.logs import configure_logging
from trellis_runtime.settings import Settings
from trellis_runtime.worker.export import export
from trellis_runtime.worker.warmup import photograph, picture

if TYPE_CHECKING:
    from trellis_runtime.engines.trellis2 import Trellis2Engine
    from trellis_runtime.engines.trellis2.acceptance import Job, Outcome

_STYLES = {"passed": "green", "failed": "red", "not run": "yellow"}


def add_acceptance(parser: argparse.ArgumentParser) -> None:
    """Give `acceptance` its options."""
    choices = get_args(Resolution)
    parser.add_argument("--image", type=Path, help="a picture with a transparent background")
    parser.add_argument("--photo", type=Path, help="an opaque photograph, for the remover")
    parser.add_argument(
        "--resolutions",
        type=int,
        nargs="+",
        choices=choices,
        default=list(choices),
        help="of the comparisons; by default all",
    )
    parser.add_argument(
        "--rungs-at", type=int, choices=choices, help="by default the least of --resolutions"
    )
    parser.add_argument("--texture-size", type=int, default=2048, help="of the whole jobs")
    parser.add_argument("--steps", type=int, help="of each sampler; by default a request's own")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="where all of it runs"
    )
    parser.add_argument("--glb", type=Path, metavar="FILE", help="keep the first whole job's GLB")
    parser.set_defaults(run=_acceptance)


@dataclass(slots=True)
class Suite:
    """The checks of one run, and what they left."""

    settings: Settings
    args: argparse.Namespace
    outcomes: list[dict[str, Any]] = field(default_factory=list)
    engine: Trellis2Engine | None = None
    jobs: dict[int, Job] = field(default_factory=dict)

    def check(self, name: str, run: Callable[[], list[Outcome]]) -> None:
        """Run one check, and show how it ended; whatever it raises is its failure."""
        from trellis_runtime.engines.trellis2.acceptance import Outcome

        err_console.print(f"{name} ...", style="dim", highlight=False)
        started = time.perf_counter()
        try:
            outcomes = run()
        except WorkerError as err:
            outcomes = [Outcome(name, "failed", f"{err.code}: {err.message}")]
        except Exception as err:  # noqa: BLE001 - whatever goes wrong is the finding
            outcomes = [Outcome(name, "failed", f"{type(err).__name__}: {err}")]
        seconds = round(time.perf_counter() - started, 1)
        for number, outcome in enumerate(outcomes):
            row = asdict(outcome) | {"detail": self._without_paths(outcome.detail)}
            self.outcomes.append(row | {"seconds": seconds if number == 0 else None})
            style = _STYLES[outcome.verdict]
            found = escape(f"{outcome.name}: {row['detail']}")
            shown = f"  [{style}]{outcome.verdict}[/{style}] {found}"
            err_console.print(shown, highlight=False, soft_wrap=True)

    def skip(self, name: str, reason: str) -> None:
        """Note a check that cannot be run."""
        from trellis_runtime.engines.trellis2.acceptance import Outcome

        self.check(name, lambda: [Outcome(name, "not run", reason)])

    def loaded(self) -> Trellis2Engine:
        """Return the engine; raises `SetupFailed` where it could not be loaded."""
        if self.engine is None:
            raise SetupFailed("the engine could not be loaded")
        return self.engine

    def plan(self, resolution: int) -> Plan:
        """Return a job's plan at `resolution`, offloaded where the card has no room for all."""
        wishes: dict[str, Any] = {"image": "-", "resolution": resolution}
        if self.args.steps is not None:
            stages = ("sparse_structure", "shape", "texture")
            wishes["sampler"] = {stage: {"steps": self.args.steps} for stage in stages}
        wishes["texture_size"] = self.args.texture_size
        plan = Plan.as_asked(parse_request(wishes), seed=1)
        return replace(plan, offload=self.loaded().wants_offload(plan))

    def _without_paths(self, text: str) -> str:
        """Take this machine's folders out of a message that will be pasted elsewhere."""
        folders = self.settings.trellis2
        for name, folder in (
            ("TRELLIS2_DINOV3_DIR", folders.dinov3_dir),
            ("TRELLIS2_REMBG_DIR", folders.rembg_dir),
            ("TRELLIS2_MODEL_DIR", folders.model_dir),
            ("~", Path.home()),
        ):
            if folder is not None and folder != Path("/"):
                text = text.replace(str(folder), name)
        return text


def _acceptance(args: argparse.Namespace) -> int:
    suite = Suite(Settings.from_env(), args)
    configure_logging("error", suite.settings.logging.format)
    try:
        from trellis_runtime.engines.trellis2 import acceptance  # noqa: F401 - it needs torch
    except ImportError as err:
        raise SetupFailed(
            f"acceptance needs {err.name}: pip install 'trellis-runtime[gpu]'"
        ) from None
    image, photo = _pictures(suite)
    suite.check("hashes", lambda: _hashes(suite))
    suite.check("load", lambda: _load(suite))
    if suite.engine is None:
        suite.skip("everything else", "the engine could not be loaded")
        return conclude(suite)
    for resolution in args.resolutions:
        _at_resolution(suite, image, resolution)
    at = args.rungs_at or min(args.resolutions)
    suite.check("rungs 1 to 4", lambda: _rungs(suite, image, at))
    suite.check("background remover", lambda: _remover(suite, photo))
    suite.check("activations", lambda: _activations(suite, image, at))
    return conclude(suite)


def _pictures(suite: Suite) -> tuple[Rgba, Rgba]:
    """Return the picture with alpha and the opaque one, as a job would read them."""

    def read(path: Path) -> Rgba:
        limits = suite.settings.image
        return DECODER.decode(path.read_bytes(), limits, "image", JobScope("acceptance"))

    image = read(suite.args.image) if suite.args.image else _sample(suite)
    return image, read(suite.args.photo) if suite.args.photo else photograph()


def _sample(suite: Suite) -> Rgba:
    """Return the picture of test_input.json, or where that file is not here the warm-up's."""
    path = Path(__file__).parents[2] / "test_input.json"
    if not path.is_file():
        return picture()
    limits = suite.settings.image
    encoded = parse_base64(json.loads(path.read_bytes())["input"]["image"], limits)
    return DECODER.decode(encoded, limits, "image", JobScope("acceptance"))


# --- the checks -----------------------------------------------------------------------------------


def _hashes(suite: Suite) -> list[Outcome]:
    from trellis_runtime.engines.trellis2.acceptance import Outcome

    folder = suite.settings.trellis2.model_dir
    if folder is None:
        return [Outcome("hashes", "not run", "TRELLIS2_MODEL_DIR is not set")]
    if not (folder / RECORD).is_file():
        words = f"no {RECORD} is in the model folder: it was not made by builder/fetch_models.py"
        return [Outcome("hashes", "not run", words)]
    tell = partial(err_console.print, style="dim", highlight=False, markup=False)
    wrong = list(record_problems(folder, lambda name: tell(f"  {name}")))
    if wrong:
        return [Outcome("hashes", "failed", "; ".join(wrong[:3]), {"wrong": len(wrong)})]
    record = read_record(folder)
    commits = {source["repo"]: source["commit"] for source in record.get("sources", [])}
    words = f"{len(record['files'])} files are those that were fetched"
    return [Outcome("hashes", "passed", words, {"commits": commits})]


def _load(suite: Suite) -> list[Outcome]:
    from trellis_runtime.engines.trellis2 import Trellis2Engine
    from trellis_runtime.engines.trellis2.acceptance import Outcome

    engine = Trellis2Engine(suite.settings.trellis2, device=suite.args.device)
    phases: dict[str, float] = {}
    engine.load(lambda phase, seconds: phases.update({phase: round(seconds, 2)}))
    suite.engine = engine
    weights = "random values" if engine.info().synthetic else "weights that say nothing of random"
    words = f"every tensor is there and has its shape; {weights}"
    return [Outcome("load", "passed", words, {"seconds": phases})]


def _at_resolution(suite: Suite, image: Rgba, resolution: int) -> None:
    from trellis_runtime.engines.trellis2 import acceptance

    suite.check(
        f"beside upstream {resolution}",
        lambda: acceptance.beside_upstream(suite.loaded(), image, suite.plan(resolution)),
    )
    suite.check(f"whole job {resolution}", lambda: list(_whole_job(suite, image, resolution)))


def _whole_job(suite: Suite, image: Rgba, resolution: int) -> Iterator[Outcome]:
    """Make a GLB: every value on the way is finite, and the file passes its inspection."""
    from trellis_runtime.engines.trellis2 import acceptance

    engine, plan = suite.loaded(), suite.plan(resolution)
    job = acceptance.run_job(engine, image, plan)
    suite.jobs[resolution] = job
    glb = export(job.asset, "png", {}).glb.data
    if suite.args.glb and len(suite.jobs) == 1:
        suite.args.glb.write_bytes(glb)
    faces = len(job.asset.faces)
    words = f"all values finite, {faces:,} faces, a GLB of {len(glb) / 1e6:.1f} MB"
    figures = {"faces": faces, "glb_bytes": len(glb), "voxels": len(job.decoded.coords)}
    yield acceptance.Outcome(f"whole job {resolution}", "passed", words, figures)
    yield acceptance.peak_memory(engine, job, plan)


def _rungs(suite: Suite, image: Rgba, resolution: int) -> list[Outcome]:
    from trellis_runtime.engines.trellis2 import acceptance

    engine, plan = suite.loaded(), suite.plan(resolution)
    reference = suite.jobs.get(resolution) or acceptance.run_job(engine, image, plan)
    return acceptance.lossless_rungs(engine, image, plan, reference)


def _remover(suite: Suite, photo: Rgba) -> list[Outcome]:
    from trellis_runtime.engines.trellis2 import acceptance

    resolution = min(suite.args.resolutions)
    return [acceptance.background_removed(suite.loaded(), photo, suite.plan(resolution))]


def _activations(suite: Suite, image: Rgba, resolution: int) -> list[Outcome]:
    from trellis_runtime.engines.trellis2 import acceptance

    found = acceptance.largest_activations(suite.loaded(), image, suite.plan(resolution))
    return [acceptance.activations_outcome(*found)]


# --- the end --------------------------------------------------------------------------------------


def conclude(suite: Suite) -> int:
    """Print the table and the JSON line; returns 0 unless a check has failed."""
    failed = [row["name"] for row in suite.outcomes if row["verdict"] == "failed"]
    table = Table("check", "", "what was found", "s", title="Acceptance")
    for row in suite.outcomes:
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
        style = _STYLES[row["verdict"]]
        verdict = f"[{style}]{row['verdict']}[/{style}]"
        table.add_row(row["name"], verdict, escape(row["detail"]), seconds)
    out_console.print(table)
    info = suite.engine.info().model_dump(mode="json") if suite.engine else None
    report = {
        "acceptance": "failed" if failed else "passed",
        "failed": failed,
        "worker": __version__,
        "python": platform.python_version(),
        "engine": info,
        "device": suite.args.device,
        "checks": suite.outcomes,
    }
    out_console.print(json.dumps(report), soft_wrap=True, highlight=False, markup=False)
    return 1 if failed else 0
