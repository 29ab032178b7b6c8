"""The two forms of a line of the log."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest

from bundle.errors import SettingsError
from serving.api.app import create_app
from serving.fake import FakeClient
from serving.log_format import REQUEST, JsonFormatter, TextFormatter
from serving.settings import ApiSettings
from serving.settings_sources import load_settings


@pytest.fixture
def lines() -> Iterator[Callable[[logging.Formatter], Callable[[], list[str]]]]:
    """Sends what is logged below `told` and by the access log through a formatter; returns the lines so far."""
    loggers = [logging.getLogger(name) for name in ("told", "pocketvlm.access", "serving.api.ending")]
    handlers: list[logging.Handler] = []

    def through(formatter: logging.Formatter) -> Callable[[], list[str]]:
        text = io.StringIO()
        handler = logging.StreamHandler(text)
        handler.setFormatter(formatter)
        handlers.append(handler)
        for logger in loggers:
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
        return lambda: text.getvalue().splitlines()

    yield through
    for logger in loggers:
        logger.setLevel(logging.NOTSET)
        for handler in handlers:
            logger.removeHandler(handler)


async def ask(client: FakeClient, body: dict[str, Any], **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(create_app(client, ApiSettings()), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        return await http.post("/v1/chat/completions", json=body, headers=headers)


CHAT = {"model": "fake-vlm", "messages": [{"role": "user", "content": "heliotrope"}]}


def test_every_line_is_one_object(lines: Any) -> None:
    told = lines(JsonFormatter())
    logging.getLogger("told").warning("two\nlines and %s", '"quotes"')
    try:
        raise KeyError("a bug")
    except KeyError:
        logging.getLogger("told").exception("it failed")
    first, second = map(json.loads, told())
    assert (first["level"], first["logger"], first["message"]) == ("warning", "told", 'two\nlines and "quotes"')
    age = datetime.now(timezone.utc) - datetime.fromisoformat(first["time"])
    assert 0 <= age.total_seconds() < 60
    assert "request_id" not in first
    assert second["exception"].endswith("KeyError: 'a bug'")


@pytest.mark.anyio
async def test_a_request_s_lines_carry_its_id_and_no_word_of_it(lines: Any) -> None:
    told = lines(JsonFormatter())
    client = FakeClient()
    answered = await ask(client, CHAT, **{"X-Request-Id": "job-7"})
    client.behaviour.failure = KeyError("a bug")
    await ask(client, CHAT, **{"X-Request-Id": "job-8"})
    access, fault, failed = map(json.loads, told())
    assert answered.headers["x-request-id"] == "job-7"
    assert (access["request_id"], access["method"], access["path"]) == ("job-7", "POST", "/v1/chat/completions")
    assert (access["status"], access["model"], access["prompt_tokens"]) == (200, "fake-vlm", 1)
    assert access["answer"] == answered.json()["id"]
    assert 0 <= access["first_token_s"] <= access["total_s"]
    assert (fault["request_id"], fault["logger"], failed["status"]) == ("job-8", "serving.api.ending", 500)
    assert "heliotrope" not in "".join(told())
    assert REQUEST.get() == ""


@pytest.mark.anyio
async def test_text_names_the_request_behind_what_others_say_of_it(lines: Any) -> None:
    told = lines(TextFormatter())
    client = FakeClient()
    client.behaviour.failure = KeyError("a bug")
    await ask(client, CHAT, **{"X-Request-Id": "job-9"})
    fault, *_, access = told()
    assert fault.endswith("failed: KeyError [job-9]")
    assert access.count("job-9") == 1


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_a_format_or_a_level_that_is_none_is_named() -> None:
    for flags, told in (({"log_format": "xml"}, "log_format = 'xml'"), ({"log_level": "loud"}, "log_level = 'loud'")):
        with pytest.raises(SettingsError, match=told):
            load_settings(flags=flags)


def test_the_whole_log_takes_the_form_that_was_asked_for() -> None:
    program = (
        "import logging\nfrom serving.log import configure_logging\n"
        "from serving.settings_sources import load_settings\n"
        "configure_logging(load_settings(environment={'POCKETVLM_LOG_FORMAT': 'json'}))\n"
        "logging.getLogger('anybody').info('hello'); logging.getLogger('anybody').debug('quiet')"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    (line,) = done.stderr.splitlines()
    assert json.loads(line)["message"] == "hello"
