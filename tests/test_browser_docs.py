"""The page of the API in a real browser, under the server's own content security policy."""

from __future__ import annotations

from typing import Any

from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.test_browser import browser, pytestmark, url

__all__ = ["browser", "pytestmark", "url"]


def test_the_description_is_drawn_and_nothing_is_loaded_from_elsewhere(
    browser: Any,
    url: str,
) -> None:
    browser.get(f"{url}/docs")
    WebDriverWait(browser, 60).until(
        lambda b: "/generate" in b.find_element(By.TAG_NAME, "body").text
    )
    assert browser.find_elements(By.CSS_SELECTOR, ".opblock-post")
    loaded = browser.execute_script(
        "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    )
    assert [address for address in loaded if not address.startswith((url, "data:", "blob:"))] == []
    told = [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert [line for line in told if "favicon" not in line] == []
