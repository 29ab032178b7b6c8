"""Beginnings of conversations under a name: kept, listed, named by a chat, deleted; and what is refused."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.fake import FAKE_FUSED, FAKE_HEADS
from serving.protocol import GenerateRequest

OLD_FACTS = ("name", "model", "created", "prompt_tokens", "image_tokens")
SHOWN = [
    {"role": "system", "content": "Answer in one word."},
    {"role": "user", "content": "What is grass?"},
    {"role": "assistant", "content": "Green."},
]


@pytest.fixture
def keeping(make_caller, tmp_path: Path):
    return make_caller(prefix_folder=tmp_path / "prefixes")


def made(caller: Any, name: str = "one-word", **fields: Any):
    return caller.post("/v1/prefixes", {"name": name, "model": "fake-vlm", "messages": SHOWN, **fields})


def plain(request: GenerateRequest) -> tuple:
    """Return what decides an answer."""
    return request.model, request.messages, request.sampling, request.num_choices


def test_a_chat_behind_a_prefix_is_the_chat_that_sends_its_messages(keeping, engine, ask, image_part, png) -> None:
    shown = [*SHOWN, {"role": "user", "content": [image_part(png), {"type": "text", "text": "this"}]}]
    shown += [{"role": "assistant", "content": "Red."}]
    assert made(keeping, messages=shown).status_code == 200
    own = ask("What is snow?")
    named = keeping.post("/v1/chat/completions", {**own, "prefix": "one-word"})
    whole = keeping.post("/v1/chat/completions", {**own, "messages": [*shown, *own["messages"]]})
    assert named.status_code == whole.status_code == 200
    _, of_named, of_whole = engine.generations
    assert plain(of_named) == plain(of_whole)
    assert named.json()["choices"] == whole.json()["choices"]
    assert named.json()["usage"] == whole.json()["usage"]


def test_a_chat_behind_a_prefix_is_received_once(keeping, ask) -> None:
    def num_received() -> float:
        found = text_string_to_metric_families(keeping.get("/metrics").text)
        name = "pocketvlm:request_receive_time_seconds_count"
        return sum(sample.value for family in found for sample in family.samples if sample.name == name)

    made(keeping)
    before = num_received()
    assert keeping.post("/v1/chat/completions", {**ask("What is snow?"), "prefix": "one-word"}).status_code == 200
    assert num_received() == before + 1 == 2


def test_a_prefix_is_read_once_when_it_is_made(keeping, engine) -> None:
    told = made(keeping).json()
    [request] = engine.generations
    assert [message.role for message in request.messages] == ["system", "user", "assistant"]
    assert (request.sampling.max_tokens, request.num_choices) == (1, 1)
    assert told["object"] == "prefix"
    assert (told["name"], told["model"], told["image_tokens"]) == ("one-word", "fake-vlm", 0)
    assert told["prompt_tokens"] > 0


def test_prefixes_are_listed_and_deleted(keeping) -> None:
    assert keeping.get("/v1/prefixes").json() == {"object": "list", "data": []}
    told = [made(keeping, name).json() for name in ("b", "a")]
    assert keeping.get("/v1/prefixes").json()["data"] == told[::-1]
    gone = keeping.request("DELETE", "/v1/prefixes/a")
    assert (gone.status_code, gone.json()) == (200, {"name": "a", "object": "prefix", "deleted": True})
    assert [each["name"] for each in keeping.get("/v1/prefixes").json()["data"]] == ["b"]
    assert keeping.request("DELETE", "/v1/prefixes/a").status_code == 404


def test_the_document_describes_what_is_there(keeping, api) -> None:
    from serving.api.answers import server as answers

    paths = keeping.get("/openapi.json").json()["paths"]
    assert set(paths["/v1/prefixes"]) == {"get", "post"}
    assert "requestBody" not in paths["/v1/prefixes"]["get"]
    assert not [path for path in api.get("/openapi.json").json()["paths"] if "prefixes" in path]
    answers.Prefix.model_validate(made(keeping).json())
    answers.PrefixList.model_validate(keeping.get("/v1/prefixes").json())
    answers.DeletedPrefix.model_validate(keeping.request("DELETE", "/v1/prefixes/one-word").json())


def test_prefixes_outlive_the_process(keeping, make_caller, tmp_path: Path, ask) -> None:
    made(keeping)
    later = make_caller(prefix_folder=tmp_path / "prefixes")
    assert later.post("/v1/chat/completions", {**ask(), "prefix": "one-word"}).status_code == 200


def test_a_name_is_never_given_to_something_else(keeping, engine) -> None:
    made(keeping)
    again = made(keeping, messages=SHOWN[:1])
    assert again.status_code == 400
    assert "'one-word' is stored already; delete it" in again.json()["error"]["message"]
    assert len(engine.generations) == 1
    assert len(keeping.get("/v1/prefixes").json()["data"]) == 1


@pytest.mark.parametrize("name", ["", "..", "../x", ".x", "a/b", "a b", "x" * 65, "ä"])
def test_names_that_lead_elsewhere_are_refused(keeping, tmp_path: Path, ask, name: str) -> None:
    assert made(keeping, name).status_code == 400
    answer = keeping.post("/v1/chat/completions", {**ask(), "prefix": name})
    assert answer.status_code == 404
    assert not list(tmp_path.rglob("*.prefix"))


def test_an_unknown_prefix_is_told_which_there_are(keeping, ask) -> None:
    made(keeping)
    answer = keeping.post("/v1/chat/completions", {**ask(), "prefix": "other"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (404, "prefix_not_found", "prefix")
    assert error["message"] == "no prefix 'other' is stored here; stored: one-word"


def test_a_prefix_of_another_model_is_refused(keeping, tmp_path: Path, ask) -> None:
    made(keeping)
    path = tmp_path / "prefixes" / "one-word.prefix"
    path.write_bytes(path.read_bytes().replace(b'"model": "fake-vlm"', b'"model": "other-vlm"', 1))
    answer = keeping.post("/v1/chat/completions", {**ask(), "prefix": "one-word"})
    assert answer.status_code == 400
    assert "was made for the model 'other-vlm', not 'fake-vlm'" in answer.json()["error"]["message"]


def test_where_no_folder_is_set_there_are_no_prefixes(api, ask) -> None:
    refused = (made(api), api.get("/v1/prefixes"), api.request("DELETE", "/v1/prefixes/x"))
    assert [answer.status_code for answer in refused] == [404] * 3
    assert all("--prefix-folder" in answer.json()["error"]["message"] for answer in refused)
    answer = api.post("/v1/chat/completions", {**ask(), "prefix": "one-word"})
    assert answer.status_code == 400
    assert "--prefix-folder" in answer.json()["error"]["message"]


def test_there_are_no_more_prefixes_than_may_be(make_caller, tmp_path: Path, engine) -> None:
    caller = make_caller(prefix_folder=tmp_path, max_prefixes=2)
    assert [made(caller, name).status_code for name in ("a", "b", "c")] == [200, 200, 400]
    assert "at most 2 may be (api.max_prefixes)" in made(caller, "c").json()["error"]["message"]
    assert len(engine.generations) == 2
    assert caller.request("DELETE", "/v1/prefixes/a").status_code == 200
    assert made(caller, "c").status_code == 200


def test_prefixes_take_no_more_room_than_they_may(make_caller, tmp_path: Path, engine) -> None:
    caller = make_caller(prefix_folder=tmp_path, max_prefix_bytes=1024)
    assert made(caller, "a").status_code == 200
    big = made(caller, "b", messages=[{"role": "user", "content": "x" * 1000}])
    assert big.status_code == 400
    assert "of 1024 are in use" in big.json()["error"]["message"]
    assert len(engine.generations) == 1  # nothing was read for it
    assert [path.name for path in tmp_path.iterdir()] == ["a.prefix"]


def test_limits_hold_for_prefix_and_messages_together(make_caller, tmp_path: Path, ask, image_part, png) -> None:
    caller = make_caller(prefix_folder=tmp_path, max_images=1, max_messages=3)
    image = [{"role": "user", "content": [image_part(png)]}]
    assert made(caller, messages=image).status_code == 200
    images = caller.post("/v1/chat/completions", {**ask([image_part(png)]), "prefix": "one-word"})
    assert (images.status_code, "2 images" in images.json()["error"]["message"]) == (400, True)
    assert caller.request("DELETE", "/v1/prefixes/one-word").status_code == 200
    assert made(caller).status_code == 200
    messages = caller.post("/v1/chat/completions", {**ask(), "prefix": "one-word"})
    assert (messages.status_code, "4 messages" in messages.json()["error"]["message"]) == (400, True)


def test_a_prefix_counts_among_the_bodies_that_are_held(make_caller, tmp_path: Path, ask) -> None:
    large = [{"role": "user", "content": "x" * 4000}]
    assert made(make_caller(prefix_folder=tmp_path), messages=large).status_code == 200
    tight = make_caller(prefix_folder=tmp_path, max_bodies_bytes=2048)
    answer = tight.post("/v1/chat/completions", {**ask(), "prefix": "one-word"})
    assert answer.status_code == 429


def test_what_the_model_refuses_is_not_kept(keeping, engine) -> None:
    from bundle.errors import ContextLengthError

    engine.behaviour.failure = ContextLengthError("too long", "messages")
    assert made(keeping).status_code == 400
    assert keeping.get("/v1/prefixes").json()["data"] == []


def test_a_reduction_may_be_of_the_prefixs_images(keeping, engine, ask, image_part, png) -> None:
    made(keeping, messages=[{"role": "user", "content": [image_part(png)]}])
    body = {**ask(), "prefix": "one-word", "vision": {"method": "uniform", "keep": 0.5}}
    assert keeping.post("/v1/chat/completions", body).status_code == 200
    assert engine.generations[-1].vision.keep == 0.5


def test_one_of_many_makers_gets_the_name(make_caller, tmp_path: Path) -> None:
    callers = [make_caller(prefix_folder=tmp_path) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        codes = [answer.status_code for answer in threads.map(made, callers)]
    assert 200 in codes
    assert set(codes) <= {200, 400}
    assert [path.name for path in tmp_path.iterdir()] == ["one-word.prefix"]


@pytest.mark.parametrize("content", [b"", b"no facts\n{}", b'{"name": "torn"}\n{}', b"[" * 4000])
def test_a_damaged_file_is_told_by_name_and_hides_no_other(keeping, ask, tmp_path: Path, content: bytes) -> None:
    assert made(keeping).status_code == 200
    (tmp_path / "prefixes" / "torn.prefix").write_bytes(content)
    assert [facts["name"] for facts in keeping.get("/v1/prefixes").json()["data"]] == ["one-word"]
    answer = keeping.post("/v1/chat/completions", {**ask(), "prefix": "torn"})
    assert answer.status_code == 404
    assert "'torn' is damaged; delete the prefix" in answer.json()["error"]["message"]
    assert keeping.request("DELETE", "/v1/prefixes/torn").status_code == 200


def test_a_fused_prefix_is_what_the_engine_made_of_its_messages(keeping, engine, ask, image_part, png) -> None:
    shown = [{"role": "user", "content": [image_part(png), {"type": "text", "text": "this"}]}]
    told = made(keeping, messages=shown, method="fused", vision={"method": "uniform", "keep": 0.5}).json()
    [read] = engine.generations
    assert (read.fuses, read.behind, read.vision.keep, read.kv.budget) == (True, None, 0.5, 1)
    assert (told["method"], told["size_bytes"], told["image_tokens"]) == ("fused", len(FAKE_FUSED), 4)
    assert told["cache_rows"] == told["prompt_tokens"] - told["image_tokens"]
    answer = keeping.post("/v1/chat/completions", {**ask("What?"), "prefix": "one-word"})
    assert answer.status_code == 200
    named = engine.generations[-1]
    assert (named.behind, named.fuses) == (FAKE_FUSED, False)
    assert [part.text for message in named.messages for part in message.parts] == ["What?"]  # the image is gone
    assert keeping.get("/v1/prefixes").json()["data"] == [told]


def test_a_task_vector_is_what_the_engine_made_of_demonstrations(keeping, engine, ask) -> None:
    told = made(keeping, messages=SHOWN[1:] * 2, method="task-vectors").json()
    [read] = engine.generations
    assert (read.learns, read.fuses, read.behind, len(read.messages)) == (True, False, None, 4)
    assert (told["method"], told["size_bytes"]) == ("task-vectors", len(FAKE_FUSED))
    assert (told["cache_rows"], told["replaced_heads"]) == (0, FAKE_HEADS)
    answer = keeping.post("/v1/chat/completions", {**ask("What?"), "prefix": "one-word"})
    assert answer.status_code == 200
    named = engine.generations[-1]
    assert (named.behind, named.learns) == (FAKE_FUSED, False)
    assert [part.text for message in named.messages for part in message.parts] == ["What?"]
    refused = made(keeping, "other", method="task-vectors", vision={"method": "uniform", "keep": 0.5})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "vision")


def test_what_means_nothing_of_a_prefix_is_refused_by_name(keeping, ask) -> None:
    reducing = {"vision": {"method": "uniform", "keep": 0.5}}
    assert made(keeping, **reducing).json()["error"]["param"] == "vision"
    assert made(keeping, method="learned").json()["error"]["param"] == "method"
    assert made(keeping, method="fused").status_code == 200
    answer = keeping.post("/v1/chat/completions", {**ask("What?"), "prefix": "one-word", **reducing})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "vision")


def test_prefixes_that_were_kept_before_they_had_a_method_are_plain(keeping, engine, ask, tmp_path: Path) -> None:
    made(keeping)
    path = tmp_path / "prefixes" / "one-word.prefix"
    head, _, body = path.read_bytes().partition(b"\n")
    facts = {name: value for name, value in json.loads(head).items() if name in OLD_FACTS}
    path.write_bytes(json.dumps(facts).encode() + b"\n" + body)
    assert keeping.get("/v1/prefixes").json()["data"][0]["method"] == "plain"
    assert keeping.post("/v1/chat/completions", {**ask("What?"), "prefix": "one-word"}).status_code == 200
    assert len(engine.generations[-1].messages) == 4
