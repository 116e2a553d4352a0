"""The image's files, without building it: the Dockerfile's stages, its pins, its toolkits."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from builder import deploy, dockerfile
from builder.dockerfile import DOCKERFILE
from builder.image_requirements import image_requirements, project_name, read_pins
from builder.toolkits import ARCHITECTURES, DEFAULT, TOOLKITS
from tests.conftest import ROOT
from tests.test_facts import PYPROJECT, pins, text

FILE = dockerfile.read(DOCKERFILE.read_text())
STAGES = {stage.name: stage for stage in FILE.stages}


def steps(name: str) -> str:
    """Everything that a build of a stage runs, as text."""
    needed = FILE.needed(STAGES[name])
    return "\n".join(f"{i.keyword} {i.rest}" for stage in needed for i in stage.instructions)


def test_the_default_build_needs_no_token_and_fetches_no_model() -> None:
    """RunPod's builds take the file to its last stage, and pass no secret."""
    run = steps(FILE.default.name)
    assert "secret" not in run
    assert "fetch_models" not in run
    assert "HF_TOKEN" not in run
    assert "weights" not in {stage.name for stage in FILE.needed(FILE.default)}
    with_weights = steps("full")
    assert "--mount=type=secret,id=HF_TOKEN" in with_weights
    assert "fetch_models.py" in with_weights


def test_every_stage_but_the_two_ends_is_used_and_no_base_moves() -> None:
    used = set().union(*(stage.sources for stage in FILE.stages))
    assert set(STAGES) - used == {"full", "slim"}
    for image in used - set(STAGES):
        assert re.search(r":.*\d+\.\d+", image), image
        assert not image.endswith(":latest")


def test_what_is_copied_is_in_the_build_context() -> None:
    """A file that .dockerignore keeps out fails a build after minutes."""
    allowed = [line[1:] for line in text(".dockerignore").splitlines() if line.startswith("!")]
    toolkit = FILE.arguments["TOOLKIT"]
    for stage in FILE.stages:
        for step in stage.instructions:
            if step.keyword != "COPY" or "--from=" in step.rest:
                continue
            for word in step.rest.replace("${TOOLKIT}", toolkit).split()[:-1]:
                assert (ROOT / word).exists(), word
                assert any(word.rstrip("/").startswith(name) for name in allowed), word


def test_docker_files_say_the_same_of_toolkits() -> None:
    assert FILE.arguments["CUDA"] == DEFAULT.cuda
    assert FILE.arguments["TOOLKIT"] == DEFAULT.name
    targets = dict(
        re.findall(r'^target "(\w+)" \{\n(.*?)^\}', text("docker-bake.hcl"), re.M | re.S)
    )
    stated = {
        found[0]: re.findall(r'CUDA\s*= "([\d.]+)"', block)[0]
        for block in targets.values()
        if (found := re.findall(r'TOOLKIT\s*= "(\w+)"', block))
    }
    assert stated == {toolkit.name: toolkit.cuda for toolkit in TOOLKITS.values()}
    for toolkit in TOOLKITS.values():
        assert _torch(toolkit.name) in {"2.10.0", "2.11.0"}
    wanted = ";".join(ARCHITECTURES)
    for name in ("Dockerfile", "docker-bake.hcl", "builder/build_extensions.sh"):
        assert wanted in text(name), name


def _torch(toolkit: str) -> str:
    (version,) = pins(f"builder/toolkits/{toolkit}.txt")["torch"]
    return version.partition("+")[0]


def test_hub_deploy_script_and_guide_name_the_same_hosts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub = json.loads(text(".runpod/hub.json"))["config"]["allowedCudaVersions"]
    tests = json.loads(text(".runpod/tests.json"))["config"]["allowedCudaVersions"]
    assert hub == tests == list(DEFAULT.hosts)
    assert len(hub) > 3  # a list of what is allowed, not a floor: later drivers have to be in it
    for name, toolkit in TOOLKITS.items():
        args = deploy._parser().parse_args(["image", "--toolkit", name])
        assert deploy.endpoint_of(args)["gpu"]["minCudaVersion"] == toolkit.floor
        row = f"| `{name}` | {toolkit.cuda} | {toolkit.driver} | {', '.join(toolkit.hosts)} |"
        assert row in text("docs/deploy.md")
    assert deploy._parser().parse_args(["image"]).toolkit == DEFAULT.name


