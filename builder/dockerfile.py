"""The Dockerfile as data: its stages, their instructions, and what one stage's build needs.

Enough of the format for this project's own file: continued lines, comments, `FROM ... AS`, `ARG`s
with plain values. No heredocs, which `read` refuses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

DOCKERFILE = Path(__file__).parent.parent / "Dockerfile"


@dataclass(frozen=True, slots=True)
class Instruction:
    """`keyword` in capitals, and the rest with continued lines joined by blanks."""

    keyword: str
    rest: str


@dataclass(frozen=True, slots=True)
class Stage:
    """From one FROM to the next; `base` is an image or an earlier stage's name."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    @property
    def sources(self) -> set[str]:
        """The stages or images that it starts from, copies from or mounts."""
        named = {self.base}
        for instruction in self.instructions:
            named |= set(re.findall(r"--from=(\S+)", instruction.rest))
            named |= set(re.findall(r"--mount=\S*\bfrom=([^\s,]+)", instruction.rest))
        return named


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """`arguments` are those before the first stage, with their defaults."""

    arguments: dict[str, str]
    stages: list[Stage]

    @property
    def default(self) -> Stage:
        """What a build without a target makes."""
        return self.stages[-1]

    def needed(self, stage: Stage) -> list[Stage]:
        """Return the stages that a build of `stage` runs, itself last."""
        by_name = {s.name: s for s in self.stages}
        wanted, todo = {stage.name}, [stage]
        while todo:
            for name in todo.pop().sources & by_name.keys() - wanted:
                wanted.add(name)
                todo.append(by_name[name])
        return [s for s in self.stages if s.name in wanted]


def read(text: str) -> Dockerfile:
    """Read a Dockerfile's text; raises `ValueError` for what is not understood."""
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for instruction in _instructions(text):
        if instruction.keyword == "FROM":
            stages.append(_stage(instruction.rest, arguments, len(stages)))
        elif stages:
            stages[-1].instructions.append(instruction)
        elif instruction.keyword == "ARG":
            name, _, value = instruction.rest.partition("=")
            arguments[name] = value.strip('"')
        else:
            raise ValueError(f"{instruction.keyword} stands before the first stage")
    return Dockerfile(arguments, stages)


def _instructions(text: str) -> Iterator[Instruction]:
    kept = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", "\n".join(kept))
    for line in filter(str.strip, joined.splitlines()):
        if "<<" in line:
            raise ValueError(f"heredocs are not read: {line}")
        keyword, _, rest = line.strip().partition(" ")
        yield Instruction(keyword.upper(), rest.strip())


def _stage(rest: str, arguments: dict[str, str], number: int) -> Stage:
    words = rest.split()
    base = re.sub(r"\$\{(\w+)\}", lambda found: arguments[found.group(1)], words[0])
    named = len(words) == 3 and words[1].upper() == "AS"
    return Stage(words[2] if named else str(number), base)
