"""What people do to the page beside its straight way: odd pictures, lost servers, two presses."""

from __future__ import annotations

import base64
import io
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from builder.make_screenshots import EXAMPLE, show
from tests import processes
from tests.test_browser import (
    KEPT,
    SMALL,
    cells,
    choose,
    click,
    element,
    ended,
    make_it,
    open_page,
    pytestmark,  # noqa: F401 - skips without a browser
    shot,
    unlike,
    until,
)
from tests.test_server import free_port, picture, serving, until_ready

EXAMPLES = EXAMPLE.parent


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("more")


@pytest.fixture(scope="module")
def url(out: Path) -> Iterator[str]:
    with serving(out) as url:
        yield url


@pytest.fixture(scope="module")
def browser(chromium: Any) -> Any:
    """One tab for all tests of the file."""
    return chromium


@pytest.fixture(autouse=True)
def anew(browser: Any) -> None:
    """Nothing of the page of the test before is left."""
    browser.get("about:blank")
    show(browser, 1200, 1000, "light")


@pytest.fixture(scope="module")
def made(url: str) -> dict[str, Any]:
    """A job that asked for what the page has no button for."""
    asked = {
        "image": base64.b64encode(picture(160)).decode(), "seed": 5, "keep": "latents",
        "sampler": {"shape": {"guidance_interval": [0.5, 0.9]}},
        "output": {"lods": [3000, 2000],
                   "finishes": [{"name": "print", "format": "stl", "size_m": 0.1}]},
    }  # fmt: skip
    return ended(url, asked | SMALL)


def failed(url: str) -> None:
    """Leave a failed job in the strip."""
    empty = io.BytesIO()
    Image.new("RGBA", (200, 200), (9, 9, 9, 0)).save(empty, "PNG")
    asked = {"image": base64.b64encode(empty.getvalue()).decode()}
    job = requests.post(f"{url}/jobs", json=asked, timeout=30).json()["id"]
    until(None, lambda _: requests.get(f"{url}/jobs/{job}", timeout=9).json()["state"] == "failed")


def test_run_again_asks_for_all_that_the_job_was_asked(
    browser: Any, url: str, made: dict[str, Any]
) -> None:
    open_page(browser, f"{url}/#job={made['id']}")
    until(browser, lambda b: element(b, "inspector").is_displayed())
    click(browser, "#again")
    until(browser, lambda b: made["id"] not in b.current_url)
    later = browser.current_url.split("=")[1]
    assert requests.get(f"{url}/jobs/{later}", timeout=9).json()["request"] == made["request"]
    until(browser, lambda b: element(b, "inspector").is_displayed())
    assert "Level of detail 1 (GLB)" in element(browser, "files").text


def test_textures_are_offered_as_pictures_and_cards_count_what_is_chosen(
    browser: Any, url: str, tmp_path: Path
) -> None:
    open_page(browser, url)
    click(browser, ".chip:has([value=maps])")
    choose(browser, tmp_path, picture(120))
    make_it(browser)
    until(browser, lambda b: element(b, "inspector").is_displayed())
    assert "Textures (pictures, zipped)" in element(browser, "files").text
    told = requests.get(f"{url}/capabilities", timeout=9).json()
    plain, more = told["expected"]["fast"], told["expected_files"]["fast"]["maps"]

    def card(seconds: float, models: int) -> str:
        size = (
            f"{round(models * plain['bytes'] / 1e6, 1 if models * plain['bytes'] < 1e7 else None)}"
        )
        whole = models * seconds
        return (
            f"about {whole:.1f} s, {size} MB"
            if whole < 10
            else f"about {round(whole)} s, {size} MB"
        )

    open_page(browser, url)
    words = browser.find_element(By.CSS_SELECTOR, ".card .expected")
    assert words.text == card(plain["seconds"], 1)
    click(browser, ".chip:has([value=maps])")
    assert words.text == card(plain["seconds"] + more, 1)
    click(browser, "#variants")
    assert words.text == card(plain["seconds"] + more, 4)