@pytest.mark.parametrize("toolkit", [*TOOLKITS, "cpu"])
def test_each_package_has_one_version_in_the_image(toolkit: str) -> None:
    texts = [
        text(n)
        for n in (
            "pyproject.toml",
            "requirements.lock",
            "builder/requirements-gpu.txt",
            f"builder/toolkits/{toolkit}.txt",
        )
    ]
    names, constraints = image_requirements(*texts)
    extras = PYPROJECT["project"]["optional-dependencies"]
    wanted = [*PYPROJECT["project"]["dependencies"], *extras["serve"], *extras["formats"]]
    assert set(names) == {project_name(d) for d in wanted}
    stated = {project_name(line) for line in constraints}
    assert set(names) | {project_name(d) for d in extras["gpu"]} <= stated
    without_markers = [project_name(line) for line in constraints if ";" not in line]
    assert len(without_markers) == len(set(without_markers))
    for line in read_pins("\n".join(texts[2:])):
        assert line in constraints


def test_small_files_of_pins_agree_with_the_lock() -> None:
    """They are copied apart from it, so that a change of the lock costs no compiling or fetching."""
    lock = pins("requirements.lock") | pins("builder/requirements-gpu.txt")
    own = {"wheel"}
    for name, at_lock in (("build", {}), ("fetch", pins("requirements.lock"))):
        for package, versions in pins(f"builder/requirements-{name}.txt").items():
            assert package in own or versions <= (at_lock or lock)[package], package


def test_pip_installs_only_under_pins() -> None:
    for stage in FILE.stages:
        for step in stage.instructions:
            for command in re.findall(r"pip install [^&]*", step.rest):
                pinned = re.search(r" -c \S+| -r builder/requirements-(build|fetch)", command)
                assert pinned or "--no-deps /wheels/" in command, command


def test_sources_are_fetched_by_commit_and_without_submodules() -> None:
    script = text("builder/build_extensions.sh")
    assert not re.search(r"^\s*git clone|^[^#]*submodule update", script, re.M)
    commits = re.findall(r"^(\w+)_COMMIT=(\S+)$", script, re.M)
    assert {name for name, _ in commits} == {"TRELLIS2", "FLEXGEMM"}
    assert all(re.fullmatch(r"[0-9a-f]{40}", commit) for _, commit in commits)
    from trellis_runtime.engines.trellis2.upstream.interface import COMMIT

    assert dict(commits)["TRELLIS2"] == COMMIT
    assert len(re.findall(r"^get ", script, re.M)) == len(commits)


