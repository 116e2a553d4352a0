"""builder/: models from a hub on the loopback, the Dockerfile's own checks, the Hub's files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from safetensors.numpy import save

from tests.hub import Hub, running

ROOT = Path(__file__).parent.parent
MODELS = "microsoft/TRELLIS.2-4B"
STRUCTURE = "microsoft/TRELLIS-image-large"
DINO, REMBG = "facebook/dinov3-vitl16-pretrain-lvd1689m", "briaai/RMBG-2.0"
FREE = "ZhengPeng7/BiRefNet"


def weights(number: int) -> bytes:
    return save({"w": np.full((50, number + 1), number, np.float32)})


def pipeline() -> bytes:
    return json.dumps({
        "name": "Trellis2ImageTo3DPipeline",
        "args": {
            "models": {
                "sparse_structure_decoder": f"{STRUCTURE}/ckpts/ss_dec_conv3d_16l8_fp16",
                "shape_slat_decoder": "ckpts/shape_dec",
            },
            "image_cond_model": {"name": "DinoV3FeatureExtractor", "args": {"model_name": DINO}},
            "rembg_model": {"name": "BiRefNet", "args": {"model_name": REMBG}},
            "shape_slat_normalization": {"mean": [0.5, -1.0], "std": [2.0, 3.0]},
            "tex_slat_normalization": {"mean": [1.5, 0.0], "std": [1.0, 1.0]},
        },
    }).encode()  # fmt: skip


@pytest.fixture
def hub() -> Iterator[Hub]:
    rest = {"config.json": b"{}", "model.safetensors": weights(3)}
    repos = {
        MODELS: {
            "pipeline.json": pipeline(),
            "ckpts/shape_dec.json": b"{}",
            "ckpts/shape_dec.safetensors": weights(1),
            "README.md": b"not wanted",
        },
        STRUCTURE: {
            "ckpts/ss_dec_conv3d_16l8_fp16.json": b"{}",
            "ckpts/ss_dec_conv3d_16l8_fp16.safetensors": weights(2),
            "ckpts/another.safetensors": weights(9),
        },
        DINO: dict(rest),
        REMBG: dict(rest),
        FREE: rest | {"birefnet.py": b"# code\n"},
    }
    with running(repos, {DINO, REMBG}) as hub:
        yield hub


def script(name: str, hub: Hub | None, *args: object, token: str | None = "hf_test") -> Any:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    if hub is not None:
        environment["HF_ENDPOINT"] = hub.url
    if token:
        environment["HF_TOKEN"] = token
    command = [sys.executable, str(ROOT / "builder" / name), *map(str, args)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_models_are_fetched_rewritten_recorded_and_verified(hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "models"
    done = script("fetch_models.py", hub, out)
    assert done.returncode == 0, done.stderr
    args = json.loads((out / "pipeline.json").read_text())["args"]
    assert args["image_cond_model"]["args"]["model_name"] == "dinov3"
    assert args["rembg_model"]["args"]["model_name"] == "rembg"
    assert args["models"]["sparse_structure_decoder"].startswith("trellis-image-large/ckpts/")
    assert (out / "dinov3/model.safetensors").read_bytes() == weights(3)
    assert not (out / "README.md").exists()
    assert not (out / "trellis-image-large/ckpts/another.safetensors").exists()
    record = json.loads((out / "SOURCES.json").read_text())
    assert {s["repo"]: s["commit"] for s in record["sources"]}[MODELS] == hub.commit(MODELS)
    assert "hf_test" not in json.dumps(record)
    assert script("verify_models.py", None, out).returncode == 0


def test_the_folder_is_one_that_the_engine_finds_its_models_in(hub: Hub, tmp_path: Path) -> None:
    from trellis_runtime.engines.trellis2.upstream.checkpoints import find_pipeline

    assert script("fetch_models.py", hub, tmp_path / "m").returncode == 0
    found = find_pipeline(tmp_path / "m", ("sparse_structure_decoder", "shape_slat_decoder"))
    assert all(model.weights.is_file() for model in found.models)


def test_a_fetch_that_was_cut_off_goes_on(hub: Hub, tmp_path: Path) -> None:
    hub.cut = {"ckpts/shape_dec.safetensors"}
    out = tmp_path / "models"
    first = script("fetch_models.py", hub, out)
    again = first if first.returncode == 0 else script("fetch_models.py", hub, out)
    assert again.returncode == 0, again.stderr
    assert (out / "ckpts/shape_dec.safetensors").read_bytes() == weights(1)


def test_a_gated_repository_says_where_the_licence_is_and_what_else_there_is(
    hub: Hub, tmp_path: Path
) -> None:
    done = script("fetch_models.py", hub, tmp_path, "--skip", "dinov3", token=None)
    assert done.returncode == 1
    assert f"https://huggingface.co/{REMBG}" in done.stderr
    assert "HF_TOKEN" in done.stderr
    assert FREE in done.stderr
    assert "Traceback" not in done.stderr
    swapped = script("fetch_models.py", hub, tmp_path, "--replace", f"rembg={FREE}")
    assert swapped.returncode == 0, swapped.stderr
    assert (tmp_path / "rembg/birefnet.py").exists()


def test_an_unknown_revision_or_source_is_named(hub: Hub, tmp_path: Path) -> None:
    done = script("fetch_models.py", hub, tmp_path, "--replace", f"rembg={FREE}@nowhere")
    assert "no revision nowhere" in done.stderr
    assert "no source x" in script("fetch_models.py", hub, tmp_path, "--skip", "x").stderr


def test_a_record_pins_the_commits(hub: Hub, tmp_path: Path) -> None:
    assert script("fetch_models.py", hub, tmp_path / "a").returncode == 0
    record = tmp_path / "a/SOURCES.json"
    dry = script("fetch_models.py", None, tmp_path / "b", "--locked", record, "--dry-run")
    assert f"{MODELS}@{hub.commit(MODELS)}" in dry.stdout
    assert script("fetch_models.py", hub, tmp_path / "b", "--locked", record).returncode == 0
    hub.repos[MODELS]["ckpts/shape_dec.json"] = b'{"new": 1}'
    moved = script("fetch_models.py", hub, tmp_path / "c", "--locked", record)
    assert moved.returncode == 1


def test_what_is_wrong_with_a_folder_is_named(hub: Hub, tmp_path: Path) -> None:
    assert script("fetch_models.py", hub, tmp_path).returncode == 0
    good = weights(1)
    for damage, words in (
        (good[:-1], "bytes"),
        (good[:-1] + b"x", "changed"),
        (None, "missing"),
    ):
        path = tmp_path / "ckpts/shape_dec.safetensors"
        path.unlink() if damage is None else path.write_bytes(damage)
        done = script("verify_models.py", None, tmp_path, "--quiet")
        assert done.returncode == 1
        assert words in done.stdout
        assert "shape_dec.safetensors" in done.stdout
        path.write_bytes(good)


class _Api(BaseHTTPRequestHandler):
    got: ClassVar[list[tuple[str, str, Any]]] = []
    status = 201

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.got.append((self.path, self.headers["Authorization"], body))
        data = json.dumps({"id": "ep123"} if self.status == 201 else {"title": "no"}).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def test_an_endpoint_is_created_by_one_request_of_the_current_api(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    api = ["--api", f"http://127.0.0.1:{server.server_port}"]
    monkeypatch.setenv("RUNPOD_API_KEY", "rpa_secret")
    done = script("deploy.py", None, "me/image:1", "--env", "BUCKET_NAME=b", *api)
    assert done.returncode == 0, done.stderr
    assert "ep123" in done.stdout
    path, authorization, body = _Api.got[0]
    assert (path, authorization) == ("/v2/serverless", "Bearer rpa_secret")
    assert body["type"] == "QUEUE"
    assert body["timeout"] == 600_000
    assert body["flashboot"] == "FLASHBOOT"
    assert body["env"] == {"TRELLIS2_WARM_UP": "512", "BUCKET_NAME": "b"}
    assert "rpa_secret" not in done.stdout + done.stderr
    monkeypatch.setattr(_Api, "status", 400)
    refused = script("deploy.py", None, "me/image:1", *api)
    assert refused.returncode == 1
    assert "400" in refused.stderr
    server.shutdown()
    server.server_close()


def test_a_typo_in_a_variable_is_not_deployed() -> None:
    done = script("deploy.py", None, "me/image:1", "--env", "BUCKET_NAMES=b", "--dry-run")
    assert done.returncode == 1
    assert "BUCKET_NAMES" in done.stderr
    assert json.loads(script("deploy.py", None, "i", "--dry-run").stdout)["image"] == "i"


@pytest.mark.parametrize(
    "name",
    [
        "deploy.py",
        "fetch_models.py",
        "verify_models.py",
        "make_kernel_cache.py",
        "make_checkpoint.py",
    ],
)
def test_every_script_explains_itself(name: str) -> None:
    done = script(name, None, "--help")
    assert done.returncode == 0
    assert len(done.stdout) > 300


def test_dry_runs_touch_nothing(tmp_path: Path) -> None:
    done = script("make_kernel_cache.py", None, tmp_path / "k", "--dry-run")
    assert "512" in done.stdout
    shell = subprocess.run(
        ["bash", str(ROOT / "builder/build_extensions.sh"), str(tmp_path / "w")],
        env=os.environ | {"DRY_RUN": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "FlexGEMM@6dd94a8" in shell.stdout
    assert "CuMesh" not in shell.stdout
    assert not list((tmp_path / "w").iterdir())


def test_the_dockerfile_is_clean_and_keeps_no_secret() -> None:
    lint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [str(lint), str(ROOT / "Dockerfile")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout
    text = (ROOT / "Dockerfile").read_text()
    assert not re.search(r"^(ARG|ENV)\s+\S*(TOKEN|KEY|SECRET)", text, re.MULTILINE)
    assert "--mount=type=secret,id=HF_TOKEN" in text
    for name in re.findall(r"builder/([\w.-]+)", text):
        assert (ROOT / "builder" / name).exists() or (ROOT / name).exists(), name


def test_the_images_variables_are_ones_that_the_worker_knows() -> None:
    from trellis_runtime.settings import VARIABLES

    named = re.findall(r"\b(TRELLIS2_\w+)=", (ROOT / "Dockerfile").read_text())
    assert set(named) <= set(VARIABLES)
    assert "TRELLIS2_ENGINE" in named


def test_the_hubs_files_fit_what_the_platform_takes() -> None:
    from trellis_runtime.contract.request import parse_request
    from trellis_runtime.settings import VARIABLES

    hub = json.loads((ROOT / ".runpod/hub.json").read_text())
    assert hub["type"] == "serverless"
    assert hub["category"] in ("audio", "embedding", "language", "video", "image")
    assert hub["config"]["runsOn"] == "GPU"
    assert all(entry["key"] in VARIABLES for entry in hub["config"]["env"])
    tests = json.loads((ROOT / ".runpod/tests.json").read_text())
    for test in tests["tests"]:
        parse_request(test["input"])
        assert test["timeout"] >= 60_000
    assert tests["config"]["gpuCount"] == 1

    def descriptions(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            if isinstance(node.get("description"), str):
                yield node["description"]
            for child in node.values():
                yield from descriptions(child)
        elif isinstance(node, list):
            for child in node:
                yield from descriptions(child)

    # Longer ones fail on the platform with a database error that names nothing.
    assert all(len(text) <= 189 for text in descriptions(hub))