def test_every_tool_of_the_stage_can_be_reached_on_narrow_screens(
    browser: Any, url: str, made: dict[str, Any]
) -> None:
    failed(url)
    open_page(browser, f"{url}/#job={made['id']}")
    until(browser, lambda b: element(b, "tools").is_displayed())
    for width in (360, 820):
        show(browser, width, 800, "light")
        first, last, begin, end = browser.execute_script(
            "const tools = document.querySelector('#tools');"
            "const place = tools.getBoundingClientRect();"
            "const buttons = [...tools.querySelectorAll('button')].filter(b => b.offsetWidth);"
            "tools.scrollLeft = 0; const first = buttons[0].getBoundingClientRect().left;"
            "tools.scrollLeft = 9999; const last = buttons.at(-1).getBoundingClientRect().right;"
            "return [first, last, place.left, place.right]"
        )
        assert begin <= first, width
        assert last <= end + 1, width
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    frames = browser.execute_script(
        "return [...document.querySelectorAll('.frame')].map(f => f.getBoundingClientRect().width)"
    )
    assert len(frames) > 1
    assert len(set(frames)) == 1, "a failed job's frame is as the others"


def odd_pictures() -> dict[str, tuple[bytes, str | None]]:
    """Files by their names, and what the page says of each; None: it takes it."""
    gif, cmyk, huge = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with Image.open(io.BytesIO(picture(200))) as image:
        image.save(gif, "GIF", save_all=True, append_images=[image.rotate(90)])
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        white.convert("CMYK").save(cmyk, "JPEG")
    Image.new("RGB", (9000, 5000), (200, 30, 20)).save(huge, "PNG")
    long = "Donaudampfschifffahrtsgesellschaftskapitaensmuetzenabzeichen" * 3
    return {
        "nothing.png": (b"", "cannot be read as a picture"),
        "moving.gif": (gif.getvalue(), "is not a PNG"),
        "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not a PNG"),
        f"{long}.txt": (b"words", "is not a PNG"),
        "huge.png": (huge.getvalue(), None),
        f"{long}.jpg": (cmyk.getvalue(), None),
    }


def test_odd_pictures_are_taken_or_told_within_a_phones_width(
    browser: Any, url: str, tmp_path: Path
) -> None:
    show(browser, 360, 740, "dark")
    open_page(browser, url)
    for number, (name, (data, said)) in enumerate(odd_pictures().items(), 1):
        path = tmp_path / name
        path.write_bytes(data)
        element(browser, "file").send_keys(str(path))
        until(browser, lambda b, n=number: len(b.find_elements(By.CSS_SELECTOR, "#batch li")) == n)
        line = f"#batch li:nth-child({number})"
        told = browser.find_element(By.CSS_SELECTOR, line)
        assert (said or "px") in told.get_attribute("textContent"), name
        assert ("bad" in told.get_attribute("class")) == (said is not None), name
    assert "9000 \N{MULTIPLICATION SIGN} 5000 px, sent as" in element(
        browser, "batch"
    ).get_attribute("textContent")
    until(browser, lambda b: element(b, "cutout-words").text not in ("", "Finding the object…"))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    seen = element(browser, "cutout-canvas").screenshot_as_png
    colours = np.asarray(Image.open(io.BytesIO(seen)).convert("RGB"), int).reshape(-1, 3)
    assert (colours[:, 0] > colours[:, 2] + 60).any(), "the CMYK picture's colours are not there"
    for _ in range(5):
        click(browser, "#batch li:first-child button:last-child")
    make_it(browser)
    until(browser, lambda b: element(b, "inspector").is_displayed())


