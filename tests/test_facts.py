"""Facts that stand in more than one file, and have to say the same in each."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from builder.image_requirements import image_requirements, project_name, read_pins
from builder.toolkits import DEFAULT
from tests.conftest import ROOT
from trellis_runtime import __version__
from trellis_runtime.contract.answer import Degradation, GenerationResult
from trellis_runtime.contract.files import ARTIFACTS, RESULT_FILES
from trellis_runtime.contract.ladder import RUNGS
from trellis_runtime.contract.levels import LOWEST_LEVEL, TEXTURE_LEVELS
from trellis_runtime.contract.request import GenerationRequest, Resolution
from trellis_runtime.contract.scope import _WEIGHTS
from trellis_runtime.contract.stages import Stage
from trellis_runtime.engines.packages import GPU_PACKAGES, UPSTREAM_PACKAGES
from trellis_runtime.settings import Start

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGE = ROOT / "trellis_runtime"


def text(name: str) -> str:
    return (ROOT / name).read_text()


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def pins(name: str) -> dict[str, set[str]]:
    """Names of a file of pins, each with its versions (markers may give several)."""
    found: dict[str, set[str]] = {}
    for line in read_pins(text(name)):
        version = line.split("==")[1].split(";")[0].strip()
        found.setdefault(project_name(line), set()).add(version)
    return found


def documented_differences() -> dict[str, list[str]]:
    """docs/deploy.md's table: package -> versions of tests, image and published runs."""
    section = text("docs/deploy.md").split("## Versions")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return {row[0]: row[1:4] for row in rows[2:]}


def test_the_lowest_level_is_that_of_the_ladder_the_request_and_the_answer() -> None:
    assert [rung.level for rung in RUNGS] == list(range(LOWEST_LEVEL + 1))
    wanted = GenerationRequest.model_json_schema()["properties"]["max_degradation_level"]
    assert wanted["default"] == wanted["maximum"] == LOWEST_LEVEL
    assert Degradation.model_json_schema()["properties"]["level"]["maximum"] == LOWEST_LEVEL
    assert TEXTURE_LEVELS[-1] == LOWEST_LEVEL
    row = f"`max_degradation_level` | whole number, 0 to {LOWEST_LEVEL} | `{LOWEST_LEVEL}`"
    assert row in text("docs/api.md")


def test_every_stage_has_a_share_of_progress() -> None:
    assert list(_WEIGHTS) == list(Stage)


def test_the_files_of_a_result_are_named_in_one_place() -> None:
    for file in ARTIFACTS:
        assert file.field in GenerationResult.model_fields
    naming = [
        path.name
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in RESULT_FILES
    ]
    assert naming == ["files.py"] * len(RESULT_FILES)
    words = text("trellis_runtime/server/static/page/words.js")
    named = set(re.findall(r'"([a-z]+\.(?:glb|png|webp|json))"', words))
    assert named == set(RESULT_FILES)


@pytest.mark.parametrize(
    ("fact", "home"),
    [
        (r"\b0\.04045\b", ["assets/color.py"]),
        (r"\[\[0, 1\], \[1, 2\], \[2, 0\]\]", ["assets/topology.py", "engines/trellis2/baking/connectivity.py"]),
        (r"max_concurrent \+ \S*max_queued", ["settings.py"]),
        (r"512, 1024, 1536", ["contract/request.py"]),
        (r'"nvdiffrast"', ["engines/packages.py"]),
    ],
    ids=["sRGB", "half-edges", "admission", "resolutions", "GPU packages"],
)  # fmt: skip
def test_a_fact_stands_in_its_home_and_nowhere_else(fact: str, home: list[str]) -> None:
    found = [p.relative_to(PACKAGE).as_posix() for p in sources() if re.search(fact, p.read_text())]
    assert found == home


def test_the_warm_up_knows_no_resolution_that_requests_do_not() -> None:
    choices = set(get_args(Start.model_fields["warm_up"].annotation)) - {"off"}
    assert choices <= {str(resolution) for resolution in get_args(Resolution)}


def test_the_two_ways_to_list_half_edges_agree() -> None:
    import torch

    from trellis_runtime.assets import topology
    from trellis_runtime.engines.trellis2.baking import connectivity

    faces = np.array([[0, 1, 2], [2, 1, 3]])
    ours = connectivity.half_edges(torch.from_numpy(faces)).numpy()
    assert np.array_equal(topology.half_edges(faces), ours)


def test_the_linters_know_every_gpu_package() -> None:
    contracts = {c["name"]: c for c in PYPROJECT["tool"]["importlinter"]["contracts"]}
    torch_free = contracts["Torch is known to the GPU engine alone"]
    assert set(torch_free["forbidden_modules"]) == set(GPU_PACKAGES)
    upstream = contracts["Upstream's code is known to one folder"]
    assert set(upstream["forbidden_modules"]) <= set(UPSTREAM_PACKAGES)
    skipped = PYPROJECT["tool"]["mypy"]["overrides"][0]["module"]
    assert {f"{name}.*" for name in UPSTREAM_PACKAGES} <= set(skipped)


def test_the_version_is_stated_once_and_the_changelog_has_it() -> None:
    assert re.search(
        rf"^## \[{re.escape(__version__)}\] - \d{{4}}-\d\d-\d\d$", text("CHANGELOG.md"), re.M
    )
    for name in ("docker-bake.hcl", ".runpod/hub.json", "pyproject.toml", "Dockerfile"):
        assert f'"{__version__}"' not in text(name), name
    assert json.loads(text("docs/openapi.json"))["info"]["version"] == __version__


def test_an_unpinned_dependency_is_named() -> None:
    with pytest.raises(LookupError, match="new-thing"):
        image_requirements('[project]\ndependencies = ["new_thing>=1"]', "other==1", "torch==2")


def test_one_set_of_versions_but_for_the_differences_that_the_documents_name() -> None:
    lock = pins("requirements.lock")
    image = pins("builder/requirements-gpu.txt") | pins(f"builder/toolkits/{DEFAULT.name}.txt")
    documented = documented_differences()
    for name in lock.keys() & image.keys():
        if lock[name] != image[name]:
            assert [{v} for v in documented[name][:2]] == [lock[name], image[name]], name
    for run in json.loads(text("docs/benchmarks.json")):
        for name, version in run["versions"].items():
            known: Any = image.get(project_name(name)) or lock.get(project_name(name))
            # "+cu130" says what it was built for: one release all the same
            if known and version.partition("+")[0] not in {k.partition("+")[0] for k in known}:
                stated = documented[project_name(name)][2]
                assert stated.partition("+")[0] == version.partition("+")[0], name


def test_the_memory_suite_counts_attempts_of_jobs_that_fail_too(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from benchmarks.memory import failed_attempts
    from tests.test_worker import QUICK, handle, start

    for budget in ("6", "1"):
        answer = handle(start(tmp_path, TRELLIS2_EMBEDDED_MEMORY_MB=budget), QUICK)
        assert failed_attempts(answer)
