"""An endpoint asked over the real application, and endpoints that misbehave."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from bundle.errors import MachineError, SettingsError
from bundle.manifest import BOTH
from quant.evaluation.asking import Clip, RefusedError, Said
from serving.api.app import create_app
from serving.fake import FAKE_CLIP, FAKE_EMBEDDER, FAKE_RANKER, FAKE_VLM, FakeClient
from serving.respondents.endpoint import EndpointRespondent
from serving.settings import ApiSettings

URL = "http://test"
ASKED = [Said("user", ("Which colour?",))]


def own(*cards: Any) -> httpx.ASGITransport:
    return httpx.ASGITransport(create_app(FakeClient(cards), ApiSettings()))


def asked(transport: httpx.AsyncBaseTransport, said: Sequence[Said] = ASKED, **options: Any) -> str:
    async def ask() -> str:
        async with EndpointRespondent(URL, transport=transport, **options) as respondent:
            return await respondent.answer(said, 32)

    return asyncio.run(ask())


def scripted(*answers: httpx.Response, seen: list[httpx.Request] | None = None) -> httpx.MockTransport:
    """Answers with each in turn, the last one for ever."""
    left = list(answers)

    def handle(request: httpx.Request) -> httpx.Response:
        if seen is not None:
            seen.append(request)
        return left.pop(0) if len(left) > 1 else left[0]

    return httpx.MockTransport(handle)


def said(text: str) -> httpx.Response:
    return httpx.Response(200, json={"choices": [{"message": {"content": text}}]})


def test_the_only_model_of_our_own_server_is_asked_with_images_in_order(image_bytes: Callable[..., bytes]) -> None:
    conversation = [Said("user", (image_bytes(1), image_bytes(2), "red or blue"))]
    assert asked(own(FAKE_VLM), conversation) == "2 images. red or blue"


def test_a_model_of_our_own_server_may_answer_and_embed() -> None:
    async def main() -> None:
        async with EndpointRespondent(URL, transport=own(replace(FAKE_VLM, task=BOTH))) as respondent:
            assert (respondent.answers, respondent.embeds, respondent.ranks) == (True, True, True)

    asyncio.run(main())


@pytest.mark.parametrize("card", [FAKE_CLIP, FAKE_EMBEDDER, FAKE_RANKER])
def test_whatever_ranks_at_our_own_server_scores_documents(card: Any, image_bytes: Callable[..., bytes]) -> None:
    documents = [image_bytes(number) for number in range(3)]

    async def main() -> None:
        async with EndpointRespondent(URL, transport=own(card)) as respondent:
            assert (respondent.ranks, respondent.embeds) == (True, card is not FAKE_RANKER)
            assert not respondent.answers
            scores = await respondent.scores("a cat", documents)
            alone = [(await respondent.scores("a cat", [each]))[0] for each in documents]
            np.testing.assert_allclose(scores, alone, atol=1e-6)
            assert len(set(scores.tolist())) == 3
            if card is FAKE_EMBEDDER:
                with pytest.raises(SettingsError, match="fake-embedder keeps a vector for every token"):
                    await respondent.embed(["a cat"])

    asyncio.run(main())


def test_our_own_server_says_that_a_model_embeds(image_bytes: Callable[..., bytes]) -> None:
    async def embed() -> None:
        async with EndpointRespondent(f"{URL}/v1/", transport=own(FAKE_CLIP)) as respondent:
            assert (respondent.name, respondent.embeds, respondent.url) == ("fake-clip", True, f"{URL}/v1")
            vectors = await respondent.embed(["red", image_bytes(1), "red"])
            assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
            assert np.array_equal(vectors[0], vectors[2])
            assert not np.array_equal(vectors[0], vectors[1])

    asyncio.run(embed())


def test_frames_go_as_images_and_a_video_as_a_video() -> None:
    seen: list[httpx.Request] = []
    frames, video = Clip((b"\x89PNG1", b"\xff\xd8\xff2"), is_list=True), Clip((b"mp4",), is_list=False)
    conversation = [Said("user", (frames, video, "What?")), Said("assistant", ("nothing",))]
    asked(scripted(said("x"), seen=seen), conversation, model="m", embeds=False, key="secret")
    body = json.loads(seen[0].content)
    contents = body["messages"][0]["content"]
    assert [each["type"] for each in contents] == ["image_url", "image_url", "video_url", "text"]
    assert [each["image_url"]["url"].split(";")[0] for each in contents[:2]] == ["data:image/png", "data:image/jpeg"]
    assert contents[2]["video_url"]["url"] == f"data:video/mp4;base64,{base64.b64encode(b'mp4').decode()}"
    assert body["messages"][1] == {"role": "assistant", "content": "nothing"}
    assert (body["temperature"], body["max_tokens"], body["model"]) == (0, 32, "m")
    assert seen[0].headers["Authorization"] == "Bearer secret"


def test_a_refused_question_is_no_failed_run() -> None:
    answer = httpx.Response(400, json={"error": {"message": "4000 tokens, and there is room for 64"}})
    with pytest.raises(RefusedError, match="400: 4000 tokens"):
        asked(scripted(answer), model="m", embeds=False)


def test_a_busy_endpoint_is_asked_again() -> None:
    seen: list[httpx.Request] = []
    busy = httpx.Response(429, headers={"Retry-After": "0"})
    assert asked(scripted(busy, busy, said("red"), seen=seen), model="m", embeds=False) == "red"
    assert len(seen) == 3
    with pytest.raises(MachineError, match="answered 503"):
        asked(scripted(httpx.Response(503, headers={"Retry-After": "0"})), model="m", embeds=False)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (httpx.Response(401, json={"error": {"message": "no key"}}), r"401: no key; set the key's .*--key-env"),
        (httpx.Response(404, text="nothing here"), "404: nothing here"),
        (httpx.Response(200, text="<html>"), "no JSON: '<html>'"),
        (httpx.Response(200, json=[]), "no JSON object"),
        (httpx.Response(200, json={"choices": []}), "without choices"),
    ],
)
def test_an_endpoint_that_answers_otherwise_ends_the_run(answer: httpx.Response, words: str) -> None:
    with pytest.raises(MachineError, match=words):
        asked(scripted(answer), model="m", embeds=False)


@pytest.mark.parametrize("url", ["http://localhost:80a", "http://[::1", "localhost:8000", "http:///v1", "ftp://a/v1"])
def test_an_address_that_is_none_is_told(url: str) -> None:
    with pytest.raises(SettingsError, match="is no URL of an endpoint"):
        EndpointRespondent(url)


def test_fewer_vectors_than_inputs_end_the_run() -> None:
    async def main() -> None:
        one = httpx.Response(200, json={"data": [{"index": 0, "embedding": [1.0, 0.0]}]})
        async with EndpointRespondent("http://test", "m", embeds=True, transport=scripted(one)) as respondent:
            with pytest.raises(MachineError, match="answered without vectors"):
                await respondent.embed(["a", "b"])

    asyncio.run(main())


def test_an_endpoint_that_is_not_there_is_named() -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(MachineError, match=r"http://test/v1/chat/completions cannot be reached: refused"):
        asked(httpx.MockTransport(fail), model="m", embeds=False)

    def hang(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("slow")

    with pytest.raises(MachineError, match="did not answer within 2 s"):
        asked(httpx.MockTransport(hang), model="m", embeds=False, timeout_s=2)


def test_of_several_models_one_must_be_named() -> None:
    with pytest.raises(SettingsError, match="has the models fake-vlm, other; name one with --name"):
        asked(own(FAKE_VLM, replace(FAKE_VLM, name="other")))
    with pytest.raises(SettingsError, match="file://x is no URL of an endpoint"):
        EndpointRespondent("file://x")