def test_two_presses_make_one_job_and_the_time_goes_on_between_the_servers_words(
    browser: Any, url: str, tmp_path: Path
) -> None:
    before = {job["id"] for job in requests.get(f"{url}/jobs?limit=200", timeout=9).json()}
    open_page(browser, url)
    choose(browser, tmp_path, picture(300))
    click(browser, ".card:nth-child(3)")
    browser.execute_script(
        "window.told = {}; setInterval(() => {"
        " if (document.querySelector('#running').hidden) return;"
        " const at = document.querySelector('#progress').value;"
        " (told[at] ||= new Set()).add(document.querySelector('#times').textContent); }, 100);"
        "const go = document.querySelector('#go'); go.click(); go.click(); go.form.requestSubmit()"
    )
    until(
        browser,
        lambda b: b.execute_script("return Object.values(told).some(words => words.size > 1)"),
    )
    assert element(browser, "step-words").get_attribute("textContent")
    new = {job["id"] for job in requests.get(f"{url}/jobs?limit=200", timeout=9).json()} - before
    assert len(new) == 1
    until(browser, lambda b: element(b, "cancel").is_displayed())
    click(browser, "#cancel")
    until(browser, lambda b: "cancelled" in element(b, "toast").text)
    assert element(browser, "empty").is_displayed(), "an empty stage says what to do"


def test_what_another_page_did_is_seen_and_breaks_nothing(
    browser: Any, url: str, tmp_path: Path
) -> None:
    job = ended(url, {"image": base64.b64encode(picture(160)).decode()} | SMALL)["id"]
    open_page(browser, f"{url}/#job={job}")
    until(browser, lambda b: element(b, "inspector").is_displayed())
    other = ended(url, {"image": base64.b64encode(picture(160)).decode()} | SMALL)["id"]
    count = len(browser.find_elements(By.CSS_SELECTOR, ".frame"))
    browser.execute_script("document.dispatchEvent(new Event('visibilitychange'))")
    until(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, ".frame")) == count + 1)
    assert requests.delete(f"{url}/jobs/{job}", timeout=9).status_code == 204
    click(browser, "#delete")
    browser.switch_to.alert.accept()
    until(browser, lambda b: not element(b, "inspector").is_displayed())
    assert not element(browser, "error").is_displayed()
    requests.delete(f"{url}/jobs/{other}", timeout=9)
    browser.execute_script("location.hash = `job=${arguments[0]}`", other)
    until(browser, lambda b: "not here any more" in element(b, "failed").text)


def test_a_closed_overlay_gives_the_focus_back(
    browser: Any, url: str, made: dict[str, Any]
) -> None:
    open_page(browser, f"{url}/#job={made['id']}")
    until(browser, lambda b: element(b, "inspector").is_displayed())
    element_of = "return document.activeElement.dataset.map || document.activeElement.id"
    browser.find_element(By.CSS_SELECTOR, "[data-map=roughness]").send_keys(Keys.ENTER)
    until(browser, lambda b: b.execute_script(element_of) == "overlay-close")
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert browser.execute_script(element_of) == "roughness"


@pytest.fixture(scope="module")
def one_job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the only job of a server, always the same."""
    duck = (EXAMPLES / "duck.webp").read_bytes()
    with serving(tmp_path_factory.mktemp("one")) as url:
        asked = {"image": base64.b64encode(duck).decode(), "seed": 7, "preset": "fast"}
        yield f"{url}/#job={ended(url, asked)['id']}"


def standing(browser: Any, name: str) -> Image.Image:
    """A screenshot of the whole page once it stands still, and no poster is faded out any more."""
    last: list[Image.Image] = []

    def still(browser: Any) -> bool:
        last.append(shot(browser, name))
        both = [cells(image) for image in last[-2:]]
        return len(last) > 3 and bool(np.abs(both[0] - both[1]).max() < 1)

    until(browser, still)
    return last[-1]


def test_a_finished_job_looks_as_it_was_kept(browser: Any, one_job: str) -> None:
    """PAGE_KEEP=1 keeps today's instead, to be looked at and committed."""
    open_page(browser, one_job)
    until(browser, lambda b: element(b, "inspector").is_displayed())
    until(browser, lambda b: b.execute_script("return document.querySelector('#viewer').loaded"))
    until(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "#history img"))
    browser.execute_script(  # how long it took is the machine's
        "for (const e of document.querySelectorAll('#numbers, .expected')) e.remove()"
    )
    sides = [(390, 844), (820, 1100), (1440, 900)]
    for (width, height), scheme in itertools.product(sides, ("light", "dark")):
        show(browser, width, height, scheme)
        browser.execute_script("scrollTo(0, 0)")
        name = f"done-{width}-{scheme}"
        image, kept = standing(browser, name), KEPT / f"{name}.png"
        if os.environ.get("PAGE_KEEP"):
            Image.fromarray(cells(image).round().astype(np.uint8)).save(kept, optimize=True)
        assert unlike(image, kept) is None, name
        browser.execute_script("document.querySelector('#viewer').style.visibility = 'hidden'")
        assert unlike(shot(browser, f"bare-{width}-{scheme}"), kept) is not None, name
        browser.execute_script("document.querySelector('#viewer').style.visibility = ''")


