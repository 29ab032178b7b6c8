"""Pages as Debian's Chromium shows them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_MEASURE = """() => {
  const sizes = selector => [...document.querySelectorAll(selector)].map(each => each.getBoundingClientRect());
  return {
    page_px: document.documentElement.scrollWidth,
    charts_px: sizes("svg").map(box => [box.width, box.height]),
    letters_px: sizes("svg text").map(box => box.height),
    names_px: sizes("details[open] td:first-child, div td:first-child").map(box => box.width).filter(width => width),
    cut: [...document.querySelectorAll("svg text")].filter(each => {
      const own = each.getBoundingClientRect(), whole = each.closest("svg").getBoundingClientRect();
      return own.left < whole.left - 1 || own.right > whole.right + 1 || own.bottom > whole.bottom + 1;
    }).map(each => each.textContent),
  };
}"""


@dataclass(frozen=True)
class Sight:
    """What a reader gets.

    Attributes:
        requests: Addresses that were asked for, the page's own first.
        page_px: Width of the whole; more than the window's means that it scrolls sideways.
        charts_px: Width and height of every chart.
        letters_px: Height of every line of text in charts.
        names_px: Width of the first cell of every row of a table.
        cut: Texts of charts that leave their chart.
    """

    requests: list[str]
    page_px: float
    charts_px: list[tuple[float, float]]
    letters_px: list[float]
    names_px: list[float]
    cut: list[str]


@contextmanager
def chromium() -> Iterator[Any]:
    """Run a browser, Playwright's, while the block lasts: no event loop may run meanwhile. Skips if there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium is installed")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


def looker() -> Callable[[Path, int], Sight]:
    """Return what shows a file in a window of a width; skips where there is no browser."""

    def look(path: Path, width_px: int) -> Sight:
        requests: list[str] = []
        with chromium() as browser:
            page = browser.new_page(viewport={"width": width_px, "height": 900})
            page.on("request", lambda request: requests.append(request.url))
            page.goto(path.as_uri())
            found = page.evaluate(_MEASURE)
        return Sight(requests, **found)

    return look
