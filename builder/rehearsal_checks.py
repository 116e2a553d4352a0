"""What has to hold inside the image: each check returns None, or what is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from builder.image_requirements import image_requirements, project_name

ROOT = Path(__file__).parent.parent
_STAND_INS = {"flex-gemm", "o-voxel", "pip"}
_ON_VOLUME = {
    "TRELLIS2_ENGINE": "embedded",
    "TRELLIS2_KERNEL_CACHE_DIR": "/runpod-volume/kernels",
    "TRELLIS2_MIN_FREE_DISK_GB": "0.5",
}


class Machine(Protocol):
    """The image, running."""

    def run(self, *command: str, user: str = "root", **variables: str) -> tuple[int, str]:
        """Run a command; returns its exit code and all that it printed."""
        ...

    def fetch_while(self, command: list[str], paths: list[str], **variables: str) -> list[int]:
        """Return the statuses of HTTP GETs while a server's `command` runs."""
        ...


def versions_are_pinned(machine: Machine) -> str | None:
    """every package is installed at its pinned version"""
    code, printed = machine.run("pip", "freeze", "--all")
    names = ("pyproject.toml", "requirements.lock", "builder/requirements-gpu.txt")
    texts = [(ROOT / name).read_text() for name in (*names, "builder/toolkits/cpu.txt")]
    pins = {line.split(";")[0].strip().lower() for line in image_requirements(*texts)[1]}
    stated = {f"{project_name(pin)}=={pin.split('==')[1]}" for pin in pins}
    wrong = []
    for line in printed.splitlines():
        name, _, version = line.partition("==")
        line = f"{project_name(name)}=={version.partition('+')[0]}"
        if project_name(name) not in _STAND_INS and line not in stated:
            wrong.append(line)
    return ", ".join(wrong) or (f"pip freeze: {printed[-300:]}" if code else None)


def a_job_runs(machine: Machine) -> str | None:
    """handler.py makes a model as root, as `worker` and as root again, on one volume"""
    for user in ("root", "worker", "root"):
        folder = {"TRELLIS2_OUTPUT_DIR": f"/runpod-volume/{user}"}
        command = ["python", "-u", "handler.py"]
        code, printed = machine.run(*command, user=user, **_ON_VOLUME, **folder)
        if code != 0 or "Traceback" in printed or not re.search(r"glb", printed):
            return f"as {user}, exit code {code}: {printed[-1500:]}"
    return None


def the_page_is_served(machine: Machine) -> str | None:
    """serve answers, with model-viewer beside its page"""
    paths = ["/ping", "/", "/static/vendor/model-viewer.min.js", "/metrics", "/openapi.json"]
    statuses = machine.fetch_while(
        ["python", "-m", "trellis_runtime", "serve"], paths, **_ON_VOLUME
    )
    return None if statuses == [200] * len(paths) else f"{dict(zip(paths, statuses, strict=True))}"


def gltfpack_runs(machine: Machine) -> str | None:
    """gltfpack is there and runs, which compression: meshopt needs"""
    code = "from trellis_runtime.assets.gltfpack import pack; pack(b'no GLB at all', [])"
    _, printed = machine.run("python", "-c", code, user="worker")
    return None if "gltfpack does not take the file: Error loading" in printed else printed[-300:]


def without_a_card_the_start_says_so(machine: Machine) -> str | None:
    """as RunPod starts it, a machine without GPU or weights gets a clear word, as either user"""
    for user in ("root", "worker"):
        code, printed = machine.run("python", "-u", "handler.py", user=user)
        if code == 0 or "Traceback" in printed or "setup_failed" not in printed:
            return f"as {user}, exit code {code}: {printed[-1500:]}"
    return None


def licences_are_there(machine: Machine) -> str | None:
    """licence texts and a bill of materials with upstream's commits are in the image"""
    _, printed = machine.run("cat", "/app/bill-of-materials.json")
    bill = json.loads(printed)["components"]
    if not any(part["purl"].startswith("pkg:github/microsoft/TRELLIS.2@") for part in bill):
        return "the bill names no source"
    _, texts = machine.run("ls", "/usr/share/licenses")
    wanted = {"trellis-runtime", "trellis2", "flexgemm", "numpy", "torch", "runpod"}
    return f"no texts of {wanted - set(texts.split())}" if wanted - set(texts.split()) else None


CHECKS: tuple[Callable[[Machine], str | None], ...] = (
    versions_are_pinned,
    licences_are_there,
    a_job_runs,
    the_page_is_served,
    gltfpack_runs,
    without_a_card_the_start_says_so,
)
