"""Run the Dockerfile's steps without Docker, and the worker inside what they make.

    sudo python builder/rehearse_image.py [--folder F]  # Debian: apt-get install buildah mmdebstrap

buildah runs them in a chroot, with no daemon and no registry. Three things are not the real ones:
the bases are plain Debian systems instead of NVIDIA's and Python's images, torch is one for CPUs
(toolkits/cpu.txt), and compiling the extensions is left out: empty packages stand in for them. So
CUDA is not rehearsed, and neither is the fetch of the weights, of which only the dry run is done.
Everything else is: packages of the system, pip under the pins, licences, users, start, page.
Prints a line for each check; exit code 1 where one fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from builder import dockerfile
from builder.dockerfile import Dockerfile, Instruction, Stage
from builder.rehearsal_checks import CHECKS, Machine

_SUITE = "bookworm"
_COMPILING = "builder/build_extensions.sh /wheels"
_FETCHING = "fetch_models.py /models"
_PORT = 8765
_STAND_INS = ("flex_gemm", "o_voxel")


def rehearsed(file: Dockerfile, stage: Stage) -> str:
    """Return a Dockerfile of the stages that `stage` needs, its bases and two steps replaced."""
    lines = ["ARG TOOLKIT=cpu"]
    for each in file.needed(stage):
        python = each.base.startswith("python:")
        known = each.base in {s.name for s in file.stages}
        base = each.base if known else f"localhost/rehearsal-{'python' if python else 'plain'}"
        lines.append(f"FROM {base} AS {each.name}")
        lines += [f"{i.keyword} {i.rest}" for i in map(_replaced, each.instructions)]
    return "\n".join(lines) + "\n"


def _replaced(instruction: Instruction) -> Instruction:
    if _COMPILING in instruction.rest:
        return Instruction("COPY", "wheels/ /wheels/")
    if _FETCHING in instruction.rest:
        return Instruction("RUN", "python builder/fetch_models.py /models --dry-run")
    return instruction


class Buildah:
    """buildah with storage of its own in `folder`, and what its containers get of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self._command = [
            "buildah", "--storage-driver", "vfs",
            "--root", str(folder / "storage"), "--runroot", str(folder / "run"),
        ]  # fmt: skip

    def __call__(self, *arguments: str) -> str:
        """Run one command; raises `CalledProcessError` with the end of its output printed."""
        done = subprocess.run(
            [*self._command, *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        with self.log.open("a") as log:
            log.write(f"$ buildah {' '.join(arguments)}\n{done.stdout}\n")
        if done.returncode != 0:
            print(done.stdout[-4000:])
            done.check_returncode()
        return done.stdout

    def build(self, name: str, text: str, context: Path) -> str:
        """Build an image from a Dockerfile's text; returns what was printed."""
        path = self.folder / f"{name}.Dockerfile"
        path.write_text(text)
        return self(
            "bud", "--isolation", "chroot", "--network", "host", "--layers=false", *_mounts(),
            "--tag", f"localhost/{name}", "--file", str(path), str(context),
        )  # fmt: skip

    def running(self, container: str, command: list[str], *options: str) -> list[str]:
        """Return the command line that runs `command` in a container."""
        return [
            *self._command, "run", "--isolation", "chroot", "--network", "host",
            *options, container, "--", *command,
        ]  # fmt: skip


def _mounts() -> list[str]:
    """A folder of wheels that this machine's pip looks in is there for the image's pip too."""
    found = [Path(text) for text in os.environ.get("PIP_FIND_LINKS", "").split()]
    folders = (path for path in found if path.is_absolute() and path.is_dir())
    return [word for path in folders for word in ("--volume", f"{path}:{path}:ro")]


def make_bases(buildah: Buildah) -> None:
    """Make the two base images: Debian, and Debian whose `python` is as the Python image's."""
    context = buildah.folder / "bases"
    if context.exists():  # an earlier run's, in a folder that was kept
        return
    context.mkdir()
    wanted = "ca-certificates,python-is-python3,python3-pip"
    bootstrap = ["mmdebstrap", "--quiet", "--variant=minbase"]
    with_python = [f"--include={wanted}", _SUITE, str(context / "python.tar")]
    subprocess.run([*bootstrap, *with_python], check=True)
    subprocess.run([*bootstrap, _SUITE, str(context / "plain.tar")], check=True)
    roots = Path("/etc/ssl/certs/ca-certificates.crt")
    shutil.copy(roots, context / "roots.pem")  # a proxy's own root among them
    passed = {k: v for k, v in os.environ.items() if k.startswith("PIP_")}
    there = "/usr/local/share/roots.pem"
    passed |= dict.fromkeys(("PIP_CERT", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"), there)
    setting = "\n".join(f'ENV {name}="{value}"' for name, value in passed.items())
    for name in ("plain", "python"):
        text = f"FROM scratch\nADD {name}.tar /\nCOPY roots.pem {there}\n{setting}\n"
        if name == "python":
            text += "RUN rm -f /usr/lib/python3*/EXTERNALLY-MANAGED\n"
        buildah.build(f"rehearsal-{name}", text, context)


def make_context(folder: Path) -> Path:
    """Copy what .dockerignore lets through, and put stand-ins for the compiled packages beside."""
    context = folder / "context"
    shutil.rmtree(context, ignore_errors=True)
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line.startswith("!"):
            continue
        source, target = ROOT / line[1:], context / line[1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "vendor"))
        else:
            shutil.copy(source, target)
    wheels = context / "wheels"
    (wheels / "trellis2").mkdir(parents=True)
    (wheels / "trellis2/__init__.py").touch()
    for name in _STAND_INS:
        _stand_in(folder / name, name, wheels)
    for name, repository in (
        ("trellis2", "microsoft/TRELLIS.2"),
        ("flexgemm", "JeffreyXiang/FlexGEMM"),
    ):
        source = wheels / "sources" / name
        source.mkdir(parents=True)
        shutil.copy(ROOT / "LICENSE", source)
        address = f"https://github.com/{repository}"
        (source / "source.json").write_text(
            f'{{"name": "{name}", "repository": "{address}", "commit": "rehearsal"}}'
        )
    return context


def _stand_in(folder: Path, name: str, out: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").touch()
    (folder / "pyproject.toml").write_text(
        f'[project]\nname = "{name}"\nversion = "0.0.0"\n[tool.setuptools]\npackages = ["{name}"]\n'
    )
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    subprocess.run([*command, str(out), str(folder)], check=True)


@contextmanager
def _container(buildah: Buildah, image: str) -> Iterator[str]:
    name = buildah("from", f"localhost/{image}").strip().splitlines()[-1]
    try:
        yield name
    finally:
        buildah("rm", name)


class Chroot(Machine):
    """The image, as far as a chroot is one: what `rehearsal_checks` looks at."""

    def __init__(self, buildah: Buildah, container: str, volume: Path) -> None:
        self._buildah, self._container, self._volume = buildah, container, volume

    def run(self, *command: str, user: str = "root", **variables: str) -> tuple[int, str]:
        line = self._line(list(command), user, variables)
        done = subprocess.run(
            line,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        return done.returncode, done.stdout

    def fetch_while(self, command: list[str], paths: list[str], **variables: str) -> list[int]:
        line = self._line([*command, "--port", str(_PORT)], "worker", variables)
        with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
            try:
                return [_status(f"http://127.0.0.1:{_PORT}{path}", server) for path in paths]
            finally:
                for child in psutil.Process(server.pid).children(recursive=True):
                    with suppress(psutil.NoSuchProcess):
                        child.terminate()

    def _line(self, command: list[str], user: str, variables: dict[str, str]) -> list[str]:
        options = ["--user", user, "--volume", f"{self._volume}:/runpod-volume"]
        home = "/root" if user == "root" else f"/home/{user}"
        for name, value in ({"HOME": home} | variables).items():
            options += ["--env", f"{name}={value}"]
        return self._buildah.running(self._container, command, *options)


def _status(address: str, server: subprocess.Popen[bytes]) -> int:
    """Ask until the server answers; 0 where it ended or never does."""
    end = time.monotonic() + 60
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:  # noqa: S310 - our own
                if answer.status != 204:  # of /ping: not ready yet
                    return int(answer.status)
        except urllib.error.HTTPError as err:
            return err.code
        except OSError:
            pass
        time.sleep(0.3)
    return 0


def rehearse(folder: Path) -> bool:
    """Do everything in `folder`; returns whether all checks held."""
    buildah, file = Buildah(folder), dockerfile.read(dockerfile.DOCKERFILE.read_text())
    context, began = make_context(folder), time.monotonic()
    make_bases(buildah)
    print(f"ok   bases, {time.monotonic() - began:.0f} s", flush=True)
    weights = next(stage for stage in file.stages if stage.name == "weights")
    printed = ""
    for stage in (weights, file.default):
        began = time.monotonic()
        printed += buildah.build(f"rehearsal-{stage.name}", rehearsed(file, stage), context)
        print(f"ok   stage {stage.name} builds, {time.monotonic() - began:.0f} s", flush=True)
    held = "yanked" not in printed
    print(f"{'ok  ' if held else 'FAIL'} no yanked package")
    volume = folder / "volume"
    volume.mkdir(exist_ok=True)
    volume.chmod(0o777)
    with _container(buildah, f"rehearsal-{file.default.name}") as container:
        machine = Chroot(buildah, container, volume)
        for check in CHECKS:
            reason = check(machine)
            print(
                f"FAIL {check.__doc__}: {reason}" if reason else f"ok   {check.__doc__}", flush=True
            )
            held &= not reason
    return held


def main() -> int:
    """Rehearse; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where all of it is made, and kept")
    args = parser.parse_args()
    if absent := [name for name in ("buildah", "mmdebstrap") if not shutil.which(name)]:
        sys.exit(f"{' and '.join(absent)} not found: apt-get install buildah mmdebstrap")
    folder = args.folder or Path(tempfile.mkdtemp(prefix="image-rehearsal-"))
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    try:
        return 0 if rehearse(folder) else 1
    except subprocess.CalledProcessError as err:
        print(f"FAIL {' '.join(map(str, err.cmd))[:200]}")
        return 1
    finally:
        if str(folder) in Path("/proc/mounts").read_text():
            print(f"{folder} is left: something of this machine is still mounted in it")
        elif not args.folder:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
