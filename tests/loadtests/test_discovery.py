"""Each kind of user asks the first served model that can answer it."""

from __future__ import annotations

from typing import Any

import pytest

from loadtests.discovery import choose_models, parse_mix

VLM = {"id": "eye", "task": "image-text-to-text"}
CLIP = {"id": "clip", "task": "dual-encoder"}


def listing(*cards: dict[str, str]) -> dict[str, Any]:
    return {"object": "list", "data": list(cards)}


def test_the_first_model_of_a_task_is_chosen() -> None:
    cards = listing(CLIP, {**CLIP, "id": "second"}, VLM)
    assert choose_models(cards, {"chat": 1, "embed": 1, "classify": 1}) == {
        "chat": "eye",
        "embed": "clip",
        "classify": "clip",
    }


def test_a_kind_without_a_model_is_an_error_that_offers_the_rest() -> None:
    with pytest.raises(ValueError, match=r"no served model can embed; .*eye.*--mix chat=2\."):
        choose_models(listing(VLM), {"chat": 2, "embed": 1})


@pytest.mark.parametrize("body", [{}, [], {"data": [{"id": "eye"}]}, {"data": 3}, None])
def test_something_else_than_a_listing_is_an_error(body: Any) -> None:
    with pytest.raises(ValueError, match="did not answer with models"):
        choose_models(body, {"chat": 1})


def test_a_mix_is_read() -> None:
    assert parse_mix("chat=3, embed=1") == {"chat": 3, "embed": 1}


@pytest.mark.parametrize("text", ["", "chat", "chat=", "chat=0", "chat=-1", "chat=1.5", "sing=1", "chat=1,chat=2"])
def test_a_mix_that_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="mix"):
        parse_mix(text)
