"""Licences: the pages are those of what is installed, and a commercial endpoint is possible."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from builder import licences
from builder.image_requirements import read_pins
from builder.model_folder import read_sources
from tests.conftest import ROOT

KEPT = licences.hand_kept()
FOUND = licences.packages()
NOT_PACKAGES = {row[0]: row[1] for row in KEPT["not_packages"]}


@pytest.mark.parametrize("path", licences.pages(FOUND), ids=lambda path: path.name)
def test_the_pages_are_up_to_date(path: Path) -> None:
    """Run `make docs` where this fails."""
    assert path.read_text() == licences.pages(FOUND)[path]


@pytest.mark.parametrize("name", [*FOUND, *NOT_PACKAGES])
def test_no_part_forbids_a_commercial_endpoint(name: str) -> None:
    licence = FOUND[name].licence if name in FOUND else NOT_PACKAGES[name]
    assert licences.unaccepted(licence, KEPT["accepted"]) == []


def test_what_is_accepted_is_neither_gpl_nor_for_non_commercial_use() -> None:
    for licence in KEPT["accepted"]:
        assert not re.match(r"A?GPL", licence) or "WITH" in licence, licence
        assert not re.search(r"-NC\b|NonCommercial|SSPL|BUSL|PolyForm", licence), licence


@pytest.mark.parametrize(
    ("expression", "in_the_way"),
    [
        ("MIT", []),
        ("GPL-3.0-or-later", ["GPL-3.0-or-later"]),
        ("MIT AND GPL-2.0-only", ["GPL-2.0-only"]),
        ("MIT OR GPL-2.0-only", []),
        ("(MIT OR GPL-2.0-only) AND CC-BY-NC-4.0", ["CC-BY-NC-4.0"]),
        ("AGPL-3.0-only OR GPL-2.0-only", ["AGPL-3.0-only", "GPL-2.0-only"]),
        ("GPL-3.0-or-later WITH GCC-exception-3.1 AND MIT", []),
        ("", ["no licence"]),
        ("NVIDIA Source Code License", ["NVIDIA", "Source", "Code", "License"]),
    ],
)
def test_an_expression_is_accepted_as_a_whole(expression: str, in_the_way: list[str]) -> None:
    assert licences.unaccepted(expression, KEPT["accepted"]) == in_the_way


def test_every_pin_of_the_gpu_files_has_its_licence_and_gpl_wheels_stay_out() -> None:
    gpu = (ROOT / "builder/requirements-gpu.txt").read_text()
    assert len(read_pins(gpu)) > 10
    assert {licences.project_name(line) for line in read_pins(gpu)} <= set(FOUND)
    assert not {"plyfile", "pillow-heif", "nvdiffrast", "cumesh"} & set(FOUND)


def test_a_package_that_nobody_has_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match=r"no-such-thing.*--metadata"):
        licences._package("no-such-thing", "", tmp_path, None, {}, {})


def test_an_installed_package_of_another_version_changes_no_record() -> None:
    known = {"numpy": licences.Package("numpy", "as recorded", ())}
    kept = licences._package("numpy", "", None, "0.0.1", known, {})
    assert kept.licence == "as recorded"
    here = licences._distribution("numpy", None)
    assert here is not None
    read = licences._package("numpy", "", None, here.version, known, {})
    assert "BSD-3-Clause" in read.licence


def test_default_models_are_listed_and_free_for_commercial_use() -> None:
    sources = {source.name: source.repo for source in read_sources(ROOT / "builder/models.json")}
    assert sources["rembg"] == "ZhengPeng7/BiRefNet"
    for repo in sources.values():
        assert any(name.partition(",")[0] == repo for name in NOT_PACKAGES), repo


def test_files_in_this_repository_have_their_licence_beside_them() -> None:
    assert (
        "Apache License"
        in (ROOT / "trellis_runtime/engines/embedded/models/u2netp.LICENSE").read_text()
    )
    for name in ("model-viewer.LICENSE", "gltfpack.LICENSE"):
        assert name in (ROOT / "Dockerfile").read_text()
    lock = json.loads((ROOT / "web/package-lock.json").read_text())["packages"]
    for name, entry in lock.items():
        assert licences.unaccepted(entry["license"], KEPT["accepted"]) == [], name


def test_the_bill_of_materials_has_packages_commits_and_texts(tmp_path: Path) -> None:
    source = tmp_path / "sources/trellis2"
    source.mkdir(parents=True)
    commit = "5" * 40
    (source / "source.json").write_text(json.dumps(
        {"name": "trellis2", "repository": "https://github.com/microsoft/TRELLIS.2", "commit": commit}
    ))  # fmt: skip
    shutil.copy(ROOT / "LICENSE", source / "LICENSE")
    out, texts = tmp_path / "bill.json", tmp_path / "texts"
    command = [sys.executable, "builder/bill_of_materials.py", "--sources", str(source.parent)]
    subprocess.run([*command, "--texts", str(texts), str(out)], cwd=ROOT, check=True, timeout=60)
    bill = {part["name"]: part for part in json.loads(out.read_text())["components"]}
    assert bill["trellis2"]["purl"] == f"pkg:github/microsoft/TRELLIS.2@{commit}"
    assert bill["trellis2"]["licenses"] == [{"expression": "MIT"}]
    assert bill["numpy"]["version"] in (ROOT / "requirements.lock").read_text()
    assert all(part["licenses"] for name, part in bill.items() if name in FOUND)
    assert (texts / "trellis2/LICENSE").is_file()
    assert "Permission is hereby granted" in "".join(
        path.read_text() for path in (texts / "runpod").iterdir()
    )