def test_a_token_is_asked_for_and_what_it_guards_is_seen(browser: Any, tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("typed-by-hand-7\n")
    with serving(tmp_path / "out", "--token-file", str(secret)) as url:
        browser.get(url)
        for given, said in (("wrong", "wants a token"), (secret.read_text(), "not accepted")):
            until(browser, lambda b, s=said: s in element(b, "sign-in-words").text)
            element(browser, "token").send_keys(given.strip(), Keys.ENTER)
        until(browser, lambda b: "ready" in element(b, "worker").text)
        choose(browser, tmp_path, picture(120))
        make_it(browser)
        until(browser, lambda b: element(b, "inspector").is_displayed())
        until(browser, lambda b: b.execute_script("return viewer.loaded"))
        seen = "return document.querySelector('#history img')?.naturalWidth"
        until(browser, lambda b: b.execute_script(seen))
        click(browser, "#sign-out")
        until(browser, lambda b: element(b, "sign-in").is_displayed())
        assert not browser.find_elements(By.CSS_SELECTOR, "#history img")


def test_jobs_beyond_the_first_of_the_strip_are_shown_when_asked_for(
    browser: Any, out: Path, url: str, made: dict[str, Any]
) -> None:
    for number in range(45):
        shutil.copytree(out / made["id"], out / f"copy-{number}")
    open_page(browser, url)
    until(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, "#history li")) == 41)
    click(browser, "#history li:last-child button")
    until(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, "#history img")) > 45)
    for number in range(45):
        shutil.rmtree(out / f"copy-{number}")


@contextmanager
def served_at(port: int, out: Path) -> Iterator[None]:
    """Serve at a port that is known before, and end without any grace."""
    environment = os.environ | {
        "TRELLIS2_ENGINE": "embedded", "TRELLIS2_OUTPUT_DIR": str(out),
        "TRELLIS2_MIN_FREE_DISK_GB": "0",
    }  # fmt: skip
    command = [sys.executable, "-m", "trellis_runtime", "serve", "--port", str(port)]
    process = processes.start(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        until_ready(f"http://127.0.0.1:{port}")
        yield
    finally:
        processes.stop(process)


def test_a_server_that_dies_in_mid_job_is_told_and_found_again(
    browser: Any, tmp_path: Path
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with served_at(port, tmp_path / "out"):
        open_page(browser, url)
        choose(browser, tmp_path, picture(300))
        click(browser, ".card:nth-child(3)")
        make_it(browser)
        until(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "#stages li.now"))
    until(browser, lambda b: "does not answer" in element(b, "worker").text)
    assert "does not answer" in element(browser, "error").text
    with served_at(port, tmp_path / "out"):
        until(browser, lambda b: "ready" in element(b, "worker").text)
        until(browser, lambda b: "not here any more" in element(b, "failed").text)
        assert not element(browser, "error").is_displayed()
        assert "photo.png" in element(browser, "batch").text, "what was chosen is still there"
        click(browser, ".card:nth-child(1)")
        assert element(browser, "remedy").text == "Try again"
        click(browser, "#remedy")
        until(browser, lambda b: element(b, "inspector").is_displayed())
