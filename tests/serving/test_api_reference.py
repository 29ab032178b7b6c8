from __future__ import annotations

import re
from pathlib import Path

import pytest

from serving.api.openapi import ROUTES
from serving.api_reference import COMMAND, reference

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api-reference.md"
ONLY_WITH_KEYS = {"/v1/models/load", "/v1/models/unload"}
"""Routes of an administrator, who has a key."""


@pytest.fixture(scope="module")
def page() -> str:
    return reference()


def test_the_page_is_what_its_command_writes_now(page: str) -> None:
    assert PAGE.read_text(encoding="utf-8") == page, f"the schemas changed; run: {COMMAND}"


def test_every_documented_route_is_there(page: str) -> None:
    told = re.findall(r"^### (?:GET|POST|DELETE|PUT) (\S+)$", page, re.MULTILINE)
    assert set(told) >= ROUTES.keys() - ONLY_WITH_KEYS


def test_every_link_leads_to_a_heading(page: str) -> None:
    headings = {heading.lower() for heading in re.findall(r"^### (\w+)$", page, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([\w-]+)\)", page)) <= headings


def test_ranges_defaults_and_what_is_not_built_are_told(page: str) -> None:
    chat = page.split("### ChatRequest\n")[1].split("\n### ")[0]
    assert "| `temperature` | number, 0 to 2 | `null` |" in chat
    assert "| `messages` | list of [SystemMessage](#systemmessage) or" in chat
    assert "`audio` `null`" in chat.split("Takes only: ")[1]
    assert "`audio`" not in chat.split("Takes only: ")[0]
