"""How soon the local page is painted and can be used: `python -m benchmarks.page`.

A real Chromium loads the page from a server on the same machine, each time with nothing kept.
First paint is the browser's own first-contentful-paint; interactive is when the page has asked the
worker, says that it is ready, and takes a picture. Both are milliseconds from the start of loading.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from builder.make_screenshots import browser, serving, show

_PAINT = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
_INTERACTIVE = """
const done = arguments[0];
const look = () => document.querySelector('#worker')?.textContent.includes('ready')
  && !document.querySelector('#file').disabled
  ? done(performance.now()) : requestAnimationFrame(look);
look();
"""


def load(driver: Any, url: str) -> dict[str, float]:
    """Load the page with an empty cache; returns milliseconds from the navigation's start."""
    driver.execute_cdp_cmd("Network.clearBrowserCache", {})
    driver.get(url)
    interactive = driver.execute_async_script(_INTERACTIVE)
    return {"first_paint_ms": driver.execute_script(_PAINT), "interactive_ms": interactive}


def measure(url: str, profile: Path, loads: int) -> dict[str, float]:
    """Return the medians of `loads` loads, after one that is not counted."""
    with browser(profile) as driver:
        show(driver, 1280, 860, "light")
        found = [load(driver, url) for _ in range(loads + 1)][1:]
    return {name: round(statistics.median(one[name] for one in found), 1) for name in found[0]}


def main() -> None:
    """Measure, and print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loads", type=int, default=5)
    loads: int = parser.parse_args().loads
    with tempfile.TemporaryDirectory() as scratch, serving(Path(scratch)) as url:
        found = measure(url, Path(scratch) / "profile", loads)
    for name, value in found.items():
        print(f"{name:16} {value:8.1f}")
    print(json.dumps({"suite": "page", "loads": loads, **found}))


if __name__ == "__main__":
    main()
