"""docs/architecture.md against the folders themselves."""

from __future__ import annotations

import re

from tests.conftest import ROOT

DOC = (ROOT / "docs/architecture.md").read_text()
PACKAGE = ROOT / "trellis_runtime"


def drawn() -> tuple[set[str], set[str]]:
    """Return the folders and the modules of the tree that the document draws, as paths."""
    block = DOC.split("## Layout")[1].split("```")[1]
    folders, modules, above = set[str](), set[str](), list[str]()
    for line in block.strip().splitlines():
        words = line.split("#")[0].split()
        above = above[: (len(line) - len(line.lstrip())) // 2]
        if words[0].endswith("/"):
            above.append(words.pop(0).rstrip("/"))
            folders.add("/".join(above))
        modules |= {"/".join([*above, word.removesuffix(".py")]) + ".py" for word in words}
    return folders, modules


def test_every_folder_is_drawn_and_every_name_drawn_is_there() -> None:
    folders, modules = drawn()
    there = {
        p.parent.relative_to(ROOT).as_posix()
        for p in PACKAGE.rglob("*.py")
        if "static" not in p.parts
    }
    assert folders == there
    assert [name for name in sorted(modules) if not (ROOT / name).is_file()] == []


def test_what_the_walk_names_is_there() -> None:
    walk = DOC.split("## One job")[1].split("\n## ")[0]
    named = set(re.findall(r"`((?:worker|contract|assets|delivery|engines)/[\w/]+)`", walk))
    assert len(named) >= 12
    for name in named:
        assert (PACKAGE / f"{name}.py").is_file() or (PACKAGE / name).is_dir(), name
    sources = "\n".join(p.read_text() for p in PACKAGE.rglob("*.py"))
    for symbol in re.findall(r"`([A-Z]\w+)`", walk):
        assert re.search(rf"^class {symbol}\b", sources, re.MULTILINE), symbol
