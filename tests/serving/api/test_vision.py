"""The field `vision` of a chat: how images are reduced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from serving.fake import FakeClient
from serving.protocol import VisionReduction

CHAT = "/v1/chat/completions"
Ask = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("keep", [0.25, 1])
def test_method_and_share_reach_the_engine(
    api: Any, engine: FakeClient, ask: Ask, png: bytes, image_part: Any, keep: float
) -> None:
    response = api.post(CHAT, ask([image_part(png)], vision={"method": "dart", "keep": keep}))
    assert response.status_code == 200, response.text
    assert engine.generations[0].vision == VisionReduction("dart", keep)


@pytest.mark.parametrize("fields", [{}, {"vision": None}], ids=["left out", "null"])
def test_a_request_that_says_nothing_leaves_it_to_the_engine(
    api: Any, engine: FakeClient, ask: Ask, fields: dict[str, Any]
) -> None:
    assert api.post(CHAT, ask("hi", **fields)).status_code == 200
    assert engine.generations[0].vision is None


REFUSED: dict[str, tuple[Any, str]] = {
    "nothing kept": ({"method": "dart", "keep": 0}, "vision.keep"),
    "less than nothing": ({"method": "dart", "keep": -0.5}, "vision.keep"),
    "more than all": ({"method": "dart", "keep": 1.01}, "vision.keep"),
    "a share as text": ({"method": "dart", "keep": "0.5"}, "vision.keep"),
    "no share": ({"method": "dart"}, "vision.keep"),
    "no method": ({"keep": 0.5}, "vision.method"),
    "a method as a number": ({"method": 1, "keep": 0.5}, "vision.method"),
    "an unknown key": ({"method": "dart", "keep": 0.5, "ratio": 2}, "vision.ratio"),
    "a method alone": ("dart", "vision"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_mean_is_refused_by_name(api: Any, ask: Ask, png: bytes, image_part: Any, name: str) -> None:
    vision, param = REFUSED[name]
    response = api.post(CHAT, ask([image_part(png)], vision=vision))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error


def test_a_request_without_images_is_told_that_nothing_is_reduced(api: Any, engine: FakeClient, ask: Ask) -> None:
    error = api.post(CHAT, ask("hi", vision={"method": "dart", "keep": 0.5})).json()["error"]
    assert (error["param"], error["code"]) == ("vision", "invalid_parameter")
    assert "leave it out" in error["message"]
    assert api.post(CHAT, ask("hi", vision={"method": "dart", "keep": 1})).status_code == 200
    assert len(engine.generations) == 1