def test_a_source_comes_from_its_commit_with_its_licence(tmp_path: Path) -> None:
    """The script's own fetching, from repositories on this machine."""
    git = shutil.which("git")
    assert git
    script = text("builder/build_extensions.sh")
    for repository in ("JeffreyXiang/FlexGEMM", "microsoft/TRELLIS.2"):
        folder = tmp_path / "host" / repository
        folder.mkdir(parents=True)
        for name in ("LICENSE", "trellis2/a.py", "o-voxel/setup.py", "assets/large"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(name)
        run = ["-c", "user.name=t", "-c", "user.email=t@t", "-C", str(folder)]
        subprocess.run([git, "init", "-q", str(folder)], check=True)
        subprocess.run([git, *run, "add", "."], check=True)
        subprocess.run([git, *run, "commit", "-qm", "one"], check=True)
        said = subprocess.run([git, *run, "rev-parse", "HEAD"], capture_output=True, text=True)
        variable = repository.rpartition("/")[2].replace(".", "").upper() + "_COMMIT"
        script = re.sub(rf"(?m)^{variable}=.*$", f"{variable}={said.stdout.strip()}", script)
    (tmp_path / "build.sh").write_text(script)
    (tmp_path / "gitconfig").write_text(
        "[uploadpack]\nallowFilter = true\nallowAnySHA1InWant = true\n"
    )
    subprocess.run(
        ["bash", tmp_path / "build.sh", tmp_path / "out"],
        env={"PATH": "/usr/bin:/bin", "FETCH_ONLY": "1", "SOURCES_HOST": f"file://{tmp_path}/host",
             "GIT_CONFIG_GLOBAL": str(tmp_path / "gitconfig"), "HOME": str(tmp_path)},
        check=True, timeout=60,
    )  # fmt: skip
    for name in ("flexgemm", "trellis2"):
        source = json.loads((tmp_path / f"out/sources/{name}/source.json").read_text())
        assert source["commit"] in script
        assert (tmp_path / f"out/sources/{name}/LICENSE").read_text() == "LICENSE"


def test_the_dockerfiles_reader_follows_every_way_to_a_stage() -> None:
    read = dockerfile.read(
        "ARG V=1.0\nFROM a:${V} AS one\nRUN x \\\n  # a comment\n  y\nFROM b:1 AS two\n"
        "COPY --from=one /a /b\nFROM c:1 AS three\n"
        "RUN --mount=type=bind,from=two,source=/a ls\nFROM d:1\n"
    )
    assert [s.base for s in read.stages] == ["a:1.0", "b:1", "c:1", "d:1"]
    assert read.stages[0].instructions == [dockerfile.Instruction("RUN", "x  y")]
    assert [s.name for s in read.needed(read.stages[2])] == ["one", "two", "three"]
    assert read.needed(read.default) == [read.default]
    with pytest.raises(ValueError, match="heredoc"):
        dockerfile.read("FROM a:1\nRUN <<E")


def test_the_rehearsal_runs_the_dockerfiles_own_steps() -> None:
    """What it replaces is named in its docstring; a step that was renamed would silently run."""
    from builder.rehearse_image import rehearsed

    left_out = 0
    for name in ("slim", "weights"):
        again = dockerfile.read(rehearsed(FILE, STAGES[name]))
        assert again.arguments == {"TOOLKIT": "cpu"}
        for stage in again.stages:
            real = STAGES[stage.name]
            assert stage.base in STAGES or stage.base.startswith("localhost/rehearsal-")
            for step, ours in zip(real.instructions, stage.instructions, strict=True):
                left_out += step != ours
    assert left_out == 2  # compiling, and fetching 17 GB


def test_licence_scripts_find_all_that_they_read_in_the_image(tmp_path: Path) -> None:
    """In the image, builder/ holds what was copied there and nothing else."""
    for step in STAGES["worker"].instructions:
        *words, target = step.rest.split()
        if step.keyword == "COPY" and target.startswith("builder/") and "--from" not in words[0]:
            for word in words:
                place = tmp_path / target / ("" if word.endswith("/") else Path(word).name)
                place.parent.mkdir(parents=True, exist_ok=True)
                if word.endswith("/"):
                    shutil.copytree(ROOT / word, place, dirs_exist_ok=True)
                else:
                    shutil.copy(ROOT / word, place)
    (tmp_path / "sources").mkdir()
    subprocess.run(
        [sys.executable, "builder/bill_of_materials.py", "--sources", "sources", "--texts", "t", "o"],
        cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, check=True, timeout=60,
    )  # fmt: skip
    assert json.loads((tmp_path / "o").read_text())["components"]


def test_the_hubs_test_needs_no_weights_and_its_users_are_asked_for_them() -> None:
    """The Hub builds the last stage and runs tests.json on it: there are no models anywhere."""
    tests = json.loads(text(".runpod/tests.json"))["config"]
    assert {"key": "TRELLIS2_ENGINE", "value": "embedded"} in tests["env"]
    asked = {
        entry["key"]: entry["input"]
        for entry in json.loads(text(".runpod/hub.json"))["config"]["env"]
    }
    stated = re.findall(r"TRELLIS2_MODEL_DIR=(\S+)", steps(FILE.default.name))
    assert asked["TRELLIS2_MODEL_DIR"]["default"] in stated
