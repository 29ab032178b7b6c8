"""Which model a request means: by its name, by an alias, or by none where there is only one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bundle.errors import SettingsError
from commands.serve import with_aliases
from serving.fake import FAKE_CLIP, FAKE_VLM, FakeClient
from serving.settings import ServerSettings

CHAT = "/v1/chat/completions"


def test_an_alias_is_a_models_name(make_caller: Any, engine: FakeClient, ask: Any) -> None:
    api = make_caller(aliases={"gpt-4o": "fake-vlm"})
    answer = api.post(CHAT, {**ask(), "model": "gpt-4o"}).json()
    assert (answer["model"], engine.generations[0].model) == ("gpt-4o", "fake-vlm")
    listed = {model["id"]: model["root"] for model in api.get("/v1/models").json()["data"]}
    assert listed == {"fake-vlm": "fake-vlm", "fake-clip": "fake-clip", "gpt-4o": "fake-vlm"}
    assert api.get("/v1/models/gpt-4o").json()["root"] == "fake-vlm"


def test_aliases_reach_every_route(make_caller: Any, png: bytes, image_part: Any) -> None:
    api = make_caller(aliases={"clip": "fake-clip"})
    assert api.post("/v1/embeddings", {"model": "clip", "input": "a"}).json()["model"] == "clip"
    classified = api.post("/v1/classify", {"model": "clip", "images": [image_part(png)], "labels": ["a"]})
    assert classified.json()["model"] == "clip"
    assert api.post("/tokenize", {"model": "clip", "prompt": "a"}).status_code == 200


def test_a_request_without_a_model_means_the_only_one_of_its_kind(api: Any, png: bytes, image_part: Any) -> None:
    assert api.post(CHAT, {"messages": [{"role": "user", "content": "a"}]}).json()["model"] == "fake-vlm"
    assert api.post("/v1/embeddings", {"input": "a"}).json()["model"] == "fake-clip"
    assert api.post("/v1/classify", {"images": [image_part(png)], "labels": ["a"]}).json()["model"] == "fake-clip"


def test_a_request_without_a_model_is_refused_where_several_are_meant(api: Any) -> None:
    error = api.post("/tokenize", {"prompt": "a"}).json()["error"]
    assert error["param"] == "model"
    assert "fake-vlm, fake-clip" in error["message"]


@pytest.mark.parametrize("engine", [FakeClient((FAKE_VLM, replace(FAKE_VLM, name="other"), FAKE_CLIP))])
def test_two_models_that_chat_want_a_name(api: Any) -> None:
    error = api.post(CHAT, {"messages": [{"role": "user", "content": "a"}]}).json()["error"]
    assert (error["param"], "fake-vlm, other" in error["message"]) == ("model", True)


@pytest.mark.parametrize(
    ("names", "given", "expected"),
    [
        (["a"], ["x", "y"], {"x": "a", "y": "a"}),
        (["a", "b"], ["b=x"], {"x": "b"}),
        (["a"], [], {}),
    ],
)
def test_flags_give_aliases(names: list[str], given: list[str], expected: dict[str, str]) -> None:
    assert with_aliases(ServerSettings(), names, given).api.aliases == expected


@pytest.mark.parametrize(
    ("names", "given"), [(["a", "b"], ["x"]), (["a"], ["b=x"]), (["a"], ["a"]), (["a"], ["x", "x"]), (["a"], ["a="])]
)
def test_aliases_that_mean_nothing_are_refused(names: list[str], given: list[str]) -> None:
    with pytest.raises(SettingsError):
        with_aliases(ServerSettings(), names, given)


def test_the_version_is_told(api: Any) -> None:
    from bundle.machine import own_version

    assert api.get("/version").json() == {"version": own_version()}
