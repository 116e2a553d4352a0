"""Draw docs/images/{page,dark,phone}.webp: the local page with a model, as a person sees it.

    python builder/make_screenshots.py [--out docs/images]

Serves the page with the embedded engine, makes the model of its first example picture, and takes
pictures of it in a real browser. Needs chromium and chromium-driver (Debian's packages).
"""

from __future__ import annotations

import argparse
import io
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import requests
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "trellis_runtime/server/static/examples/robot.webp"
VIEWS = {
    "page": (1280, 860, "light"),
    "dark": (1280, 860, "dark"),
    "phone": (390, 844, "light"),
}
"""Width and height in CSS pixels, and what the person's system prefers."""

_START_S, _JOB_S, _SETTLE_S = 60, 120, 3.0
_QUALITY = 82
_TO_THE_START = "document.querySelectorAll('*').forEach(e => { e.scrollLeft = e.scrollTop = 0 })"


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve the page from a process of its own while the context lasts; yields its address."""
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "trellis_runtime", "serve", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(command, cwd=folder, stdout=quiet, stderr=quiet)  # noqa: S603
    try:
        _await(f"{url}/ping")
        yield url
    finally:
        server.terminate()
        server.wait(30)


def _await(url: str) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        try:
            if requests.get(url, timeout=2).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.2)
    raise SystemExit(f"{url} did not answer within {_START_S} s")


@contextmanager
def browser(profile: Path) -> Iterator[Any]:
    """Have a headless Chromium while the context lasts."""
    found = shutil.which("chromium"), shutil.which("chromedriver")
    if None in found:
        raise SystemExit("chromium and chromium-driver are not installed (apt-get install)")
    options = webdriver.ChromeOptions()
    options.binary_location = str(found[0])
    for flag in (
        "--headless=new", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--use-gl=angle",
        "--use-angle=swiftshader", "--enable-unsafe-swiftshader", f"--user-data-dir={profile}",
        "--window-size=1200,1000",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(found[1])))
    try:
        yield driver
    finally:
        driver.quit()


def show(driver: Any, width: int, height: int, scheme: str) -> None:
    """Have the page as wide, as high and as light as that."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    liked = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", liked)


def make_model(driver: Any, url: str, picture: Path) -> None:
    """Choose a picture on the page, ask for its model, and wait until it is drawn."""

    def until(condition: Any, seconds: float) -> None:
        WebDriverWait(driver, seconds, 0.2).until(condition)

    driver.get(url)
    until(lambda d: "ready" in d.find_element(By.ID, "worker").text, _START_S)
    driver.find_element(By.ID, "file").send_keys(str(picture))
    until(lambda d: d.find_element(By.ID, "go").is_enabled(), _JOB_S)
    driver.find_element(By.ID, "go").click()
    until(lambda d: d.find_element(By.ID, "inspector").is_displayed(), _JOB_S)
    loaded = "return document.querySelector('#viewer').loaded"
    until(lambda d: d.execute_script(loaded), _JOB_S)


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs/images")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as scratch,
        serving(Path(scratch)) as url,
        browser(Path(scratch) / "profile") as driver,
    ):
        show(driver, *VIEWS["page"])
        make_model(driver, url, EXAMPLE)
        for name, view in VIEWS.items():
            show(driver, *view)
            driver.execute_script(_TO_THE_START)
            time.sleep(_SETTLE_S)  # the viewer fades in, and frames the model anew
            image = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
            image.save(out / f"{name}.webp", quality=_QUALITY, method=6)
            print(out / f"{name}.webp")


if __name__ == "__main__":
    main()
