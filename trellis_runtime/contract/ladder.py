"""What to attempt, and what to give up when memory runs out: the one home of degradation.

A `Plan` says how a request is carried out. `RUNGS` is the ladder: each rung changes one thing,
says at which stages that frees memory, and whether the result stays the same. After an
out-of-memory error the failed stage alone is repeated, at the first rung that helps it; a rung that
changes an earlier stage's output (the resolution, say) restarts there, and nothing before it runs
again. Nothing is given away for nothing: a rung that does not lower the need of what failed is
passed over, and where the engine can tell that need (`Shortage`) the mildest that fits is taken.

Rungs 1 to 4 are lossless, 5 to 9 cost geometry, 10 to 12 cost texture, and no rung below 10 touches
the texture: an alert on levels 10 and up means one thing. Sampler steps, guidance and the size of
the input image are not here: the image encoder resizes every picture to its own input, and steps
repeat the same allocation, so lowering them frees nothing.

More than 300 lines: half of them are the table of rungs, and what walks it is read beside it.

Long because the rungs, one by one, are most of it, and choosing among them is one subject.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from trellis_runtime.contract.levels import LOWEST_LEVEL
from trellis_runtime.contract.request import (
    AlphaChoice,
    DetailMap,
    GenerationRequest,
    Samplers,
    Shell,
)
from trellis_runtime.contract.stages import ENGINE_STAGES, Stage

MAX_TOKENS = 49_152
"""Upstream's bound on tokens of the high-resolution shape latent."""

TRAINED_TOKENS = 32_768
"""The longest sequence that the models were trained on."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a request is carried out.

    The first block decides what the result is; the second only how much memory it takes on the
    way. `remesh_resolution` and `texture_size` are in cells and pixels per side; a texture size
    of 0 means colours at the vertices.
    """

    seed: int
    resolution: int
    samplers: Samplers
    max_tokens: int
    decimation_target: int
    remesh: bool
    remesh_band: int
    remesh_resolution: int
    texture_size: int
    background: str
    shell: Shell = "closed"
    min_thickness: float = 0.0
    alpha_mode: AlphaChoice = "auto"
    maps: tuple[DetailMap, ...] = ()

    offload: bool = False
    chunk_rows: bool = False
    chunk_decoder: bool = False
    chunk_bake: bool = False

    @classmethod
    def as_asked(cls, request: GenerationRequest, seed: int) -> Plan:
        """Return the plan that gives the request in full."""
        return cls(
            seed=seed,
            resolution=request.resolution,
            samplers=request.sampler,
            max_tokens=MAX_TOKENS if request.resolution > 1024 else TRAINED_TOKENS,
            decimation_target=request.decimation_target,
            remesh=request.remesh,
            remesh_band=request.remesh_band,
            remesh_resolution=request.resolution,
            texture_size=request.texture_size,
            background=request.background,
            shell=request.shell,
            min_thickness=request.min_thickness,
            alpha_mode=request.alpha_mode,
            maps=request.output.maps,
        )

    def quality(self) -> dict[str, Any]:
        """Return the values that a caller can see in the result, for `requested`/`effective`."""
        facts = asdict(self)
        for name in ("samplers", "offload", "chunk_rows", "chunk_decoder", "chunk_bake", "seed"):
            del facts[name]
        facts["maps"] = list(self.maps)
        facts["sampler"] = self.samplers.model_dump(mode="json")
        return facts

    def is_leaner_than(self, other: Plan) -> bool:
        """Whether this plan needs less memory somewhere and more nowhere."""
        ours, theirs = self._demand(), other._demand()
        return ours != theirs and all(a <= b for a, b in zip(ours, theirs, strict=True))

    def _demand(self) -> tuple[int, ...]:
        return (
            not self.offload,
            not self.chunk_rows,
            not self.chunk_decoder,
            not self.chunk_bake,
            self.max_tokens,
            self.resolution,
            self.remesh,
            self.remesh_resolution,
            self.texture_size,
        )


@dataclass(frozen=True, slots=True)
class Rung:
    """One step down.

    `frees_memory_in` are the stages where it frees memory; `restarts_at` is the earliest stage
    whose product it changes, None when it changes none.
    """

    level: int
    name: str
    change: str
    lossless: bool
    frees_memory_in: frozenset[Stage]
    apply: Callable[[Plan], Plan]
    restarts_at: Stage | None = None


def _lower(plan: Plan, resolution: int) -> Plan:
    resolution = min(plan.resolution, resolution)
    return replace(
        plan,
        resolution=resolution,
        max_tokens=min(plan.max_tokens, TRAINED_TOKENS),
        remesh_resolution=min(plan.remesh_resolution, resolution),
    )


def _cap_tokens(plan: Plan) -> Plan:
    return replace(plan, max_tokens=min(plan.max_tokens, TRAINED_TOKENS))


def _cap_remesh(plan: Plan) -> Plan:
    if not plan.remesh:
        return plan
    return replace(plan, remesh_resolution=min(plan.remesh_resolution, 512))


