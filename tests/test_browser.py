"""The page in a real browser: Debian's chromium, driven by selenium."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.test_server import picture, serving

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="chromium and chromium-driver are not installed (apt)"
)
SHOTS = Path(os.environ.get("PAGE_SHOTS", "output/page"))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("page")) as url:
        yield url


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (
        "--headless=new", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--use-gl=angle",
        "--use-angle=swiftshader", "--enable-unsafe-swiftshader", f"--user-data-dir={tmp_path}",
        "--window-size=1200,1000",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


def until(browser: Any, condition: Any, seconds: float = 90) -> Any:
    return WebDriverWait(browser, seconds, 0.1).until(condition)


def element(browser: Any, name: str) -> Any:
    return browser.find_element(By.ID, name)


def open_page(browser: Any, url: str) -> None:
    browser.get(url)
    until(browser, lambda b: "ready" in element(b, "worker").text)


def choose(browser: Any, tmp_path: Path, data: bytes, name: str = "photo.png") -> None:
    path = tmp_path / name
    path.write_bytes(data)
    element(browser, "file").send_keys(str(path))
    until(browser, lambda b: element(b, "go").is_enabled())


def shot(browser: Any, name: str) -> Image.Image:
    SHOTS.mkdir(parents=True, exist_ok=True)
    data = browser.get_screenshot_as_png()
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image.save(SHOTS / f"{name}.webp", quality=80)
    return image


def test_a_photograph_becomes_a_model_that_can_be_seen_and_downloaded(
    browser: Any, url: str, tmp_path: Path
) -> None:
    open_page(browser, url)
    choose(browser, tmp_path, picture(400))
    element(browser, "go").click()
    until(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "#stages li.now"), 20)
    until(browser, lambda b: element(b, "result").is_displayed())
    until(browser, lambda b: b.execute_script("return document.querySelector('#viewer').loaded"))
    assert element(browser, "words").text == "You got what you asked for."
    assert not element(browser, "stages").is_displayed()
    assert "embedded" in element(browser, "numbers").text
    time.sleep(1.5)  # model-viewer fades its poster out
    viewer = element(browser, "viewer")
    seen = np.asarray(Image.open(io.BytesIO(viewer.screenshot_as_png)).convert("RGB"), int)
    middle = seen[
        seen.shape[0] // 4 : -seen.shape[0] // 4, seen.shape[1] // 3 : -seen.shape[1] // 3
    ]
    assert middle.std() > 5, "the model's canvas is blank"
    red = (middle[..., 0] > middle[..., 2] + 40).mean()
    assert red > 0.1, "the model does not have the photograph's colour"
    shot(browser, "page")
    size = browser.execute_async_script(
        "const done = arguments[0]; fetch(document.querySelector('#glb').href)"
        ".then(r => r.arrayBuffer()).then(b => done([b.byteLength, String.fromCharCode("
        "...new Uint8Array(b.slice(0, 4)))]))"
    )
    assert size[1] == "glTF"
    assert size[0] > 100_000
    curl = element(browser, "curl").get_attribute("textContent")
    sent = json.loads(curl.split("-d '")[1].rstrip("'"))["input"]
    assert sent["preset"] == "fast"
    assert isinstance(sent["seed"], int)


def test_a_result_with_warnings_is_not_called_as_asked(
    browser: Any, url: str, tmp_path: Path
) -> None:
    with Image.open(io.BytesIO(picture(400))) as image:
        almost = image.convert("RGBA")
    almost.putalpha(255)
    almost.putpixel((0, 0), (0, 0, 0, 0))
    data = io.BytesIO()
    almost.save(data, "PNG")
    open_page(browser, url)
    choose(browser, tmp_path, data.getvalue())
    element(browser, "go").click()
    until(browser, lambda b: element(b, "result").is_displayed())
    words = element(browser, "words").text
    assert words.startswith("Look at it before you use it: the picture's alpha channel")
    assert "what you asked for" not in words


def test_maps_wireframe_and_history(browser: Any, url: str, tmp_path: Path) -> None:
    open_page(browser, url)
    choose(browser, tmp_path, picture(300))
    element(browser, "go").click()
    until(browser, lambda b: element(b, "result").is_displayed())
    for name in ("base_color", "metallic", "roughness"):
        browser.find_element(By.CSS_SELECTOR, f"[data-view={name}]").click()
        until(
            browser,
            lambda b: b.execute_script("return document.querySelector('#map').naturalWidth > 200"),
        )
    browser.find_element(By.CSS_SELECTOR, "[data-view=wireframe]").click()
    until(browser, lambda b: element(b, "viewer").is_displayed())
    browser.refresh()
    until(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "#history button"))
    browser.find_element(By.CSS_SELECTOR, "#history button").click()
    until(browser, lambda b: element(b, "result").is_displayed())


def test_an_error_is_told_in_words(browser: Any, url: str, tmp_path: Path) -> None:
    open_page(browser, url)
    choose(browser, tmp_path, b"these are words, not a picture" * 20, "notes.png")
    element(browser, "go").click()
    until(browser, lambda b: element(b, "error").is_displayed())
    assert "image_rejected" in element(browser, "error").text
    assert element(browser, "go").is_enabled()
    shot(browser, "error")


def test_a_running_job_can_be_cancelled(browser: Any, url: str, tmp_path: Path) -> None:
    open_page(browser, url)
    choose(browser, tmp_path, picture(900))
    browser.find_element(By.CSS_SELECTOR, "[value=game_asset]").click()
    element(browser, "go").click()
    until(browser, lambda b: element(b, "cancel").is_displayed())
    element(browser, "cancel").click()
    until(browser, lambda b: "cancelled" in element(b, "error").text)
    assert element(browser, "go").is_enabled()


def test_the_keyboard_alone_is_enough(browser: Any, url: str, tmp_path: Path) -> None:
    open_page(browser, url)
    choose(browser, tmp_path, picture())
    element(browser, "seed").send_keys("12", Keys.ENTER)
    until(browser, lambda b: element(b, "result").is_displayed())
    reached = set()
    for _ in range(30):
        webdriver.ActionChains(browser).send_keys(Keys.TAB).perform()
        reached.add(browser.execute_script("return document.activeElement.textContent.trim()"))
    assert {"wireframe", "base colour", "Download the GLB"} <= reached


def test_a_phones_width_has_no_sideways_scroll(browser: Any, url: str) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": "dark"}]},
    )
    open_page(browser, url)
    until(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "#history button"))
    browser.find_element(By.CSS_SELECTOR, "#history button").click()
    until(browser, lambda b: element(b, "result").is_displayed())
    width = browser.execute_script("return document.documentElement.scrollWidth")
    assert width <= 360
    background = browser.execute_script("return getComputedStyle(document.body).colorScheme")
    assert "dark" in background or background == "normal"
    shot(browser, "phone")


def test_nothing_is_loaded_from_elsewhere_and_nothing_is_complained_of(
    browser: Any, url: str, tmp_path: Path
) -> None:
    open_page(browser, url)
    choose(browser, tmp_path, picture())
    element(browser, "go").click()
    until(browser, lambda b: element(b, "result").is_displayed())
    until(browser, lambda b: b.execute_script("return document.querySelector('#viewer').loaded"))
    names = browser.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
    )
    assert all(n.startswith((url, "blob:", "data:")) for n in names), names
    severe = [e for e in browser.get_log("browser") if e["level"] == "SEVERE"]
    assert not severe, severe
