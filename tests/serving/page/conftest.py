"""One server over a fake engine and one browser for all tests of a file; each test has a window of its own.

While Playwright's browser runs, this thread has an event loop: no test here may call `asyncio.run`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from serving.fake import FakeBehaviour, FakeClient
from serving.settings import ServerSettings

SAMPLES = Path(__file__).parents[3] / "reference" / "samples"
WIDTH_PX, HEIGHT_PX = 1280, 800
VIOLATIONS = """document.addEventListener("securitypolicyviolation",
  (event) => console.error("violates", event.violatedDirective, event.blockedURI))"""


@dataclass
class Window:
    """A page that is open.

    Attributes:
        page: Playwright's.
        told: What its console says is wrong.
    """

    page: Any
    told: list[str] = field(default_factory=list)

    def view(self, name: str) -> Any:
        """Turn to a tab, and return its panel."""
        self.page.get_by_role("tab", name=name).click()
        return self.page.get_by_role("tabpanel", name=name)

    def ask(self, question: str) -> None:
        """Send a question of the chat."""
        self.chat.get_by_label("Question").fill(question)
        self.page.get_by_role("button", name="Send").click()

    @property
    def chat(self) -> Any:
        """The panel of the chat."""
        return self.page.get_by_role("tabpanel", name="Chat")

    def answer(self, number: int = 0) -> Any:
        """The place of an answer."""
        return self.chat.locator(".answer").nth(number)

    def wait_for_answer(self, number: int = 0) -> str:
        """Wait for an answer's end, and return its words."""
        self.answer(number).locator("dl").wait_for()
        return str(self.answer(number).locator("p.words").inner_text())


@pytest.fixture(scope="module")
def shared_engine() -> FakeClient:
    return FakeClient()


@pytest.fixture(scope="module")
def page_url(edge_servers: Any, shared_engine: FakeClient) -> Iterator[str]:
    with edge_servers(shared_engine, ServerSettings()) as url:
        yield url


@pytest.fixture(scope="module")
def browser(chromium: Any) -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def engine(shared_engine: FakeClient) -> FakeClient:
    """The engine, as it was at the beginning."""
    shared_engine.behaviour = FakeBehaviour()
    shared_engine.generations.clear()
    shared_engine.cancelled.clear()
    return shared_engine


@pytest.fixture
def open_window(browser: Any, page_url: str, engine: FakeClient) -> Iterator[Callable[..., Window]]:
    """Open the page in a window of its own; when the test ends, no window may have complained.

    What the browser itself says of an answer that failed on purpose ("Failed to load resource") does not count.
    """
    windows: list[Window] = []

    def open_page(routes: dict[str, Any] | None = None, url: str = page_url, **options: Any) -> Window:
        context = browser.new_context(**{"viewport": {"width": WIDTH_PX, "height": HEIGHT_PX}, **options})
        context.set_default_timeout(20_000)
        window = Window(context.new_page())
        windows.append(window)
        window.page.add_init_script(VIOLATIONS)
        window.page.on("console", lambda message: message.type == "error" and window.told.append(message.text))
        window.page.on("pageerror", lambda error: window.told.append(str(error)))
        for pattern, handler in (routes or {}).items():
            window.page.route(pattern, handler)
        window.page.goto(url)
        return window

    yield open_page
    told = [text for window in windows for text in window.told if not text.startswith("Failed to load resource")]
    for window in windows:
        window.page.context.close()
    assert told == []


@pytest.fixture
def window(open_window: Callable[..., Window]) -> Window:
    return open_window()


@pytest.fixture(scope="session")
def offering() -> Callable[..., Callable[[Any], None]]:
    """Make a route's handler that lets `/v1/models` offer some ways to read and keep less, and no others."""

    def make(**fields: Any) -> Callable[[Any], None]:
        def offer(route: Any) -> None:
            response = route.fetch()
            body = response.json()
            for card in body["data"]:
                card |= {"vision_methods": [], "vision_default": None, "kv_policies": [], "kv_default": None}
                card |= fields if card["capabilities"]["chat"] else {}
            route.fulfill(response=response, body=json.dumps(body))

        return offer

    return make


@pytest.fixture(scope="session")
def samples() -> Path:
    """Folder of the sample drawings."""
    return SAMPLES