def _shrink_texture(plan: Plan) -> Plan:
    return replace(plan, texture_size=plan.texture_size // 2)


_ALL = frozenset(ENGINE_STAGES)
_LATENTS = frozenset({Stage.SHAPE, Stage.TEXTURE, Stage.DECODE})
_DECODE = frozenset({Stage.SHAPE, Stage.DECODE})  # the cascade upsamples through the decoder
_BAKE = frozenset({Stage.BAKE})

RUNGS: tuple[Rung, ...] = (
    Rung(0, "as_asked", "nothing", True, frozenset(), lambda plan: plan),
    Rung(
        1,
        "offload",
        "only what the stage needs stays in GPU memory; everything else waits on the host",
        True,
        _ALL,
        lambda plan: replace(plan, offload=True),
    ),
    Rung(
        2,
        "chunk_rows",
        "norms, activations and linear layers of the decoders run over blocks of rows",
        True,
        _DECODE,
        lambda plan: replace(plan, chunk_rows=True),
    ),
    Rung(
        3,
        "host_skips",
        "the decoders' convolutions run over blocks of rows, and between the decoders nothing but "
        "the subdivisions waits on the card",
        True,
        _DECODE,
        lambda plan: replace(plan, chunk_decoder=True),
    ),
    Rung(
        4,
        "chunk_bake",
        "what of the bake does not fit runs on the host, and colours are looked up in small blocks",
        True,
        _BAKE,
        lambda plan: replace(plan, chunk_bake=True),
    ),
    Rung(
        5,
        "tokens_32768",
        "at most 32768 tokens in the shape latent, upstream's own bound in training",
        False,
        _LATENTS,
        _cap_tokens,
        Stage.SHAPE,
    ),
    Rung(
        6,
        "resolution_1024",
        "geometry at 1024 instead of 1536",
        False,
        _LATENTS,
        lambda plan: _lower(plan, 1024),
        Stage.SHAPE,
    ),
    Rung(
        7,
        "remesh_512",
        "the remeshing grid has 512 cells a side",
        False,
        _BAKE,
        _cap_remesh,
    ),
    Rung(
        8,
        "remesh_off",
        "the decoder's own surface is kept; it may have small holes",
        False,
        _BAKE,
        lambda plan: replace(plan, remesh=False),
    ),
    Rung(
        9,
        "resolution_512",
        "geometry at 512; the texture keeps its size",
        False,
        _LATENTS,
        lambda plan: _lower(plan, 512),
        Stage.SHAPE,
    ),
    Rung(10, "texture_half", "half the texture size", False, _BAKE, _shrink_texture),
    Rung(11, "texture_quarter", "a quarter of the texture size", False, _BAKE, _shrink_texture),
    Rung(
        12,
        "vertex_colors",
        "no texture: colours at the vertices",
        False,
        _BAKE,
        lambda plan: replace(plan, texture_size=0),
    ),
)
"""The ladder, mildest first."""


@dataclass(frozen=True, slots=True)
class Shortage:
    """What is known of a lack of memory, in bytes.

    `need(plan)` is what the failed stage takes at its peak under `plan`, all that the job then
    holds included, or None where that is not known; `available` is what the job can have.
    """

    need: Callable[[Plan], int | None]
    available: int

    def explains(self, plan: Plan) -> bool:
        """Whether `plan` is known not to fit; without that, its numbers decide nothing."""
        return (need := self.need(plan)) is not None and need > self.available

    def fits(self, plan: Plan) -> bool:
        return (need := self.need(plan)) is not None and need <= self.available


@dataclass(slots=True)
class LadderState:
    """One job's way down the ladder: the plan in force, the rungs taken and those passed over."""

    requested: Plan
    max_level: int
    plan: Plan
    taken: list[Rung]
    reasons: dict[str, str]
    first_stage: Stage = ENGINE_STAGES[0]
    """What stages before it made stays as it is: no rung that changes it is taken."""

    @classmethod
    def begin(cls, requested: Plan, max_level: int, *, offload: bool = False) -> LadderState:
        """Start at the top, or already offloaded when the card has too little room to try."""
        descent = cls(requested, max_level, requested, [RUNGS[0]], {})
        if offload and max_level >= 1:
            descent._take([RUNGS[1]])
        return descent

    @classmethod
    def resumed(
        cls, requested: Plan, max_level: int, held: Iterable[str], first_stage: Stage, *,
        offload: bool,
    ) -> LadderState:  # fmt: skip
        """Start where a sampling that took the rungs called `held` is gone on with."""
        descent = cls.begin(requested, max_level, offload=offload)
        descent._take([rung for rung in RUNGS if rung.name in held])
        descent.first_stage = first_stage
        return descent

    def for_seed(self, seed: int) -> LadderState:
        """Return the same way down so far, for another seed of the same request."""
        requested, plan = replace(self.requested, seed=seed), replace(self.plan, seed=seed)
        return LadderState(requested, self.max_level, plan, [*self.taken], {**self.reasons})

    @property
    def sampled_with(self) -> list[str]:
        """The names of the rungs taken that changed what was sampled."""
        return [rung.name for rung in self.taken if rung.restarts_at is not None]

    def again(self, requested: Plan) -> LadderState:
        """Return the way down for another bake of what this one sampled.

        Rungs that are lossless, or that changed what was sampled, hold; those that lowered this
        bake alone are taken anew where the other does not fit either.
        """
        held = [rung for rung in self.taken[1:] if rung.lossless or rung.restarts_at is not None]
        descent = LadderState(
            requested, self.max_level, requested, [RUNGS[0]], {}, self.first_stage
        )
        descent._take(held)
        return descent

    @property
    def rung(self) -> Rung:
        """The lowest rung taken."""
        return max(self.taken, key=lambda rung: rung.level)

    @property
    def lossless(self) -> bool:
        return all(rung.lossless for rung in self.taken)

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Rungs milder than the lowest that were not taken, with the reason, mildest first."""
        above = [rung for rung in RUNGS[1 : self.rung.level] if rung not in self.taken]
        return [(rung.name, self.reasons[rung.name]) for rung in above if rung.name in self.reasons]

    def step_down(self, failed_stage: Stage, shortage: Shortage | None = None) -> list[Rung]:
        """Take the rungs that `failed_stage` needs to fit, mildest first; none when none helps.

        Where `shortage` tells the need: the mildest rungs that make it fit, none of which it fits
        without. Where nothing is known: the next rung that is declared to free memory there. A
        milder rung that an earlier stage had no use for is still there for a later one.
        """
        plan, useful = self.plan, list[Rung]()
        for rung in RUNGS[1 : self.max_level + 1]:
            if rung in self.taken:
                continue
            lower = rung.apply(plan)
            reason = self._is_settled(rung) or _useless(rung, plan, lower, failed_stage)
            if reason:
                self.reasons.setdefault(rung.name, reason)
            else:
                plan, useful = lower, [*useful, rung]
        chosen = useful[:1]
        if shortage is not None and shortage.explains(self.plan):
            chosen = self._mildest_fitting(useful, failed_stage, shortage)
        self._take(chosen)
        return chosen

    def _is_settled(self, rung: Rung) -> str | None:
        """Return why `rung` cannot be taken any more, None where it can."""
        at, first = rung.restarts_at, self.first_stage
        if at is None or ENGINE_STAGES.index(at) >= ENGINE_STAGES.index(first):
            return None
        return "what was sampled is kept as it is"

    def _mildest_fitting(
        self, useful: list[Rung], failed_stage: Stage, shortage: Shortage
    ) -> list[Rung]:
        """Give back, the most costly first, each rung without which the others fit as well."""
        if not shortage.fits(_applied(self.plan, useful)):
            return []
        before = shortage.need(self.plan)
        for rung in reversed(useful):
            fewer = [other for other in useful if other is not rung]
            if shortage.fits(_applied(self.plan, fewer)):
                useful = fewer
                alone = shortage.need(rung.apply(self.plan))
                self.reasons[rung.name] = (
                    f"{failed_stage} would need {(before or 0) / 2**20:.1f} MiB all the same"
                    if alone == before
                    else f"{failed_stage} fits without it"
                )
        return useful

    def _take(self, rungs: list[Rung]) -> None:
        self.plan = _applied(self.plan, rungs)
        self.taken += rungs


def _applied(plan: Plan, rungs: Iterable[Rung]) -> Plan:
    for rung in rungs:
        plan = rung.apply(plan)
    return plan


def _useless(rung: Rung, plan: Plan, lower: Plan, failed_stage: Stage) -> str | None:
    """Return why `rung` cannot help `failed_stage`, None where it may."""
    if failed_stage not in rung.frees_memory_in:
        return f"frees nothing in {failed_stage}"
    if not lower.is_leaner_than(plan):
        return "changes nothing for this request"
    return None


def restart_stage(rung: Rung, failed_stage: Stage) -> Stage:
    """Return the stage to run next after `rung` was taken because of `failed_stage`."""
    if rung.restarts_at is None:
        return failed_stage
    return min(failed_stage, rung.restarts_at, key=ENGINE_STAGES.index)


def earliest_restart(rungs: Iterable[Rung], failed_stage: Stage) -> Stage:
    """Return the stage to run next after all of `rungs` were taken because of `failed_stage`."""
    stages = [restart_stage(rung, failed_stage) for rung in rungs]
    return min([failed_stage, *stages], key=ENGINE_STAGES.index)


def ladder(requested: Plan, max_level: int = LOWEST_LEVEL) -> tuple[tuple[Rung, Plan], ...]:
    """Return every rung that changes something for this request, with the plan it leads to."""
    plan, steps = requested, [(RUNGS[0], requested)]
    for rung in RUNGS[1 : max_level + 1]:
        lower = rung.apply(plan)
        if lower.is_leaner_than(plan):
            plan = lower
            steps.append((rung, plan))
    return tuple(steps)
